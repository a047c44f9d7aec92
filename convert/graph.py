"""The integer graph as plain data: tensors, operators, and the few rules that make every one of them integer.

A `Graph` is written once (`convert/build.py`) and read three times: packed into a `.tflite` file
(`convert/flatbuffer.py`), computed in NumPy (`convert/reference.py`) and counted (`convert/verify.py`).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The table of the schema that holds an operator's options; the other operators have none that any runtime asks for.
OPTIONS = {
    "ADD": "AddOptions",
    "ARG_MAX": "ArgMaxOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "BITCAST": "BitcastOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "REDUCE_MAX": "ReducerOptions",
    "SLICE": "SliceOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TRANSPOSE": "TransposeOptions",
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the graph: real value = scale * (integer - zero_point).

    Attributes:
        name: says in the file what the tensor is, for instance `encoder/3/fc1`.
        shape: all dimensions, the leading 1 of the batch included.
        dtype: int8, uint8, int16 or int32 in our files; whatever it is in a file that was read.
        scale: None for plain integers (indices, class ids), one number, or a vector along `axis`.
        zero_point: the integer that stands for 0.0.
        data: the values of a constant, else None.
        axis: the dimension a vector of scales runs along.
    """

    name: str
    shape: tuple[int, ...]
    dtype: type[np.generic]
    scale: float | Array | None = None
    zero_point: int = 0
    data: Array | None = None
    axis: int = 0

    @property
    def step(self) -> float:
        """The scale of a per-tensor quantised tensor."""
        assert isinstance(self.scale, float), f"{self.name} has no single scale"
        return self.scale


@dataclass(frozen=True, eq=False)
class Operator:
    """One TFLite builtin operator.

    `options` are the fields of its options table in the schema's own spelling, the table's name under "table".
    An input that is left out is None.
    """

    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: dict[str, Any]

    @property
    def output(self) -> Tensor:
        """The first output; every operator this converter writes has one."""
        return self.outputs[0]

    def operand(self, position: int) -> Tensor:
        """Return an input that must be there."""
        tensor = self.inputs[position]
        assert tensor is not None, f"{self.output.name} lacks its input {position}"
        return tensor


@dataclass
class Graph:
    """Operators in the order they run, from `source` (the frame) to `sink` (the class map)."""

    operators: list[Operator] = field(default_factory=list)
    source: Tensor | None = None
    sink: Tensor | None = None

    def add(
        self,
        kind: str,
        inputs: tuple[Tensor, ...],
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.generic] = np.int8,
        scale: float | Array | None = None,
        zero_point: int = 0,
        **options: Any,
    ) -> Tensor:
        """Append an operator and return its output tensor; any type but these four is a bug."""
        if table := OPTIONS.get(kind):
            options = {"table": table, **options}
        output = Tensor(name, shape, dtype, scale, zero_point)
        for tensor in (*inputs, output):
            assert tensor.dtype in (np.int8, np.uint8, np.int16, np.int32), f"{tensor.name} is {tensor.dtype}"
        self.operators.append(Operator(kind, inputs, (output,), options))
        return output

    def tensors(self) -> list[Tensor]:
        """List every tensor once, in the order of first use."""
        seen: dict[int, Tensor] = {}
        for operator in self.operators:
            for tensor in (*operator.inputs, *operator.outputs):
                if tensor is not None:
                    seen.setdefault(id(tensor), tensor)
        return list(seen.values())


def constant(name: str, data: Array, scale: float | Array | None = None, axis: int = 0, zero_point: int = 0) -> Tensor:
    """Make a constant; weights are symmetric (zero point 0), tables need not be."""
    return Tensor(name, data.shape, data.dtype.type, scale, zero_point, data, axis)
