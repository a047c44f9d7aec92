"""The float network with every result rounded as integers would be: for widths that no runtime has kernels for."""

import numpy as np
from numpy.typing import NDArray

from convert.calibrate import Levers
from convert.checkpoint import Config
from convert.floats import Array, FloatOps, unfold
from convert.forward import segmenter
from convert.quantised import Quantised

EXACT = ("rms", "sums")  # what the integer graph has no tensor for


class RoundedOps(FloatOps):
    """The steps of `convert/forward.py` on rounded weights, each result on the grid that its limit and width give."""

    def __init__(self, quantised: Quantised, config: Config, levers: Levers) -> None:
        kernels = {f"{name}/kernel": rows * scales for name, (rows, scales) in quantised.kernels.items()}
        super().__init__({**quantised.folded, **kernels}, config)
        self._limits, self._levers = quantised.limits, levers

    def _seen(self, name: str, values: Array) -> Array:
        last = name.rpartition("/")[2]
        if last in EXACT:
            return values
        signed = bool(values.min() < 0)
        most = self._levers.levels(name, signed)
        step = np.float32((1.0 if last == "weights" else self._limits[name]) / most)
        return np.clip(np.round(values / step), -most if signed else 0, most) * step


def scores(quantised: Quantised, config: Config, levers: Levers, pixels: NDArray[np.uint8]) -> Array:
    """Run the simulation: 1xHxWx3 uint8 RGB pixels -> 1 x H/stride x W/stride x K float32 scores."""
    return unfold(segmenter(RoundedOps(quantised, config, levers), config, pixels), config)
