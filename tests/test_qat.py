"""Quantisation-aware fine-tuning: the simulation is the integer graph's arithmetic, and training in it helps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import calibrate, floats, qat
from convert.__main__ import main
from convert.checkpoint import Checkpoint
from convert.data import Scores, load_recipe, load_set
from convert.files import draw_pictures
from convert.fold import fold
from convert.objective import cross_entropy
from convert.quantised import load
from convert.verify import verify
from models import Segmenter, preprocess
from tests import tiny
from tests.test_train import folder as labelled  # noqa: F401  (a fixture)

WORST = Scores(1, -1.0, {}, 0.0)  # where training starts from it, the end is kept


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_without_rounding_it_is_the_float_network(tmp_path: Path, activation: str) -> None:
    checkpoint = tiny.checkpoint(activation)
    folded, config = fold(checkpoint), checkpoint.config
    model = qat.rounded_model(folded, config, None)
    for pixels in draw_pictures([tiny.pictures(tmp_path / "pictures")], 2, 64, 64):
        logits = model.predict_on_batch(pixels.astype(np.float32))
        expected = floats.scores(folded, config, pixels) * config.mask_dim**-0.5
        np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_rounded_it_gives_the_class_map_of_the_integer_file(tmp_path: Path, activation: str) -> None:
    checkpoint = tiny.checkpoint(activation)
    checkpoint.save(tmp_path / "tiny.npz")
    folder, file = tiny.pictures(tmp_path / "pictures"), tmp_path / "tiny.tflite"
    assert (
        main(["quantize", str(tmp_path / "tiny.npz"), "--images", str(folder), "-o", str(file), "--pictures", "4"]) == 0
    )
    pictures = draw_pictures([folder], 4, 64, 64)
    folded = fold(checkpoint)
    numbers = calibrate.numbers(folded, checkpoint.config, pictures)
    student = qat.rounded_model(numbers.folded, checkpoint.config, numbers)
    model, equal, nearest, same = Segmenter(file, threads=1), [], [], []
    for pixels in pictures:
        ids = model.infer(pixels)
        simulated = student.predict_on_batch(pixels.astype(np.float32))[0].argmax(-1).repeat(4, 0).repeat(4, 1)
        real = floats.scores(folded, checkpoint.config, pixels)[0].argmax(-1).repeat(4, 0).repeat(4, 1)
        equal.append((ids == simulated).mean())
        nearest.append((ids == real).mean())
        same.append((simulated == real).mean())
    assert np.mean(equal) > 0.96  # roundings fall differently after a few blocks, but there are as many
    assert np.mean(same) == pytest.approx(np.mean(nearest), abs=0.02)


def test_fine_tuning_brings_the_rounded_network_nearer_to_its_teacher(
    labelled: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = labelled / "recipe.json"
    assert (
        main(["train", str(recipe), "--data", str(labelled), "-o", str(labelled / "float.npz"), "--epochs", "6"]) == 0
    )
    monkeypatch.setattr(qat, "CHECKS", 1)
    run = qat.FineTuning(Checkpoint.load(labelled / "float.npz"), load_recipe(recipe), labelled, 0)
    pixels = np.concatenate([preprocess(sample.frame, 32, 32) for sample in run.held_back]).astype(np.float32)
    truth, before = (softmax(model.predict_on_batch(pixels)) for model in (run.teacher, run.student))
    run.train(4, 5e-4, WORST)
    after = softmax(run.student.predict_on_batch(pixels))
    assert np.abs(after - truth).mean() < np.abs(before - truth).mean()


def test_what_was_fine_tuned_becomes_a_file(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    common = ["train", str(labelled / "recipe.json"), "--data", str(labelled), "--epochs", "4"]
    assert main([*common, "-o", str(labelled / "float.npz")]) == 0
    assert main([*common, "-o", str(labelled / "tuned.npz"), "--quantize", str(labelled / "float.npz")]) == 0
    told = capsys.readouterr()
    assert "by simulation" in told.out and "step 12/12" in told.out and "steps/s" in told.err
    tuned, checkpoint = load(labelled / "tuned.npz")
    samples = load_set(load_recipe(labelled / "recipe.json"), "val", labelled)
    pixels = np.concatenate([preprocess(sample.frame, 32, 32) for sample in samples]).astype(np.float32)
    after = qat.rounded_model(tuned.folded, checkpoint.config, tuned)

    file = labelled / "tuned.tflite"
    assert (
        main(
            [
                "quantize",
                str(labelled / "tuned.npz"),
                "--images",
                str(labelled / "images"),
                "-o",
                str(file),
                "--pictures",
                "4",
            ]
        )
        == 0
    )
    assert json.loads(file.with_suffix(".json").read_text())["calibration"]["method"] == "quantisation-aware"
    assert verify(file).proven
    model = Segmenter(file, threads=1)
    simulated = after.predict_on_batch(pixels).argmax(-1).repeat(4, 1).repeat(4, 2)
    ids = np.stack([model.infer(picture[np.newaxis].astype(np.uint8)) for picture in pixels])
    assert (ids == simulated).mean() > 0.97


def test_true_labels_teach_beside_the_teacher_where_the_recipe_says_so(
    labelled: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qat, "CHECKS", 1)
    missed = []
    for share in (1.0, 0.0):
        recipe = replace(load_recipe(labelled / "recipe.json"), training={"labels": share})
        run = qat.FineTuning(tiny.checkpoint(classes=tiny.CLASSES[:2]), recipe, labelled, 0)
        run.train(8, 5e-3, WORST)
        pixels, labels = next(run._batches())
        missed.append(float(cross_entropy(labels, run.student.predict_on_batch(pixels))))
    assert missed[0] < 0.9 * missed[1]


def test_what_scores_no_better_than_the_start_is_not_kept(labelled: Path) -> None:  # noqa: F811
    recipe, best = load_recipe(labelled / "recipe.json"), Scores(1, 1.1, {}, 1.0)
    run = qat.FineTuning(tiny.checkpoint(classes=tiny.CLASSES[:2]), recipe, labelled, 0)
    before = run.numbers().folded
    assert run.train(2, 1e-2, best) is best
    for name, array in run.numbers().folded.items():
        np.testing.assert_array_equal(array, before[name], name)


def test_another_size_is_fine_tuned_for(labelled: Path) -> None:  # noqa: F811
    tiny.checkpoint(classes=tiny.CLASSES[:2]).save(labelled / "float.npz")
    command = ["train", str(labelled / "recipe.json"), "--data", str(labelled), "-o", str(labelled / "tuned.npz")]
    assert main([*command, "--quantize", str(labelled / "float.npz"), "--size", "32x48", "--epochs", "1"]) == 0
    _, tuned = load(labelled / "tuned.npz")
    assert (tuned.config.height, tuned.config.width) == (32, 48)
    assert "--size 32x48" in tuned.training["commands"][-1]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("option", [["--patch", "8"], ["--activation", "gelu"], ["--resume"], ["--init", "x.npz"]])
def test_options_of_float_training_are_refused(
    labelled: Path,  # noqa: F811
    option: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny.checkpoint().save(labelled / "float.npz")
    command = ["train", str(labelled / "recipe.json"), "--data", str(labelled), "-o", str(labelled / "out.npz")]
    assert main([*command, "--quantize", str(labelled / "float.npz"), *option]) == 2
    assert option[0] in capsys.readouterr().err and not (labelled / "out.npz").exists()


def test_a_recipe_of_other_classes_is_refused(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    tiny.checkpoint().save(labelled / "float.npz")  # three classes
    command = ["train", str(labelled / "recipe.json"), "--data", str(labelled), "-o", str(labelled / "out.npz")]
    assert main([*command, "--quantize", str(labelled / "float.npz")]) == 2
    assert "3 classes" in capsys.readouterr().err
