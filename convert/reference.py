"""Compute an integer graph in NumPy, from the arithmetic alone, to hold the runtime's kernels against.

A real number is stood for by an integer, scale * (q - zero point). A product of scales is a rational factor that
integer hardware applies as a 31-bit multiplier and a shift (Jacob et al. 2018, section 2.2), rounded as TFLite's
reference kernels round: `gemmlowp`'s doubling high multiplication, then a rounding shift. Nothing below touches a
float except to derive those constants, which the file's scales determine.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.floats import gelu
from convert.graph import Graph, Operator, Tensor

Ints = NDArray[np.int64]
Values = dict[int, NDArray[Any]]  # by id of the tensor

ADD_SHIFT = {np.int8: 20, np.int16: 15}  # extra bits in which TFLite adds values of different scales


def run(graph: Graph, frame: NDArray[np.uint8]) -> Values:
    """Compute every tensor of a graph.

    Args:
        graph: from `build` or `flatbuffer.unpack`.
        frame: 1xHxWx3 uint8 RGB.

    Returns:
        Each tensor's integers, by `id` of the tensor, in its own type.
    """
    values: Values = {id(graph.source): frame}
    for operator, result in _steps(graph, values):
        values[id(operator.output)] = result
    return values


def _steps(graph: Graph, values: Values) -> Iterator[tuple[Operator, NDArray[Any]]]:
    for operator in graph.operators:
        inputs = [_value(tensor, values) for tensor in operator.inputs if tensor is not None]
        yield operator, compute(operator, inputs)


def _value(tensor: Tensor, values: Values) -> NDArray[Any]:
    return tensor.data if tensor.data is not None else values[id(tensor)]


def compute(operator: Operator, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    """Compute one operator on given integers; the result has the output tensor's type and shape."""
    result = KERNELS[operator.kind](operator, *inputs)
    output = operator.output
    return np.asarray(result).astype(output.dtype).reshape(output.shape)


def multiplier(factor: float) -> tuple[int, int]:
    """Split a positive factor into a 31-bit integer and a power of two, m * 2**(shift - 31) (dyadic number)."""
    mantissa, shift = np.frexp(factor)
    integer = round(float(mantissa) * (1 << 31))
    if integer == 1 << 31:
        integer, shift = integer // 2, shift + 1
    return (0, 0) if shift < -31 else (integer, int(shift))


def _multipliers(factors: Any) -> tuple[Ints, Ints]:
    pairs = [multiplier(float(factor)) for factor in np.atleast_1d(factors)]
    integers, shifts = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    return integers, shifts


def rescale(values: Any, factors: Any, halves_up: bool = False) -> Ints:
    """Multiply int32 values by a factor, or by one for each of the last axis, with TFLite's two roundings.

    Args:
        values: what to multiply.
        factors: real and positive.
        halves_up: round halves of the second rounding up, as ruy's matrix products do, not away from zero.
    """
    return _dyadic(values, *_multipliers(factors), halves_up)


def _dyadic(values: Any, integers: Any, shifts: Any, halves_up: bool = False) -> Ints:
    """Multiply int32 values by integers * 2**(shifts - 31)."""
    shifted = np.asarray(values, np.int64) * (1 << np.maximum(shifts, 0))
    product = shifted * integers
    high = (product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))) // (1 << 31)
    # C++ divides towards zero where // goes down
    high += ((product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))) % (1 << 31) != 0) & (product < 0)
    bits = np.maximum(-shifts, 0)
    if halves_up:
        return np.asarray((high + ((np.int64(1) << bits) >> 1)) >> bits)
    return _rounding_shift(high, bits)


def _rescale_once(values: Ints, factor: float) -> Ints:
    """Multiply by a factor with one rounding, halves up: so LiteRT brings int16 summands to a common scale."""
    integer, shift = multiplier(factor)
    return np.asarray((values * integer + (1 << (30 - shift))) >> (31 - shift))


