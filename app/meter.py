"""Figures that are true: rates over intervals, percentiles, the split into stages, memory, temperature."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import device

# In the order a frame meets them. `capture` is reading the source (a camera's wait for its sensor included), `prepare`
# scaling to the input size, `infer` the network, `restore` smoothing over time and the way back to the frame's size,
# `refine` following the picture's edges, `paint` drawing, `show` the window, `save` the files.
STAGES = ("capture", "prepare", "infer", "restore", "refine", "paint", "show", "save")

Floats = NDArray[np.float64]

RECENT = 128  # frames that rates and percentiles on the screen look back on ...
SECONDS = 3.0  # ... but no longer than this
KEPT = 4096  # latencies that the percentiles of a whole run are computed from: the last ones
REFRESH = 0.25  # seconds between new figures: faster than this nobody reads ...
SETTLED = 8  # ... but the first few frames get theirs at once
MEMORY_REFRESH = 1.0  # seconds; PSS makes the kernel walk all pages


@dataclass(frozen=True)
class Figures:
    """What was measured; field and key names are those of the report.

    Attributes:
        frames: `captured` by the source, `processed` by the network, `shown` in a window or page, `dropped` because a
            newer one overtook them.
        fps: frames a second that the `camera` delivered, that the whole `loop` finished, and that the `model` alone
            would reach (1 / mean inference). From a clip read in order the loop sets the camera's pace.
        latency_ms: `p50` and `p95` from captured to shown, or to done where nothing is shown.
        stages_ms: mean milliseconds per stage, see `STAGES`; stages overlap in time.
        memory_mb: `rss`, `pss`, `peak_rss` as `device.MEMORY` defines them; None where the system does not tell.
        temperature_c, throttling: of the CPU; None where the system does not tell.
    """

    frames: dict[str, int]
    fps: dict[str, float]
    latency_ms: dict[str, float]
    stages_ms: dict[str, float]
    memory_mb: dict[str, float | None]
    temperature_c: float | None
    throttling: str | None

    def report(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values, rounded to what they can tell."""
        rounded: dict[str, Any] = asdict(self)
        for name in ("fps", "latency_ms", "stages_ms"):
            rounded[name] = {key: round(value, 3) for key, value in rounded[name].items()}
        return rounded


class Meter:
    """Count and time a run: `record` each segmented frame, `deliver` it, ask for `figures` at any time.

    Args:
        clock: seconds, monotonic; tests pass their own.

    Memory of its own is fixed: rings, not lists, so that a week's run does not grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.captured = self.processed = self.shown = self.dropped = 0
        self._marks = np.zeros((RECENT, 3))  # a frame's times of capture and of the end of segmenting; its index
        self._first = np.zeros(3)
        self._stages, self._spent = np.zeros((RECENT, len(STAGES))), np.zeros(len(STAGES))  # seconds
        self._latencies, self._delivered = np.zeros(KEPT), 0
        self._figures: Figures | None = None
        self._fresh_until = self._machine_until = -np.inf

    def record(self, index: int, captured: float, **seconds: float) -> None:
        """Take down one segmented frame: its index in the source, its capture time, and seconds per stage."""
        row = self.processed % RECENT
        self._marks[row] = captured, self.clock(), index
        if not self.processed:
            self._first = self._marks[row].copy()
        self._stages[row] = 0
        self.processed += 1
        self._spend(seconds)

    def deliver(self, captured: float, shown: bool = False, **seconds: float) -> None:
        """Take down that the frame last recorded was shown, or is done with, and seconds of further stages."""
        self._latencies[self._delivered % KEPT] = self.clock() - captured
        self._delivered += 1
        self.shown += shown
        self._spend(seconds)

    def figures(self) -> Figures:
        """Return the figures of the last seconds, new ones every quarter of a second."""
        now = self.clock()
        if self._figures is None or now >= self._fresh_until or self.processed < SETTLED:
            self._fresh_until = now + REFRESH
            rows = np.arange(max(0, self.processed - RECENT), self.processed) % RECENT
            rows = rows[self._marks[rows, 1] >= now - SECONDS]
            latest = np.arange(max(0, self._delivered - max(1, len(rows))), self._delivered) % KEPT
            first = self._marks[rows[0]] if len(rows) else self._first
            self._figures = self._compute(first, len(rows), self._stages[rows].sum(axis=0), self._latencies[latest])
        return self._figures

    def summary(self) -> Figures:
        """Return the figures of the whole run; percentiles are those of the last 4096 frames."""
        return self._compute(self._first, self.processed, self._spent, self._latencies[: self._delivered])

    def _spend(self, seconds: dict[str, float]) -> None:
        row = (self.processed - 1) % RECENT
        for stage, value in seconds.items():
            self._stages[row, STAGES.index(stage)] += value
            self._spent[STAGES.index(stage)] += value

    def _compute(self, first: Floats, frames: int, spent: Floats, latencies: Floats) -> Figures:
        captured, done, index = self._marks[(self.processed - 1) % RECENT] - first
        stages = dict(zip(STAGES, (spent / max(frames, 1)).tolist(), strict=True))
        p50, p95 = np.percentile(latencies, (50, 95)) if len(latencies) else (0.0, 0.0)
        return Figures(
            frames={name: getattr(self, name) for name in ("captured", "processed", "shown", "dropped")},
            fps={
                "camera": _rate(index, captured),
                "loop": _rate(frames - 1, done),
                "model": _rate(1, stages["infer"]),
            },
            latency_ms={"p50": 1e3 * float(p50), "p95": 1e3 * float(p95)},
            stages_ms={stage: 1e3 * seconds for stage, seconds in stages.items()},
            **self._machine(),
        )

    def _machine(self) -> dict[str, Any]:
        now = self.clock()
        if now >= self._machine_until:
            self._machine_until = now + MEMORY_REFRESH
            self._machine_now = {
                "memory_mb": device.memory(),
                "temperature_c": device.temperature(),
                "throttling": device.throttling(),
            }
        return self._machine_now


def _rate(count: float, seconds: float) -> float:
    return float(count / seconds) if seconds > 0 else 0.0
