"""Sources and the thread that reads them: nothing lost where order counts, nothing stale where time does."""

import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from app import sources
from app.camera import Camera
from app.pipeline import Pipeline
from app.sources import Lost, Source, Synthetic, open_source
from models import Segmenter, UserError


class VirtualTime:
    """Seconds that pass only in `advance`; the camera thread, asleep in `wait`, is woken when it asked to be."""

    def __init__(self) -> None:
        self.now, self.stopped = 0.0, False
        self._due: float | None = None
        self._changed = threading.Condition()

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._due = due = self.now + seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.stopped or self.now >= due)
            self._due = None
            self._changed.notify_all()

    def advance(self, seconds: float) -> None:
        with self._changed:
            end = self.now + seconds
            while self._changed.wait_for(lambda: self._due is not None) and self._due <= end:
                self.now = self._due
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._due is None or self._due > self.now)
            self.now = end

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


class Ticking(Source):
    """A camera with a frame every second of virtual time."""

    title, live, fps = "a ticking camera", True, 1.0

    def __init__(self, time: VirtualTime) -> None:
        self._time = time

    def read(self) -> np.ndarray | None:
        self._time.wait(1.0)
        return None if self._time.stopped else np.zeros((48, 64, 3), np.uint8)

    def reopen(self) -> None:
        raise AssertionError("a camera that works is not opened again")


class Scripted(Source):
    """A source that gives what it is told: frames, an exception to raise, None for the end."""

    def __init__(self, steps: list, live: bool, reopenings: list | None = None) -> None:
        self.title, self.live, self.fps, self.closed = "a script", live, 10.0, False
        self._steps, self._reopenings, self._all = iter(steps), iter(reopenings or []), steps

    def read(self) -> np.ndarray | None:
        step = next(self._steps)
        if isinstance(step, Exception):
            raise step
        return step

    def reopen(self) -> None:
        step = next(self._reopenings, None)
        if isinstance(step, Exception):
            raise step
        if not self.live:
            self._steps = iter(self._all)

    def close(self) -> None:
        self.closed = True


def grey(level: int) -> np.ndarray:
    return np.full((8, 8, 3), level, np.uint8)


def drain(camera: Camera) -> list[int]:
    return [int(shot.frame[0, 0, 0]) for shot in iter(camera.read, None)]


def test_clip_is_read_in_order_without_a_gap(clip: Path) -> None:
    with Camera(open_source(clip)) as camera:
        shots = list(iter(camera.read, None))
    assert [shot.index for shot in shots] == list(range(12))
    assert [round(shot.stamp, 3) for shot in shots] == [round(n / 10, 3) for n in range(12)]
    brightness = [shot.frame.mean() for shot in shots]
    assert brightness == sorted(brightness)
    assert (camera.captured, camera.dropped) == (12, 0)


def test_limit_keeps_the_camera_from_reading_on(clip: Path) -> None:
    with Camera(open_source(clip), limit=5) as camera:
        assert len(drain(camera)) == 5
    assert (camera.captured, camera.dropped) == (5, 0)


def test_looped_clip_starts_again() -> None:
    with Camera(Scripted([grey(1), grey(2), None], live=False), loop=True, limit=5) as camera:
        assert drain(camera) == [1, 2, 1, 2, 1]


def test_a_clip_that_cannot_be_looped_says_so() -> None:
    source = Scripted([grey(1), grey(2), None], live=False, reopenings=[Lost("the clip is gone")])
    with Camera(source, loop=True) as camera:
        assert [shot.index for shot in (camera.read(), camera.read()) if shot] == [0, 1]
        with pytest.raises(UserError, match="the clip is gone"):
            camera.read()


def test_nominal_rates_that_no_camera_has_are_not_believed(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded:  # as by a browser, whose recordings tell the ticks of their clock
        def __init__(self) -> None:
            self._capture = capture()

        def __getattr__(self, name: str) -> object:
            return getattr(self._capture, name)

        def get(self, key: int) -> float:
            return 1000.0 if key == cv2.CAP_PROP_FPS else self._capture.get(key)

    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Recorded)
    source = open_source(clip)
    with Camera(source) as camera:
        shots = [camera.read() for _ in range(3)]
    assert source.fps == 0
    assert [shot.stamp for shot in shots if shot] == [0, 1 / 25, 2 / 25]


