"""Round kernels so that what a layer computes, not its weights, is off least: GPTQ (Frantar et al., 2023).

The weights of one input after the other are rounded, and each error is made up for by the inputs that are still to
come, as far as they vary together. What is left over on average goes into the bias (Nagel et al., 2019).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert.checkpoint import Config
from convert.floats import Array, FloatOps
from convert.fold import Folded, Matrix
from convert.forward import segmenter
from convert.quantised import Quantised

DAMPING = 0.01  # of the mean variance, added to all: calibration has seen few pictures


class Moments(NamedTuple):
    """What calibration saw of a layer's inputs: their mean [in] and their mean products [in, in]."""

    mean: Matrix
    products: Matrix


class _InputOps(FloatOps):
    """The float steps, adding up what every linear layer reads."""

    def __init__(self, folded: Folded, config: Config) -> None:
        super().__init__(folded, config)
        self.sums: dict[str, tuple[int, Matrix, Matrix]] = {}

    def _affine(self, name: str, x: Array, activation: str | None) -> Array:
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        count, total, products = self.sums.get(name, (0, np.zeros(1), np.zeros((1, 1))))
        self.sums[name] = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        return super()._affine(name, x, activation)


def moments(folded: Folded, config: Config, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, Moments]:
    """Run the float network on pictures (1xHxWx3 uint8 RGB); all layers but the patch embedding, by name."""
    ops = _InputOps(folded, config)
    for pixels in tqdm(pictures, "inputs", unit="pictures", leave=False):
        segmenter(ops, config, pixels)
    return {name: Moments(total / count, products / count) for name, (count, total, products) in ops.sums.items()}


def compensated(quantised: Quantised, seen: dict[str, Moments], most: int = 127) -> Quantised:
    """Round the kernels of all layers that `seen` knows again, and correct their biases.

    Args:
        quantised: with kernels rounded to the nearest, whose scales are kept.
        seen: from `moments`.
        most: the largest integer of a kernel.
    """
    kernels, folded = dict(quantised.kernels), dict(quantised.folded)
    for name, inputs in tqdm(seen.items(), "rounding", unit="kernels", leave=False):
        kernel, scales = folded[f"{name}/kernel"], kernels[name][1]
        rows = round_rows(kernel, scales, inputs.products, most)
        kernels[name] = rows, scales
        folded[f"{name}/bias"] = folded[f"{name}/bias"] + inputs.mean @ (kernel - rows * scales)
    return Quantised(quantised.limits, kernels, folded)


def round_rows(kernel: Matrix, scales: Matrix, products: Matrix, most: int = 127) -> NDArray[np.int8]:
    """Round a kernel [in, out] to integers up to `most`, the inputs with the largest mean square first."""
    order = np.argsort(-np.diag(products))
    left, size = kernel[order] / scales, len(kernel)  # in steps of the outputs
    damped = products[np.ix_(order, order)] + np.eye(size) * max(DAMPING * float(np.diag(products).mean()), 1e-9)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rows = np.empty(kernel.shape, np.int8)
    for place, index in enumerate(order):
        rows[index] = np.clip(np.round(left[place]), -most, most)
        error = (left[place] - rows[index]) / upper[place, place]
        left[place + 1 :] -= np.outer(upper[place, place + 1 :], error)
    return rows
