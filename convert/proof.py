"""Hold a file against its arithmetic: every kernel, XNNPACK one operator at a time, and every index into a table.

Operators are compared on equal inputs, those the builtin kernels produced, so that a difference belongs to the
operator that shows it and to no other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer, reference
from convert.graph import Graph, Operator, Tensor
from models import UserError
from models.runtime import interpreter, runtime

Inputs = list[NDArray[Any]]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Agreement:
    """How far one kind of operator is from the builtin kernel, over all tensors it makes.

    Attributes:
        operators: how many were compared.
        differing: share of values, 0..1, that are not equal.
        largest: the largest difference, in steps of the output.
    """

    operators: int
    differing: float
    largest: int


def kernels(path: Path, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, Agreement]:
    """Compare the NumPy reference with the builtin kernels, operator by operator.

    Args:
        path: an integer-only `.tflite` file.
        pictures: 1xHxWx3 uint8 RGB of the model's input size.

    Returns:
        By name of the operator, for instance {"FULLY_CONNECTED": Agreement(75, 0.0, 0)}.
    """
    return _compare(path, pictures, lambda operator: lambda inputs: reference.compute(operator, inputs))


def xnnpack(path: Path, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, Agreement]:
    """Compare the runtime's default delegate with the builtin kernels: each operator in a file of its own."""
    return _compare(path, pictures, _alone)


def _compare(
    path: Path, pictures: Iterable[NDArray[np.uint8]], make: Callable[[Operator], Callable[[Inputs], NDArray[Any]]]
) -> dict[str, Agreement]:
    data = path.read_bytes()
    graph = flatbuffer.unpack(data)
    indices = flatbuffer.tensor_indices(data)
    opened = preserved(path)
    foreign = sorted({operator.kind for operator in graph.operators} - set(reference.KERNELS))
    if foreign:
        raise UserError(
            f"{path} has operators without reference arithmetic ({', '.join(foreign)}): "
            "only files that `convert quantize` wrote can be compared."
        )
    made = [make(operator) for operator in graph.operators]
    found: dict[str, list[NDArray[np.int64]]] = {}
    for pixels in pictures:
        opened.set_tensor(opened.get_input_details()[0]["index"], pixels)
        opened.invoke()
        for operator, (sources, sink), function in zip(graph.operators, indices, made, strict=True):
            inputs = [
                tensor.data if tensor.data is not None else opened.get_tensor(index)
                for tensor, index in zip(operator.inputs, sources, strict=True)
                if tensor is not None
            ]
            found.setdefault(operator.kind, []).append(_distance(function(inputs), opened.get_tensor(sink)))
    return {kind: _agreement(distances) for kind, distances in sorted(found.items())}


def preserved(path: Path) -> Any:
    """Open a file on the builtin kernels alone, with every tensor still to be read after a run."""
    plain = runtime()[1].OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return interpreter(path, experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    return np.abs(a.astype(np.int64) - b.astype(np.int64)).ravel()


def _agreement(distances: list[NDArray[np.int64]]) -> Agreement:
    values = np.concatenate(distances)
    return Agreement(len(distances), float((values > 0).mean()), int(values.max()))


def _alone(operator: Operator) -> Callable[[Inputs], NDArray[Any]]:
    """Open a file of this operator alone, with the default delegate."""
    opened = runtime()[1].Interpreter(model_content=flatbuffer.cut(operator), num_threads=1)
    opened.allocate_tensors()
    doors = [door["index"] for door in opened.get_input_details()]
    sink = opened.get_output_details()[0]["index"]
    free = [place for place, tensor in enumerate(operator.inputs) if tensor is not None and tensor.data is None]
    distinct = {id(operator.inputs[place]): place for place in reversed(free)}  # x in MUL(x, x) is one door

    def run(inputs: Inputs) -> NDArray[Any]:
        for door, place in zip(doors, sorted(distinct.values()), strict=True):
            opened.set_tensor(door, inputs[place])
        opened.invoke()
        return np.asarray(opened.get_tensor(sink))

    return run


def unsafe_lookups(graph: Graph) -> list[str]:
    """Name each GATHER whose index could leave its table for some input; an empty list proves that none can.

    Intervals are followed backwards from the index to the nearest int8 tensors, which can hold anything.
    """
    makers = {id(operator.output): operator for operator in graph.operators}
    unsafe = []
    for operator in graph.operators:
        if operator.kind == "GATHER":
            low, high = _interval(operator.operand(1), makers)
            size = operator.operand(0).shape[operator.options["axis"]]
            if low < 0 or high >= size:
                unsafe.append(f"{operator.output.name} (index {low}..{high}, table of {size})")
    return unsafe


def _interval(tensor: Tensor, makers: dict[int, Operator]) -> Interval:
    if tensor.data is not None:
        return int(tensor.data.min()), int(tensor.data.max())
    limits = np.iinfo(np.dtype(tensor.dtype))
    everything = int(limits.min), int(limits.max)
    operator = makers.get(id(tensor))
    if operator is None or operator.kind not in INTERVALS or tensor.dtype is not np.int32:
        return everything
    inputs = [_interval(source, makers) for source in operator.inputs if source is not None]
    return INTERVALS[operator.kind](operator, *inputs)


def _sum(operator: Operator, x: Interval, axis: Interval) -> Interval:
    count = operator.operand(0).shape[axis[0]]
    return x[0] * count, x[1] * count


INTERVALS: dict[str, Callable[..., Interval]] = {
    "ADD": lambda operator, a, b: (a[0] + b[0], a[1] + b[1]),
    "CAST": lambda operator, x: x,
    "SUM": _sum,
}