def test_empty_loop_ends() -> None:
    with Camera(Scripted([None], live=False), loop=True) as camera:
        assert camera.read() is None


def test_live_source_keeps_the_newest_frame_only() -> None:
    time = VirtualTime()
    with Camera(Ticking(time), clock=time) as camera:
        time.advance(7.5)
        shot = camera.read()
        assert shot is not None
        assert (shot.index, shot.captured, shot.stamp) == (6, 7.0, 6.0)
        assert (camera.captured, camera.dropped) == (7, 6)
        time.advance(1)
        assert camera.read().index == 7
        time.stop()


def test_clip_played_live_keeps_its_own_pace() -> None:
    time = VirtualTime()
    source = Synthetic(32, 24)  # 30 FPS, endless
    with Camera(source, live=True, clock=time, wait=time.wait) as camera:
        time.advance(1.0)
        shot = camera.read()
        # The frame of t = 1 s, the 31st, is due at this very moment: it is there already, or the one before it.
        assert shot.index in (29, 30)
        assert camera.captured == shot.index + 1
        camera._closing.set()
        time.stop()


def test_a_model_ten_times_too_slow_shows_fresh_frames(tiny: Path) -> None:
    """The frame shown is never older than two inferences, and nothing queues up."""
    time, inference, painted = VirtualTime(), 10.0, threading.Semaphore(1)

    class Slow(Segmenter):
        def infer(self, pixels: np.ndarray) -> np.ndarray:
            painted.acquire()  # painting takes no virtual time
            time.advance(inference)
            return super().infer(pixels)

    camera = Camera(Ticking(time), clock=time)
    time.advance(1)
    ages, indices = [], []
    with Pipeline(camera, Slow(tiny, 1), limit=20) as pipeline:
        while len(ages) < 20:
            if result := pipeline.poll():
                ages.append(time() - result.captured)
                indices.append(result.index)
                painted.release()
        time.stop()
    assert max(ages) <= 2 * inference
    assert ages[1:] == ages[:1] * 19  # it does not grow
    assert set(np.diff(indices)) == {10}  # nine of ten frames are overtaken
    assert pipeline.meter.processed == 20
    assert camera.captured == 20 + camera.dropped


def test_lost_camera_is_retried_with_back_off_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[float] = []
    gone = Lost("camera 0 stopped")
    problems: list[str | None] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        problems.append(camera.problem)

    source = Scripted([grey(1), gone, grey(2), None], live=True, reopenings=[gone] * 6 + [None])
    ready = threading.Event()
    source.read, read = (lambda: ready.wait() and read()), source.read  # hold it until `camera` has its name
    with caplog.at_level(logging.INFO, "app"), Camera(source, wait=wait) as camera:
        ready.set()
        while camera.read() is not None:
            pass
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert set(problems) == {"camera 0 stopped, trying again"}
    assert camera.problem is None
    assert camera.captured == 2
    assert "a script is back." in caplog.text


def test_closing_wakes_a_waiting_reader_and_closes_the_source() -> None:
    time = VirtualTime()
    source = Ticking(time)
    camera = Camera(source, clock=time)
    answers: list[object] = []
    reader = threading.Thread(target=lambda: answers.append(camera.read()))
    reader.start()
    time.stop()
    camera.close()
    reader.join(5)
    assert answers == [None]


def test_a_bug_in_a_source_is_raised_where_frames_are_read() -> None:
    source = Scripted([grey(1), ZeroDivisionError("bug")], live=False)
    with Camera(source) as camera:
        assert camera.read() is not None
        with pytest.raises(ZeroDivisionError):
            camera.read()
    assert source.closed


