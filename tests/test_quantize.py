"""A tiny real network goes through the whole converter: checkpoint, calibration, integer file, card, class map."""

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from convert import calibrate, flatbuffer, floats
from convert.__main__ import main
from convert.checkpoint import Checkpoint
from convert.files import draw_pictures
from convert.fold import fold
from convert.quantize import agreement, quantise
from convert.verify import verify
from models import Segmenter, card, names, resolve
from tests import tiny


def quantize(folder: Path, *options: str, **network: object) -> tuple[Checkpoint, Path]:
    """Run the command on a tiny checkpoint and a few pictures."""
    folder.mkdir(exist_ok=True)
    checkpoint = tiny.checkpoint(**network)  # type: ignore[arg-type]
    checkpoint.save(folder / "tiny.npz")
    pictures = tiny.pictures(folder / "pictures")
    file = folder / "tiny.tflite"
    arguments = ["quantize", str(folder / "tiny.npz"), "--images", str(pictures), "-o", str(file), "--pictures", "4"]
    assert main([*arguments, *options]) == 0
    return checkpoint, file


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return quantize(tmp_path_factory.mktemp("tiny"))


def test_the_file_is_integer_only_and_xnnpack_takes_the_work(converted: tuple[Checkpoint, Path]) -> None:
    report = verify(converted[1])
    assert report.integer_only and report.float_tensors == []
    assert not {"DEQUANTIZE", "SOFTMAX", "GELU", "RSQRT"} & set(report.operators)
    assert report.xnnpack_share > 0.9


def test_every_fully_connected_has_a_bias(converted: tuple[Checkpoint, Path]) -> None:
    for path in (converted[1], *map(resolve, names())):  # without one tflite-runtime 2.14 dies, but on Arm only
        dense = [each for each in flatbuffer.unpack(path.read_bytes()).operators if each.kind == "FULLY_CONNECTED"]
        assert [each.output.name for each in dense if len(each.inputs) < 3 or each.inputs[2] is None] == [], path.name


