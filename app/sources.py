"""Where frames come from: a camera, a stream, a clip, pictures, or a drawn scene, all behind `read()`.

`open_source("auto")` takes the first that works of picamera2, a V4L2 camera and the bundled clip, and says why.
"""

import logging
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models import Frame, UserError

log = logging.getLogger("app")

# OpenCV reads these when it opens its first camera or file. A stalled V4L2 camera would hold a read for 10 s; RTSP over
# UDP loses parts of frames; what OpenCV and FFmpeg print about a bad file would come on top of our one sentence.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "3")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
quiet: Any = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # in OpenCV 4, in 5
quiet(2)  # errors

SAMPLE = Path(__file__).parents[1] / "assets" / "sample.mp4"
WIDTH, HEIGHT = 640, 480  # asked of cameras; drawn by `Synthetic`
STREAM_TIMEOUT_MS = 5000
FASTEST = 240.0  # FPS that a clip or camera may tell and be believed
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
CLIPS = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".gif"}


class Lost(Exception):
    """A live source gives no frames any more; `reopen` may bring it back."""


class Source(ABC):
    """One origin of frames, used from one thread at a time.

    Attributes:
        title: what people call it, for messages: "camera 0 (V4L2, 640x480)".
        live: frames come when they come and only the newest counts; otherwise each one is read in order.
        fps: nominal frames a second, 0 where nobody knows.
        unrelated: one frame tells nothing about the next, as in a folder of pictures.
    """

    title: str
    live: bool = False
    fps: float = 0.0
    unrelated: bool = False

    @abstractmethod
    def read(self) -> Frame | None:
        """Return the next HxWx3 uint8 BGR frame, or None at the end; a live source that fails raises `Lost`."""

    @abstractmethod
    def reopen(self) -> None:
        """Start again: a clip from its first frame, a camera by connecting anew, which may raise `Lost`."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give the device or file back; safe to call twice."""


class Video(Source):
    """Frames through OpenCV: a camera (index or device path), a network stream, or a clip."""

    def __init__(self, address: int | str, title: str, live: bool, backend: int = cv2.CAP_ANY) -> None:
        self._address, self._backend = address, backend
        self._capture: cv2.VideoCapture | None = None
        self.title, self.live = title, live
        try:
            self.reopen()
        except Lost as problem:
            raise UserError(f"{problem}.") from None

    def reopen(self) -> None:
        self.close()
        # A camera may open and yet give nothing (a Pi's CSI camera under V4L2 does), so the first frame is the proof.
        self._capture = self._open()
        self._first = self._next()
        if self._first is None:
            self.close()
            raise Lost(f"{self.title} gives no frames{_hint(self._address)}")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate <= FASTEST else 0.0  # a browser's recording tells 1000, the ticks of its clock
        if self._backend == cv2.CAP_V4L2:
            self.title = f"camera {self._address} (V4L2, {self._first.shape[1]}x{self._first.shape[0]})"

    def read(self) -> Frame | None:
        frame, self._first = self._first, None
        if frame is None:
            frame = self._next()
        if frame is None and self.live:
            raise Lost(f"{self.title} stopped giving frames")
        return frame

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture()
        # Streams alone take timeouts, and only as arguments of opening.
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
        if "://" in str(self._address):
            capture.open(str(self._address), cv2.CAP_FFMPEG, [n for key in limits for n in (key, STREAM_TIMEOUT_MS)])
        else:
            capture.open(self._address, self._backend)
        if self.live:
            # MJPG first: most USB cameras reach 30 FPS at this size only compressed. One buffer: no stale frames.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, WIDTH)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, HEIGHT)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def _next(self) -> Frame | None:
        assert self._capture is not None
        good, frame = self._capture.read()
        return _bgr(frame) if good and frame is not None and frame.size else None


class Pictures(Source):
    """Pictures in order, each one frame; one that cannot be read is named and left out."""

    fps, unrelated = 2.0, True  # a slide show

    def __init__(self, files: Sequence[Path], title: str) -> None:
        self._files, self.title = list(files), title
        self.reopen()

    def reopen(self) -> None:
        self._left = iter(self._files)

    def read(self) -> Frame | None:
        for file in self._left:
            if (frame := read_picture(file)) is not None:
                return frame
            log.warning("Left out %s: not a picture OpenCV can read.", file)
        return None


