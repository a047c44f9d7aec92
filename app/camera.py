"""Frames without a queue: a thread reads the source and keeps one frame, of a live source always the newest."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.sources import Lost, Source
from models import Frame, UserError

log = logging.getLogger("app")

FIRST_RETRY, LAST_RETRY = 0.5, 8.0  # seconds between attempts to get a lost camera back; doubled each time
PATIENCE = 4.0  # seconds to wait at the end for a read that hangs in a driver


@dataclass(frozen=True)
class Shot:
    """One captured frame, HxWx3 uint8 BGR, with its place in the stream.

    `index` counts captured frames from 0, `captured` is the clock's time when the frame was there, `took` the seconds
    that reading it took (a camera's includes waiting for the sensor), `stamp` the seconds since the first frame: by
    the nominal rate in a clip, by the clock with a camera.
    """

    frame: Frame
    index: int
    captured: float
    took: float
    stamp: float


class Camera:
    """Read a source ahead of its user: `with Camera(open_source("0")) as camera: shot = camera.read()`.

    Args:
        source: what `open_source` gave; it is closed in the end.
        live: True plays a clip like a camera: at its own pace, newest frame only. By default what the source is.
        loop: start a clip again at its end.
        limit: read no more frames than this from a source that is read in order.
        clock, wait: time in seconds and waiting for some; tests pass their own.

    Attributes:
        captured, dropped: frames read, and those of them that were overtaken by a newer one before anyone took them.
        problem: why no frames come at the moment, or None.

    A clip, folder or picture is read in order and nothing is dropped. A live source that stops is opened again, after
    0.5 s, 1 s, 2 s and so on up to every 8 s, until it is back or the camera is closed.
    """

    def __init__(
        self,
        source: Source,
        *,
        live: bool | None = None,
        loop: bool = False,
        limit: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.source, self.live = source, source.live if live is None else live
        self.captured = self.dropped = 0
        self.problem: str | None = None
        self._loop, self._limit, self._clock = loop, limit, clock
        self._closing, self._changed = threading.Event(), threading.Condition()
        self._wait = wait or self._closing.wait
        self._shot: Shot | None = None
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="camera", daemon=True)
        self._thread.start()

    def read(self) -> Shot | None:
        """Take the frame that is there, or wait for one; None when the source has ended or the camera is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._shot or self._ended)
            shot, self._shot = self._shot, None
            self._changed.notify_all()
        if shot is None and self._error:
            raise self._error
        return shot

    def close(self) -> None:
        """Stop reading and give the source back; a waiting `read` returns None. Safe to call twice."""
        self._closing.set()
        with self._changed:
            self.dropped += self._shot is not None
            self._shot, self._ended = None, True
            self._changed.notify_all()
        self._thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            while not self._closing.is_set() and (self.live or self._limit is None or self.captured < self._limit):
                started = self._clock()
                try:
                    frame = self.source.read()
                except Lost as problem:
                    self._recover(problem)
                    continue
                if frame is None:
                    if not self._loop or not self.captured:
                        break
                    self._rewind()
                    continue
                self._deliver(frame, started)
        except Exception as error:  # the thread that reads shall see it, not this one's standard error
            self._error = error
        finally:
            self.source.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _deliver(self, frame: Frame, started: float) -> None:
        now = self._clock()
        took, index = now - started, self.captured
        if index == 0:
            self._start = now
        stamp = now - self._start if self.source.live else index / (self.source.fps or 25.0)
        if self.live and not self.source.live:  # a clip that plays like a camera
            self._wait(max(0.0, self._start + stamp - now))
            now = self._clock()
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: self._shot is None or self._closing.is_set())
            if self._closing.is_set():
                return
            self.captured += 1
            self.dropped += self._shot is not None
            self._shot = Shot(frame, index, now, took, stamp)
            self._changed.notify_all()

    def _rewind(self) -> None:
        try:
            self.source.reopen()
        except Lost as problem:
            raise UserError(f"{problem}.") from None

    def _recover(self, problem: Lost) -> None:
        self.problem, delay = f"{problem}, trying again", FIRST_RETRY
        log.warning("%s: trying again until it is back.", problem)
        while not self._closing.is_set():
            self._wait(delay)
            try:
                self.source.reopen()
            except Lost:
                delay = min(2 * delay, LAST_RETRY)
            else:
                self.problem = None
                log.warning("%s is back.", self.source.title)
                return
