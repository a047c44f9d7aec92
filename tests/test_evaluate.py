"""`evaluate` counts what is there: masks made by hand, a model compared with itself, and labels that do not fit."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert import data, evaluate
from convert.__main__ import main
from tests import tiny
from tests.test_quantize import quantize

DATA = Path(__file__).parents[2] / "shared" / "data"


def test_scores_of_a_function_that_is_half_right() -> None:
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 1
    label[:4] = 255  # does not count
    sample = data.Sample("half", np.zeros((40, 60, 3), np.uint8), label)
    scores = evaluate.evaluate(lambda frame: np.zeros((4, 6), np.uint8), [sample], tiny.CLASSES[:2])
    assert scores.iou == {"ground": 0.5, "fox": 0.0}
    assert scores.miou == 0.25 and scores.pixel_accuracy == 0.5


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised tiny network, pictures, and labels that are the network's own class maps."""
    from models import Segmenter

    folder = tmp_path_factory.mktemp("labelled")
    _, file = quantize(folder)
    model = Segmenter(file)
    (folder / "labels").mkdir()
    for picture in (folder / "pictures").iterdir():
        ids = model.segment(cv2.imread(str(picture)))  # type: ignore[arg-type]
        cv2.imwrite(str(folder / "labels" / picture.name), ids)
    return folder


def command(folder: Path, *options: str, labels: str = "labels") -> int:
    arguments = ["evaluate", str(folder / "tiny.tflite"), "--images", str(folder / "pictures")]
    return main([*arguments, "--labels", str(folder / labels), *options])


def test_a_model_that_meets_its_own_maps_is_perfect(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(labelled, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 4
    assert told["miou"] == 1 and told["pixel_accuracy"] == 1
    assert set(told["iou"]) == {info.name for info in tiny.CLASSES}


def test_the_float_network_stands_beside_and_the_card_keeps_both(labelled: Path) -> None:
    assert command(labelled, "--against", str(labelled / "tiny.npz"), "--record") == 0
    scores = json.loads((labelled / "tiny.json").read_text())["scores"]
    assert scores["miou"] == 1
    assert 0.7 < scores["against"]["miou"] < 1  # rounding moves some borders
    assert scores["against"]["file"] == "tiny.npz"


@pytest.mark.parametrize(
    ("options", "labels", "says"),
    [
        (["--ids", "wolf=3"], "labels", "'wolf'"),
        (["--ids", "fox"], "labels", "does not give label ids"),
        (["--against", "none.npz"], "labels", "No file"),
        ([], "missing", "has no label"),
        ([], "wrong", "which is no class"),
        ([], "small", "both must have the same size"),
    ],
)
def test_what_does_not_fit_is_named(
    labelled: Path, capsys: pytest.CaptureFixture[str], options: list[str], labels: str, says: str
) -> None:
    for name, value, size in (("missing", 0, None), ("wrong", 7, (80, 96)), ("small", 0, (40, 48))):
        (labelled / name).mkdir(exist_ok=True)
        for picture in (labelled / "pictures").iterdir() if size else ():
            cv2.imwrite(str(labelled / name / picture.name), np.full(size, value, np.uint8))
    assert command(labelled, *options, labels=labels) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


def test_the_shipped_person_model_on_real_pictures() -> None:
    """A handful only: the whole of VOC-person val is scored by the command on the card."""
    folder = DATA / "voc_person"
    if not folder.is_dir():
        pytest.skip(f"no pictures at {folder}")
    from models import Segmenter

    model = Segmenter("person")
    table = data.lookup(model.card.classes, {"person": [15]}, [255])
    names = {path.stem for path in sorted((folder / "val").iterdir())[:12]}
    samples = data.load_pairs(folder / "val", folder / "val_labels", table, only=names)
    scores = evaluate.evaluate(model.segment, samples, model.card.classes)
    person = scores.iou["person"]
    assert person is not None and person > 0.6
