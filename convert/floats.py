"""The re-parameterised network in float, with an eye on every tensor: calibration and the float side of each check."""

from collections.abc import Callable
from math import erf

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Config
from convert.fold import PIXEL_ZERO, Folded
from convert.forward import segmenter

Array = NDArray[np.float32]
Watch = Callable[[str, Array], None]

_GRID = np.linspace(-6, 6, 24001)
_NORMAL = np.array([0.5 * (1 + erf(x / 2**0.5)) for x in _GRID])  # Φ, the distribution of a standard normal


def _ignore(name: str, values: Array) -> None:
    """Watch nothing."""


def gelu(x: Array) -> Array:
    """Return x Φ(x), the exact GELU, with Φ interpolated in a table: to 5e-7."""
    return np.asarray(x * np.interp(x, _GRID, _NORMAL), np.float32)


def silu(x: Array) -> Array:
    """Return x sigmoid(x), which is 0 long before float32 has no number for exp(-x)."""
    return np.asarray(x / (1 + np.exp(np.minimum(-x, 80))), np.float32)


SMOOTH = {"gelu": gelu, "silu": silu}  # activations that are more than saturation: a step of their own
SIGMOID = 1.702  # x Φ(x) is about x sigmoid(1.702 x) (Hendrycks and Gimpel, 2016)


class FloatOps:
    """The steps of `convert/forward.py` in NumPy float32; `watch(name, values)` sees every named result."""

    def __init__(self, folded: Folded, config: Config, watch: Watch = _ignore) -> None:
        self.arrays = {name: array.astype(np.float32) for name, array in folded.items()}
        self.config = config
        self._watch = watch

    def _seen(self, name: str, values: Array) -> Array:
        self._watch(name, values)
        return values

    def patches(self, name: str, pixels: NDArray[np.uint8]) -> Array:
        config, patch = self.config, self.config.patch
        rows, columns = config.grid
        tiles = (pixels.astype(np.float32) - PIXEL_ZERO).reshape(1, rows, patch, columns, patch, 3)
        flat = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(1, config.tokens, -1)
        x = flat @ self.arrays["patches/kernel"].reshape(-1, config.dim) + self.arrays["patches/bias"]
        return self.add(f"{name}/sum", self._seen(name, x), self.arrays["position"][np.newaxis])

    def norm(self, name: str, x: Array) -> Array:
        rms = self._rms(name, x, self.config.epsilon(name))
        return self._seen(name, x * self._seen(f"{name}/factor", np.reciprocal(rms)))

    def _rms(self, name: str, x: Array, epsilon: float) -> Array:
        squares = self._seen(f"{name}/squares", np.square(x))
        return self._seen(f"{name}/rms", np.sqrt(squares.mean(-1, keepdims=True) + epsilon))

    def centre(self, name: str, x: Array) -> Array:
        return self._seen(name, x - self._seen(f"{name}/mean", x.mean(-2, keepdims=True)))

    def gain(self, name: str, x: Array) -> Array:
        return self._seen(name, x * self.arrays["head/norm/gain"])

    def mask_norm(self, name: str, x: Array, gained: Array, offsets: Array) -> Array:
        rms = self._rms(name, x, float(self.arrays[f"{name}/epsilon"]))
        self._seen(f"{name}/factor", np.reciprocal(rms))
        added = self._seen(f"{name}/biases", rms * self.arrays[f"{name}/bias"])
        return self._seen("head/best", gained + self._seen(f"{name}/offsets", added + offsets))

    def linear(self, name: str, x: Array, activation: str | None = None, result: str = "") -> Array:
        result = result or name
        y = self._affine(name, x, activation)
        if activation not in SMOOTH:
            return self._seen(result, y)
        return self._seen(result, SMOOTH[activation](self._seen(f"{result}/before", y)))

    def _affine(self, name: str, x: Array, activation: str | None) -> Array:
        y = x @ self.arrays[f"{name}/kernel"] + self.arrays[f"{name}/bias"]
        if (ceiling := self.arrays.get(f"{name}/ceiling")) is not None:
            y = np.minimum(y, ceiling)
        return np.maximum(y, 0) if activation == "relu" else y

    def heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        split = qkv.reshape(1, -1, 3, self.config.heads, self.config.head_dim).transpose(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]

    def merge(self, x: Array) -> Array:
        return np.reshape(x.transpose(0, 2, 1, 3), (1, -1, self.config.dim))

    def matmul(self, name: str, a: Array, b: Array, transpose: bool = False) -> Array:
        return self._seen(name, a @ (np.swapaxes(b, -1, -2) if transpose else b))

    def exp(self, name: str, scores: Array) -> Array:
        shift = scores.max(-1, keepdims=True)
        if (line := self.arrays.get(f"{name}/rise")) is not None:
            slope, end = line
            shift = shift + slope * np.maximum(0, end - (shift - scores.mean(-1, keepdims=True)))
        return self._seen(name, np.exp(scores - shift))

    def divided(self, name: str, x: Array, weights: Array) -> Array:
        return self._seen(name, x / self._seen(f"{name}/sums", weights.sum(-1, keepdims=True)))

    def add(self, name: str, x: Array, y: Array) -> Array:
        return self._seen(name, x + y)

    def factor(self, name: str, y: Array) -> Array | None:
        if (size := self.arrays.get(f"{name}/registers")) is None:
            return None
        factor: Array = size / np.maximum(size, np.sqrt(np.square(y).mean(-1, keepdims=True)))
        return factor

    def scaled(self, name: str, x: Array, factor: Array) -> Array:
        return x * factor

    def tokens(self, name: str) -> Array:
        return self.arrays[name][np.newaxis]

    def append(self, name: str, x: Array) -> Array:
        return self.join(x, self.tokens(name))

    def join(self, x: Array, y: Array) -> Array:
        return np.concatenate([x, y], axis=1)

    def rows(self, name: str, x: Array, start: int, count: int) -> Array:
        return x[:, start : start + count]

    def per_sub_patch(self, x: Array, channels: int) -> Array:
        split = x.reshape(self.config.classes, -1, channels)
        return np.reshape(np.swapaxes(split, 0, 1), (1, -1, channels))

    def row(self, x: Array) -> Array:
        return x.reshape(1, 1, -1)


def scores(folded: Folded, config: Config, pixels: NDArray[np.uint8], watch: Watch = _ignore) -> Array:
    """Run the float network: 1xHxWx3 uint8 RGB pixels -> 1 x H/stride x W/stride x K float32 scores."""
    flat: Array = segmenter(FloatOps(folded, config, watch), config, pixels)
    return unfold(flat, config)


def unfold(flat: Array, config: Config) -> Array:
    """Lay 1xNx(S K) scores out as 1 x H/stride x W/stride x K, each sub-patch in its place."""
    rows, columns = config.grid
    tiles = flat.reshape(1, rows, columns, config.sub, config.sub, config.classes)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(1, rows * config.sub, columns * config.sub, config.classes)
