"""Figures under a clock of our own: rates over intervals, percentiles, means, and what /proc and /sys tell."""

import json
from pathlib import Path

import pytest

from app import device
from app.meter import KEPT, RECENT, Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def feed(meter: Meter, clock: Clock, frames: int, period: float, infer: float, skip: int = 1) -> None:
    """Segment a frame every `period` seconds from a camera `skip` times as fast."""
    for _ in range(frames):
        clock.now += period
        meter.record(meter.processed * skip, clock.now - infer, infer=infer, prepare=0.001)
        meter.deliver(clock.now - 2 * infer, shown=True, paint=0.002)


def test_rates_are_counted_over_intervals() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=11, period=0.1, infer=0.05, skip=3)
    fps = meter.summary().fps
    # 11 frames are 10 intervals: 1 s. A count of frames over the time since the start would give 11 or more.
    assert fps["loop"] == pytest.approx(10)
    assert fps["camera"] == pytest.approx(30)
    assert fps["model"] == pytest.approx(20)


def test_stages_and_latency_are_told_in_milliseconds() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=8, period=0.1, infer=0.05)
    figures = meter.summary()
    assert figures.stages_ms["infer"] == pytest.approx(50)
    assert figures.stages_ms["prepare"] == pytest.approx(1)
    assert figures.stages_ms["paint"] == pytest.approx(2)
    assert figures.stages_ms["refine"] == 0
    assert figures.latency_ms == pytest.approx({"p50": 100, "p95": 100})
    assert figures.frames["processed"] == figures.frames["shown"] == 8


def test_percentiles_tell_the_tail() -> None:
    clock = Clock()
    meter = Meter(clock)
    for number in range(101):
        meter.record(number, clock.now, infer=0.01)
        meter.deliver(clock.now - number / 1000)
    assert meter.summary().latency_ms == pytest.approx({"p50": 50, "p95": 95})


def test_the_screen_shows_the_last_seconds_and_the_summary_the_whole_run() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=100, period=0.1, infer=0.05)
    feed(meter, clock, frames=100, period=0.05, infer=0.02)
    assert meter.figures().fps["loop"] == pytest.approx(20)
    assert meter.figures().stages_ms["infer"] == pytest.approx(20)
    assert meter.summary().fps["loop"] == pytest.approx(199 / (99 * 0.1 + 100 * 0.05))
    assert meter.summary().stages_ms["infer"] == pytest.approx(35)


def test_figures_are_renewed_four_times_a_second() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=20, period=0.1, infer=0.01)
    first = meter.figures()
    clock.now += 0.2
    assert meter.figures() is first
    clock.now += 0.1
    assert meter.figures() is not first


def test_no_frame_yet_is_no_division_by_zero() -> None:
    figures = Meter(Clock()).summary()
    assert figures.fps == {"camera": 0, "loop": 0, "model": 0}
    assert figures.latency_ms == {"p50": 0, "p95": 0}


def test_rings_wrap_without_losing_count() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=KEPT + RECENT + 3, period=0.01, infer=0.005)
    figures = meter.summary()
    assert figures.frames["processed"] == KEPT + RECENT + 3
    assert figures.fps["loop"] == pytest.approx(100)
    assert figures.latency_ms["p95"] == pytest.approx(10)


def test_report_is_json() -> None:
    clock = Clock()
    meter = Meter(clock)
    feed(meter, clock, frames=3, period=1 / 3, infer=0.05)
    told = json.loads(json.dumps(meter.summary().report()))
    assert set(told) >= {"frames", "fps", "latency_ms", "stages_ms", "memory_mb"}
    assert set(told["memory_mb"]) == {"rss", "pss", "peak_rss"}
    assert told["fps"]["loop"] == 3.0


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_memory_is_read_from_proc(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/status", "Name:\tpython\nVmHWM:\t  200000 kB\nVmRSS:\t  100000 kB\n")
    write(
        tmp_path, "proc/self/smaps_rollup", "00400000-7fff [rollup]\nRss: 100000 kB\nPss:   80000 kB\nPss_Dirty: 1 kB\n"
    )
    assert device.memory(tmp_path) == {"rss": 102.4, "pss": 81.9, "peak_rss": 204.8}


def test_memory_of_this_process_is_plausible() -> None:
    memory = device.memory()
    if memory["rss"] is None:
        pytest.skip("this system has no /proc")
    assert 10 < memory["pss"] <= memory["rss"] <= memory["peak_rss"]


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    assert device.memory(tmp_path) == {"rss": None, "pss": None, "peak_rss": None}
    assert device.temperature(tmp_path) is None
    assert device.throttling(tmp_path) is None


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("cpu-thermal", "56789\n", 56.789),  # Raspberry Pi
        ("x86_pkg_temp", "41000\n", 41.0),
        ("cpu-thermal", "-5000\n", -5.0),
        ("acpitz", "30000\n", None),  # the mainboard's, not the CPU's
        ("cpu-thermal", "", None),  # a zone that is switched off
    ],
)
def test_temperature_is_the_cpus(tmp_path: Path, kind: str, value: str, expected: float | None) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "iwlwifi_1\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "99000\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/type", kind + "\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", value)
    assert device.temperature(tmp_path) == expected


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("0", ""),
        ("50005", "under-voltage, throttled"),
        ("50000", ""),  # it happened, but not now
        ("8", "soft temperature limit"),
    ],
)
def test_throttling_is_what_holds_now(tmp_path: Path, bits: str, said: str) -> None:
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", bits + "\n")
    assert device.throttling(tmp_path) == said


def test_a_board_is_called_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert device.describe(tmp_path).startswith("Raspberry Pi 5 Model B Rev 1.0, ")
