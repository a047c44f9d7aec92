"""A real browser for tests of pages: Debian's Chromium, headless, with a video for a camera."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


Browse = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browse() -> Iterator[Browse]:
    """Gives `browse(camera, ...)`, which opens a browser of its own; the module's tests share the driver only."""
    program = shutil.which("chromium")
    if not program:
        pytest.skip("no browser: Chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    with playwright.sync_playwright() as driver:
        yield functools.partial(_browse, driver.chromium, program)


@contextmanager
def _browse(
    chromium: Any,
    program: str,
    camera: Path | None = None,
    allowed: bool = True,
    args: Sequence[str] = (),
    **options: Any,
) -> Iterator[Any]:
    """Open Chromium with a new, empty profile; gives a Playwright `BrowserContext`, closed on the way out.

    Args:
        camera: a `.mjpeg` or `.y4m` file that plays as the camera; None for no camera.
        allowed: grant each page the camera without asking.
        args: further switches of Chromium's command line.
        options: what `launch_persistent_context` takes, like `viewport`, `color_scheme`, `is_mobile`.
    """
    fake = ["--use-fake-ui-for-media-stream"] if allowed else []
    if camera:
        fake += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=[*FLAGS, *fake, *args], **options
        )
        try:
            yield context
        finally:
            context.close()


def camera_file(clip: Path, target: Path, frames: int = 20) -> Path:
    """Turn the first frames of a clip into the `.mjpeg` that Chromium plays as its camera, over and over."""
    reader = cv2.VideoCapture(str(clip))
    with target.open("wb") as out:
        for _ in range(frames):
            read, frame = reader.read()
            if not read:
                break
            out.write(cv2.imencode(".jpg", frame)[1].tobytes())
    reader.release()
    return target
