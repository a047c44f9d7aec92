"""The project itself: what may import what, one OpenCV, the lock file, the two commands."""

import ast
import ctypes
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#")


def imports(file: Path) -> set[str]:
    """Name the top-level packages that a file imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


# The contract stands between the two halves: a board installs `app` without TensorFlow, a server `convert` alone.
@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("app", {"convert", "tensorflow", "keras"}), ("convert", {"app"}), ("models", {"app", "convert"})],
)
def test_the_halves_meet_only_in_models(package: str, forbidden: set[str]) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(file): imports(file) & forbidden for file in files if imports(file) & forbidden} == {}


def test_one_opencv_is_installed() -> None:
    names = {(found.metadata["Name"] or "").lower() for found in distributions()}
    assert len(names & {"opencv-python", "opencv-python-headless", "opencv-contrib-python"}) == 1


def test_the_lock_holds_versions_only() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "@" not in text and "/" not in text  # no path, no host
    assert all(re.fullmatch(r"[\w.]+", version) for version in LOCK.values())


def test_the_lock_fits_every_requirement() -> None:
    names = {name.lower(): version for name, version in LOCK.items()}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    here = {"python_version": "3.11", "platform_machine": "x86_64"}
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.specifier.contains(names[requirement.name.lower()]), requirement


@pytest.mark.parametrize(
    ("machine", "python", "runtime"),
    [
        ("aarch64", "3.13", "ai-edge-litert"),
        ("x86_64", "3.11", "ai-edge-litert"),
        ("armv7l", "3.11", "tflite-runtime"),  # a 32-bit kernel
        ("armv8l", "3.11", "tflite-runtime"),  # a 64-bit kernel under a 32-bit system
    ],
)
def test_each_machine_gets_the_runtime_that_it_has_a_wheel_of(machine: str, python: str, runtime: str) -> None:
    here = {"platform_machine": machine, "python_version": python}
    wanted = [
        line for line in map(Requirement, PROJECT["dependencies"]) if not line.marker or line.marker.evaluate(here)
    ]
    assert {line.name for line in wanted} & {"ai-edge-litert", "tflite-runtime"} == {runtime}
    old = any(line.name == "numpy" and not line.specifier.contains("2.0") for line in wanted)
    assert old == (runtime == "tflite-runtime")


def planned(target: str) -> str:
    """Return the commands that make would run for a target on a fresh machine, in one text."""
    command = ["make", "--dry-run", "--always-make", target, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_installs_only_what_runs_and_test_everything() -> None:
    try:
        _ = [ctypes.CDLL(name) for name in ("libGL.so.1", "libgthread-2.0.so.0")]
        wheel = "window"
    except OSError:
        wheel = "headless"
    assert f"'.[{wheel}]'" in planned("demo") and "convert" not in planned("demo")
    assert f"'.[{wheel},web,convert,dev]'" in planned("test") and "-m pytest" in planned("test")


def test_ci_runs_what_a_person_is_told_to_run() -> None:
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines and {"make demo", "make check", "make test"} <= set(lines)
