"""Rounding that makes up for its errors: less is lost of what layers compute than by rounding to the nearest."""

from pathlib import Path

import numpy as np
import pytest

from convert import calibrate, rounding
from convert.calibrate import Levers
from convert.files import draw_pictures
from convert.fold import fold
from tests import tiny


@pytest.mark.parametrize("most", [7, 127])
def test_correlated_inputs_make_up_for_each_other(most: int) -> None:
    rng = np.random.default_rng(0)
    kernel, mixing = rng.normal(size=(48, 10)), rng.normal(size=(8, 48))
    inputs = rng.normal(size=(500, 8)) @ mixing + 0.1 * rng.normal(size=(500, 48))
    scales = np.abs(kernel).max(0) / most
    nearest = np.clip(np.round(kernel / scales), -most, most)
    rows = rounding.round_rows(kernel, scales, inputs.T @ inputs / 500, most)
    assert rows.dtype == np.int8 and np.abs(rows).max() <= most

    def lost(integers: np.ndarray) -> float:
        return float(np.square(inputs @ (kernel - integers * scales)).sum())

    assert lost(rows) < lost(nearest) / 4


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    kernel = np.random.default_rng(0).normal(size=(20, 6))
    scales = np.abs(kernel).max(0) / 127
    np.testing.assert_array_equal(rounding.round_rows(kernel, scales, np.eye(20)), np.round(kernel / scales))


def test_a_network_s_layers_compute_more_exactly_on_average_and_in_detail(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    folded, config = fold(checkpoint), checkpoint.config
    pictures = draw_pictures([tiny.pictures(tmp_path)], 4, 64, 64)
    seen = rounding.moments(folded, config, pictures)
    assert {"encoder/0/qkv", "encoder/1/fc2", "decoder/0/proj", "decoder/input", "head/templates"} <= set(seen)
    for name in ("encoder/1/qkv", "encoder/0/fc2"):
        errors, means = [], []
        for levers in (Levers(), Levers(rounding="gptq")):
            numbers = calibrate.numbers(folded, config, pictures, levers)
            rows, scales = numbers.kernels[name]
            off = folded[f"{name}/kernel"] - rows * scales
            errors.append(np.einsum("io,ij,jo->", off, seen[name].products, off))
            bias = folded[f"{name}/bias"] - numbers.folded[f"{name}/bias"]
            means.append(np.abs(seen[name].mean @ off + bias).max())
        assert errors[1] < errors[0] / 2 and means[1] < 1e-9 < means[0]
