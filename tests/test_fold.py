"""The re-parameterised network computes what the trained one does, whatever its weights."""

import numpy as np
import pytest

from convert import calibrate, floats, fold, network
from tests import tiny


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])  # a square and a rectangular grid
def test_the_function_is_the_same_before_and_after(activation: str, rotate: bool, size: tuple[int, int]) -> None:
    checkpoint = tiny.checkpoint(activation, height=size[0], width=size[1])
    config = checkpoint.config
    pixels = np.random.default_rng(2).integers(0, 256, (1, *size, 3), np.uint8)
    model = network.build(config)
    network.assign(model, checkpoint.arrays)
    before = np.asarray(model.predict_on_batch(pixels.astype(np.float32)))
    after = floats.scores(fold.fold(checkpoint, rotate), config, pixels) * config.mask_dim**-0.5
    assert np.abs(after - before).max() < 2e-4 * np.abs(before).max()


def test_the_stream_has_mean_zero_and_no_outlier_channel() -> None:
    checkpoint = tiny.checkpoint()
    checkpoint.arrays["encoder/0/fc2/bias"][5] = 100.0  # the outlier channel that ruins per-tensor scales
    pixels = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), np.uint8)

    def stream(rotate: bool) -> np.ndarray:
        seen: dict[str, np.ndarray] = {}
        floats.scores(fold.fold(checkpoint, rotate), checkpoint.config, pixels, seen.__setitem__)
        return seen["encoder/0/sum2"]

    plain, rotated = stream(False), stream(True)
    assert np.abs(plain.mean(-1)).max() < 1e-4  # so that LayerNorm is RMSNorm
    np.testing.assert_allclose(np.square(plain).sum(-1), np.square(rotated).sum(-1), rtol=1e-3)
    assert np.abs(rotated).max() < np.abs(plain).max() / 2


@pytest.mark.parametrize("size", [64, 192, 384, 768])
def test_rotations_as_wide_as_a_vit_spread_an_axis_evenly(size: int) -> None:
    matrix = fold.orthogonal(size, np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(np.abs(matrix), size**-0.5)
    other = fold.orthogonal(20, np.random.default_rng(0))  # no such matrix is at hand
    np.testing.assert_allclose(other @ other.T, np.eye(20), atol=1e-12)


def test_calibration_spreads_the_largest_tokens_evenly() -> None:
    checkpoint = tiny.checkpoint()
    dim = checkpoint.config.dim
    direction = np.random.default_rng(5).normal(size=dim)  # as registers have: in no channel alone
    checkpoint.arrays["encoder/0/fc2/bias"] += (100 * direction).astype(np.float32)
    pixels = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), np.uint8)

    def run(folded: fold.Folded) -> tuple[np.ndarray, np.ndarray]:
        seen: dict[str, np.ndarray] = {}
        scores = floats.scores(folded, checkpoint.config, pixels, seen.__setitem__)
        return scores, seen["encoder/0/sum2"]

    expected, plain = run(fold.fold(checkpoint))
    scores, spread = run(calibrate.rotated(checkpoint, [pixels]))
    np.testing.assert_allclose(scores, expected, atol=2e-3 * np.abs(expected).max())
    rms = np.sqrt(np.square(spread).mean())
    assert np.abs(spread).max() < 1.3 * rms and np.abs(plain).max() > 1.6 * rms


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("stride", [4, 16])  # many readers of the last norm, or fewer than channels
def test_a_network_can_be_taken_back_out(rotate: bool, stride: int) -> None:
    checkpoint = tiny.checkpoint("gelu", stride=stride)
    config = checkpoint.config
    pixels = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), np.uint8)
    folded = fold.fold(checkpoint, rotate)
    back = fold.unfold(folded, config)
    model = network.build(back.config)
    network.assign(model, back.arrays)
    after = np.asarray(model.predict_on_batch(pixels.astype(np.float32)))
    before = floats.scores(folded, config, pixels) * config.mask_dim**-0.5
    assert np.abs(after - before).max() < 5e-4 * np.abs(before).max()
