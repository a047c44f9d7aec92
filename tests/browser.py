"""A real browser for tests of pages: Debian's Chromium, headless, with a video for a camera."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


def missing(reason: str) -> None:
    """Skip the test, or fail where EDGE_REQUIRE_ALL says that nothing may be missing."""
    if os.environ.get("EDGE_REQUIRE_ALL"):
        pytest.fail(f"EDGE_REQUIRE_ALL is set, but {reason}")
    pytest.skip(reason)


@contextmanager
def browse(camera: Path | None = None, **options: Any) -> Iterator[Any]:
    """Open Chromium with a new, empty profile; gives a Playwright `BrowserContext`, closed on the way out.

    Args:
        camera: a `.mjpeg` or `.y4m` file that plays as the camera, which is then allowed at once; None for no camera.
        options: what `launch_persistent_context` takes, like `viewport`, `color_scheme`, `is_mobile`.
    """
    program = shutil.which("chromium")
    if not program:
        missing("chromium is not installed (apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the playwright package is not installed")
    fake = [] if camera is None else [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ]  # fmt: skip
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=[*FLAGS, *fake], **options
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
