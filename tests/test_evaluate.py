"""`evaluate` counts what is there: masks made by hand, a model compared with itself, pictures of what went wrong."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert import data, evaluate, scoreboard
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
    assert 0.7 < scores["against"][0]["miou"] < 1  # rounding moves some borders
    assert scores["against"][0]["file"] == "tiny.npz"


def test_a_recipe_says_which_pictures(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"images": "pictures", "labels": "labels"}
    classes = [{"name": info.name, "color": list(info.color)} for info in tiny.CLASSES]
    recipe = {"classes": classes, "train": [source], "val": [{**source, "only": "val.txt"}]}
    (labelled / "recipe.json").write_text(json.dumps(recipe))
    (labelled / "val.txt").write_text("0 2")
    command = ["evaluate", str(labelled / "tiny.tflite"), "--recipe", str(labelled / "recipe.json")]
    assert main([*command, "--data", str(labelled), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 2 and told["miou"] == 1
    assert main(command) == 2 and "--recipe with --data" in capsys.readouterr().err
    (labelled / "recipe.json").write_text(json.dumps({**recipe, "classes": classes[::-1]}))
    assert main([*command, "--data", str(labelled)]) == 2 and "other classes" in capsys.readouterr().err


def test_beside_a_file_a_checkpoint_is_scored_at_its_size(tmp_path: Path) -> None:
    _, file = quantize(tmp_path, "--size", "48x80")
    assert evaluate._size(file) == (48, 80) and evaluate._size(tmp_path / "tiny.npz") is None
    segment, _ = evaluate._opened(tmp_path / "tiny.npz", None, size=evaluate._size(file))
    assert segment(np.zeros((50, 70, 3), np.uint8)).shape == (48, 80)


@pytest.mark.parametrize(
    ("options", "labels", "says"),
    [
        (["--ids", "wolf=3"], "labels", "'wolf'"),
        (["--ids", "fox"], "labels", "does not give label ids"),
        (["--against", "none.npz"], "labels", "No file"),
        (["--describe", "none.json"], "labels", "No description"),
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


def test_records_need_a_card(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.tflite").write_bytes((labelled / "tiny.tflite").read_bytes())  # names its classes inside
    for name in ("pictures", "labels"):
        (tmp_path / name).symlink_to(labelled / name)
    assert command(tmp_path, "--record") == 2
    assert "has no card" in capsys.readouterr().err
    assert command(tmp_path) == 0


# Pictures of what went wrong


def fox_sample(name: str, label: list[int]) -> data.Sample:
    """A grey picture of 40x60 in vertical bands of these classes."""
    ids = np.repeat(np.array(label, np.uint8), 60 // len(label))[np.newaxis].repeat(40, 0)
    return data.Sample(name, np.full((40, 60, 3), 100, np.uint8), ids)


BOARD = scoreboard.Board(tiny.CLASSES[:2], "tiny on x/val")
RIGHT, WRONG = np.array(scoreboard.RIGHT), np.array(scoreboard.WRONG)


def area(picture: np.ndarray, color: np.ndarray) -> int:
    """Count the pixels of about this colour."""
    return int((np.abs(picture.astype(int) - color).max(axis=-1) < 15).sum())


def test_the_worst_pictures_come_first_and_unlabelled_ones_not_at_all() -> None:
    samples = [fox_sample("a", [0, 1]), fox_sample("b", [1, 1]), fox_sample("c", [0, 0]), fox_sample("d", [255, 255])]
    matrices = data.confusions(samples, [np.zeros((4, 6), np.uint8)] * 4, 2)
    assert matrices.shape == (4, 2, 2)
    assert BOARD.worst(matrices) == [1, 0, 2]  # IoU 0, then the mean of 0.5 and 0, then 1
    assert BOARD.worst(matrices.repeat(9, 0)) == [*range(9, 18), 0]  # ten


def test_confusions_are_teal_where_right_and_red_where_wrong() -> None:
    sample = fox_sample("a", [0, 1])
    right = BOARD.confusion(data.confusions([sample], [sample.label], 2))
    wrong = BOARD.confusion(data.confusions([sample], [1 - sample.label], 2))
    cell = scoreboard.LEAST_CELL * scoreboard.ROW // 2  # at least half of each of two cells is not its number
    assert area(right, RIGHT) > 2 * cell and area(right, WRONG) == 0
    assert area(wrong, WRONG) > 2 * cell and area(wrong, RIGHT) == 0
    assert right.dtype == np.uint8 and right.shape == wrong.shape


def test_a_sheet_marks_exactly_what_is_wrong() -> None:
    sample = fox_sample("a", [0, 1, 255])
    half = np.repeat(np.array([[0, 0, 1]], np.uint8), 2, 0)  # misses the fox, paints what does not count
    (matrix,) = data.confusions([sample], [half], 2)
    sheet = BOARD.sheet(sample, half, matrix, "a")
    pad, (columns, rows) = scoreboard.PAD, (480, 320)
    left = pad + 3 * (columns + pad)
    top = int(np.flatnonzero((sheet[:, left + 5] != 255).any(axis=-1))[-1]) - rows + 1  # the panel's last row, back
    panel = sheet[top : top + rows, left : left + columns]
    marked = np.abs(panel.astype(int) - WRONG).max(axis=-1) < 60
    assert marked[:, 170:310].all() and not marked[:, :150].any() and not marked[:, 330:].any()


def test_pictures_are_written_and_those_of_an_earlier_run_go(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "worst-09.png").write_bytes(b"of an earlier run")
    assert command(labelled, "--pictures", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4  # nothing but the scores on stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"confusion.png", *(f"worst-{place:02}.png" for place in range(1, 5))}
    for name in written:
        picture = cv2.imread(str(tmp_path / "out" / name))
        assert picture is not None and picture.shape[1] > 400


def test_pictures_appear_whole_or_not_at_all(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "confusion.png").mkdir()  # in the way
    assert command(labelled, "--pictures", str(tmp_path)) == 2
    assert "choose another place" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


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
