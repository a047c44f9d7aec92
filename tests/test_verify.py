"""`verify` finds every float, also those behind doors that read int8."""

import json
from pathlib import Path

import pytest

from convert import baseline
from convert.__main__ import main
from convert.files import calibration_pictures
from convert.verify import verify
from models.runtime import interpreter
from tests import tiny

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny network by TensorFlow's converter, in each kind."""
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = tiny.checkpoint("gelu")
    pictures = calibration_pictures([tiny.pictures(folder / "pictures")], 4, checkpoint.config)
    files = {}
    for kind in baseline.KINDS:
        files[kind] = folder / f"{kind}.tflite"
        files[kind].write_bytes(baseline.export(checkpoint, kind, pictures))
    return files


@pytest.mark.parametrize("kind", baseline.KINDS)
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