def test_no_product_lies_where_x86_and_arm_round_apart(converted: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    imported = quantize(tmp_path, activation="gelu", stride=16, cosine=True, mask_norm=True, precise=True)[1]
    smooth = quantize(tmp_path / "silu", activation="silu")[1]
    for path in (converted[1], imported, smooth, *map(resolve, names())):
        for each in flatbuffer.unpack(path.read_bytes()).operators:
            if each.kind == "MUL" and each.output.dtype == np.int8:
                x, y = (each.operand(position) for position in (0, 1))
                left, right = (np.arange(-128, 128) - tensor.zero_point for tensor in (x, y))
                results = np.multiply.outer(left, right) * (x.step * y.step / each.output.step)
                within = results[np.abs(results) < 256]
                assert np.abs(within % 1 - 0.5).min() > 1e-6, f"{each.output.name} in {path.name}"


def test_files_of_other_sizes_share_the_kernels(converted: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    def kernels(path: Path) -> dict[str, np.ndarray]:
        found = {}
        for operator in flatbuffer.unpack(path.read_bytes()).operators:
            for tensor in filter(None, operator.inputs):
                if tensor.data is not None and tensor.name.endswith("/kernel"):
                    found[tensor.name] = tensor.data
        return found

    wide = quantize(tmp_path, "--size", "64x96")[1]
    assert Segmenter(wide, threads=1).width == 96
    first, second = kernels(converted[1]), kernels(wide)
    assert len(first) > 10 and first.keys() == second.keys()
    for name, kernel in first.items():
        np.testing.assert_array_equal(kernel, second[name], err_msg=name)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_class_maps_are_as_large_as_the_input_at_every_stride(stride: int, tmp_path: Path) -> None:
    model = Segmenter(quantize(tmp_path, stride=stride)[1], threads=1)  # read whole: the next one takes its place
    cells = quantize(tmp_path, "--grid", stride=stride)[1]
    for pixels in draw_pictures([tmp_path / "pictures"], 4, 64, 64):
        small = Segmenter(cells, threads=1).infer(pixels)
        assert small.shape == (64 // stride, 64 // stride)
        np.testing.assert_array_equal(model.infer(pixels), small.repeat(stride, 0).repeat(stride, 1))


def test_class_maps_are_those_of_the_float_network(converted: tuple[Checkpoint, Path]) -> None:
    checkpoint, file = converted
    model, folded = Segmenter(file, threads=1), fold(checkpoint)
    equal = []
    for pixels in draw_pictures([file.parent / "pictures"], 4, 64, 64):
        ids = model.infer(pixels)
        truth = floats.scores(folded, checkpoint.config, pixels)[0].argmax(-1).repeat(4, 0).repeat(4, 1)
        assert ids.shape == (64, 64) and ids.dtype == np.uint8
        assert len(np.unique(truth)) > 1  # else agreeing would prove nothing
        equal.append((ids == truth).mean())
    assert np.mean(equal) > 0.9


@pytest.mark.parametrize(
    "network",
    [
        {"activation": "gelu"},
        {"activation": "silu"},
        {"height": 48, "width": 80},  # rectangular
        {"stride": 8},  # eight pixels: repeated by concatenation instead of by multiplication
        {"stride": 16},  # one class for each patch, as in the original Segmenter
        {"stride": 2},
    ],
    ids=lambda network: " ".join(f"{key}={value}" for key, value in network.items()),
)
def test_other_networks(tmp_path: Path, network: dict[str, object]) -> None:
    _, file = quantize(tmp_path, **network)
    assert verify(file).integer_only
    told = json.loads(file.with_suffix(".json").read_text())
    assert told["calibration"]["agreement"] > 0.85
    assert Segmenter(file).segment(np.zeros((50, 70, 3), np.uint8)).shape == (50, 70)


def test_a_grid_of_classes_is_the_full_map_at_its_cells(tmp_path: Path, converted: tuple[Checkpoint, Path]) -> None:
    _, file = quantize(tmp_path, "--grid")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    grid, full = Segmenter(file).infer(pixels), Segmenter(converted[1]).infer(pixels)
    assert grid.shape == (16, 16)
    np.testing.assert_array_equal(grid.repeat(4, 0).repeat(4, 1), full)


def test_the_card_tells_the_file(converted: tuple[Checkpoint, Path]) -> None:
    checkpoint, file = converted
    told = card(file)
    assert told.classes == tiny.CLASSES
    assert told.details["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told.details["network"] == json.loads(json.dumps(asdict(checkpoint.config)))
    assert told.details["calibration"]["pictures"] == 4


def test_classes_are_in_the_file_itself(converted: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone.tflite"
    alone.write_bytes(converted[1].read_bytes())
    with zipfile.ZipFile(alone) as archive:
        assert archive.testzip() is None
        assert archive.read("labelmap.txt").decode().splitlines() == [info.name for info in tiny.CLASSES]
    assert card(alone).classes == tiny.CLASSES


def test_equal_runs_write_equal_files(converted: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    assert quantize(tmp_path)[1].read_bytes() == converted[1].read_bytes()


def test_what_is_packed_can_be_unpacked(converted: tuple[Checkpoint, Path]) -> None:
    graph = flatbuffer.unpack(converted[1].read_bytes())
    assert graph.source is not None and graph.source.shape == (1, 64, 64, 3) and graph.source.dtype is np.uint8
    assert graph.sink is not None and graph.sink.shape == (1, 64, 64)
    products = [operator for operator in graph.operators if operator.kind == "FULLY_CONNECTED"]
    scales = {product.operand(1).name: np.size(product.operand(1).scale) for product in products}
    assert scales["encoder/0/fc1/kernel"] == 128  # one scale for each output


def test_small_class_embeddings_keep_their_classes(tmp_path: Path) -> None:
    """Embeddings far below the patch tokens' scale: only their direction counts in the first block, and it stays."""
    checkpoint = tiny.checkpoint()
    checkpoint.arrays["decoder/classes"] *= 0.05
    pictures = draw_pictures([tiny.pictures(tmp_path)], 4, 64, 64)
    folded = fold(checkpoint)
    model = quantise(checkpoint, calibrate.numbers(folded, checkpoint.config, pictures))
    assert agreement(checkpoint, folded, model, pictures) > 0.9


def test_degenerate_weights_convert(tmp_path: Path) -> None:
    """A dead neuron with a bias, no position embedding, and scores without offsets."""
    checkpoint = tiny.checkpoint()
    for name in ("position", "decoder/norm/bias"):
        checkpoint.arrays[name][:] = 0
    checkpoint.arrays["encoder/0/fc1/kernel"][:, 3] = 0
    checkpoint.arrays["encoder/0/fc1/bias"][3] = 0.5
    pictures = draw_pictures([tiny.pictures(tmp_path)], 4, 64, 64)
    folded = fold(checkpoint)
    model = quantise(checkpoint, calibrate.numbers(folded, checkpoint.config, pictures))
    assert agreement(checkpoint, folded, model, pictures) > 0.9
    graph = flatbuffer.unpack(model)
    (layer,) = (operator for operator in graph.operators if operator.output.name == "encoder/0/fc1")
    bias = layer.operand(2)
    assert bias.data is not None and bias.scale is not None
    before = fold(checkpoint)["encoder/0/fc1/bias"]
    np.testing.assert_allclose(bias.data * np.asarray(bias.scale), before, atol=0.02)


@pytest.mark.parametrize("frame", ["black", "white", "grey", "noise"])
def test_extreme_frames_run(converted: tuple[Checkpoint, Path], frame: str) -> None:
    levels = {"black": 0, "white": 255, "grey": 128}
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = noise if frame == "noise" else np.full((64, 64, 3), levels[frame], np.uint8)
    assert Segmenter(converted[1]).segment(pixels).max() < len(tiny.CLASSES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checkpoint": "none.npz"}, "No file"),
        ({"checkpoint": "text.npz"}, "not a readable .npz"),
        ({"checkpoint": "other.npz"}, "not a checkpoint"),
        ({"checkpoint": "short.npz"}, "lacks 'encoder/0/fc1/kernel'"),
        ({"checkpoint": "odd.npz"}, "'patch/bias' of shape (7,)"),
        ({"checkpoint": "nan.npz"}, "'encoder/0/fc1/kernel' with values that are no numbers"),
        ({"images": "nowhere"}, "No folder"),
        ({"images": "empty"}, "too few"),
        ({"images": "broken"}, "not a readable picture"),
        ({"output": "out.bin"}, "must end in .tflite"),
        ({"output": "tiny.npz/out.tflite"}, "is not a folder to write in"),
        ({"output": "folder.tflite"}, "folder.json is a folder"),
        ({"pictures": "0"}, "at least one"),
        ({"pictures": "99"}, "too few"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    checkpoint = tiny.checkpoint()
    checkpoint.save(tmp_path / "tiny.npz")
    with np.load(tmp_path / "tiny.npz") as archive:
        arrays = dict(archive)
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "short.npz", **{k: v for k, v in arrays.items() if k != "encoder/0/fc1/kernel"})
    broken = np.full_like(arrays["encoder/0/fc1/kernel"], np.nan)
    np.savez(tmp_path / "nan.npz", **{**arrays, "encoder/0/fc1/kernel": broken})
    (tmp_path / "folder.json").mkdir()
    np.savez(tmp_path / "odd.npz", **{**arrays, "patch/bias": np.zeros(7, np.float32)})
    tiny.pictures(tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for number in range(4):
        (tmp_path / "broken" / f"{number}.png").write_text("not a picture")
    chosen = {"checkpoint": "tiny.npz", "images": "pictures", "output": "out.tflite", "pictures": "4"} | change
    before = set(tmp_path.rglob("*"))
    code = main([
        "quantize", str(tmp_path / chosen["checkpoint"]), "--images", str(tmp_path / chosen["images"]),
        "-o", str(tmp_path / chosen["output"]), "--pictures", chosen["pictures"],
    ])  # fmt: skip
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ImportError("No module named 'keras'"), 2), (KeyboardInterrupt(), 130)],
    ids=["wheel", "Ctrl-C"],
)
def test_a_missing_wheel_is_one_sentence_and_ctrl_c_none(raised: BaseException, code: int, monkeypatch, capsys) -> None:
    def stopped(args: object) -> int:
        raise raised

    monkeypatch.setattr("convert.verify.main", stopped)
    assert main(["verify", "any.tflite"]) == code
    told = capsys.readouterr().err
    assert told == "" or (told.count("\n") == 1 and "pip install -e '.[convert]'" in told)
