"""Single TFLite operators, written onto a graph: what every family of integer operators is put together from.

`convert/build.py` and `convert/shift.py` say which operators make up a step of the network; how one is spelt (axes,
shapes and permutations are constant tensors of their own) is here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.graph import Graph, Tensor, constant

NUDGE, MARGIN = 2e-6, 2e-5  # of a scale, relative; between a product and a tie, in steps of the result
TENSOR_TYPES: dict[type[np.generic], int] = {np.int32: 2, np.uint8: 3, np.int16: 7, np.int8: 9}  # of the schema


class Builtins:
    """A graph to append to, with the constants that its operators share."""

    def __init__(self) -> None:
        self.graph = Graph()
        self._constants: dict[str, Tensor] = {}

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same values in another shape."""
        target = self._shared(f"shape {shape}", np.array(shape, np.int32))
        return self.graph.add("RESHAPE", (x, target), f"{x.name}/reshaped", shape, x.dtype, x.scale, x.zero_point)

    def _multiply(self, name: str, x: Tensor, y: Tensor, scale: float, zero_point: int = 0) -> Tensor:
        """x y in int8, broadcast; no product lies on the edge between two results."""
        shape, scale = np.broadcast_shapes(x.shape, y.shape), _without_ties(x, y, scale)
        return self.graph.add("MUL", (x, y), name, shape, scale=scale, zero_point=zero_point)

    def _product(
        self, name: str, x: Tensor, weights: Tensor, bias: Tensor, scale: float, zero_point: int = 0, **options: Any
    ) -> Tensor:
        """x Wᵀ + b over the last axis in int8; W is [out, in].

        There is always a bias: tflite-runtime 2.14 dies on Arm, and only there, where a FULLY_CONNECTED has none.
        """
        shape = (*x.shape[:-1], weights.shape[0])
        return self.graph.add(
            "FULLY_CONNECTED", (x, weights, bias), name, shape, scale=scale, zero_point=zero_point, keepNumDims=True,
            **options,
        )  # fmt: skip

    def _batched(self, name: str, x: Tensor, y: Tensor, scale: float, dtype: type[np.generic] = np.int8) -> Tensor:
        """x yᵀ for each head; as int32, the sums themselves."""
        shape = (*x.shape[:-1], y.shape[-2])
        return self.graph.add("BATCH_MATMUL", (x, y), name, shape, dtype, scale, adjY=True)

    def _transpose(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        shape = tuple(x.shape[axis] for axis in order)
        permutation = self._shared(f"order {order}", np.array(order, np.int32))
        return self.graph.add("TRANSPOSE", (x, permutation), f"{x.name}/turned", shape, x.dtype, x.scale, x.zero_point)

    def _slice(self, x: Tensor, axis: int, start: int, size: int, name: str) -> Tensor:
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = start, size
        first = self._shared(f"first {begin}", np.array(begin, np.int32))
        sizes = self._shared(f"shape {tuple(shape)}", np.array(shape, np.int32))
        return self.graph.add("SLICE", (x, first, sizes), name, tuple(shape), x.dtype, x.step, x.zero_point)

    def _repeat(self, x: Tensor, times: int) -> Tensor:
        """x so many times along its second dimension."""
        if times == 1:
            return x
        shape = (x.shape[0], times, *x.shape[2:])
        return self.graph.add("CONCATENATION", (x,) * times, f"{x.name}/repeated", shape, x.dtype, axis=1)

    def _reduced(self, kind: str, x: Tensor, name: str) -> Tensor:
        """Maxima or means of an int8 tensor's rows."""
        axis = self._shared("axis", np.array([len(x.shape) - 1], np.int32))
        return self.graph.add(kind, (x, axis), name, (*x.shape[:-1], 1), scale=x.step, keepDims=True)

    def _sum(self, x: Tensor, name: str) -> Tensor:
        """Sum int32 values over the last axis, exactly."""
        axis = self._shared("axis", np.array([len(x.shape) - 1], np.int32))
        return self.graph.add("SUM", (x, axis), name, (*x.shape[:-1], 1), np.int32, keepDims=True)

    def _cast(self, x: Tensor, dtype: type[np.generic], name: str, scale: float | None = None) -> Tensor:
        source, target = TENSOR_TYPES[x.dtype], TENSOR_TYPES[dtype]
        return self.graph.add("CAST", (x,), name, x.shape, dtype, scale, inDataType=source, outDataType=target)

    def _shared(self, name: str, data: NDArray[Any], scale: float | None = None) -> Tensor:
        """Return the constant of this name and content, made at its first use."""
        key = f"{name} {data.tobytes()!r} {scale}"
        return self._constants.setdefault(key, constant(name, data, scale))


def _without_ties(x: Tensor, y: Tensor, scale: float) -> float:
    """Return the scale nearest above for which no product of two int8 falls half-way between two results.

    XNNPACK multiplies by the ratio of the scales in float32 on x86 and in integers on Arm. They round the same but for
    products so near to such a tie, and one of them is enough to change pixels.
    """
    ends = (np.array([-128, 127]) - tensor.zero_point for tensor in (x, y))
    products = np.arange(np.abs(np.multiply.outer(*ends)).max() + 1)
    for step in range(1000):
        nudged = np.float32(scale * (1 + step * NUDGE))
        results = products * float(np.float32(x.step) * np.float32(y.step) / nudged)
        if np.abs(results[results < 256] % 1 - 0.5).min() > MARGIN:
            break
    return float(nudged)