def test_folder_is_read_in_order_of_names_and_bad_files_are_left_out(tmp_path: Path, caplog) -> None:
    for name, level in (("b.png", 2), ("a.png", 1), ("c.png", 3)):
        cv2.imwrite(str(tmp_path / name), grey(level))
    (tmp_path / "bb.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    with Camera(open_source(tmp_path)) as camera:
        assert drain(camera) == [1, 2, 3]
    assert "bb.png" in caplog.text and "notes.txt" not in caplog.text


def test_a_picture_is_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 77, np.uint8))  # one channel becomes three
    source = open_source(tmp_path / "grey.png")
    frame = source.read()
    assert frame.shape == (8, 8, 3) and frame[0, 0].tolist() == [77, 77, 77]
    assert source.read() is None


def test_synthetic_scene_moves_and_is_the_same_at_every_start() -> None:
    source = open_source("synthetic")
    first, second = source.read(), source.read()
    assert first.shape == (480, 640, 3) and first.dtype == np.uint8
    assert (first != second).any()
    source.reopen()
    assert (source.read() == first).all()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere.mp4", "There is no source"),
        ("97", "camera 97 gives no frames"),  # no machine has that many cameras
        ("/dev/video97", "camera /dev/video97 gives no frames"),
        ("rtsp://127.0.0.1:1/none", "gives no frames"),
        ("http://127.0.0.1:1/none.mp4", "gives no frames"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_sentence(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_source(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.mp4", "text.txt", "empty.avi"])
def test_a_file_that_is_no_video_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("" if "empty" in name else "this is no video\n" * 100)
    with pytest.raises(UserError, match=r"(gives no frames|is no video): give a clip"):
        open_source(tmp_path / name)


def test_a_source_without_the_right_to_read_it_is_said_to_be_so(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match="cannot be read"):
        open_source(clip)


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture in it"):
        open_source(tmp_path)


def test_a_truncated_clip_gives_what_it_has(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 4])
    with Camera(open_source(cut)) as camera:
        assert 0 < len(drain(camera)) < 12


@pytest.fixture
def stream() -> Iterator[str]:
    """An HTTP camera that sends eight pictures as MJPEG and hangs up, to everyone who asks."""

    class Eight(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            for level in range(8):
                jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 30 * level, np.uint8))[1].tobytes()
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Eight)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/camera"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_that_hangs_up_is_opened_again(stream: str) -> None:
    source = open_source(stream)
    assert source.live and "secret" not in source.title
    waits: list[float] = []
    with Camera(source, wait=waits.append) as camera:
        while (shot := camera.read()) and shot.index < 12:
            assert shot.frame.shape == (48, 64, 3)
    assert shot is not None and waits[0] == 0.5


class FakePicamera2:
    """The part of picamera2 that is used, with a format check like the real one's."""

    def __init__(self) -> None:
        if self.missing:
            raise IndexError("list index out of range")

    missing = False

    def create_video_configuration(self, main: dict) -> dict:
        return main

    def configure(self, main: dict) -> None:
        assert main["format"] == "RGB888"  # B, G, R in memory
        self.size = main["size"]

    def start(self) -> None: ...

    def capture_array(self, name: str) -> np.ndarray:
        return np.full((self.size[1], self.size[0], 3), (255, 0, 0), np.uint8)

    def close(self) -> None: ...


def test_auto_prefers_picamera2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=FakePicamera2))
    source = open_source("auto")
    assert source.live and "libcamera" in source.title
    assert source.read()[0, 0].tolist() == [255, 0, 0]
    source.close()


def test_auto_falls_back_to_the_bundled_clip_and_says_why(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(FakePicamera2, "missing", True)
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=FakePicamera2))
    monkeypatch.setattr(sources, "_camera", lambda camera: (_ for _ in ()).throw(UserError("camera gives no frames.")))
    with caplog.at_level(logging.INFO, "app"):
        source = open_source("auto")
    assert not source.live and source.read().shape == (480, 640, 3)
    assert "picamera2 opens no camera" in caplog.text and "playing the bundled clip" in caplog.text


def test_missing_picamera2_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(UserError, match="apt install python3-picamera2"):
        open_source("picamera")
