"""doctor: each condition made to fail, the facts read from folders made for it, and a machine without OpenCV."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_demo
from app import doctor, facts
from app.doctor import FAIL, NOTE, OK
from app.facts import Facts
from models import catalogue

ROOT = Path(__file__).parents[1]

HEALTHY = Facts(
    system="Linux",
    release="Debian GNU/Linux 12 (bookworm)",
    architecture="aarch64",
    bits=64,
    board="Raspberry Pi 5 Model B Rev 1.0",
    python=(3, 11),
    packages={"numpy": "2.2.0", "ai-edge-litert": "2.3.0", "opencv-python": "4.11.0"},
    broken={"tflite_runtime.interpreter": "ModuleNotFoundError: No module named 'tflite_runtime'"},
    window=True,
    missing_libraries=(),
    cameras=("/dev/video0 (HD Webcam)",),
    locked=(),
    picamera="",
    picamera_outside=False,
    display=":0",
    taken=(),
    available_mb=3000.0,
    temperature_c=48.0,
    throttling="",
    governor="performance",
    models={"person": ""},
    run="",
)
NO_LITERT = HEALTHY.broken | {"ai_edge_litert.interpreter": "ModuleNotFoundError: No module named 'ai_edge_litert'"}
ONLY_OLD = {"ai_edge_litert.interpreter": "ModuleNotFoundError: No module named 'ai_edge_litert'"}
OLD_PACKAGES = {"tflite-runtime": "2.14.0", "opencv-python": "4.11.0"}
NO_GL = HEALTHY.broken | {"cv2": "ImportError: libGL.so.1: cannot open shared object file"}


def test_a_healthy_machine_is_green() -> None:
    findings = doctor.examine(HEALTHY)
    assert {found.state for found in findings} == {OK} and not any(found.fix for found in findings)


# What is wrong, the line that says so, how it is judged, and a part of the command that mends it
CONDITIONS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"system": "Darwin"}, "system", NOTE, ""),
    ({"bits": 32}, "architecture", NOTE, ""),
    ({"bits": 32, "python": (3, 13)}, "architecture", FAIL, "64-bit"),
    ({"python": (3, 9)}, "python", FAIL, "make PYTHON=python3.11 demo"),
    ({"broken": {"numpy": "ImportError: no"}}, "numpy", FAIL, "make demo"),
    ({"broken": NO_LITERT}, "runtime", FAIL, "pip install --force-reinstall ai-edge-litert"),
    ({"broken": NO_LITERT, "packages": {"numpy": "2.2.0"}}, "runtime", FAIL, "pip install ai-edge-litert"),
    ({"broken": ONLY_OLD, "packages": {"numpy": "2.2.0"} | OLD_PACKAGES}, "runtime", FAIL, "pip install 'numpy<2'"),
    ({"packages": HEALTHY.packages | {"opencv-python-headless": "4"}}, "opencv", FAIL, "pip uninstall -y opencv"),
    ({"broken": NO_GL, "missing_libraries": ("libGL.so.1",)}, "opencv", FAIL, "apt install -y libgl1"),
    ({"broken": NO_GL}, "opencv", FAIL, "opencv-python-headless"),
    ({"models": {}}, "models", FAIL, "git checkout"),
    ({"models": {"person": "another file"}}, "models", FAIL, "git checkout"),
    ({"run": "SystemError: CreateWrapperFromFile"}, "inference", FAIL, "make demo"),
    ({"window": False}, "window", NOTE, "make demo"),
    ({"window": False, "missing_libraries": ("libGL.so.1",)}, "window", NOTE, "apt install -y libgl1"),
    ({"display": ""}, "window", NOTE, "--show none"),
    ({"cameras": ()}, "camera", NOTE, "assets/sample.mp4"),
    ({"cameras": (), "locked": ("/dev/video0",)}, "camera", NOTE, "usermod -aG video"),
    ({"picamera": "No module named 'picamera2'"}, "picamera2", NOTE, "apt install -y python3-picamera2"),
    ({"picamera": "No module", "picamera_outside": True}, "picamera2", NOTE, "rm -rf .venv && make demo"),
    ({"taken": (8080,)}, "ports", NOTE, "python run_demo.py phone --port 0"),
    ({"available_mb": 120.0}, "memory", FAIL, "ps aux"),
    ({"throttling": "under-voltage"}, "heat", NOTE, "vcgencmd"),
    ({"temperature_c": 84.0}, "heat", NOTE, "fan"),
    ({"governor": "ondemand"}, "governor", NOTE, "scaling_governor"),
]


@pytest.mark.parametrize(("change", "name", "state", "fix"), CONDITIONS)
def test_each_condition_is_found_and_mended(change: dict[str, Any], name: str, state: str, fix: str) -> None:
    findings = {found.name: found for found in doctor.examine(replace(HEALTHY, **change))}
    assert findings[name].state == state and fix in findings[name].fix
    assert [found.name for found in findings.values() if found.state != OK] == [name]


def test_every_check_can_fail() -> None:
    assert {name for _, name, _, _ in CONDITIONS} == {found.name for found in doctor.examine(HEALTHY)}


@pytest.mark.parametrize(
    "change",
    [
        {"broken": ONLY_OLD, "packages": {"numpy": "1.26.4"} | OLD_PACKAGES},  # the old runtime with its NumPy
        {"broken": {}, "packages": {"numpy": "1.26.4", "opencv": "4.6.0", "ai-edge-litert": "2"}},  # Debian's OpenCV
        {"board": "", "picamera": "No module named 'picamera2'"},  # a PC needs no picamera2
        {"available_mb": None, "temperature_c": None, "throttling": None, "governor": None},  # nothing is told
    ],
)
def test_what_is_no_fault_stays_green(change: dict[str, Any]) -> None:
    assert {found.state for found in doctor.examine(replace(HEALTHY, **change))} == {OK}


def test_exit_code_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for change, code in (({}, 0), ({"cameras": ()}, 0), ({"models": {}}, 1)):
        monkeypatch.setattr(doctor, "gather", lambda change=change: replace(HEALTHY, **change))
        assert run_demo.main(["doctor", "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert len(told["findings"]) == len(doctor.CHECKS)
        assert set(told["findings"][0]) == {"name", "state", "text", "fix"}
    assert run_demo.main(["doctor"]) == 1
    assert "-> git checkout -- models" in capsys.readouterr().out


def test_lines_are_coloured_on_a_terminal_only() -> None:
    findings = doctor.examine(HEALTHY)
    assert "\033[32mok" in doctor.text(findings, colored=True) and "\033" not in doctor.text(findings)


def test_facts_of_a_board_are_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    put("proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 1000000 kB\n")
    put("etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    put("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    put("sys/class/thermal/thermal_zone0/temp", "83500\n")
    put("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n")
    put("usr/lib/python3/dist-packages/picamera2/__init__.py", "")
    put("dev/video0", "")  # a file, so no V4L2 node answers
    monkeypatch.setattr(facts, "_try", lambda statement: "ModuleNotFoundError: No module named 'picamera2'")
    monkeypatch.setattr(facts.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(facts, "_first_light", lambda: "")
    found = facts.gather(tmp_path)
    assert (found.board, found.release) == ("Raspberry Pi 4 Model B Rev 1.4", "Debian GNU/Linux 13 (trixie)")
    assert (found.available_mb, found.temperature_c, found.governor) == (1024.0, 83.5, "ondemand")
    assert found.throttling == "under-voltage, throttled"
    assert found.picamera_outside and found.cameras == ()
    assert set(found.broken) == set(facts.IMPORTS)


def test_facts_of_this_machine_are_true() -> None:
    found = facts.gather()
    assert found.python == sys.version_info[:2] and found.bits in (32, 64)
    assert "numpy" not in found.broken and "cv2" not in found.broken  # this test runs with them
    assert found.models.keys() == set(catalogue.names()) and found.run == ("" if found.models else "there is no model")


def test_a_taken_port_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as door:
        door.bind(("", 0))
        door.listen()
        assert not facts._free(door.getsockname()[1])


def test_a_changed_model_file_is_seen(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    details = json.loads(tiny.with_suffix(".json").read_text()) | {"sha256": catalogue.sha256(tiny)}
    (tmp_path / "tiny.json").write_text(json.dumps(details))
    (tmp_path / "tiny.tflite").write_bytes(tiny.read_bytes())
    assert facts._damage("tiny") == "" and facts._first_light() == ""
    (tmp_path / "tiny.tflite").write_bytes(tiny.read_bytes()[:-9])
    assert "card" in facts._damage("tiny")
    (tmp_path / "tiny.tflite").write_text("a text")
    assert "not a TFLite model" in facts._first_light()


@pytest.mark.parametrize("module", ["cv2", "numpy"])
def test_it_speaks_where_a_wheel_does_not_load(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    for command, code in (("doctor", 1), ("live", 2)):
        words = [sys.executable, "run_demo.py", command]
        done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr
    assert "error: libGL.so.1" in done.stderr and "run_demo.py doctor" in done.stderr
