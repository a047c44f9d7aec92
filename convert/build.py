"""Write the re-parameterised network down as TFLite operators on integers.

`IntegerOps` gives the steps of `convert/forward.py` their meaning in a file: each becomes one to six builtin operators,
chosen for what LiteRT's XNNPACK runs in int8 on all threads. Activations are symmetric int8 unless said otherwise;
the right-hand side of a product must be (XNNPACK takes zero point 0 only there).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Config
from convert.fold import PIXEL_ZERO
from convert.forward import segmenter
from convert.graph import Graph, Tensor, constant
from convert.quantised import Quantised

ACTIVATIONS = {None: 0, "relu": 1}  # ActivationFunctionType of the schema

# exp(d) for d in [EXP_FLOOR, 0]: below, exp(d) rounds to 0 of 255.
EXP_FLOOR = -6.3
# Row sums are measured with three rulers at once, for sums up to 4, up to 32 and up to the number of tokens.
RULERS = (4.0, 32.0)
# GELU is at least -0.17, and below -3.5 within 0.001 of 0.
GELU_LOWEST, GELU_FLOOR = -0.17, -3.5
# The result of which only each row's largest value counts. It is never negative, so those below 0 may saturate.
BEST = "head/best"
BIAS_LIMIT = 2.0**30  # of an int32 bias: as much is left for the sum it is added to
# Straight lines that stand for 1/sqrt in a norm: as many as XNNPACK computes at once.
KNOTS = 16
Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def build(
    quantised: Quantised, config: Config, output: str = "full", operators: "type[IntegerOps] | None" = None
) -> Graph:
    """Return the integer graph, uint8 frame to uint8 class map.

    Args:
        quantised: ranges and weights.
        config: dimensions of the network.
        output: "full" for class ids at the input's size, "grid" for one id every `stride` pixels.
        operators: how the steps are written, `IntegerOps` if not told (the others are in `convert/shift.py`).
    """
    ops = (operators or IntegerOps)(quantised, config)
    pixels = Tensor("frame", (1, config.height, config.width, 3), np.uint8, 1.0, PIXEL_ZERO)
    ops.graph.source = pixels
    scores = segmenter(ops, config, ops.graph.add("QUANTIZE", (pixels,), "pixels", pixels.shape, scale=1.0))
    ops.graph.sink = ops.class_map(scores, config.stride if output == "full" else 1)
    return ops.graph


class IntegerOps:
    """The steps of `convert/forward.py`, appended to `graph` as integer operators."""

    def __init__(self, quantised: Quantised, config: Config) -> None:
        self.graph, self.config = Graph(), config
        self.limits, self.kernels, self.folded = dict(quantised.limits), quantised.kernels, quantised.folded
        self._constants: dict[str, Tensor] = {}

    def scale(self, name: str) -> float:
        """Return the scale of a symmetric int8 result."""
        return float(np.float32(self.limits[name] / 127))

    def patches(self, name: str, pixels: Tensor) -> Tensor:
        """Patches as rows, then one matrix product: a quarter of the time of CONV_2D with kernel = stride."""
        config = self.config
        shape = (1, *config.grid, 3 * config.patch**2)
        rows = self.graph.add(
            "SPACE_TO_DEPTH", (pixels,), f"{name}/rows", shape, scale=pixels.step,
            table="SpaceToDepthOptions", blockSize=config.patch,
        )  # fmt: skip
        x = self.linear(name, self.reshape(rows, (1, config.tokens, shape[-1])))
        if config.prefix:  # those tokens will share the scale: give them room, up to a bit of the patches' resolution
            room = min(np.abs(self.folded["prefix"]).max(), 2 * self.limits[f"{name}/sum"])
            self.limits[f"{name}/sum"] = max(self.limits[f"{name}/sum"], float(room))
        return self.add(f"{name}/sum", x, self._embedding("position"))

    def _embedding(self, name: str, scale: float | None = None, dtype: type[np.generic] = np.int8) -> Tensor:
        values, most = self.folded[name][np.newaxis], np.iinfo(np.dtype(dtype)).max
        scale = scale or float(np.float32(max(np.abs(values).max(), 1e-6) / most))
        return constant(name, np.clip(np.round(values / scale), -most, most).astype(dtype), scale)

    def _weights(self, name: str, step: float) -> tuple[Tensor, Tensor]:
        """Return the kernel [out, in] and the int32 bias of a layer whose input has the scale `step`."""
        kernel, scales = self.kernels[name]
        bias = self.folded[f"{name}/bias"]
        # A kernel of (nearly) zeros has a scale so small that its bias would not fit into int32
        raised = np.maximum(scales, np.abs(bias) / (step * BIAS_LIMIT))
        rows = np.round(kernel * (scales / raised)).astype(np.int8)
        rows = rows.reshape(-1, rows.shape[-1]).T  # a patch embedding's [p, p, 3, D], too
        weights = constant(f"{name}/kernel", np.ascontiguousarray(rows), raised)
        values = np.round(bias / (step * raised)).astype(np.int32)
        return weights, constant(f"{name}/bias", values, step * raised)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """x / rms(x), all of it in operators that XNNPACK takes: no table, no int32, no change of delegate."""
        epsilon = self.config.epsilon(name)
        factor = self._of_mean_square(name, "factor", x, lambda mean: (mean + epsilon) ** -0.5)
        return self.graph.add("MUL", (x, factor), name, x.shape, scale=self.scale(name), table="MulOptions")

    def _of_mean_square(self, name: str, part: str, x: Tensor, function: Curve) -> Tensor:
        """A function of each token's mean square, from the smallest to the largest that calibration saw."""
        width, step = x.shape[-1], float(np.float32(self.limits[f"{name}/squares"] / 255))
        squares = self.graph.add(
            "MUL", (x, x), f"{name}/squares", x.shape, scale=step, zero_point=-128, table="MulOptions"
        )
        low = width / self.limits[f"{name}/factor"] ** 2
        high = width * min(self.limits[f"{name}/rms"], 127 * x.step) ** 2
        return self._curve(f"{name}/{part}", squares, lambda sums: function(sums / width), low, high)

    def centre(self, name: str, x: Tensor) -> Tensor:
        width, classes = x.shape[-1], x.shape[1]
        scale = 1 / (127 * classes)
        ones = self._shared("mean", np.full((1, classes), 127, np.int8), scale)
        zero = self._shared("no bias", np.zeros(1, np.int32), x.step * scale)  # see `_readings`
        mean = self.graph.add(
            "FULLY_CONNECTED", (self._transpose(x, (0, 2, 1)), ones, zero), f"{name}/mean", (1, width, 1),
            scale=self.scale(f"{name}/mean"), table="FullyConnectedOptions", keepNumDims=True,
        )  # fmt: skip
        mean = self.reshape(mean, (1, 1, width))
        return self.graph.add("SUB", (x, mean), name, x.shape, scale=self.scale(name), table="SubOptions")

    def gain(self, name: str, x: Tensor) -> Tensor:
        factors = (x, self._embedding("head/norm/gain"))
        return self.graph.add("MUL", factors, name, x.shape, scale=self.scale(name), table="MulOptions")

    def mask_norm(self, name: str, x: Tensor, gained: Tensor, offsets: Tensor) -> Tensor:
        epsilon = self.folded[f"{name}/epsilon"]
        factors = (
            self._of_mean_square(name, "rms", x, lambda mean: np.sqrt(mean + epsilon)),
            self._embedding(f"{name}/bias"),
        )
        biases = self.graph.add(
            "MUL", factors, f"{name}/biases", x.shape, **self._range(f"{name}/biases", 0.0), table="MulOptions"
        )
        added = self.add(f"{name}/offsets", biases, offsets)
        return self.graph.add("ADD", (gained, added), BEST, x.shape, **self._range(BEST, 0.0), table="AddOptions")

    def factor(self, name: str, y: Tensor) -> Tensor | None:
        if (size := self.folded.get(f"{name}/registers")) is None:
            return None
        width, most = y.shape[-1], (127 * y.step) ** 2
        squares = self.graph.add(
            "MUL", (y, y), f"{name}/energies", y.shape, scale=most / 255, zero_point=-128, table="MulOptions"
        )
        return self._curve(
            f"{name}/factor", squares, lambda sums: float(size) * (sums / width) ** -0.5, width * float(size) ** 2,
            width * most,
        )  # fmt: skip

    def scaled(self, name: str, x: Tensor, factor: Tensor) -> Tensor:
        return self.graph.add("MUL", (x, factor), name, x.shape, scale=x.step, table="MulOptions")

    def _curve(self, name: str, x: Tensor, function: Curve, low: float, high: float) -> Tensor:
        """A function of the row sum of x, convex or concave, by straight lines between sums from low to high.

        A reading of the sum that saturates at a knot is a hinge, min(sum, knot), for free: one FULLY_CONNECTED of ones
        makes all hinges, each in its own full 8 bits, and a second one adds them up. Sums below `low` count as `low`,
        where a falling output saturates, and sums above `high` as `high`.
        """
        ends = np.geomspace(low, max(high, 1.5 * low), KNOTS + 1)
        heights = function(ends)
        slopes = np.append(np.diff(heights) / np.diff(ends), 0.0)
        bends = (slopes[:-1] - slopes[1:]) * ends[1:]  # at each knot, for a reading in 0..1
        readings = self._readings(f"{name}/hinges", x, ends[1:])
        scale = float(np.abs(bends).max() / 127)
        weights = constant(f"{name}/bends", _int8(bends[np.newaxis] / scale), np.array([scale]))
        offset = (heights[-1] - bends.sum()) / (scale * readings.step)
        bias = constant(f"{name}/offset", np.array([round(offset)], np.int32), np.array([scale * readings.step]))
        return self.graph.add(
            "FULLY_CONNECTED", (readings, weights, bias), name, (*x.shape[:-1], 1),
            scale=float(np.float32(heights.max() / 255)), zero_point=-128,
            table="FullyConnectedOptions", keepNumDims=True,
        )  # fmt: skip

    def _readings(self, name: str, x: Tensor, ends: NDArray[np.float64]) -> Tensor:
        """Sum the rows of x with one ruler for each end: readings 0..1 of the sum's share of it, saturating at 1."""
        key, width, scales = f"rulers {ends.tobytes()!r}", x.shape[-1], 1 / (127 * ends)
        ones = constant("rulers", np.full((len(ends), width), 127, np.int8), scales)
        # tflite-runtime 2.14 dies on Arm, and only there, where a FULLY_CONNECTED has no bias
        zeros = constant(f"{name}/zeros", np.zeros(len(ends), np.int32), x.step * scales)
        return self.graph.add(
            "FULLY_CONNECTED", (x, self._constants.setdefault(f"{key} {width}", ones), zeros), name,
            (*x.shape[:-1], len(ends)), scale=1 / 255, zero_point=-128,
            table="FullyConnectedOptions", keepNumDims=True,
        )  # fmt: skip

    def _look_up(self, name: str, values: NDArray[np.float64], limit: float, index: Tensor) -> Tensor:
        """Gather from an int8 table of values 0..limit; `verify` proves that no index can be outside."""
        scale = float(np.float32(limit / 255))
        entries = np.clip(np.round(values / scale) - 128, -128, 127).astype(np.int8)
        table = constant(f"{name}/table", entries, scale, zero_point=-128)
        return self.graph.add(
            "GATHER", (table, index), name, index.shape, scale=scale, zero_point=-128, table="GatherOptions", axis=0
        )

    def linear(self, name: str, x: Tensor, activation: str | None = None, result: str = "") -> Tensor:
        result = result or name
        inputs = (x, *self._weights(name, x.step))
        before = f"{result}/before" if activation == "gelu" else result
        # Half of a symmetric range would stay empty
        lowest = 0.0 if activation == "relu" or result == BEST else GELU_FLOOR if activation == "gelu" else None
        shape, range_ = (*x.shape[:-1], inputs[1].shape[0]), self._range(before, lowest)
        y = self.graph.add(
            "FULLY_CONNECTED", inputs, before, shape, **range_, table="FullyConnectedOptions", keepNumDims=True,
            fusedActivationFunction=ACTIVATIONS["relu" if activation == "relu" else None],
        )  # fmt: skip
        return self.gelu(result, y) if activation == "gelu" else y

    def gelu(self, name: str, y: Tensor) -> Tensor:
        """TFLite tabulates the exact function for int8."""
        return self.graph.add("GELU", (y,), name, y.shape, **self._range(name, GELU_LOWEST), table="GeluOptions")

    def _range(self, name: str, lowest: float | None = None) -> dict[str, Any]:
        """Return scale and zero point of a result: symmetric, or from `lowest` <= 0 to its limit."""
        if lowest is None or self.limits[name] <= -lowest:
            return {"scale": self.scale(name), "zero_point": 0}
        scale = float(np.float32((self.limits[name] - lowest) / 255))
        return {"scale": scale, "zero_point": -128 + round(-lowest / scale)}

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        tokens, heads = qkv.shape[1], config.heads
        split = self.reshape(qkv, (1, tokens, 3 * heads, config.head_dim))
        turned = self._transpose(split, (0, 2, 1, 3))
        q, k, v = (self._slice(turned, 1, part * heads, heads, f"{qkv.name}/{'qkv'[part]}") for part in range(3))
        return q, k, v

    def merge(self, x: Tensor) -> Tensor:
        return self.reshape(self._transpose(x, (0, 2, 1, 3)), (1, x.shape[2], self.config.dim))

    def matmul(self, name: str, a: Tensor, b: Tensor, transpose: bool = False) -> Tensor:
        """Hand b over as bᵀ: turning it is cheap, and XNNPACK packs it in less than half the time it takes for b."""
        turned = b if transpose else self._transpose(b, (0, 1, 3, 2))
        return self.graph.add(
            "BATCH_MATMUL", (a, turned), name, (*a.shape[:-1], turned.shape[-2]), scale=self.scale(name),
            table="BatchMatMulOptions", adjY=True,
        )  # fmt: skip

    def exp(self, name: str, scores: Tensor) -> Tensor:
        """exp(d) = ELU(d) + 1 for d <= 0, and int8 ELU is an XNNPACK table where int8 EXP is not.

        With 0 at the top of the range ELU's integers are already those of exp; adding 1 moves the zero point only.
        """
        add, shape = self.graph.add, scores.shape
        shift, step = self._shift(name, scores), float(np.float32(-EXP_FLOOR / 255))
        below = add("SUB", (scores, shift), f"{name}/below", shape, scale=step, zero_point=127, table="SubOptions")
        elu = add("ELU", (below,), f"{name}/elu", shape, scale=1 / 255, zero_point=127)
        one = self._shared("one", np.full((1, 1, 1, 1), 127, np.int8), 1 / 127)
        return add("ADD", (elu, one), name, shape, scale=1 / 255, zero_point=-128, table="AddOptions")

    def _shift(self, name: str, scores: Tensor) -> Tensor:
        """What is subtracted from a row of scores: its maximum, and roughly a third of the logarithm of its row sum.

        Of flat rows, whose sum is large, the products with the values would otherwise need another range than those of
        peaked ones. How far the maximum lies above the mean tells them apart well enough: the row sum that is divided
        by afterwards is measured.
        """
        add, largest = self.graph.add, self._reduced("REDUCE_MAX", scores, f"{name}/largest")
        if (line := self.folded.get(f"{name}/rise")) is None:
            return largest
        slope, end = map(float, line)
        mean = self._reduced("MEAN", scores, f"{name}/mean")
        height = add("SUB", (largest, mean), f"{name}/height", mean.shape, scale=254 * scores.step / 255,
                     zero_point=-128, table="SubOptions")  # fmt: skip
        step = slope / 127 * height.step
        weights = constant(f"{name}/slope", np.array([[-127]], np.int8), np.array([slope / 127]))
        bias = constant(f"{name}/most", np.array([round(slope * end / step)], np.int32), np.array([step]))
        rise = add("FULLY_CONNECTED", (height, weights, bias), f"{name}/rise", mean.shape, scale=slope * end / 255,
                   zero_point=-128, table="FullyConnectedOptions", keepNumDims=True)  # fmt: skip
        # In the scores' own steps: never less than the maximum
        return add("ADD", (largest, rise), f"{name}/shift", mean.shape, scale=scores.step, table="AddOptions")

    def divided(self, name: str, x: Tensor, weights: Tensor) -> Tensor:
        factor = self._inverse_sum(f"{name}/sums", weights)
        return self.graph.add("MUL", (x, factor), name, x.shape, scale=self.scale(name), table="MulOptions")

    def _inverse_sum(self, name: str, weights: Tensor) -> Tensor:
        """Look 1 / row sum up.

        One FULLY_CONNECTED measures the sum with three rulers (fine ones saturate early); the three readings added
        are an index that is fine for peaked rows and covers flat ones.
        """
        tokens = weights.shape[-1]
        rulers = np.minimum(np.array([*RULERS, tokens]), tokens)
        readings = self._readings(f"{name}/readings", weights, rulers)
        total = self._sum(self._cast(readings, np.int32, f"{name}/wide"), f"{name}/total")
        lowest = self._shared("lowest", np.array([128 * len(rulers)], np.int32))
        index = self.graph.add("ADD", (total, lowest), f"{name}/index", total.shape, np.int32, table="AddOptions")
        inverses = 1 / np.maximum(_sum_of_index(rulers), self.limits[name])
        return self._look_up(f"{name}/inverse", inverses, float(inverses.max()), index)

    def per_sub_patch(self, x: Tensor, channels: int) -> Tensor:
        config, sub = self.config, self.config.sub**2
        split = self.reshape(x, (config.classes, sub, channels))
        return self.reshape(self._transpose(split, (1, 0, 2)), (1, sub * config.classes, channels))

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        return self.graph.add("ADD", (x, y), name, x.shape, scale=self.scale(name), table="AddOptions")

    def tokens(self, name: str) -> Tensor:
        return self._embedding(name)

    def append(self, name: str, x: Tensor) -> Tensor:
        return self.join(x, self._embedding(name, x.step, x.dtype))

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        shape = (1, x.shape[1] + y.shape[1], x.shape[2])
        return self.graph.add(
            "CONCATENATION", (x, y), f"{x.name}/tokens", shape, x.dtype, x.step, table="ConcatenationOptions", axis=1
        )

    def rows(self, name: str, x: Tensor, start: int, count: int) -> Tensor:
        return self._slice(x, 1, start, count, name)

    def row(self, x: Tensor) -> Tensor:
        return self.reshape(x, (1, 1, x.shape[1]))

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        target = self._shared(f"shape {shape}", np.array(shape, np.int32))
        return self.graph.add("RESHAPE", (x, target), f"{x.name}/reshaped", shape, x.dtype,
                              x.scale, x.zero_point)  # fmt: skip

    def class_map(self, scores: Tensor, repeat: int) -> Tensor:
        """Scores 1xNx(S K) -> uint8 class ids, each sub-patch in its place and repeated over its pixels."""
        config, add = self.config, self.graph.add
        (rows, columns), sub = config.grid, config.sub
        by_class = self.reshape(scores, (config.tokens, sub * sub, config.classes))
        axis = self._shared("axis", np.array([2], np.int32))
        ids = add(
            "ARG_MAX", (by_class, axis), "ids", (config.tokens, sub * sub), np.int32,
            table="ArgMaxOptions", outputType=2,
        )  # fmt: skip
        ids = self._transpose(self.reshape(ids, (rows, columns, sub, sub)), (0, 2, 1, 3))
        height, width = rows * sub, columns * sub
        ids = self._bytes(self.reshape(ids, (height, 1, width)), repeat)  # [h, 1, W]
        ids = self._repeat(ids, repeat)  # [h, repeat, W]: down the columns
        return self.reshape(ids, (1, height * repeat, width * repeat))

    def _bytes(self, ids: Tensor, repeat: int) -> Tensor:
        """int32 [h, 1, w] -> uint8 [h, 1, w repeat], each id `repeat` times along its row.

        Four times is one multiplication: an int32 of id * 0x01010101, read as bytes, is the id four times over.
        """
        add, (height, _, width) = self.graph.add, ids.shape
        if repeat == 4 and self.config.classes <= 128:  # the product must fit into int32
            four = self._shared("0x01010101", np.array([0x01010101], np.int32))
            packed = add("MUL", (ids, four), "ids/packed", ids.shape, np.int32, table="MulOptions")
            shape = (height, 1, width, 4)
            ids = add("BITCAST", (packed,), "ids/bytes", shape, np.uint8, table="BitcastOptions")
        else:
            ids = self._cast(ids, np.uint8, "ids/bytes")
            ids = self._repeat(self.reshape(ids, (height * width, 1)), repeat)
        return self.reshape(ids, (height, 1, width * repeat))

    def _repeat(self, x: Tensor, times: int) -> Tensor:
        if times == 1:
            return x
        shape = (x.shape[0], times, *x.shape[2:])
        return self.graph.add(
            "CONCATENATION", (x,) * times, f"{x.name}/repeated", shape, x.dtype, table="ConcatenationOptions", axis=1
        )

    def _reduced(self, kind: str, x: Tensor, name: str) -> Tensor:
        """Maxima or means of an int8 tensor's rows."""
        axis = self._shared("axis", np.array([len(x.shape) - 1], np.int32))
        return self.graph.add(
            kind, (x, axis), name, (*x.shape[:-1], 1), scale=x.step, table="ReducerOptions", keepDims=True
        )

    def _cast(self, x: Tensor, dtype: type[np.generic], name: str, scale: float | None = None) -> Tensor:
        source, target = TENSOR_TYPES[x.dtype], TENSOR_TYPES[dtype]
        return self.graph.add(
            "CAST", (x,), name, x.shape, dtype, scale, table="CastOptions", inDataType=source, outDataType=target
        )

    def _sum(self, x: Tensor, name: str) -> Tensor:
        """Sum int32 values over the last axis, exactly."""
        axis = self._shared("axis", np.array([len(x.shape) - 1], np.int32))
        shape = (*x.shape[:-1], 1)
        return self.graph.add("SUM", (x, axis), name, shape, np.int32, table="ReducerOptions", keepDims=True)

    def _transpose(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        shape = tuple(x.shape[axis] for axis in order)
        permutation = self._shared(f"order {order}", np.array(order, np.int32))
        return self.graph.add(
            "TRANSPOSE", (x, permutation), f"{x.name}/turned", shape, x.dtype, x.scale, x.zero_point,
            table="TransposeOptions",
        )  # fmt: skip

    def _slice(self, x: Tensor, axis: int, start: int, size: int, name: str) -> Tensor:
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = start, size
        first = self._shared(f"first {begin}", np.array(begin, np.int32))
        sizes = self._shared(f"shape {tuple(shape)}", np.array(shape, np.int32))
        return self.graph.add(
            "SLICE", (x, first, sizes), name, tuple(shape), x.dtype, x.step, x.zero_point, table="SliceOptions"
        )

    def _shared(self, name: str, data: NDArray[Any], scale: float | None = None) -> Tensor:
        """Return the constant of this name and content, made at its first use."""
        key = f"{name} {data.tobytes()!r} {scale}"
        return self._constants.setdefault(key, constant(name, data, scale))


TENSOR_TYPES: dict[type[np.generic], int] = {np.int32: 2, np.uint8: 3, np.int16: 7, np.int8: 9}  # of the schema


def _int8(values: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(np.round(values), -127, 127).astype(np.int8)


def _sum_of_index(rulers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the row sum that each index stands for: the mean of the sums whose readings add up to it."""
    sums = np.geomspace(0.1, 1.2 * rulers[-1], 200_000)
    index = np.minimum(np.round(255 * sums[:, np.newaxis] / rulers), 255).sum(-1).astype(int)
    known, where = np.unique(index, return_inverse=True)
    means = np.bincount(where, sums) / np.bincount(where)
    return np.interp(np.arange(255 * len(rulers) + 1), known, means)
