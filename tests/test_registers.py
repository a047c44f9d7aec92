"""Tokens twenty times larger than the rest neither lose their size nor cost the rest its resolution."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import calibrate, floats, fold, quantize, sqnr
from convert.calibrate import Levers
from convert.checkpoint import Checkpoint
from convert.files import draw_pictures, stored
from convert.qat import rounded_model
from convert.verify import verify
from models import Segmenter
from tests import tiny

MAKES = "encoder/0/sum2"
Pictures = list[np.ndarray]


@pytest.fixture(scope="module", params=[False, True], ids=["ours", "imported"])
def network(request: pytest.FixtureRequest) -> tuple[Checkpoint, Pictures]:
    """A network whose first block makes registers of the few tokens that one hidden unit answers to."""
    checkpoint, rng = tiny.checkpoint(), np.random.default_rng(3)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, precise=request.param))
    pictures = [rng.integers(0, 256, (1, 64, 64, 3), np.uint8) for _ in range(4)]
    hidden: list[np.ndarray] = []

    def watch(name: str, values: np.ndarray) -> None:
        if name == "encoder/0/fc1":
            hidden.append(values[0])

    for pixels in pictures:
        floats.scores(fold.fold(checkpoint), checkpoint.config, pixels, watch)
    tokens = np.concatenate(hidden)
    rare = np.where(tokens.max(0) > 0, (tokens > 0.3 * tokens.max(0)).mean(0), np.inf)
    unit = int(rare.argmin())
    assert rare[unit] < 0.1
    checkpoint.arrays["encoder/0/fc2/kernel"][unit] = (
        60 / tokens[:, unit].max() * rng.normal(size=checkpoint.config.dim)
    )
    return checkpoint, pictures


def test_the_sum_that_makes_them_is_found_and_holding_them_changes_nothing(
    network: tuple[Checkpoint, Pictures],
) -> None:
    checkpoint, pictures = network
    config, folded = checkpoint.config, calibrate.rotated(checkpoint, pictures)
    held = calibrate.surveyed(folded, config, pictures)
    assert [name for name in held if name.endswith("/registers")] == [f"{MAKES}/registers"]
    for pixels in pictures:
        seen: dict[str, np.ndarray] = {}
        plain = floats.scores(folded, config, pixels)
        same = floats.scores(held, config, pixels, seen.__setitem__)
        np.testing.assert_allclose(same, plain, atol=1e-3 * np.abs(plain).max())  # but for the norms' epsilon
        assert np.abs(seen[MAKES]).max() < 20
    none = calibrate.surveyed(calibrate.rotated(tiny.checkpoint(), pictures), tiny.checkpoint().config, pictures)
    assert not any(name.endswith("registers") for name in none)


def test_the_integer_network_gains_by_it(network: tuple[Checkpoint, Pictures]) -> None:
    checkpoint, pictures = network
    folded, rows = calibrate.rotated(checkpoint, pictures), {}
    for registers in ("held", "cut"):
        numbers = calibrate.numbers(folded, checkpoint.config, pictures, Levers(registers=registers))
        with stored(quantize.quantise(checkpoint, numbers)) as path:
            compared = sqnr.compare(path, numbers.folded, checkpoint.config, pictures)
            assert verify(path).proven
        rows[registers] = {row.name: row for row in compared}
    assert rows["held"][MAKES].alone > rows["cut"][MAKES].alone + 6  # dB: one bit
    assert rows["held"]["encoder/1/sum2"].total > rows["cut"]["encoder/1/sum2"].total


@pytest.mark.parametrize("network", [False], ids=["ours"], indirect=True)
def test_fine_tuning_rounds_as_the_file_does(network: tuple[Checkpoint, Pictures]) -> None:
    checkpoint, pictures = network
    config, folded = checkpoint.config, calibrate.rotated(checkpoint, pictures)
    numbers = calibrate.numbers(folded, config, pictures)
    plain = rounded_model(folded, config, None).predict_on_batch(pictures[0].astype(np.float32))
    held = rounded_model(numbers.folded, config, None).predict_on_batch(pictures[0].astype(np.float32))
    np.testing.assert_allclose(held, plain, atol=1e-3 * np.abs(plain).max())
    with stored(quantize.quantise(checkpoint, numbers)) as path:
        ids = Segmenter(path, threads=1).infer(pictures[0])
    rounded = rounded_model(numbers.folded, config, numbers).predict_on_batch(pictures[0].astype(np.float32))
    cell = len(ids) // rounded.shape[1]
    assert (np.asarray(rounded)[0].argmax(-1).repeat(cell, 0).repeat(cell, 1) == ids).mean() > 0.9


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_a_channel_far_wider_than_the_rest_is_split(tmp_path: Path, activation: str) -> None:
    checkpoint = tiny.checkpoint(activation)
    config, name = checkpoint.config, "encoder/1/fc1"
    checkpoint.arrays[f"{name}/kernel"][:, 3] *= 40
    checkpoint.arrays[f"{name}/bias"][3] = 20
    checkpoint.arrays["encoder/1/fc2/kernel"][3] /= 10
    pictures = draw_pictures([tiny.pictures(tmp_path / "pictures")], 4, 64, 64)
    folded = calibrate.rotated(checkpoint, pictures)
    split = calibrate.surveyed(folded, config, pictures)
    assert len(split[f"{name}/copies"]) >= 3 and set(split[f"{name}/copies"]) == {3}
    assert "encoder/0/fc1/ceiling" not in split
    assert split[f"{name}/kernel"].shape[1] == len(split[f"{name}/bias"]) == len(split["encoder/1/fc2/kernel"])

    # The function stays: exactly with ReLU
    truth = np.concatenate([floats.scores(folded, config, pixels) for pixels in pictures])
    scores = np.concatenate([floats.scores(split, config, pixels) for pixels in pictures])
    assert np.abs(scores - truth).max() < (1e-4 if activation == "relu" else 0.05) * np.abs(truth).max()
    assert fold.unfold(split, config).arrays[f"{name}/kernel"].shape == checkpoint.arrays[f"{name}/kernel"].shape

    agreements = []
    for hidden in ("split", "whole"):
        numbers = calibrate.numbers(folded, config, pictures, Levers(hidden=hidden))
        agreements.append(quantize.agreement(checkpoint, folded, quantize.quantise(checkpoint, numbers), pictures))
    assert agreements[0] > agreements[1]
