"""Check this machine: what is there, what is missing, and the command that mends it.

One line each: ok; note, for what only some uses need; or FAIL, for what everything needs. The exit code is 1 if
something needed is missing. It speaks even where NumPy or OpenCV does not load.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from app import device
from app.facts import PORTS, Facts, gather

OK, NOTE, FAIL = "ok", "note", "FAIL"
COLORS = {OK: "\033[32m", NOTE: "\033[33m", FAIL: "\033[31m"}
PLAIN = "\033[0m"
LIBRARIES = "sudo apt install -y libgl1 libglib2.0-0"
OPENCV = ("opencv-python", "opencv-python-headless")
LEAST_MB = 300.0  # the live demo takes half of it; the rest is for the system
WARM_C = 80.0  # a Raspberry Pi slows down from here on


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, `OK`, `NOTE` or `FAIL`, what was found, and the command that mends it, or ""."""

    name: str
    state: str
    text: str
    fix: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the findings; exit with 1 if something needed is missing."""
    findings = examine(gather())
    if args.json:
        print(json.dumps({"device": device.describe(), "findings": [asdict(found) for found in findings]}, indent=2))
    else:
        print(text(findings, colored=sys.stdout.isatty()))
    return int(any(found.state == FAIL for found in findings))


def examine(facts: Facts) -> list[Finding]:
    """Judge the facts, in the order in which things build on each other."""
    return [check(facts) for check in CHECKS]


def text(findings: Iterable[Finding], colored: bool = False) -> str:
    """Word findings for the terminal, the mending command under what needs it."""
    lines = []
    for found in findings:
        state = f"{COLORS[found.state]}{found.state:<4}{PLAIN}" if colored else f"{found.state:<4}"
        lines.append(f"{state} {found.name:<12} {found.text}")
        if found.fix:
            lines.append(f"{'':<18}-> {found.fix}")
    return "\n".join(lines)


def system(facts: Facts) -> Finding:
    """Linux is what is tested; other systems may do."""
    told = " on ".join(filter(None, (facts.release, facts.board)))
    if facts.system != "Linux":
        return Finding("system", NOTE, f"{facts.system}: nothing here was tried on it")
    return Finding("system", OK, told)


def architecture(facts: Facts) -> Finding:
    """The maintained runtime has 64-bit wheels only; its predecessor has one for 32-bit Arm and Python 3.11."""
    told = f"{facts.architecture}, {facts.bits}-bit Python"
    if facts.bits == 64:
        return Finding("architecture", OK, told)
    if facts.python == (3, 11):
        return Finding("architecture", NOTE, f"{told}: runs through tflite-runtime, several times slower than 64-bit")
    return Finding("architecture", FAIL, f"{told} has no TFLite runtime", "install the 64-bit Raspberry Pi OS")


def python(facts: Facts) -> Finding:
    """The code is written for Python 3.11 and newer."""
    told = f"Python {facts.python[0]}.{facts.python[1]}"
    if facts.python < (3, 11):
        return Finding(
            "python", FAIL, f"{told} is too old", "sudo apt install -y python3.11-venv && make PYTHON=python3.11 demo"
        )
    return Finding("python", OK, told)


def numpy(facts: Facts) -> Finding:
    """NumPy must load."""
    if problem := facts.broken.get("numpy"):
        return Finding("numpy", FAIL, problem, "rm -rf .venv && make demo")
    return Finding("numpy", OK, f"NumPy {facts.packages.get('numpy', '')}".strip())


def runtime(facts: Facts) -> Finding:
    """One of the TFLite runtimes must load; the old one was built for NumPy 1."""
    current, old = "ai_edge_litert.interpreter" not in facts.broken, "tflite_runtime.interpreter" not in facts.broken
    if current:
        return Finding("runtime", OK, f"ai-edge-litert {facts.packages.get('ai-edge-litert', '')}".strip())
    if old and facts.packages.get("numpy", "1").startswith("1"):
        return Finding(
            "runtime", OK, f"tflite-runtime {facts.packages.get('tflite-runtime', '')}, without XNNPACK for int8"
        )
    if old:
        told = f"tflite-runtime was built for NumPy 1, here is {facts.packages['numpy']}"
        return Finding("runtime", FAIL, told, "pip install 'numpy<2'")
    if "ai-edge-litert" in facts.packages:
        return Finding(
            "runtime", FAIL, facts.broken["ai_edge_litert.interpreter"], "pip install --force-reinstall ai-edge-litert"
        )
    return Finding("runtime", FAIL, "no TFLite runtime is installed", "pip install ai-edge-litert")


def opencv(facts: Facts) -> Finding:
    """There must be one OpenCV wheel, not two in one folder, and it must find its libraries."""
    wheels = [name for name in OPENCV if name in facts.packages]
    if len(wheels) > 1:
        mend = f"pip uninstall -y {' '.join(OPENCV)} && rm -rf .venv/runtime-* && make demo"
        return Finding("opencv", FAIL, "two OpenCV wheels share one folder", mend)
    if problem := facts.broken.get("cv2"):
        if facts.missing_libraries and "opencv-python" in wheels:
            return Finding("opencv", FAIL, f"it needs {', '.join(facts.missing_libraries)}", LIBRARIES)
        return Finding("opencv", FAIL, problem, "pip uninstall -y opencv-python && pip install opencv-python-headless")
    return Finding(
        "opencv", OK, " ".join(f"{name} {facts.packages[name]}" for name in wheels) or "OpenCV of the system"
    )


def models(facts: Facts) -> Finding:
    """The shipped files must be those that their cards describe."""
    for name, problem in facts.models.items():
        if problem:
            return Finding("models", FAIL, f"{name}: {problem}", "git checkout -- models")
    if not facts.models:
        return Finding("models", FAIL, "none is there", "git checkout -- models")
    return Finding("models", OK, ", ".join(facts.models))


def first_light(facts: Facts) -> Finding:
    """The default model must run: wheels, NumPy and file together."""
    if facts.run:
        return Finding("inference", FAIL, facts.run, "mend what stands above, or rm -rf .venv && make demo")
    return Finding("inference", OK, "the default model runs")


def window(facts: Facts) -> Finding:
    """A window needs an OpenCV that can open one, and a display."""
    if not facts.window and facts.missing_libraries:
        return Finding("window", NOTE, "this OpenCV opens no windows", f"{LIBRARIES} && make demo")
    if not facts.window:
        return Finding("window", NOTE, "this OpenCV opens no windows", "make demo")
    if not facts.display:
        return Finding("window", NOTE, "there is no display", "python run_demo.py --show none --save out/live.mp4")
    return Finding("window", OK, f"display {facts.display}")


def camera(facts: Facts) -> Finding:
    """A camera that OpenCV reads through V4L2."""
    if facts.cameras:
        return Finding("camera", OK, ", ".join(facts.cameras))
    if facts.locked:
        told = f"you may not open {', '.join(facts.locked)}"
        return Finding("camera", NOTE, told, "sudo usermod -aG video $USER, then log in anew")
    return Finding("camera", NOTE, "no USB camera", "python run_demo.py --source assets/sample.mp4")


def picamera(facts: Facts) -> Finding:
    """A Raspberry Pi's own camera is reached through picamera2 of the system's Python."""
    if not facts.board.startswith("Raspberry Pi"):
        return Finding("picamera2", OK, "not needed: no Raspberry Pi")
    if not facts.picamera:
        return Finding("picamera2", OK, "loads; `rpicam-hello --list-cameras` lists the cameras")
    if facts.picamera_outside:
        told = "installed, but this environment does not see the system's packages"
        return Finding("picamera2", NOTE, told, "rm -rf .venv && make demo")
    mend = "sudo apt install -y python3-picamera2 && rm -rf .venv && make demo"
    return Finding("picamera2", NOTE, facts.picamera, mend)


def ports(facts: Facts) -> Finding:
    """The ports of the pages."""
    if not facts.taken:
        return Finding("ports", OK, f"{', '.join(map(str, PORTS.values()))} are free")
    told = f"{', '.join(map(str, facts.taken))} taken by another program, ask for another one"
    command = next(name for name, port in PORTS.items() if port == facts.taken[0])
    return Finding("ports", NOTE, told, f"python run_demo.py {command} --port 0")


def memory(facts: Facts) -> Finding:
    """The live demo takes about 150 MB; a board that swaps stutters."""
    if facts.available_mb is None:
        return Finding("memory", OK, "this system does not tell")
    told = f"{facts.available_mb:.0f} MB available"
    if facts.available_mb < LEAST_MB:
        return Finding("memory", FAIL, f"{told}, {LEAST_MB:.0f} needed", "ps aux --sort=-rss | head")
    return Finding("memory", OK, told)


def heat(facts: Facts) -> Finding:
    """A hot or under-powered board slows down."""
    told = "this system does not tell" if facts.temperature_c is None else f"{facts.temperature_c:.0f} C"
    if facts.throttling:
        return Finding(
            "heat",
            NOTE,
            f"{told}, {facts.throttling}",
            "vcgencmd get_throttled; a fan and the board's own power supply help",
        )
    if facts.temperature_c is not None and facts.temperature_c >= WARM_C:
        return Finding("heat", NOTE, f"{told}: it slows down from {WARM_C:.0f} C on", "let it cool down, or add a fan")
    return Finding("heat", OK, told)


def governor(facts: Facts) -> Finding:
    """Steady clocks make steady figures."""
    if facts.governor in (None, "performance"):
        return Finding("governor", OK, facts.governor or "this system does not tell")
    mend = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    return Finding("governor", NOTE, f"{facts.governor}: benchmarks vary with the clock", mend)


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    system, architecture, python, numpy, runtime, opencv, models, first_light, window, camera, picamera, ports, memory,
    heat, governor,
)  # fmt: skip
