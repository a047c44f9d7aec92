"""The pipeline: while one frame is captured ahead and one is segmented, the one before is handed out and drawn.

    camera thread     preparing thread   segmenting thread   the caller's thread
    read           -> prepare         -> infer            -> restore, refine -> paint, show, save

From a live source a frame is taken only when the network is free, and prepared then: nothing queues, and a frame is
at most one camera interval and one inference old when it is handed out. What is read in order cannot go stale, so the
next frame is prepared while this one is inferred.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
class _Prepared:
    shot: Shot
    segmenter: Segmenter
    pixels: NDArray[np.uint8]
    prepare: float  # seconds


@dataclass(frozen=True)
class _Segmented:
    prepared: _Prepared
    classes: ClassMap
    infer: float  # seconds


class Pipeline:
    """Segment what a camera reads: `for result in Pipeline(camera, Segmenter("person"))`, or `poll` by hand.

    Args:
        camera: read and, with the pipeline, closed.
        segmenter: may be exchanged at any time by assignment; the frames under way still use the old one.
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
        self._preparer, self._worker = ThreadPoolExecutor(1, "prepare"), ThreadPoolExecutor(1, "segment")
        self._next: Future[_Prepared | None] | None = None
        self._jobs: list[Future[_Segmented | None]] = []

    def poll(self, timeout: float = POLL) -> Result | None:
        """Return the next result, or None if there is none within `timeout` seconds or if the source has `ended`."""
        if self.ended:
            return None
        self._keep_busy()
        if not wait(self._jobs[:1], timeout).done:
            return None
        segmented = self._jobs.pop(0).result()
        last = self.limit is not None and self.meter.processed + 1 >= self.limit
        self.ended = segmented is None or last
        if not self.ended:
            self._keep_busy()  # with the next frame, while this one is drawn
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
        self._preparer.shutdown()
        for job in (self._next, *self._jobs):
            self.camera.dropped += bool(job and not job.exception() and job.result())
        self._next = None
        self._jobs.clear()
        self.meter.captured, self.meter.dropped = self.camera.captured, self.camera.dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_busy(self) -> None:
        # One job ahead for what cannot go stale: the network need not wait for this thread to wake up.
        while len(self._jobs) < (1 if self.camera.live else 2):
            self._jobs.append(self._worker.submit(self._segment))

    def _prepare(self) -> _Prepared | None:
        shot, segmenter, clock = self.camera.read(), self.segmenter, self.meter.clock
        if shot is None:
            return None
        start = clock()
        return _Prepared(shot, segmenter, segmenter.prepare(shot.frame), clock() - start)

    def _segment(self) -> _Segmented | None:
        prepared = self._next.result() if self._next else self._prepare()
        if not self.camera.live:
            self._next = self._preparer.submit(self._prepare)
        if prepared is None:
            return None
        start = self.meter.clock()
        classes = prepared.segmenter.infer(prepared.pixels)
        return _Segmented(prepared, classes, self.meter.clock() - start)

    def _finish(self, done: _Segmented) -> Result:
        prepared, classes, clock = done.prepared, done.classes, self.meter.clock
        shot, segmenter = prepared.shot, prepared.segmenter
        start = clock()
        if self.smooth and not self.camera.source.unrelated:
            classes = self._smoother(prepared.pixels[0], classes, segmenter)
        shares = cv2.calcHist([classes], [0], None, [256], [0, 256]).ravel() / classes.size
        coarse, classes = classes, segmenter.restore(classes, *shot.frame.shape[:2])
        restored = clock()
        if self.refine:
            classes = follow_edges(shot.frame, coarse)
        edges = clock() - restored if self.refine else 0.0
        seconds = {"capture": shot.took, "prepare": prepared.prepare, "infer": done.infer}
        seconds |= {"restore": restored - start, "refine": edges}
        self.meter.captured, self.meter.dropped = self.camera.captured, self.camera.dropped
        self.meter.record(shot.index, shot.captured, **seconds)
        card, figures = segmenter.card, self.meter.figures()
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
