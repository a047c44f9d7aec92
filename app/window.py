"""A window on the desktop, where there is one: pictures out, key presses and clicks in."""

import os
import subprocess
import sys
from typing import Protocol

import cv2

from models import Frame

TITLE = "Edge Segmenter"
PROBE = f"import cv2; cv2.namedWindow({TITLE!r}); cv2.destroyAllWindows()"


def obstacle() -> str | None:
    """Say why no window can be shown here, or None if one can.

    A display that does not answer makes OpenCV's window library end the whole process, so another one tries it first.
    """
    if not has_windows():
        return "this OpenCV is the headless build"
    if sys.platform != "linux":
        return None
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    try:
        tried = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        tried = None
    return None if tried and tried.returncode == 0 else f"the display {os.environ.get('DISPLAY', '')} does not answer"


def has_windows() -> bool:
    """Tell whether the installed OpenCV was built with a window library."""
    lines = (line.split() for line in cv2.getBuildInformation().splitlines())
    return not any(words[:1] == ["GUI:"] and words[1:] == ["NONE"] for words in lines)


class Surface(Protocol):
    """Where a live session shows its pictures: a window, or a page for any number of browsers."""

    @property
    def closed(self) -> bool:
        """The user closed it."""

    @property
    def watched(self) -> bool:
        """Somebody may be looking."""

    @property
    def hint(self) -> str:
        """What to say on the picture about keys."""

    def show(self, picture: Frame) -> None:
        """Show an HxWx3 uint8 BGR picture."""

    def events(self) -> tuple[str, list[tuple[int, int]]]:
        """Return the key pressed ("" for none) and the clicks, x and y in the picture."""

    def close(self) -> None:
        """Take it away."""


class Window:
    """One resizable window that keeps the picture's proportions, a `Surface`."""

    watched, hint = True, "h: help"

    def __init__(self) -> None:
        self.closed = False
        self._clicks: list[tuple[int, int]] = []
        self._size = (0, 0)
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.setMouseCallback(TITLE, self._mouse)

    def show(self, picture: Frame) -> None:
        """Show an HxWx3 uint8 BGR picture; the window takes the size of the first."""
        if self._size == (0, 0):
            self._size = (picture.shape[1], picture.shape[0])
            cv2.resizeWindow(TITLE, *self._size)
        cv2.imshow(TITLE, picture)

    def events(self) -> tuple[str, list[tuple[int, int]]]:
        """Let the window work; return the key pressed ("" for none, "Esc") and the clicks, x and y in the picture."""
        code = cv2.pollKey()
        self.closed = self.closed or (self._size != (0, 0) and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1)
        clicks, self._clicks = self._clicks, []
        key = "Esc" if code == 27 else chr(code & 0xFF) if code >= 0 else ""
        return key, clicks

    def close(self) -> None:
        """Take the window away; safe to call twice."""
        cv2.destroyAllWindows()

    def _mouse(self, event: int, x: int, y: int, flags: int, data: object) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            self._clicks.append((x, y))
