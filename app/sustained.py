"""A long run: does the device keep its speed when it gets warm?"""

import statistics
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app import device
from app.trial import ENGINES

BURST = 10.0  # seconds at the start that count as burst
STEADY = 1 / 3  # the last part of the run counts as steady


def sustain(path: Path, threads: int, seconds: float, every: float = 5.0) -> dict[str, Any]:
    """Run a model without a pause.

    Args:
        path: `.tflite` file.
        threads: CPU threads.
        seconds: how long.
        every: seconds between points.

    Returns:
        `model`, `threads`, `seconds`; `burst_fps`: mean of the first 10 seconds, `steady_fps`: mean of the last third;
        `points`: for each `every` seconds `t_s`, `fps`, `temperature_c`, `throttling` (None: not told by the system).
    """
    invoke = ENGINES["litert"](path, threads)[1]
    invoke()
    points: list[dict[str, Any]] = []
    total = round(seconds)
    start = time.perf_counter()
    with tqdm(total=total, unit="s", desc="sustained", leave=False, disable=None) as bar:
        while (begun := time.perf_counter() - start) < seconds:
            count, until = 0, min(begun + every, seconds)
            while (now := time.perf_counter() - start) < until or not count:
                invoke()
                count += 1
            rate = count / (now - begun)
            points.append({"t_s": round(now, 1), "fps": round(rate, 2)} | device.heat())
            bar.set_postfix_str(f"{rate:.1f} FPS")
            bar.update(min(round(now), total) - bar.n)
    burst = [point["fps"] for point in points if point["t_s"] <= max(BURST, points[0]["t_s"])]
    steady = [point["fps"] for point in points if point["t_s"] >= (1 - STEADY) * points[-1]["t_s"]]
    return {
        "model": path.stem,
        "threads": threads,
        "seconds": points[-1]["t_s"],
        "burst_fps": round(statistics.fmean(burst), 2),
        "steady_fps": round(statistics.fmean(steady), 2),
        "points": points,
    }
