"""Time one model file in a process of its own: `python -m app.trial FILE --threads N --seconds S` prints JSON.

The process holds Python, NumPy, OpenCV, the runtime and this one model, so that is what its memory means.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import device
from app.command import Failed, python
from models import UserError
from models.runtime import interpreter, runtime

WARM_UP_RUNS, WARM_UP_SECONDS = 3, 0.3  # the longer of both: caches, clocks and packed weights settle
LEAST_RUNS = 5


@dataclass(frozen=True)
class Trial:
    """What one process measured.

    Attributes:
        runtime: name and version of what ran the file.
        times_ms: each run of the network, its input already set.
        load_ms: opening the file until it can run.
        first_ms: the first run, which also does what the runtime put off until then.
        memory_mb: `rss`, `pss`, `peak_rss` of the process after the runs, as `device.MEMORY` defines them, and
            `before`, its RSS before the file was opened; None where the system does not tell.
        clock_us: what it costs to read the clock around a run, part of every time.
    """

    runtime: str
    times_ms: list[float]
    load_ms: float
    first_ms: float
    memory_mb: dict[str, float | None]
    clock_us: float


def run(path: Path, threads: int, seconds: float, engine: str = "litert") -> Trial:
    """Measure a file in a new process.

    Args:
        path: what the engine reads: `.tflite`; for OpenVINO that or `.xml`, for ONNX Runtime `.onnx`.
        threads: CPU threads.
        seconds: how long to run it, warm-up apart.
        engine: a key of `ENGINES`.

    Raises:
        UserError: the runtime cannot load or run the file, or the process was killed.
    """
    options = [f"--threads={threads}", f"--seconds={seconds}", f"--engine={engine}"]
    try:
        printed = python("-m", "app.trial", str(path.resolve()), *options)
    except Failed as problem:
        raise UserError(f"{path} cannot be measured ({problem}): leave it out.") from None
    return Trial(**json.loads(printed.splitlines()[-1]))


def measure(path: Path, threads: int, seconds: float, engine: str) -> Trial:
    """Measure a file in this process: load, warm up apart, then run for some seconds."""
    before = device.memory()["rss"]
    start = time.perf_counter()
    name, invoke = ENGINES[engine](path, threads)
    load = 1e3 * (time.perf_counter() - start)
    (first,) = _repeat(invoke, 0.0, 1)
    _repeat(invoke, WARM_UP_SECONDS, WARM_UP_RUNS)
    times = _repeat(invoke, seconds, LEAST_RUNS)
    clock = float(np.median(_repeat(lambda: None, 0.0, 1000)))
    return Trial(name, times, load, first, {**device.memory(), "before": before}, 1e3 * clock)


def noise(shape: Any, dtype: Any) -> NDArray[Any]:
    """Draw the same input each time: the whole range of 8-bit types, 0..255 of larger integers, 0..1 of floats."""
    source = np.random.default_rng(0)
    values: NDArray[Any] = source.random(shape)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(np.int8 if dtype == np.int8 else np.uint8)
        values = source.integers(limits.min, limits.max, shape, endpoint=True)
    return values.astype(dtype)


def _litert(path: Path, threads: int) -> tuple[str, Callable[[], Any]]:
    opened = interpreter(path, threads)
    for details in opened.get_input_details():
        opened.set_tensor(details["index"], noise(details["shape"], details["dtype"]))
    return runtime()[0], opened.invoke


def _openvino(path: Path, threads: int) -> tuple[str, Callable[[], Any]]:
    import openvino

    # float32 as asked: on some CPUs OpenVINO would compute in bfloat16 by itself
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    for number, port in enumerate(request.model_inputs):
        request.set_input_tensor(number, openvino.Tensor(noise(list(port.shape), port.element_type.to_dtype())))
    return f"openvino {openvino.__version__.partition('-')[0]}", request.infer


def _onnxruntime(path: Path, threads: int) -> tuple[str, Callable[[], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    feed = {port.name: noise(port.shape, types[port.type]) for port in session.get_inputs()}
    return f"onnxruntime {onnxruntime.__version__}", lambda: session.run(None, feed)


ENGINES = {"litert": _litert, "openvino": _openvino, "onnxruntime": _onnxruntime}


def _repeat(work: Callable[[], Any], seconds: float, least: int) -> list[float]:
    """Call for at least so many seconds and runs; return the milliseconds of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> int:
    """Measure the file of the command line and print the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--engine", choices=tuple(ENGINES), default="litert")
    args = parser.parse_args()
    try:
        print(json.dumps(vars(measure(args.file, args.threads, args.seconds, args.engine))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
