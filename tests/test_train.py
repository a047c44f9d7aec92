"""Training learns, keeps the best, goes on after a kill as if nothing had happened, and says what is wrong."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from convert import augment, data, network, objective, train
from convert.checkpoint import Checkpoint, preset
from models import UserError

RECIPE: dict[str, Any] = {
    "classes": [{"name": "background", "color": [0, 0, 0]}, {"name": "disc", "color": [255, 99, 71]}],
    "network": {"preset": "tiny", "height": 32, "width": 32, "activation": "relu", "depth": 1},
    "train": [{"images": "images", "labels": "labels", "repeat": 2}],
    "val": [{"images": "images", "labels": "labels"}],
    "training": {"epochs": 2, "batch": 8, "lr": 3e-3, "average": 0.5, "drop_path": 0.2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of a red disc on something bluish, and the recipe `recipe.json`."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(12):
        centre, radius = [int(value) for value in rng.integers(12, 36, 2)], int(rng.integers(7, 14))
        ids = cv2.circle(np.zeros((48, 48), np.uint8), centre, radius, 1, -1)
        frame = rng.integers(0, 120, (48, 48, 3), np.uint8)
        frame[ids == 1] = (30, 30, 220)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), frame)
        cv2.imwrite(str(tmp_path / "labels" / f"{index}.png"), ids)
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder: Path, **changes: Any) -> None:
    (folder / "recipe.json").write_text(json.dumps(RECIPE | changes))


def run(folder: Path, *options: str, output: str = "out.npz") -> int:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    told = [str(folder / "recipe.json"), "--data", str(folder), "-o", str(folder / output), *options]
    return train.main(parser.parse_args(told))


def test_training_learns_and_keeps_the_best(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(folder, training={**RECIPE["training"], "drop_path": 0.0})
    assert run(folder, "--epochs", "12", "--seed", "1") == 0
    told = capsys.readouterr()
    scores = [float(line.split("mIoU ")[1].split()[0]) for line in told.out.splitlines() if line.startswith("epoch")]
    kept = Checkpoint.load(folder / "out.npz")
    assert len(scores) == 12
    assert max(scores) > 0.75 and max(scores) > scores[0] + 0.1, scores  # from almost chance to discs
    assert round(kept.training["scores"]["miou"], 4) == max(scores)
    assert scores[kept.training["epoch"] - 1] == max(scores)
    assert "epoch 12/12" in told.err and "loss=" in told.err and "pictures/s" in told.err  # the bar
    assert sorted(path.name for path in folder.glob("*.npz")) == ["out.npz"]  # the state is gone with the work

    # What was kept is what was scored
    model = network.build(kept.config)
    network.assign(model, kept.arrays)
    samples = data.load_set(data.load_recipe(folder / "recipe.json"), "val", folder)
    again = train.validate(model, kept.config, samples, ["background", "disc"])
    assert again.as_dict() == kept.training["scores"]

    # It says how it came about, and nothing of this machine
    assert [entry.name for entry in kept.classes] == ["background", "disc"]
    assert kept.training["seed"] == 1 and kept.training["backend"].startswith(keras.backend.backend())
    assert str(folder) not in json.dumps(kept.training)


def test_every_array_learns(folder: Path) -> None:
    recipe = data.load_recipe(folder / "recipe.json")
    settings = objective.Settings(epochs=1, batch=8)
    under_way = train.Run(recipe, preset("tiny", 2, height=32, width=32), settings, 0, 1, None, np.ones(2, np.float32))
    before = network.arrays(under_way.model)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    targets = augment.cell_targets(rng.integers(0, 2, (32, 32)).astype(np.uint8), 4, np.ones(2, np.float32))
    under_way.model.train_on_batch(pixels, targets[None].repeat(8, axis=0))
    after = network.arrays(under_way.model)
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


def killed(under_way: train.Run, *rest: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The weights after the last epoch, whether they were kept or not."""
    weights: dict[str, np.ndarray] = {}
    save = train.Run.save

    def spy(under_way: train.Run, path: Path) -> None:
        weights.update(network.arrays(under_way.model))
        save(under_way, path)

    monkeypatch.setattr(train.Run, "save", spy)
    return weights


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    folder: Path, last: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, output="whole.npz")
    whole = dict(last)

    learn = train.Run.train_epoch
    monkeypatch.setattr(train.Run, "train_epoch", lambda r, *rest: (killed if r.epoch == 1 else learn)(r, *rest))
    with pytest.raises(UserError, match="--resume"):
        run(folder)
    assert (folder / "out.state.npz").is_file() and Checkpoint.load(folder / "out.npz").training["epoch"] == 1
    after_one = dict(last)
    monkeypatch.setattr(train.Run, "train_epoch", learn)

    with pytest.raises(UserError, match="unfinished run"):
        run(folder)
    with pytest.raises(UserError, match="other settings"):
        run(folder, "--resume", "--seed", "9")
    run(folder, "--resume")
    assert not np.array_equal(after_one["patch/kernel"], last["patch/kernel"])
    for name, array in whole.items():
        np.testing.assert_array_equal(last[name], array, err_msg=name)
    one, other = (Checkpoint.load(folder / name) for name in ("whole.npz", "out.npz"))
    assert one.training == other.training
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(other.arrays[name], array, err_msg=name)


