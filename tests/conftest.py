"""What several tests share."""

import os
import re
import sys
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.browser import browse as browse  # a fixture, for every test that looks at a page

sys.path.insert(0, str(Path(__file__).parents[1]))  # `run_demo.py` is a script, not an installed module

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A real integer-only model, made by `tests/data/make_tiny.py`: dark, grey or bright, 64x64."""
    return DATA / "tiny.tflite"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 12 frames, 160x120 at 10 FPS, each evenly grey and 20 levels brighter than the one before."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for number in range(12):
        writer.write(np.full((120, 160, 3), 10 + 20 * number, np.uint8))
    writer.release()
    return path


# What CI may lack: data that is not ours to ship, and other backends to train on. All else it must have.
MAY_LACK = re.compile(r"not here|not installed here|no (pictures|model|peer model) at ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a test that was skipped for want of a browser, a display or a tool as failed in CI."""
    report = yield
    skipped = report.skipped and isinstance(report.longrepr, tuple)  # (file, line, reason); else it is an xfail
    if skipped and "EDGE_REQUIRE_ALL" in os.environ and not MAY_LACK.search(report.longrepr[2]):
        report.outcome = "failed"
    return report