class Synthetic(Source):
    """An endless drawn scene, the same at every start: a bright disc and a square that move before a dark slope."""

    title, fps = "a synthetic scene", 30.0

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        slope = np.linspace(16, 80, width, dtype=np.uint8)
        self._ground = np.ascontiguousarray(np.broadcast_to(slope[:, None], (height, width, 3)))
        self.reopen()

    def reopen(self) -> None:
        self._count = 0

    def read(self) -> Frame:
        frame, turn = self._ground.copy(), self._count / 30  # in radians
        height, width = frame.shape[:2]
        x, y = int(width * (0.5 + 0.35 * np.cos(turn))), int(height * (0.5 + 0.3 * np.sin(2 * turn)))
        cv2.circle(frame, (x, y), height // 6, (90, 200, 250), -1, cv2.LINE_AA)
        x = int(width * (0.5 - 0.35 * np.cos(turn)))
        cv2.rectangle(frame, (x - height // 8, height // 3), (x + height // 8, height * 2 // 3), (150, 120, 60), -1)
        self._count += 1
        return frame


class Picamera(Source):
    """A Raspberry Pi camera through picamera2, which reaches libcamera where OpenCV does not."""

    live, fps = True, 30.0

    def __init__(self) -> None:
        try:
            self._library: Any = import_module("picamera2").Picamera2
        except (ImportError, OSError) as error:
            raise UserError(
                f"picamera2 is not there ({error}): `sudo apt install python3-picamera2`, and a virtual environment "
                "made with --system-site-packages."
            ) from None
        self._camera: Any = None
        self.title = f"Raspberry Pi camera (libcamera, {WIDTH}x{HEIGHT})"
        try:
            self.reopen()
        except Lost as problem:
            raise UserError(f"{problem}: check its cable with `rpicam-hello --list-cameras`.") from None

    def reopen(self) -> None:
        self.close()
        try:
            self._camera = self._library()
            # libcamera's RGB888 lies in memory as B, G, R: just what a frame is here.
            main = {"format": "RGB888", "size": (WIDTH, HEIGHT)}
            self._camera.configure(self._camera.create_video_configuration(main=main))
            self._camera.start()
        except (RuntimeError, IndexError) as error:  # IndexError: libcamera lists no camera
            self.close()
            raise Lost(f"picamera2 opens no camera ({error})") from None

    def read(self) -> Frame:
        try:
            return self._camera.capture_array("main")  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise Lost(f"{self.title} stopped ({error})") from None

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
        self._camera = None


def read_picture(path: str | Path) -> Frame | None:
    """Read a picture file as HxWx3 uint8 BGR; None where OpenCV cannot."""
    try:
        return cv2.imread(str(path), cv2.IMREAD_COLOR)  # type: ignore[return-value]
    except cv2.error:  # a head that promises more pixels than OpenCV will hold
        return None


def open_source(address: str | int | Path = "auto") -> Source:
    """Open what a person named.

    Args:
        address: "auto", a camera's index, a device path, "picamera", "synthetic", the path of a clip, a picture or a
            folder of pictures, or a URL (RTSP or HTTP; one that ends like a clip is read as a clip, in order).

    Raises:
        UserError: it does not exist, or gives no frame.
    """
    name = str(address)
    if name == "auto":
        return _auto()
    if name in ("picamera", "synthetic"):
        return Picamera() if name == "picamera" else Synthetic()
    if name.isdecimal() or name.startswith("/dev/video"):
        return _camera(int(name) if name.isdecimal() else name)
    if "://" in name:
        title = re.sub("//[^/]*@", "//", name)  # without user and password: it goes into messages and reports
        return Video(name, title, live=Path(name.partition("?")[0]).suffix.lower() not in CLIPS)
    try:
        return _files(Path(name))
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): give another source.") from None


def _auto() -> Source:
    reasons = []
    devices = sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    cameras: list[int | str] = [str(path) for path in devices] if sys.platform == "linux" else [0]
    for attempt in ("picamera", *cameras):
        try:
            return Picamera() if attempt == "picamera" else _camera(attempt)
        except UserError as problem:
            reasons.append(str(problem).partition(":")[0].rstrip("."))
    if not cameras:
        reasons.append("no /dev/video*")
    log.info("No camera (%s): playing the bundled clip instead.", "; ".join(reasons))
    return Video(str(SAMPLE), "the bundled clip", live=False)


def _camera(camera: int | str) -> Source:
    backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
    return Video(camera, f"camera {camera}", live=True, backend=backend)


def _files(path: Path) -> Source:
    if path.is_dir():
        pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not any(cv2.haveImageReader(str(file)) for file in pictures):
            raise UserError(f"The folder {path} has no picture in it: give one with {', '.join(sorted(PICTURES))}.")
        return Pictures(pictures, f"{len(pictures)} pictures in {path}")
    if not path.is_file():
        raise UserError(
            f"There is no source '{path}': give a camera's index, a clip, a picture, a folder or a URL, or `auto`."
        )
    if path.suffix.lower() not in CLIPS and cv2.haveImageReader(str(path)):
        return Pictures([path], str(path))
    with path.open("rb") as file:
        if b"\0" not in file.read(4096):  # every video's head has zeros; FFmpeg would draw a text's letters as frames
            raise UserError(f"{path} is no video{_hint(str(path))}.")
    return Video(str(path), str(path), live=False)


def _hint(address: int | str) -> str:
    if isinstance(address, int) or address.startswith("/dev/video"):
        return f": check the cable, or try `--source auto` or `--source {SAMPLE.parent.name}/{SAMPLE.name}`"
    return ": give a clip, a picture or a stream that OpenCV can read"


def _bgr(frame: Any) -> Frame:
    grey: bool = frame.ndim == 2 or frame.shape[2] == 1
    return cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) if grey else frame  # type: ignore[no-any-return]
