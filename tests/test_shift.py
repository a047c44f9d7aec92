"""I-ViT's operators give the integers of their definitions, and files made of them are integer-only."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import calibrate, flatbuffer, proof, reference
from convert.checkpoint import preset
from convert.files import draw_pictures
from convert.fold import fold
from convert.graph import Graph, Tensor
from convert.quantised import Quantised
from convert.quantize import agreement, quantise
from convert.shift import LambdaShiftOps, ShiftOps, widened
from convert.verify import verify
from models.runtime import interpreter, runtime
from tests import tiny
from tests.test_quantize import quantize

CONFIG = replace(preset("tiny", 2), dim=192, heads=3)
MOST = 2**31 - 1


# The definitions, in 64-bit integers, after I-ViT's code (zkkli/I-ViT, models/quantization_utils/quant_modules.py).
def shift_exp(x: Any, scale: float, n: int) -> Any:
    x0 = math.floor(-1 / scale)
    xp = np.maximum(x + x // 2 - x // 16, n * x0)
    q = xp // x0
    r = xp - q * x0
    return (r // 2 - x0) * 2 ** (n - q)


def shiftmax(x: Any, scale: float) -> Any:
    e = shift_exp(x - x.max(-1, keepdims=True), scale, 15)
    return e * (MOST // e.sum(-1, keepdims=True)) // 2**16


def shift_sigmoid(x: Any, scale: float, cutoff: float = math.inf) -> Any:
    bounded = np.minimum(x, int(min(cutoff, 1e6) / scale))
    m = np.maximum(bounded.max(-1, keepdims=True), 0)
    e, one = shift_exp(bounded - m, scale, 23), shift_exp(-m, scale, 23)
    return e * (MOST // (e + one)) // 2**24


def i_layer_norm(x: Any) -> Any:
    y = x  # less its mean, which is 0 here
    large = np.minimum(((y // 32) ** 2).sum(-1, keepdims=True) // 2**20, 1)
    y = (y + 16 * large) // 32**large
    v, k = (y**2).sum(-1, keepdims=True), 2**16
    for _ in range(10):
        k = (k + v // k) // 2
    return y * (MOST // k) // 2


def steps(ops: ShiftOps, make: Any, x: np.ndarray, scale: float) -> tuple[dict[str, np.ndarray], str]:
    """Run a few steps on integers through the runtime's kernels: every tensor by name, and the last one's name."""
    source = Tensor("x", x.shape, x.dtype.type, scale)
    ops.graph.source, ops.graph.sink = source, make(source)
    file = Path(ops.folder, "steps.tflite")  # type: ignore[attr-defined]
    file.write_bytes(flatbuffer.pack(ops.graph, tiny.CLASSES, ""))
    opened = proof.preserved(file)
    opened.set_tensor(opened.get_input_details()[0]["index"], x)
    opened.invoke()
    found = {detail["name"]: opened.get_tensor(detail["index"]) for detail in opened.get_tensor_details()}
    return found, ops.graph.sink.name


def operators(folder: Path, kind: type[ShiftOps] = ShiftOps, **limits: float) -> ShiftOps:
    ops = kind(Quantised({name.replace("_", "/"): value for name, value in limits.items()}, {}, {}), CONFIG)
    ops.folder = folder  # type: ignore[attr-defined]
    return ops


@pytest.mark.parametrize("tokens", [50, 1300])  # with 1300 and fine steps e has fewer bits, or its sum would not fit
def test_shiftmax_is_its_definition(tmp_path: Path, tokens: int) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (1, 2, 20, tokens)).astype(np.int8)
    x[0, 0, 0] = 127  # an even row
    scale = 8 / 127
    ops = operators(tmp_path)

    def make(scores: Tensor) -> Tensor:
        return ops.exp("a/weights", scores)

    found, name = steps(ops, make, x, scale)
    wide = x.astype(np.int64)
    np.testing.assert_array_equal(found[name], shiftmax(wide, scale))
    exact = np.exp(scale * (wide - wide.max(-1, keepdims=True)))
    exact /= exact.sum(-1, keepdims=True)
    assert np.abs(found[name] / 2**15 - exact).max() < 0.05
    assert found[name].max() < 2**15


@pytest.mark.parametrize("kind", [ShiftOps, LambdaShiftOps])
@pytest.mark.parametrize("largest", [4.0, 20.0])
def test_shift_gelu_is_its_definition(tmp_path: Path, kind: type[ShiftOps], largest: float) -> None:
    rng = np.random.default_rng(0)
    scale = largest / 127
    real = rng.normal(-1, 1.2, (1, 40, 64))
    real[:, ::2, 0] = largest  # the long tail
    real[:, 3] = -np.abs(real[:, 3])  # a row with no positive value
    x = np.clip(np.round(real / scale), -128, 127).astype(np.int8)
    ops = operators(tmp_path, kind, a_fc1=largest)
    found, _ = steps(ops, lambda y: ops.smooth("a/fc1", y), x, scale)
    sigmoid = shift_sigmoid(x.astype(np.int64), 1.702 * scale, kind.cutoff)
    np.testing.assert_array_equal(found["a/fc1/sigmoid"], sigmoid)
    exact = x * scale / (1 + np.exp(-1.702 * x * scale))
    error = np.sqrt(np.square(found["a/fc1"] * ops.scale("a/fc1") - exact).mean())
    # A tail of 20 collapses the plain sigmoid to 1/2; the bounded one keeps it
    assert error > 0.3 if kind is ShiftOps and largest > 10 else error < 0.15


def test_i_layer_norm_is_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.geomspace(20, 9000, 60)[:, np.newaxis]
    x = np.clip(np.round(rng.normal(0, 1, (1, 60, 192)) * sizes), -32768, 32767)
    x[0, 0], x[0, 1], x[0, 2] = 0, [-32768, 32767] * 96, 0  # nothing, and the most there can be
    x[0, 2, 0] = 32767  # all of it in one channel
    ops = operators(tmp_path, n_norm1=8.0)
    found, name = steps(ops, lambda source: ops.norm("n/norm1", source), x.astype(np.int16), 0.001)
    divided = i_layer_norm(x.astype(np.int64))
    np.testing.assert_array_equal(found["n/norm1/divided"], divided)
    rows = x[0, 3:]
    exact = rows / np.sqrt(np.square(rows).mean(-1, keepdims=True))
    assert np.abs(found[name][0, 3:] * ops.scale(name) - exact).max() < 0.1


@pytest.fixture(scope="module", params=["shift", "lambda-shift"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return quantize(folder, "--operators", request.param, activation="gelu")[1]


def test_the_file_is_integer_only_and_agrees_with_float(converted: Path) -> None:
    report = verify(converted)
    assert report.proven and not {"GELU", "ELU", "GATHER", "SOFTMAX", "DEQUANTIZE"} & set(report.operators)
    told = json.loads(converted.with_suffix(".json").read_text())
    assert told["operators"] == converted.parent.name.rstrip("0")
    assert told["calibration"]["agreement"] > 0.8


def test_the_stream_and_the_weights_of_attention_have_16_bits(converted: Path) -> None:
    tensors = {tensor.name: tensor for tensor in flatbuffer.unpack(converted.read_bytes()).tensors()}
    names = ("patches", "patches/sum", "encoder/0/proj", "encoder/1/sum1", "encoder/1/sum2", "decoder/input")
    assert {tensors[name].dtype for name in names} == {np.int16}
    assert tensors["encoder/0/weights"].step == 2**-15
    opened = interpreter(converted)
    assert opened.get_input_details()[0]["dtype"] is np.uint8


def test_every_kernel_computes_what_the_arithmetic_says(converted: Path) -> None:
    found = proof.kernels(converted, draw_pictures([converted.parent / "pictures"], 2, 64, 64))
    assert {"DIV", "RIGHT_SHIFT", "MAXIMUM", "QUANTIZE", "BATCH_MATMUL", "ADD"} <= set(found)
    assert not {kind: agreement for kind, agreement in found.items() if agreement.largest}


def test_its_weights_cannot_be_read_back(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convert.__main__ import main

    assert main(["sqnr", str(converted), "--images", str(converted.parent / "pictures"), "--pictures", "1"]) == 2
    error = capsys.readouterr().err
    assert "checkpoint" in error and error.count("\n") == 1


def test_dead_writers_and_large_biases_convert(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    checkpoint.arrays["encoder/0/fc2/kernel"][:] = 0
    checkpoint.arrays["encoder/0/fc2/bias"][3] = 50.0
    folded, config = fold(checkpoint), checkpoint.config
    pictures = draw_pictures([tiny.pictures(tmp_path / "pictures")], 4, 64, 64)
    numbers = widened(calibrate.numbers(folded, config, pictures), config, pictures)
    model = quantise(checkpoint, numbers, operators="shift")
    assert agreement(checkpoint, folded, model, pictures) > 0.9


def test_the_residual_s_addition_is_exact_for_any_values() -> None:
    """Near halves TFLite's two roundings show: many values, two scales."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-20000, 20000, (1, 300_000)).astype(np.int16) for _ in range(2))
    a, b = Tensor("x", x.shape, np.int16, 0.000226), Tensor("y", y.shape, np.int16, 0.0000826)
    graph = Graph()
    options = {"table": "AddOptions", "potScaleInt16": False}
    total = graph.add("ADD", (a, b), "total", x.shape, np.int16, 0.000163, **options)
    opened = runtime()[1].Interpreter(model_content=flatbuffer.cut(graph.operators[0]))
    opened.allocate_tensors()
    for door, values in zip(opened.get_input_details(), (x, y), strict=True):
        opened.set_tensor(door["index"], values)
    opened.invoke()
    found = opened.get_tensor(opened.get_output_details()[0]["index"])
    np.testing.assert_array_equal(found, reference.compute(graph.operators[0], [x, y]))
    assert found.dtype == np.dtype(total.dtype)