def test_training_starts_from_a_checkpoint_of_another_size(folder: Path) -> None:
    recipe = data.load_recipe(folder / "recipe.json")
    config = preset("tiny", 2, height=32, width=32, activation="relu", depth=1)
    small = Checkpoint(network.fresh(config), config, recipe.classes, {"commands": ["how small.npz was made"]})
    small.save(folder / "small.npz")
    words = ("--size", "48x32", "--patch", "8", "--activation", "gelu", "--init", str(folder / "small.npz"))
    run(folder, "--epochs", "1", *words, output="tall.npz")
    tall = Checkpoint.load(folder / "tall.npz")
    assert (tall.config.height, tall.config.width, tall.config.patch) == (48, 32, 8)
    assert tall.training["init"] == "small.npz"
    first, second = tall.training["commands"]  # of both, so that a card tells the whole way
    assert first == "how small.npz was made" and "--size 48x32 --patch 8 --activation gelu" in second


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_backends_train_too(backend: str, folder: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed here")
    command = [sys.executable, "-m", "convert", "train", "recipe.json", "--data", ".", "-o", "out.npz"]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, "--epochs", "2"], check=True, cwd=folder, env=environment, capture_output=True)
    kept = Checkpoint.load(folder / "out.npz")
    assert kept.training["backend"].startswith(backend)
    fresh = network.fresh(kept.config, 0)
    assert not np.array_equal(kept.arrays["patch/kernel"], fresh["patch/kernel"])


# The optimizer and the loss


def test_rates_shrink_towards_the_input_and_only_matrices_decay() -> None:
    config = preset("tiny", 2, height=32, width=32)
    model = network.build(config)
    weights = network.weights(model)
    settings = objective.Settings(epochs=1, lr=0.1, warmup=0.0, layer_decay=0.5, weight_decay=0.5, clip=1e9)
    optimizer = objective.optimizer(weights, config, settings, steps=10)
    optimizer.iterations.assign(1)  # past the warm-up's one step
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    before = network.arrays(model)
    optimizer.apply([keras.ops.ones(weight.shape) for weight in weights.values()], list(weights.values()))
    moved = {name: before[name] - array for name, array in network.arrays(model).items()}
    step = float(moved["head/patch/kernel"].mean()) / rate  # Adam's step of a constant gradient, in units of the rate
    for name, scale in {
        "patch/bias": 0.125,  # depth 2: three levels below the top
        "encoder/0/norm1/bias": 0.25,
        "encoder/1/fc1/bias": 0.5,
        "encoder/norm/bias": 1,
        "decoder/0/norm1/gain": 1,
    }.items():
        np.testing.assert_allclose(moved[name], step * rate * scale, rtol=0.02, err_msg=name)
    plain = moved["encoder/1/fc1/kernel"] - 0.5 * rate * 0.5 * before["encoder/1/fc1/kernel"]
    np.testing.assert_allclose(plain, moved["encoder/1/fc1/bias"].mean(), rtol=1e-3)