def _rounding_shift(values: Ints, bits: Any) -> Ints:
    """Divide by 2**bits, halves away from zero (gemmlowp's RoundingDivideByPOT)."""
    mask = (np.int64(1) << np.asarray(bits, np.int64)) - 1
    rest, threshold = values & mask, (mask >> 1) + (values < 0)
    return np.asarray((values >> bits) + (rest > threshold))


def _saturate(operator: Operator, values: Ints) -> Ints:
    """Add the output's zero point and stay within its type, or above zero where the operator ends in a ReLU."""
    output = operator.output
    limits = np.iinfo(np.dtype(output.dtype))
    lowest = output.zero_point if operator.options.get("fusedActivationFunction") == 1 else limits.min
    return np.asarray(np.clip(values + output.zero_point, lowest, limits.max))


def _centred(operator: Operator, position: int, values: NDArray[Any]) -> Ints:
    return values.astype(np.int64) - operator.operand(position).zero_point


def _product(operator: Operator, a: NDArray[Any], b: NDArray[Any]) -> Ints:
    """int8 matrix product with b handed over as bᵀ: int32 sums, one factor per output or one for all."""
    left, right = _centred(operator, 0, a), _centred(operator, 1, b)
    sums = left.astype(np.float64) @ np.swapaxes(right, -1, -2).astype(np.float64)  # exact: far below 2**53
    return sums.astype(np.int64)


def _fully_connected(operator: Operator, x: NDArray[Any], kernel: NDArray[Any], *bias: NDArray[Any]) -> Ints:
    sums = _product(operator, x, kernel) + (bias[0].astype(np.int64) if bias else 0)
    factor = operator.operand(0).step * np.asarray(operator.operand(1).scale) / operator.output.step
    return _saturate(operator, rescale(sums, factor, halves_up=True))


def _batch_matmul(operator: Operator, a: NDArray[Any], b: NDArray[Any]) -> Ints:
    right = b if operator.options["adjY"] else np.swapaxes(b, -1, -2)
    if operator.output.dtype is np.int32:  # the sums themselves; zero points are not subtracted
        return (a.astype(np.float64) @ np.swapaxes(right, -1, -2).astype(np.float64)).astype(np.int64)
    # TFLite multiplies two scales in float32 here and in MUL, and in double elsewhere: the 31st bit may depend on it.
    scale = np.float32(operator.operand(0).step) * np.float32(operator.operand(1).step)
    factor = float(scale) / operator.output.step
    return _saturate(operator, rescale(_product(operator, a, right), factor))


def _multiply(operator: Operator, a: NDArray[Any], b: NDArray[Any]) -> Ints:
    product = _centred(operator, 0, a) * _centred(operator, 1, b)
    if operator.output.dtype is np.int32:
        return product
    scale = np.float32(operator.operand(0).step) * np.float32(operator.operand(1).step)
    return _saturate(operator, rescale(product, float(scale / np.float32(operator.output.step))))


def _add(operator: Operator, a: NDArray[Any], b: NDArray[Any]) -> Ints:
    """Values of two scales are brought to twice the larger one, 20 or 15 bits finer, before they are added."""
    left, right = _centred(operator, 0, a), _centred(operator, 1, b)
    sign = -1 if operator.kind == "SUB" else 1
    if operator.output.dtype is np.int32:
        return left + sign * right
    steps = [operator.operand(position).step for position in (0, 1)]
    common = 2 * max(steps)
    bits = ADD_SHIFT[operator.output.dtype]
    scaled = rescale if operator.output.dtype is np.int8 else _rescale_once
    parts = [scaled(x << bits, step / common) for x, step in zip((left, right), steps, strict=True)]
    factor = common / ((1 << bits) * operator.output.step)
    return _saturate(operator, rescale(parts[0] + sign * parts[1], factor))


