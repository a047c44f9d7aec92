"""A graph in, the bytes of a `.tflite` file out, class names and colours inside; and the way back.

The object classes come from LiteRT's own schema. Two things are done by hand: vectors are aligned to 16 bytes, as
the schema demands and the Python packer forgets, and equal vectors are stored once. Every per-channel scale drags a
zero-point vector of int64 along, all of them 0: shared, they cost a few kilobytes instead of a few hundred.
"""

import io
import json
import zipfile
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from convert.graph import Array, Graph, Operator, Tensor
from models import ClassInfo

# The first version of each builtin that takes int8, where that is not 1: old runtimes refuse newer ones.
VERSIONS = {
    "ADD": 2, "ARG_MAX": 2, "BATCH_MATMUL": 2, "CONCATENATION": 2, "CONV_2D": 3, "FULLY_CONNECTED": 4,
    "GATHER": 2, "MEAN": 2, "MUL": 2, "QUANTIZE": 2, "REDUCE_MAX": 2, "SLICE": 2, "SUB": 2, "TRANSPOSE": 2,
}  # fmt: skip
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
# NumPy's name of a schema type; the types NumPy has no name for (bfloat16, int4) are read as raw bytes.
DTYPES = {"BOOL": np.bool_, "COMPLEX64": np.complex64} | {
    name: getattr(np, name.lower()) for name in TYPE_NAMES.values() if hasattr(np, name.lower())
}
TYPES = {dtype: name for name, dtype in DTYPES.items()}


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """A flatbuffer builder that aligns vectors to 16 bytes and stores equal vectors once."""

    def __init__(self) -> None:
        super().__init__(1 << 23)
        self._stored: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: Array) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._stored:
            self.StartVector(x.itemsize, x.size, 16)
            self.head -= len(key[1])
            self.Bytes[self.head : self.head + len(key[1])] = key[1]
            self.vectorNumElems = x.size
            self._stored[key] = self.EndVector()
        return self._stored[key]


def pack(graph: Graph, classes: tuple[ClassInfo, ...], description: str) -> bytes:
    """Return the file's bytes: the flatbuffer, then a ZIP with `labelmap.txt` and `colors.json`."""
    assert graph.source is not None and graph.sink is not None
    model = _model(graph, [graph.source], graph.sink, description)
    labels = "\n".join(info.name for info in classes)
    metadata = _metadata(description, labels)
    model.buffers.append(_buffer(np.frombuffer(metadata, np.uint8)))
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"TFLITE_METADATA", len(model.buffers) - 1
    model.metadata = [entry]
    builder = _Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    colors = json.dumps([info.color for info in classes])
    return _append_zip(bytes(builder.Output()), {"labelmap.txt": labels, "colors.json": colors})


def cut(operator: Operator) -> bytes:
    """Return a `.tflite` file of one operator alone; its inputs are those of the operator that are no constants."""
    sources = [tensor for tensor in dict.fromkeys(operator.inputs) if tensor is not None and tensor.data is None]
    builder = _Builder()
    builder.Finish(_model(Graph([operator]), sources, operator.output, operator.kind).Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _model(graph: Graph, sources: list[Tensor], sink: Tensor, description: str) -> Any:
    tensors = graph.tensors()
    index = {id(tensor): position for position, tensor in enumerate(tensors)}
    kinds = sorted({operator.kind for operator in graph.operators})
    buffers = [_buffer(None)]
    subgraph = schema.SubGraphT()
    subgraph.tensors = [_tensor(tensor, buffers) for tensor in tensors]
    subgraph.operators = [_operator(operator, kinds.index(operator.kind), index) for operator in graph.operators]
    subgraph.inputs, subgraph.outputs = _ints([index[id(tensor)] for tensor in sources]), _ints([index[id(sink)]])
    subgraph.name = b"main"
    model = schema.ModelT()
    model.version, model.description = 3, description.encode()
    model.operatorCodes = [_code(kind) for kind in kinds]
    model.subgraphs, model.buffers = [subgraph], buffers
    return model


def unpack(data: bytes) -> Graph:
    """Read any `.tflite` file's first subgraph back, the inverse of `pack`; weights are views, nothing is decoded.

    A type NumPy does not know stands as `np.void`.
    """
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    subgraph = model.subgraphs[0]
    tensors = [_unpack_tensor(packed, model.buffers) for packed in subgraph.tensors]
    operators = [_unpack_operator(packed, model.operatorCodes, tensors) for packed in subgraph.operators]
    return Graph(operators, tensors[subgraph.inputs[0]], tensors[subgraph.outputs[0]])


def tensor_types(data: bytes) -> list[tuple[str, str]]:
    """Return name and type, in the schema's spelling, of every tensor of every subgraph, used or not."""
    subgraphs = schema.ModelT.InitFromPackedBuf(data, 0).subgraphs
    tensors = [tensor for subgraph in subgraphs for tensor in subgraph.tensors]
    return [((tensor.name or b"").decode(), TYPE_NAMES[tensor.type]) for tensor in tensors]


def tensor_indices(data: bytes) -> list[tuple[list[int], int]]:
    """Return, for each operator, the indices by which interpreters know its inputs (-1: left out) and first output."""
    subgraph = schema.ModelT.InitFromPackedBuf(data, 0).subgraphs[0]
    return [([int(index) for index in packed.inputs], int(packed.outputs[0])) for packed in subgraph.operators]


def _unpack_tensor(packed: Any, buffers: list[Any]) -> Tensor:
    shape = tuple(int(size) for size in packed.shape) if packed.shape is not None else ()
    dtype = DTYPES.get(TYPE_NAMES[packed.type], np.void)
    stored, quantization = buffers[packed.buffer].data, packed.quantization
    data = None if stored is None or dtype is np.void else np.asarray(stored, np.uint8).view(dtype).reshape(shape)
    scale: float | Array | None = None
    zero_point, axis = 0, 0
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        scales = np.asarray(quantization.scale, np.float32).astype(np.float64)
        scale = float(scales[0]) if len(scales) == 1 else scales
        zero_point, axis = int(quantization.zeroPoint[0]), int(quantization.quantizedDimension)
    return Tensor((packed.name or b"").decode(), shape, dtype, scale, zero_point, data, axis)


def _unpack_operator(packed: Any, codes: list[Any], tensors: list[Tensor]) -> Operator:
    code = codes[packed.opcodeIndex]
    options: dict[str, Any] = {}
    if packed.builtinOptions is not None:
        options = {"table": type(packed.builtinOptions).__name__.removesuffix("T"), **vars(packed.builtinOptions)}
    return Operator(
        NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)],
        tuple(None if index < 0 else tensors[index] for index in packed.inputs),
        tuple(tensors[index] for index in packed.outputs),
        options,
    )


