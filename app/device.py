"""What this machine says about itself: its name, the memory of this process, its temperature and its throttling.

Everything comes from /proc and /sys; what a system does not tell is None, never a guess. `root` lets tests bring
their own tree.
"""

import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path("/")

MEMORY = {
    "rss": "memory this process occupies now, shared pages in full (VmRSS)",
    "pss": "the same, a page shared by n processes counted 1/n (smaps_rollup)",
    "peak_rss": "the highest RSS since the process started (VmHWM)",
}

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled, the bits of "now"
THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def describe(root: Path = ROOT) -> str:
    """Name the machine in a line: board or CPU, cores, architecture, system."""
    name = board(root) or _field(root / "proc/cpuinfo", "model name") or platform.processor() or "unknown CPU"
    system = f"{platform.system()} {platform.release().partition('-')[0]}"  # without the vendor's build
    return f"{name}, {os.cpu_count()} cores, {platform.machine()}, {system}, Python {platform.python_version()}"


def board(root: Path = ROOT) -> str:
    """Name the board as its device tree does, "Raspberry Pi 5 Model B Rev 1.0"; "" for a PC."""
    return _read(root / "proc/device-tree/model").rstrip("\0\n")


def governor(root: Path = ROOT) -> str | None:
    """Name the frequency governors in use: "performance" holds the clock, "ondemand" or "powersave" let it fall."""
    found = sorted(
        {_read(path).strip() for path in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    )
    return ", ".join(found) or None


def busy_seconds(root: Path = ROOT) -> float | None:
    """Return the CPU seconds that all cores together have spent working since the machine started."""
    words = _read(root / "proc/stat").partition("\n")[0].split()
    if not words:
        return None
    # cpu user nice system idle iowait irq softirq steal ...; guests are counted in user already
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory(root: Path = ROOT) -> dict[str, float | None]:
    """Measure this process: `rss`, `pss`, `peak_rss` in MB (10^6 bytes), as `MEMORY` defines them."""
    status, rollup = root / "proc/self/status", root / "proc/self/smaps_rollup"
    return {
        "rss": _megabytes(_field(status, "VmRSS")),
        "pss": _megabytes(_field(rollup, "Pss")),
        "peak_rss": _megabytes(_field(status, "VmHWM")),
    }


def available(root: Path = ROOT) -> float | None:
    """Tell how much memory programs can still get without swapping, in MB (10^6 bytes)."""
    return _megabytes(_field(root / "proc/meminfo", "MemAvailable"))


def temperature(root: Path = ROOT) -> float | None:
    """Read the CPU's temperature in degrees Celsius, from the thermal zone that is named after a CPU."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, value = _read(zone / "type").lower(), _read(zone / "temp").strip()
        if ("cpu" in kind or "x86_pkg" in kind or "soc" in kind) and value.lstrip("-").isdecimal():
            return int(value) / 1000
    return None


def throttling(root: Path = ROOT) -> str | None:
    """Tell what slows a Raspberry Pi down at the moment: "" for nothing, None where the system does not tell."""
    text = _read(root / "sys/devices/platform/soc/soc:firmware/get_throttled").strip()
    try:
        bits = int(text, 16)
    except ValueError:
        return None
    return ", ".join(name for bit, name in THROTTLED.items() if bits >> bit & 1)


def heat(root: Path = ROOT) -> dict[str, Any]:
    """Return `temperature_c` and `throttling` together, as reports have them."""
    return {"temperature_c": temperature(root), "throttling": throttling(root)}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _field(path: Path, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _megabytes(text: str) -> float | None:
    number = text.removesuffix("kB").strip()  # the kernel's kB are 1024 bytes
    return round(int(number) * 1024 / 1e6, 1) if number.isdecimal() else None
