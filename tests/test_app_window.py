"""A real window on a virtual screen, steered by real key presses; skipped where OpenCV or X cannot show one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import window

ROOT = Path(__file__).parents[1]


def test_no_display_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "has_windows", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert window.obstacle() == "there is no display"


def test_a_display_that_does_not_answer_does_not_end_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "has_windows", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":9999")
    assert window.obstacle() == "the display :9999 does not answer"


def test_a_headless_opencv_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "has_windows", lambda: False)
    assert window.obstacle() == "this OpenCV is the headless build"


@pytest.fixture
def screen() -> Iterator[dict[str, str]]:
    if not window.has_windows():
        pytest.skip("the installed OpenCV is the headless build")
    for tool in ("Xvfb", "xdotool"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    reading, writing = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24"], pass_fds=[writing],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as answer:
        number = answer.readline().strip()
    yield {**os.environ, "DISPLAY": f":{number}"}
    server.terminate()
    server.wait()


def soon(condition: Callable[[], object], seconds: float = 30.0) -> object:
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return answer


def test_keys_reach_the_app_through_a_real_window(screen: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run_demo.py"), "--model", str(tiny), "--source", "synthetic"]
    with subprocess.Popen([*command, "--show", "window", "--report", "r.json"], cwd=tmp_path, env=screen) as demo:
        seek = ["xdotool", "search", "--name", window.TITLE]
        assert soon(lambda: subprocess.run(seek, env=screen, capture_output=True, check=False).stdout)

        def snapshot() -> bool:
            subprocess.run(["xdotool", "key", "p"], env=screen, check=True)
            return any(tmp_path.glob("snapshot-*-mask.png"))

        assert soon(snapshot)
        subprocess.run(["xdotool", "key", "q"], env=screen, check=True)
        assert demo.wait(30) == 0
    assert json.loads((tmp_path / "r.json").read_text())["frames"]["shown"] > 0
