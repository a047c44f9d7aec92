"""Foreign models, as small as can be: one operator that picks out channels, whose class maps are known by hand."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert import flatbuffer
from convert.__main__ import main
from convert.graph import Operator, Tensor, constant
from convert.peer import PEERS, Description, Peer
from models import UserError

DATA = Path(__file__).parents[2] / "shared" / "data"
SHAPE = (1, 6, 8, 3)
FRAME = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
BLUE, GREEN, RED = (FRAME[..., channel] for channel in range(3))
CLASSES = [{"name": "dark", "color": [0, 0, 0]}, {"name": "red", "color": [255, 0, 0]}]


def ints(*values: int) -> Tensor:
    return constant(f"ints{values}", np.array(values, np.int32))


def write(path: Path, kind: str, inputs: tuple[Tensor, ...], output: Tensor, **options: Any) -> Path:
    path.write_bytes(flatbuffer.cut(Operator(kind, inputs, (output,), options)))
    return path


def one_score(path: Path, dtype: Any = np.float32, scale: float | None = None, zero: int = 0) -> Path:
    """A model whose only score is the red channel of its input."""
    source, sink = Tensor("in", SHAPE, dtype, scale, zero), Tensor("out", (*SHAPE[:3], 1), dtype, scale, zero)
    return write(path, "SLICE", (source, ints(0, 0, 0, 0), ints(1, *SHAPE[1:3], 1)), sink, table="SliceOptions")


def ids(path: Path) -> Path:
    """A model that gives the strongest of red, green and blue as 0, 1, 2."""
    source, sink = Tensor("in", SHAPE, np.uint8, 1 / 128, 128), Tensor("out", SHAPE[:3], np.int64)
    return write(path, "ARG_MAX", (source, ints(3)), sink, table="ArgMaxOptions", outputType=4)  # INT64


def scores(path: Path) -> Path:
    """A model that gives red, green and blue as scores of three classes."""
    source, sink = (Tensor(name, SHAPE, np.float32) for name in ("in", "out"))
    return write(path, "ABS", (source,), sink)


def describe(path: Path, *own: Any, **told: Any) -> Path:
    """Write a description: `own` are the ids of each class, None for none."""
    entries = [info | ({} if ids is None else {"ids": ids}) for info, ids in zip(CLASSES, own, strict=True)]
    path.write_text(json.dumps({"classes": entries, **told}))
    return path


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "told"),
    [
        (np.float32, None, 0, {"range": [0, 1]}),  # the threshold is 0.5
        (np.float32, None, 0, {"range": [0, 255], "threshold": 127.5}),
        (np.float32, None, 0, {"range": [-1, 1], "threshold": 0}),
        (np.uint8, 1 / 255, 0, {"range": [0, 1]}),
        (np.uint8, 1 / 127.5, 128, {"range": [-1, 1], "threshold": 0}),
        (np.uint8, 1 / 255, 0, {}),  # pixels as they are
        (np.int8, 1 / 255, -128, {"range": [0, 1]}),
        (np.int8, 1 / 255, -128, {}),
    ],
)
def test_one_score_is_read_in_its_own_numbers(
    tmp_path: Path, dtype: Any, scale: float | None, zero: int, told: dict[str, Any]
) -> None:
    described = Description.load(describe(tmp_path / "d.json", [0], [1], **told))
    classes = Peer(one_score(tmp_path / "m.tflite", dtype, scale, zero), described, threads=1).segment(FRAME)
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, RED >= 128)


@pytest.mark.parametrize(("model", "told"), [(ids, {}), (scores, {"range": [0, 1]})])
def test_ids_are_folded_into_classes(tmp_path: Path, model: Any, told: dict[str, Any]) -> None:
    described = Description.load(describe(tmp_path / "d.json", [1], [0, "2-2"], **told))
    classes = Peer(model(tmp_path / "m.tflite"), described, threads=1).segment(FRAME)
    best = np.stack([RED, GREEN, BLUE], axis=-1).argmax(-1)
    assert set(np.unique(best)) == {0, 1, 2}
    assert np.array_equal(classes, best != 1)


def test_ids_without_a_class_are_class_0(tmp_path: Path) -> None:
    described = Description.load(describe(tmp_path / "d.json", None, [2]))
    classes = Peer(ids(tmp_path / "m.tflite"), described, threads=1).segment(FRAME)
    assert np.array_equal(classes, (RED < BLUE) & (GREEN < BLUE))


@pytest.mark.parametrize(
    ("model", "own", "told", "says"),
    [
        (ids, (None, None), {}, "gives the id 2, which is no class"),
        (scores, ([0], [15]), {"range": [0, 1]}, "has ids 0 to 2 only, not 15"),
        (one_score, ([0], [2]), {"range": [0, 1]}, "has ids 0 to 1 only, not 2"),
        (scores, ([0], [1]), {}, "say in its description what `range`"),
        (ids, (["0-1"], [1]), {}, "the id 1 to two classes"),
        (ids, ([0], ["1-x"]), {}, "'1-x' is not a label id"),
        (ids, ([0], [1]), {"range": [1]}, "is not a description"),
        (ids, ([0], [1]), {"threshold": "high"}, "is not a description"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, model: Any, own: tuple[Any, Any], told: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        described = Description.load(describe(tmp_path / "d.json", *own, **told))
        Peer(model(tmp_path / "m.tflite"), described, threads=1).segment(FRAME)


@pytest.mark.parametrize(
    ("into", "out", "says"),
    [
        ((1, 6, 8, 4), (1, 6, 8, 1), "not one RGB picture"),
        ((2, 6, 8, 3), (2, 6, 8, 1), "not one RGB picture"),
        ((1, 6, 8, 3), (1, 1, 8, 3), "no class map of its picture"),  # not the proportions of the input
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, into: tuple[int, ...], out: tuple[int, ...], says: str) -> None:
    source, sink = Tensor("in", into, np.float32), Tensor("out", out, np.float32)
    cut = (source, ints(0, 0, 0, 0), ints(*out))
    model = write(tmp_path / "m.tflite", "SLICE", cut, sink, table="SliceOptions")
    described = Description.load(describe(tmp_path / "d.json", [0], [1], range=[0, 1]))
    with pytest.raises(UserError, match=says):
        Peer(model, described, threads=1)


def evaluate(folder: Path, *options: str) -> int:
    return main(["evaluate", *options, "--images", str(folder / "pictures"), "--labels", str(folder / "labels")])


def test_the_command_scores_a_described_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, picture in (("pictures", FRAME), ("labels", (RED >= 128).astype(np.uint8))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), picture)
    model = str(one_score(tmp_path / "m.tflite"))
    described = str(describe(tmp_path / "d.json", [0], [1], range=[0, 1]))
    assert evaluate(tmp_path, model, "--describe", described, "--pictures", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["iou"] == {"dark": 1, "red": 1}
    assert (tmp_path / "out" / "worst-01.png").is_file()
    assert evaluate(tmp_path, model) == 2
    assert "describe them with --describe" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.json")), ids=lambda path: path.stem[:40])
def test_the_descriptions_we_ship_fit_their_models(path: Path) -> None:
    described = Description.load(path)
    model = DATA / "peer_models" / f"{path.stem.removesuffix('-street')}.tflite"
    if not model.is_file():
        pytest.skip(f"no model at {model}")
    frame = cv2.imread(str(DATA / "voc_person" / "val" / "000847.jpg"))
    classes = Peer(model, described, threads=1).segment(frame)  # type: ignore[arg-type]
    assert classes.max() < len(described.classes) and len(np.unique(classes)) > 1


def test_a_known_peer_stands_beside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    peer = DATA / "peer_models" / "deeplabv3_257_float.tflite"
    if not peer.is_file():
        pytest.skip(f"no model at {peer}")
    for folder, suffix, name in (("val", "jpg", "pictures"), ("val_labels", "png", "labels")):
        (tmp_path / name).mkdir()
        for stem in ("000847", "2009_000219"):
            file = f"{stem}.{suffix}"
            (tmp_path / name / file).symlink_to(DATA / "voc_person" / folder / file)
    assert evaluate(tmp_path, "person", "--against", str(peer), "--ids", "person=15") == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:]
    assert head.endswith(peer.name) and {len(row) for row in rows} == {len(head)}


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    name = "selfiesegmentation_mlkit-256x256-2021_01_19-v1215.f16"
    model = DATA / "peer_models" / f"{name}.tflite"
    if not model.is_file():
        pytest.skip(f"no model at {model}")
    renamed = model.read_bytes().replace(b"Convolution2DTransposeBias", b"Convolution2DTransposeBiaz")
    (tmp_path / "m.tflite").write_bytes(renamed)
    with pytest.raises(UserError, match=r"cannot load .*Convolution2DTransposeBiaz"):
        Peer(tmp_path / "m.tflite", Description.load(PEERS / f"{name}.json"), threads=1)
