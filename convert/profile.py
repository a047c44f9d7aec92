"""Time every operator of a .tflite file: where do the milliseconds go, and what does XNNPACK take?

  python -m convert profile models/person.tflite
  python -m convert profile models/person.tflite --threads 2 --json

LiteRT's Python wheel has no profiler, so each operator is cut out into a file of its own, given the values it has in
the whole network for one input of noise, and run alone. Alone its data lie warm in the cache and every run pays the
interpreter's own cost again, so the sum differs from the whole; the report says by how much. What XNNPACK takes is
asked of the whole file. Blocks go by the names of the outputs, two parts deep: encoder/3.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer
from convert.proof import preserved
from convert.verify import delegated
from models import UserError
from models.runtime import cores, interpreter, runtime

SECONDS, LEAST_RUNS = 0.02, 20  # per operator: the longer of both
METHOD = (
    "Each operator was cut out of the file and run alone, median of its runs; LiteRT's Python wheel has no profiler. "
    "The sum of all is {sum:.2f} ms, the whole network in one piece {whole:.2f} ms."
)


@dataclass(frozen=True)
class Cost:
    """What one operator costs: `name` of its output, `kind`, `block`, `shape`, `ms`, and whether XNNPACK takes it."""

    name: str
    kind: str
    block: str
    shape: tuple[int, ...]
    ms: float
    xnnpack: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("file", type=Path, help="a .tflite file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """Profile a file and print the report."""
    if not args.file.is_file():
        raise UserError(f"No file {args.file}: give a .tflite file, for instance one of models/.")
    report = profile(args.file, args.threads)
    print(json.dumps(report) if args.json else _text(report))
    return 0


def profile(path: Path, threads: int = 1) -> dict[str, Any]:
    """Time a file's operators.

    Args:
        path: any `.tflite` file with one subgraph that the runtime runs.
        threads: CPU threads.

    Returns:
        `model`, `threads`, `runtime`, `method` (how, in words), `whole_ms`, `sum_ms`; `operators`: a `Cost` each;
        `kinds` and `blocks`: `name`, `count`, `ms`, `xnnpack_ms` (the part that XNNPACK takes), dearest kind first.
    """
    costs = operators(path, threads)
    whole = latency(path, threads)
    total = sum(cost.ms for cost in costs)
    kinds = sorted(_sums(costs, lambda cost: cost.kind), key=lambda entry: -entry["ms"])
    return {
        "model": path.stem,
        "threads": threads,
        "runtime": runtime()[0],
        "method": METHOD.format(sum=total, whole=whole),
        "whole_ms": round(whole, 4),
        "sum_ms": round(total, 4),
        "kinds": kinds,
        "blocks": _sums(costs, lambda cost: cost.block),
        "operators": [asdict(cost) for cost in costs],
    }


def machine() -> dict[str, str]:
    """Return the `device` and `runtime` that times are of."""
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "an unknown processor"
    return {"device": f"{name}, {platform.machine()}, {cores()} cores", "runtime": runtime()[0]}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def operators(path: Path, threads: int) -> list[Cost]:
    """Run every operator of a file alone and return its cost, in the order of the file."""
    data, values = path.read_bytes(), _values(path)
    graph = flatbuffer.unpack(data)
    taken, _ = delegated(interpreter(path), graph)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "operator.tflite")
        for position, (operator, (read, _)) in enumerate(
            zip(graph.operators, flatbuffer.tensor_indices(data), strict=True)
        ):
            alone.write_bytes(flatbuffer.cut(operator))
            fed = [index for index, tensor in zip(read, operator.inputs, strict=True) if tensor and tensor.data is None]
            spent = _median(_invoker(alone, threads, [values(index) for index in dict.fromkeys(fed)]))
            name = operator.output.name
            block = "/".join(name.split("/")[:2])
            costs.append(Cost(name, operator.kind, block, operator.output.shape, round(spent, 5), position in taken))
    return costs


def _values(path: Path) -> Callable[[int], NDArray[Any]]:
    """Run a file once on noise, without XNNPACK, and return what every tensor held, by its number."""
    opened = preserved(path)
    source = np.random.default_rng(0)
    for details in opened.get_input_details():
        shape, dtype = details["shape"], details["dtype"]
        drawn = source.integers(0, 127, shape) if np.issubdtype(dtype, np.integer) else source.random(shape)
        opened.set_tensor(details["index"], drawn.astype(dtype))
    opened.invoke()
    return opened.get_tensor  # type: ignore[no-any-return]


def latency(path: Path, threads: int = 1) -> float:
    """Return the median milliseconds of a whole file on an empty frame."""
    return _median(_invoker(path, threads))


def _invoker(path: Path, threads: int, inputs: Iterable[NDArray[Any]] = ()) -> Callable[[], Any]:
    opened = interpreter(path, threads)
    for details, value in zip(opened.get_input_details(), inputs, strict=False):
        opened.set_tensor(details["index"], value)
    return opened.invoke  # type: ignore[no-any-return]


def _median(work: Callable[[], Any]) -> float:
    """Return the median milliseconds of a call, a few to warm up apart."""
    for _ in range(3):
        work()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _sums(costs: Iterable[Cost], key: Callable[[Cost], str]) -> list[dict[str, Any]]:
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(key(cost), []).append(cost)
    return [
        {
            "name": name,
            "count": len(group),
            "ms": round(sum(cost.ms for cost in group), 4),
            "xnnpack_ms": round(sum(cost.ms for cost in group if cost.xnnpack), 4),
        }
        for name, group in groups.items()
    ]


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['model']} on {report['threads']} threads, {report['runtime']}", report["method"]]
    for title in ("kinds", "blocks"):
        lines.append(f"\n{title:<28} {'count':>6} {'ms':>9} {'share':>7} {'XNNPACK':>8}")
        for entry in report[title]:
            share, taken = entry["ms"] / report["sum_ms"], entry["xnnpack_ms"] / entry["ms"]
            lines.append(f"{entry['name']:<28} {entry['count']:>6} {entry['ms']:>9.3f} {share:>7.1%} {taken:>8.0%}")
    return "\n".join(lines)