def test_the_loss_is_that_of_the_labelled_pixels() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    targets = np.zeros((1, 2, 2, 3), np.float32)
    assert float(objective.cross_entropy(targets, logits)) == 0  # nothing labelled, nothing to learn, no division by 0
    targets[0, 0, 1, 2] = 1
    expected = np.log(np.exp(logits[0, 0, 1]).sum()) - logits[0, 0, 1, 2]
    assert np.isclose(float(objective.cross_entropy(targets, logits)), expected, rtol=1e-5)


def test_the_jaccard_loss_of_certain_logits_is_1_minus_miou() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 3, data.IGNORED], np.uint8), (2, 8, 12))  # class 2 does not occur
    guesses = rng.integers(0, 4, (2, 4, 6), np.uint8)
    areas = np.stack([augment.cell_targets(label, 2, np.ones(4, np.float32)) for label in labels])
    logits = 100 * np.eye(4, dtype=np.float32)[guesses]
    samples = [data.Sample("", np.zeros((8, 12, 3), np.uint8), label) for label in labels]
    scores = data.score(samples, guesses, list("abcd"))
    assert scores.iou["c"] is None
    np.testing.assert_allclose(float(objective.jaccard(areas, logits)), 1 - scores.miou, rtol=1e-5)
    assert np.isfinite(float(objective.jaccard(0 * areas, logits)))  # nothing labelled


def test_a_recipe_may_ask_for_the_jaccard_loss(folder: Path) -> None:
    recipe, config = data.load_recipe(folder / "recipe.json"), preset("tiny", 2, height=32, width=32)
    weights = np.array([1, 4], np.float32)
    under_way = train.Run(recipe, config, objective.Settings(jaccard=0.5), 0, 1, None, weights)
    logits = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
    areas = np.eye(2, dtype=np.float32)[logits.argmin(-1)]
    expected = objective.cross_entropy(weights * areas, logits) + 0.5 * objective.jaccard(areas, logits)
    np.testing.assert_allclose(float(under_way._loss(weights * areas, logits)), float(expected), rtol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("options", "changes", "word"),
    [
        (["--size", "64x60"], {}, "multiples of the patch"),
        (["--epochs", "0"], {}, "at least one epoch"),
        (["--resume"], {}, "to resume"),
        (["--init", "gone.npz"], {}, "gone.npz"),
        ([], {"training": {"rate": 1}}, "unknown 'rate'"),
        ([], {"training": {"lr": "fast"}}, "give a number"),
        ([], {"network": {"preset": "vit-xxl"}}, "vit-xxl"),
        ([], {"network": {"dimension": 3}}, "dimension"),
        ([], {"train": [{"images": "gone", "labels": "labels"}]}, "No pictures in"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, options: list[str], changes: dict[str, Any], word: str) -> None:
    write_recipe(folder, **changes)
    with pytest.raises(UserError, match=word):
        run(folder, *options)
    assert list(folder.glob("*.npz")) == []


@pytest.mark.parametrize(
    ("output", "word"), [("out.h5", "must end in .npz"), ("recipe.json/out.npz", "choose another")]
)
def test_an_impossible_output_is_refused_before_the_work(folder: Path, output: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        run(folder, output=output)


def test_a_loss_that_explodes_is_one_sentence(folder: Path) -> None:
    write_recipe(folder, training={**RECIPE["training"], "lr": 1e30, "clip": 1e30})
    with pytest.raises(UserError, match="smaller lr"):
        run(folder)