def _buffer(data: Array | None) -> Any:
    buffer = schema.BufferT()
    buffer.data = data
    return buffer


def _tensor(tensor: Tensor, buffers: list[Any]) -> Any:
    packed = schema.TensorT()
    packed.name, packed.shape = tensor.name.encode(), _ints(tensor.shape)
    packed.type = getattr(schema.TensorType, TYPES[tensor.dtype])
    packed.hasRank = True
    if tensor.scale is not None:
        scales = np.atleast_1d(np.asarray(tensor.scale, np.float32))
        packed.quantization = schema.QuantizationParametersT()
        packed.quantization.scale = scales
        packed.quantization.zeroPoint = np.full(scales.shape, tensor.zero_point, np.int64)
        packed.quantization.quantizedDimension = tensor.axis
    if tensor.data is not None:
        packed.buffer = len(buffers)
        buffers.append(_buffer(np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)))
    return packed


def _operator(operator: Operator, code: int, index: dict[int, int]) -> Any:
    packed = schema.OperatorT()
    packed.opcodeIndex = code
    packed.inputs = _ints([-1 if tensor is None else index[id(tensor)] for tensor in operator.inputs])
    packed.outputs = _ints([index[id(tensor)] for tensor in operator.outputs])
    if operator.options:
        table = operator.options["table"]
        options = getattr(schema, f"{table}T")()
        for key, value in operator.options.items():
            if key != "table":
                assert hasattr(options, key), f"{table} has no field {key}"
                setattr(options, key, value)
        packed.builtinOptionsType, packed.builtinOptions = getattr(schema.BuiltinOptions, table), options
    return packed


def _code(kind: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # the field's int8 range; newer codes go in builtinCode
    code.version = VERSIONS.get(kind, 1)
    return code


def _ints(values: Any) -> Array:
    return np.asarray(values, np.int32)


def _append_zip(model: bytes, files: dict[str, str]) -> bytes:
    packed = io.BytesIO(model)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)  # a fixed date: equal bytes each time
    return packed.getvalue()


def _metadata(description: str, labels: str) -> bytes:
    """Build the convention's `ModelMetadata` (metadata_schema.fbs): it points at `labelmap.txt` from the output.

    The slots below are the field numbers of that schema; LiteRT's wheel does not bring it.
    """
    builder = flatbuffers.Builder(1024)

    def table(fields: dict[int, int], scalars: dict[int, int] | None = None) -> int:
        builder.StartObject(8)
        for slot, offset in fields.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, value in (scalars or {}).items():
            builder.PrependInt8Slot(slot, value, 0)
        return int(builder.EndObject())

    def vector(offset: int) -> int:
        builder.StartVector(4, 1, 4)
        builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    values = 3  # AssociatedFileType.TENSOR_VALUE_LABELS: line i names the value i of the output
    file = table({0: builder.CreateString("labelmap.txt")}, {2: values})
    frame = table({0: builder.CreateString("frame"), 1: builder.CreateString("RGB pixels, uint8, 0..255")})
    what = builder.CreateString(f"class ids, uint8: {', '.join(labels.splitlines())}"[:500])
    sink = table({0: builder.CreateString("classes"), 1: what, 6: vector(file)})
    subgraph = table({2: vector(frame), 3: vector(sink)})
    root = table({0: builder.CreateString("Segmenter"), 1: builder.CreateString(description), 3: vector(subgraph)})
    builder.Finish(root, b"M001")
    return bytes(builder.Output())
