"""Prove that a .tflite file is integer-only, and say how much of its work XNNPACK takes.

Every tensor and operator of the file is looked at, not only its doors: stock converters leave float islands
(DEQUANTIZE -> NEG -> QUANTIZE around each LayerNorm) in files whose input and output read int8.

  python -m convert verify models/person.tflite
  python -m convert verify models/person.tflite --json
  python -m convert verify models/person.tflite --images DIR

With pictures every kernel is held against the NumPy reference of the arithmetic, and XNNPACK against the kernels, one
operator at a time on equal inputs. The exit code is 0 if the file is integer-only and no table can be left, else 1.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert import flatbuffer, proof
from convert.files import draw_pictures
from convert.graph import Graph, Operator
from convert.proof import Agreement
from models import UserError
from models.runtime import interpreter

INTEGERS = ("INT4", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BOOL")


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        integer_only: no tensor of the file, constants included, is of any float type.
        float_tensors: names of those that are, each with the operator that makes or first reads it.
        operators: how often each builtin occurs.
        xnnpack_share: part of the work, 0..1, in operators that the runtime's default delegate takes here;
            multiply-accumulates for products, output elements for all else.
        outside_xnnpack: how often each builtin occurs among the rest.
        partitions: how many pieces of the graph the delegate takes.
        unsafe_lookups: names of GATHERs whose index might leave its table for some frame, by interval arithmetic.
        kernels, xnnpack: with pictures, for each builtin how the runtime's kernels agree with the NumPy reference,
            and how XNNPACK agrees with the kernels.
    """

    integer_only: bool
    float_tensors: list[str]
    operators: dict[str, int]
    xnnpack_share: float
    outside_xnnpack: dict[str, int]
    partitions: int
    unsafe_lookups: list[str]
    kernels: dict[str, Agreement] | None = None
    xnnpack: dict[str, Agreement] | None = None

    @property
    def proven(self) -> bool:
        """Integer-only, and every table lookup inside its table whatever the frame."""
        return self.integer_only and not self.unsafe_lookups


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("file", type=Path, help="a .tflite file")
    parser.add_argument("--images", type=Path, help="a folder of pictures to compare the kernels on")
    parser.add_argument("--pictures", type=int, default=2, help="how many of them (default 2)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """Verify a file and print the report."""
    report = verify(args.file)
    if args.images and not report.integer_only:
        raise UserError(
            f"{args.file} is not integer-only, so there is no integer arithmetic to hold it against: "
            "leave out --images."
        )
    if args.images:
        source = flatbuffer.unpack(args.file.read_bytes()).source
        assert source is not None
        pictures = draw_pictures([args.images], args.pictures, source.shape[1], source.shape[2])
        report = replace(report, kernels=proof.kernels(args.file, pictures), xnnpack=proof.xnnpack(args.file, pictures))
    print(json.dumps(asdict(report), indent=2) if args.json else _text(args.file, report))
    return 0 if report.proven else 1


def verify(path: Path) -> Report:
    """Count the file's tensors and operators and ask the runtime which of them XNNPACK takes.

    Raises:
        UserError: no such file, or not a TFLite model.
    """
    if not path.is_file():
        raise UserError(f"No file {path}: give a .tflite file, for instance one of models/.")
    runtime = interpreter(path)  # refuses what is no model, with a sentence
    graph = flatbuffer.unpack(path.read_bytes())
    floats = _float_tensors(graph, path.read_bytes())
    taken, partitions = delegated(runtime, graph)
    work = [_work(operator) for operator in graph.operators]
    rest = Counter(operator.kind for position, operator in enumerate(graph.operators) if position not in taken)
    return Report(
        integer_only=not floats,
        float_tensors=floats,
        operators=dict(Counter(operator.kind for operator in graph.operators).most_common()),
        xnnpack_share=round(sum(work[position] for position in taken) / max(1, sum(work)), 4),
        outside_xnnpack=dict(rest.most_common()),
        partitions=partitions,
        unsafe_lookups=proof.unsafe_lookups(graph),
    )


def _float_tensors(graph: Graph, data: bytes) -> list[str]:
    """Name each tensor of any subgraph that is of no integer type, with the first operator that has to do with it."""
    near: dict[str, str] = {}
    for operator in graph.operators:
        for tensor in (*operator.outputs, *operator.inputs):
            if tensor is not None:
                near.setdefault(tensor.name, f"{'constant of' if tensor.data is not None else 'at'} {operator.kind}")
    types = flatbuffer.tensor_types(data)
    return [
        f"{name} ({kind.lower()}, {near.get(name, 'in no operator')})" for name, kind in types if kind not in INTEGERS
    ]


def delegated(runtime: Any, graph: Graph) -> tuple[set[int], int]:
    """Return the positions of the operators inside delegate nodes: what leads to a node's outputs from its inputs."""
    nodes = runtime._get_ops_details()
    maker = {int(t): n["index"] for n in nodes[: len(graph.operators)] for t in n["outputs"]}
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    taken: set[int] = set()
    for node in delegates:
        edge, border = [int(t) for t in node["outputs"]], {int(t) for t in node["inputs"]}
        while edge:
            tensor = edge.pop()
            if tensor in maker and tensor not in border and maker[tensor] not in taken:
                taken.add(maker[tensor])
                edge += [int(t) for t in nodes[maker[tensor]]["inputs"]]
    return taken, len(delegates)


def _work(operator: Operator) -> int:
    """Multiply-accumulates of a product, output elements of anything else."""
    elements = int(np.prod(operator.output.shape))
    if operator.kind in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        first = operator.operand(0).shape
        return elements * first[-2 if operator.options.get("adjX") else -1]
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return elements * int(np.prod(operator.operand(1).shape[1:]))
    return elements


def _text(path: Path, report: Report) -> str:
    census = ", ".join(f"{name} {count}" for name, count in report.operators.items())
    outside = ", ".join(f"{name} {count}" for name, count in report.outside_xnnpack.items()) or "none"
    verdict = "integer-only: no float tensor" if report.integer_only else "NOT integer-only"
    lines = [
        f"{path}: {verdict}",
        *(f"  float: {name}" for name in report.float_tensors[:10]),
        *([f"  and {len(report.float_tensors) - 10} more"] if len(report.float_tensors) > 10 else []),
        f"operators: {census}",
        f"XNNPACK takes {report.xnnpack_share:.1%} of the work in {report.partitions} partitions",
        f"outside XNNPACK: {outside}",
        *(f"may look outside its table: {name}" for name in report.unsafe_lookups),
    ]
    return "\n".join(lines + _table("kernels against NumPy", report.kernels) + _table("XNNPACK", report.xnnpack))


def _table(title: str, agreements: dict[str, Agreement] | None) -> list[str]:
    if agreements is None:
        return []
    rows = [f"{title}: operators, values that differ, largest difference in steps"]
    for kind, found in agreements.items():
        rows.append(f"  {kind:<16} {found.operators:5d} {found.differing:10.4%} {found.largest:4d}")
    return rows
