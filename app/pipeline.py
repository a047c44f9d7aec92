"""The pipeline: while one frame is captured ahead and one is segmented, the one before is handed out and drawn.

    camera thread          worker thread                 the caller's thread
    read, keep newest  ->  prepare, infer            ->  restore, refine  ->  paint, show, save

A worker takes its frame only when it is free, so nothing queues and a live frame is at most one camera interval and
one inference old when it is handed out.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from app.camera import Camera, Shot
from app.meter import Figures, Meter
from app.refine import Smoother, follow_edges
from app.sources import Source, open_source
from models import DEFAULT, Card, ClassMap, Frame, Segmenter

POLL = 0.05  # seconds after which `poll` gives the caller a chance to answer its window and its signals


@dataclass(frozen=True)
class Result:
    """One segmented frame.

    Attributes:
        frame: HxWx3 uint8 BGR.
        classes: HxW uint8 class ids, indices into `card.classes`.
        shares: the fraction of the picture that each class of the card covers, 0..1.
        card: the model's card.
        index, stamp, captured: the frame's number in its source, its seconds since the first, its time of capture by
            the clock.
        seconds: what each stage took for this frame so far, see `meter.STAGES`.
        figures: what the run measures at the moment.
    """

    frame: Frame
    classes: ClassMap
    shares: NDArray[np.float64]
    card: Card
    index: int
    stamp: float
    captured: float
    seconds: dict[str, float]
    figures: Figures


@dataclass(frozen=True)
class _Segmented:
    shot: Shot
    segmenter: Segmenter
    pixels: NDArray[np.uint8]
    classes: ClassMap
    prepare: float
    infer: float


class Pipeline:
    """Segment what a camera reads: `for result in Pipeline(camera, Segmenter("person"))`, or `poll` by hand.

    Args:
        camera: read and, with the pipeline, closed.
        segmenter: may be exchanged at any time by assignment; the frame under way still uses the old one.
        limit: end after so many frames.
        smooth, refine: whether labels are steadied over time, and whether masks follow the picture's edges; both may
            be switched by assignment.
        meter: takes the figures down.

    Attributes:
        ended: no result will come any more.
    """

    def __init__(
        self,
        camera: Camera,
        segmenter: Segmenter,
        *,
        limit: int | None = None,
        smooth: bool = True,
        refine: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self.camera, self.segmenter, self.limit = camera, segmenter, limit
        self.smooth, self.refine, self.meter = smooth, refine, meter or Meter()
        self.ended = limit == 0
        self._smoother = Smoother()
        self._worker = ThreadPoolExecutor(1, "segmenter")
        self._job: Future[_Segmented | None] | None = None

    def poll(self, timeout: float = POLL) -> Result | None:
        """Return the next result, or None if there is none within `timeout` seconds or if the source has `ended`."""
        if self.ended:
            return None
        job = self._job = self._job or self._worker.submit(self._segment)
        try:
            segmented = job.result(timeout)
        except TimeoutError:
            return None
        self._job = None
        last = self.limit is not None and self.meter.processed + 1 >= self.limit
        self.ended = segmented is None or last
        if not self.ended:
            self._job = self._worker.submit(self._segment)  # the next one, while this one is drawn
        return self._finish(segmented) if segmented else None

    def __iter__(self) -> Iterator[Result]:
        while not self.ended:
            if result := self.poll():
                yield result
                self.meter.deliver(result.captured)

    def close(self) -> None:
        """End the threads; what was still under way counts as dropped."""
        self.ended = True
        self.camera.close()
        self._worker.shutdown()
        if self._job and not self._job.exception() and self._job.result():
            self.camera.dropped += 1
        self._job = None
        self.meter.captured, self.meter.dropped = self.camera.captured, self.camera.dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self) -> _Segmented | None:
        shot, segmenter, clock = self.camera.read(), self.segmenter, self.meter.clock
        if shot is None:
            return None
        start = clock()
        pixels = segmenter.prepare(shot.frame)
        ready = clock()
        classes = segmenter.infer(pixels)
        return _Segmented(shot, segmenter, pixels, classes, ready - start, clock() - ready)

    def _finish(self, done: _Segmented) -> Result:
        clock, shot, classes = self.meter.clock, done.shot, done.classes
        start = clock()
        if self.smooth and not self.camera.source.unrelated:
            classes = self._smoother(done.pixels[0], classes)
        shares = cv2.calcHist([classes], [0], None, [256], [0, 256]).ravel() / classes.size
        coarse, classes = classes, done.segmenter.restore(classes, *shot.frame.shape[:2])
        restored = clock()
        if self.refine:
            classes = follow_edges(shot.frame, coarse)
        edges = clock() - restored if self.refine else 0.0
        seconds = {"capture": shot.took, "prepare": done.prepare, "infer": done.infer}
        seconds |= {"restore": restored - start, "refine": edges}
        self.meter.captured, self.meter.dropped = self.camera.captured, self.camera.dropped
        self.meter.record(shot.index, shot.captured, **seconds)
        card, figures = done.segmenter.card, self.meter.figures()
        shares = shares[: len(card.classes)].astype(np.float64)
        return Result(shot.frame, classes, shares, card, shot.index, shot.stamp, shot.captured, seconds, figures)


def warm_up(segmenter: Segmenter) -> float:
    """Run the network once on a grey picture, so that the first frame is timed like all others; return seconds."""
    start = time.perf_counter()
    segmenter.segment(np.full((segmenter.height, segmenter.width, 3), 128, np.uint8))
    return time.perf_counter() - start


def run(
    source: str | int | Path | Source = "auto",
    model: str | Path = DEFAULT,
    *,
    threads: int | None = None,
    frames: int | None = None,
    smooth: bool = True,
    refine: bool = False,
) -> Iterator[Result]:
    """Segment a camera or a clip in a few lines: `for result in run("clip.mp4"): print(result.shares)`.

    Args:
        source: as for `open_source`, or a `Source` of your own.
        model: a shipped model's name or a path.
        threads: CPU threads of the network, by default the cores of this machine, at most 4.
        frames: end after so many.
        smooth: steady the labels over time where the picture does not move.
        refine: let the masks follow the picture's edges.

    Yields:
        `Result`: frame, class map, shares and figures. Leaving the loop closes the source.

    Raises:
        UserError: the source or the model cannot be opened.
    """
    segmenter = Segmenter(model, threads)
    warm_up(segmenter)
    opened = source if isinstance(source, Source) else open_source(source)
    with Pipeline(Camera(opened, limit=frames), segmenter, limit=frames, smooth=smooth, refine=refine) as pipeline:
        yield from pipeline
