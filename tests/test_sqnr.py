"""The report of where the accuracy goes points at the tensor that loses it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from convert import baseline, calibrate, flatbuffer, sqnr
from convert.__main__ import main
from convert.build import build
from convert.checkpoint import Checkpoint
from convert.files import draw_pictures
from convert.quantised import Quantised
from tests import tiny
from tests.test_quantize import quantize


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return quantize(tmp_path_factory.mktemp("sqnr"), activation="gelu")


def test_a_range_that_is_too_small_is_the_worst_tensor(converted: tuple[Checkpoint, Path]) -> None:
    checkpoint, file = converted
    config, pictures = checkpoint.config, draw_pictures([file.parent / "pictures"], 4, 64, 64)  # it was made with these
    numbers = calibrate.numbers(calibrate.rotated(checkpoint, pictures), config, pictures)
    folded = numbers.folded
    limits = {**numbers.limits, "encoder/1/proj": numbers.limits["encoder/1/proj"] / 20}
    graph = build(Quantised(limits, numbers.kernels, folded), config)
    harmed = file.with_name("harmed.tflite")
    harmed.write_bytes(flatbuffer.pack(graph, checkpoint.classes, ""))
    before = {row.name: row for row in sqnr.compare(file, folded, config, pictures)}
    after = {row.name: row for row in sqnr.compare(harmed, folded, config, pictures)}
    worst = min(after.values(), key=lambda row: row.alone)
    assert worst.name == "encoder/1/proj" and worst.clipped > 0.5
    assert before["encoder/1/proj"].clipped < 0.01 and before["encoder/1/proj"].alone > 25
    assert after["encoder/1/sum1"].total < before["encoder/1/sum1"].total - 3  # what follows suffers, too
    assert after["encoder/0/proj"] == before["encoder/0/proj"]  # and nothing before


def test_a_file_alone_is_held_against_its_own_weights(converted: tuple[Checkpoint, Path]) -> None:
    checkpoint, file = converted
    folded, config = baseline.folded(file)
    assert config == checkpoint.config
    pictures = draw_pictures([file.parent / "pictures"], 1, 64, 64)
    scores = {row.name: row.total for row in sqnr.compare(file, folded, config, pictures)}["head/scores"]
    trained, _ = sqnr._float_side(file, file.with_suffix(".npz"))
    against = {row.name: row.total for row in sqnr.compare(file, trained, config, pictures)}["head/scores"]
    assert scores > against > 15  # rounded weights lose, too


def test_the_rotation_of_a_file_is_found_again(converted: tuple[Checkpoint, Path]) -> None:
    checkpoint, file = converted
    exact = calibrate.rotated(checkpoint, draw_pictures([file.parent / "pictures"], 4, 64, 64))
    found, _ = sqnr._float_side(file, file.with_suffix(".npz"))
    for name in ("position", "encoder/1/fc1/kernel", "decoder/0/fc2/kernel"):
        assert np.abs(found[name] - exact[name]).max() < 0.02 * np.abs(exact[name]).max(), name


def test_the_command_draws_and_prints(
    converted: tuple[Checkpoint, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = converted[1]
    images, picture = str(file.parent / "pictures"), tmp_path / "sqnr.svg"
    arguments = ["sqnr", str(file), "--images", images, "--pictures", "2", "--picture", str(picture)]
    assert main([*arguments, "--against", str(file.with_suffix(".npz")), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["pictures"] == 2 and told["scores"] > 15
    dots = ElementTree.fromstring(picture.read_text()).findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 2 * len(told["tensors"]) + 3  # three more in the legend
    assert main(arguments) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[2:-1]]
    totals = [float(row[1]) for row in printed]
    assert len(totals) == sqnr.SHOWN and totals == sorted(totals)


def test_random_weights_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqnr, "CALIBRATION", 2)
    images = str(tiny.pictures(tmp_path / "pictures"))
    tiny.checkpoint().save(tmp_path / "mine.npz")
    assert main(["sqnr", "tiny", str(tmp_path / "mine.npz"), "--images", images, "--pictures", "1"]) == 0
    _, random, mine = capsys.readouterr().out.splitlines()
    assert random.startswith("tiny, random weights") and mine.startswith("mine ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.tflite"], "none.tflite"),
        (["tiny", "--against", "none.npz"], "--against is for .tflite files"),
        (["tiny", "tiny", "--picture", "out.svg"], "One picture shows one network"),
        (["vit-h"], "No file vit-h"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sqnr", *arguments, "--images", str(tiny.pictures(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