def _table(function: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[..., Ints]:
    """Make a kernel of an int8 function that TFLite tabulates: 256 entries, computed in float32 when it loads."""

    def kernel(operator: Operator, x: NDArray[np.int8]) -> Ints:
        source, output = operator.operand(0), operator.output
        inputs = np.arange(-128, 128, dtype=np.float32)
        real = function(np.float32(source.step) * (inputs - np.float32(source.zero_point)))
        scaled = np.asarray(real, np.float32) * np.float32(1 / np.float32(output.step))
        rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int64)  # halves away from zero
        entries = np.clip(rounded + output.zero_point, -128, 127)
        return np.asarray(entries[x.astype(np.int64) + 128])

    return kernel


def _quantize(operator: Operator, x: NDArray[Any]) -> Ints:
    """Requantise: a dyadic number for the ratio of the scales, nothing where they are equal."""
    source, output = operator.operand(0).step, operator.output.step
    centred = _centred(operator, 0, x)
    return _saturate(operator, centred if source == output else rescale(centred, source / output))


def _mean(operator: Operator, x: NDArray[Any], axis: NDArray[Any]) -> Ints:
    """Sum, then multiply by the ratio of the scales divided by the count, as far as 31 bits hold it."""
    sums = _centred(operator, 0, x).sum(int(axis.item()), keepdims=True)
    count = x.shape[int(axis.item())]
    integer, shift = multiplier(operator.operand(0).step / operator.output.step)
    bits = min(count.bit_length() - 1, 31 + shift)
    return _saturate(operator, _dyadic(sums, (integer << bits) // count, shift - bits))


def _divide(operator: Operator, a: NDArray[Any], b: NDArray[Any]) -> Ints:
    """int32 division towards zero, as in C++."""
    wide = a.astype(np.int64)
    return np.asarray(np.sign(wide) * np.sign(b) * (np.abs(wide) // np.abs(b.astype(np.int64))))


def _elu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


def _logistic(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def _space_to_depth(operator: Operator, x: NDArray[Any]) -> NDArray[Any]:
    size = operator.options["blockSize"]
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // size, size, width // size, size, channels)
    return np.asarray(tiles.transpose(0, 1, 3, 2, 4, 5))


def _slice(operator: Operator, x: NDArray[Any], first: NDArray[Any], size: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x[tuple(slice(start, start + count) for start, count in zip(first, size, strict=True))])


def _gather(operator: Operator, table: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    assert index.min() >= 0 and index.max() < len(table), f"{operator.output.name} looks outside its table"
    return np.asarray(table[index])


KERNELS: dict[str, Callable[..., Any]] = {
    "ADD": _add,
    "ARG_MAX": lambda operator, x, axis: x.argmax(int(axis.item())),
    "BATCH_MATMUL": _batch_matmul,
    "BITCAST": lambda operator, x: np.ascontiguousarray(x).view(operator.output.dtype),
    "CAST": lambda operator, x: x,
    "CONCATENATION": lambda operator, *parts: np.concatenate(parts, operator.options["axis"]),
    "DIV": _divide,
    "ELU": _table(_elu),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "GELU": _table(gelu),
    "LOGISTIC": _table(_logistic),
    "MEAN": _mean,
    "MAXIMUM": lambda operator, a, b: np.maximum(a, b),
    "MINIMUM": lambda operator, a, b: np.minimum(a, b),
    "MUL": _multiply,
    "QUANTIZE": _quantize,
    "REDUCE_MAX": lambda operator, x, axis: x.max(int(axis.item()), keepdims=True),
    "RIGHT_SHIFT": lambda operator, a, b: a >> b,
    "RESHAPE": lambda operator, x, shape: x,
    "SLICE": _slice,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SUB": _add,
    "SUM": lambda operator, x, axis: x.sum(int(axis.item()), keepdims=True),
    "TRANSPOSE": lambda operator, x, order: x.transpose(order),
}
