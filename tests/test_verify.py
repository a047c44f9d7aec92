"""`verify` finds every float, also those behind doors that read int8."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import baseline, flatbuffer, openvino_file, proof, reference
from convert.__main__ import main
from convert.files import draw_pictures
from convert.verify import verify
from models.runtime import interpreter, runtime
from tests import tiny
from tests.test_quantize import quantize

DATA = Path(__file__).parents[2] / "shared" / "data"


STOCK = ("float32", "dynamic", "stock-int8")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny network by TensorFlow's converter, in each kind."""
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = tiny.checkpoint("gelu")
    pictures = draw_pictures([tiny.pictures(folder / "pictures")], 4, 64, 64)
    files = {}
    for kind in STOCK:
        files[kind] = folder / f"{kind}.tflite"
        files[kind].write_bytes(baseline.export(checkpoint, kind, pictures))
    return files


@pytest.mark.parametrize("kind", STOCK)
def test_stock_files_fail_and_the_operators_are_named(exported: dict[str, Path], kind: str) -> None:
    report = verify(exported[kind])
    assert not report.integer_only
    assert any("float32" in name for name in report.float_tensors)


def test_the_stock_full_int8_file_hides_its_floats_behind_integer_doors(
    exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = interpreter(exported["stock-int8"])
    assert opened.get_input_details()[0]["dtype"].__name__ == "uint8"
    assert opened.get_output_details()[0]["dtype"].__name__ == "uint8"
    assert main(["verify", str(exported["stock-int8"]), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["integer_only"] is False
    assert told["operators"]["DEQUANTIZE"] > 0
    assert any("DEQUANTIZE" in name or "NEG" in name for name in told["float_tensors"])


def test_floats_are_found_where_no_operator_looks(exported: dict[str, Path], tmp_path: Path) -> None:
    """In a second subgraph, or in a tensor that nothing uses."""
    schema = flatbuffer.schema
    model = schema.ModelT.InitFromPackedBuf(quantize(tmp_path)[1].read_bytes(), 0)
    stray = schema.TensorT()
    stray.name, stray.shape, stray.type = b"stray", np.array([1], np.int32), schema.TensorType.FLOAT32
    model.subgraphs[0].tensors.append(stray)
    builder = flatbuffer._Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    file = tmp_path / "stray.tflite"
    file.write_bytes(bytes(builder.Output()))
    assert verify(file).float_tensors == ["stray (float32, in no operator)"]


def test_a_peer_that_is_integer_only_passes() -> None:
    file = DATA / "peer_models" / "deeplabv3_mnv2_pascal_quant.tflite"
    if not file.is_file():
        pytest.skip(f"no peer model at {file}")
    assert verify(file).integer_only


@pytest.mark.parametrize(("name", "says"), [("none.tflite", "No file"), ("text.tflite", "is not a TFLite model")])
def test_what_is_no_model_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    (tmp_path / "text.tflite").write_text("hello, I am a text file")
    assert main(["verify", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def integer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our file of the same network, GELU table included."""
    return quantize(tmp_path_factory.mktemp("integer"), activation="gelu")[1]


def test_silu_is_as_the_arithmetic_says_and_xnnpack_takes_it(tmp_path: Path) -> None:
    file = quantize(tmp_path, activation="silu")[1]
    pictures = draw_pictures([tmp_path / "pictures"], 2, 64, 64)
    found = proof.kernels(file, pictures)
    assert not {kind: agreement for kind, agreement in found.items() if agreement.largest}
    assert max(agreement.largest for agreement in proof.xnnpack(file, pictures).values()) <= 1
    report = verify(file)
    assert report.operators["LOGISTIC"] == tiny.checkpoint().config.depth + tiny.checkpoint().config.decoder_depth
    assert not {"LOGISTIC", "FULLY_CONNECTED", "BATCH_MATMUL"} & set(report.outside_xnnpack)


def test_every_kernel_computes_what_the_arithmetic_says(integer: Path) -> None:
    pictures = draw_pictures([integer.parent / "pictures"], 2, 64, 64)
    found = proof.kernels(integer, pictures)
    assert {"FULLY_CONNECTED", "BATCH_MATMUL", "MUL", "ADD", "SUB", "ELU", "GELU", "GATHER"} <= set(found)
    inexact = {kind: agreement for kind, agreement in found.items() if agreement.largest}
    assert not inexact


def test_the_reference_runs_the_whole_graph_to_the_same_class_map(integer: Path) -> None:
    graph = flatbuffer.unpack(integer.read_bytes())
    (pixels,) = draw_pictures([integer.parent / "pictures"], 1, 64, 64)
    plain = runtime()[1].OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    opened = interpreter(integer, experimental_op_resolver_type=plain)
    opened.set_tensor(opened.get_input_details()[0]["index"], pixels)
    opened.invoke()
    mine = reference.run(graph, pixels)[id(graph.sink)]
    assert len(np.unique(mine)) > 1
    np.testing.assert_array_equal(mine, opened.get_tensor(opened.get_output_details()[0]["index"]))


def test_xnnpack_is_within_one_step_on_equal_inputs(integer: Path) -> None:
    pictures = draw_pictures([integer.parent / "pictures"], 2, 64, 64)
    assert max(agreement.largest for agreement in proof.xnnpack(integer, pictures).values()) <= 1


def test_a_reference_that_is_wrong_would_be_noticed(integer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference.KERNELS, "ELU", lambda operator, x: x)
    pictures = draw_pictures([integer.parent / "pictures"], 1, 64, 64)
    assert proof.kernels(integer, pictures)["ELU"].largest > 1


def test_a_table_that_is_one_entry_short_is_noticed(integer: Path) -> None:
    graph = flatbuffer.unpack(integer.read_bytes())
    assert proof.unsafe_lookups(graph) == []
    position, lookup = next((i, op) for i, op in enumerate(graph.operators) if op.kind == "GATHER")
    table = lookup.operand(0)
    assert table.data is not None
    short = replace(table, shape=(table.shape[0] - 1,), data=table.data[:-1])
    graph.operators[position] = replace(lookup, inputs=(short, lookup.inputs[1]))
    assert proof.unsafe_lookups(graph) == [f"{lookup.output.name} (index 0..765, table of 765)"]


def test_the_command_compares_on_pictures(integer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = str(integer.parent / "pictures")
    assert main(["verify", str(integer), "--images", pictures, "--pictures", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"]["MUL"]["largest"] == 0 and told["xnnpack"]["MUL"]["largest"] <= 1


def test_a_baseline_from_the_integer_file_is_the_same_network(integer: Path, tmp_path: Path) -> None:
    output = tmp_path / "float.tflite"
    assert main(["baseline", str(integer), "--kind", "float32", "-o", str(output)]) == 0
    opened, ours = interpreter(output), interpreter(integer)
    equal = []
    for pixels in draw_pictures([integer.parent / "pictures"], 4, 64, 64):
        maps = []
        for model in (opened, ours):
            model.set_tensor(model.get_input_details()[0]["index"], pixels)
            model.invoke()
            maps.append(model.get_tensor(model.get_output_details()[0]["index"]))
        equal.append((maps[0] == maps[1]).mean())
    assert np.mean(equal) > 0.9


def test_a_baseline_under_another_kinds_ending_is_refused(integer: Path, tmp_path: Path, capsys) -> None:
    assert main(["baseline", str(integer), "--kind", "float32", "-o", str(tmp_path / "out.xml")]) == 2
    assert "must end in .tflite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_of_a_foreign_file_is_refused(
    exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["baseline", str(exported["dynamic"]), "--kind", "float32", "-o", str(tmp_path / "out.tflite")]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.parametrize(
    ("name", "images", "says"),
    [
        ("out.tflite", True, "in .xml"),
        ("out.xml", True, "pip install openvino nncf"),
        ("out.xml", False, "--images DIR"),
    ],
)
def test_an_openvino_baseline_is_refused_before_minutes_of_exporting(
    name: str, images: bool, says: str, integer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(openvino_file.importlib.util, "find_spec", lambda package: None)
    pictures = ["--images", str(integer.parent / "pictures")] if images else []
    command = ["baseline", str(integer), "--kind", "openvino-int8", "-o", str(tmp_path / name), *pictures]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_an_openvino_baseline_is_the_same_network(integer: Path, tmp_path: Path) -> None:
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed here")
    output, pictures = tmp_path / "out.xml", integer.parent / "pictures"
    command = ["baseline", str(integer), "--kind", "openvino-int8", "-o", str(output), "--images", str(pictures)]
    assert main([*command, "--pictures", "4"]) == 0
    import openvino

    theirs, ours = openvino.Core().compile_model(output, "CPU"), interpreter(integer)
    for pixels in draw_pictures([pictures], 2, 64, 64):
        ours.set_tensor(ours.get_input_details()[0]["index"], pixels)
        ours.invoke()
        classes = ours.get_tensor(ours.get_output_details()[0]["index"])
        assert (theirs(pixels)[0] == classes).mean() > 0.8
