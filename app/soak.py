"""Hold the live loop to its promises on this device: a clip again and again, drawn but not shown.

Three figures with their bounds: how much of the network's own speed the whole loop reaches (capture, inference and
drawing overlap), what preparing and painting cost beside inference, and how much memory grows after the first frames.
The cost is timed afterwards, one step after the other: inside the loop a step also waits for cores that inference has,
which the overlap answers for. Exit code 1 if one is out of bounds, which on a busy machine says more about the machine.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app import device
from app.camera import Camera
from app.live import Session, positive, report, summary
from app.meter import Figures
from app.modes import View
from app.outputs import Output, begin, write_report
from app.overlay import Painter
from app.pipeline import Pipeline, Result, warm_up
from app.sources import SAMPLE, open_source
from models import DEFAULT, Frame, Segmenter

ALONE = 100  # frames that are prepared, segmented and painted one step after the other
SETTLED = 500  # frames after which memory is compared: buffers are there, caches are filled
OVERLAP, DRAWING, GROWTH = 0.9, 0.2, 5.0  # least, most, most MB


@dataclass
class MemoryWatch(Output):
    """Sample RSS in MB every 500 frames."""

    path: Path = Path()
    samples: list[float] = field(default_factory=list)
    _seen: int = 0

    def write(self, result: Result, picture: Frame) -> None:
        self._seen += 1
        if self._seen % SETTLED == 0:
            self.samples.append(device.memory()["rss"] or 0.0)

    def finish(self) -> None:
        """Nothing is kept on disk."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py soak`."""
    add = parser.add_argument
    add("--model", default=DEFAULT, help="a shipped model's name or a .tflite file (default: %(default)s)")
    add("--source", default=str(SAMPLE), help="a clip (default: the bundled one, 640x480)")
    add("--threads", type=positive, default=2, metavar="N", help="threads of the network (default: %(default)s)")
    add("--frames", type=positive, default=10_000, metavar="N", help="how long (default: %(default)s)")
    add("--edges", action="store_true", help="let masks follow the picture's edges")
    add("--report", type=Path, metavar="PATH", help="figures and verdicts as .json")


def main(args: argparse.Namespace) -> int:
    """Run the loop, print figures and verdicts."""
    if args.report:
        begin(args.report).unlink()
    segmenter = Segmenter(args.model, args.threads)
    warm_up(segmenter)
    camera = Camera(open_source(args.source), live=False, loop=True, limit=args.frames)
    watch = MemoryWatch()
    with Pipeline(camera, segmenter, limit=args.frames, refine=args.edges) as pipeline:
        Session(pipeline, View(), [watch], None).run()
    figures = pipeline.meter.summary()
    found = verdicts(figures, drawing(segmenter, args.source), watch.samples)
    print(summary(figures, segmenter, args.source, []))
    for name, (value, bound, good) in found.items():
        print(f"{name:<44}{value:>8.3f}   {'within' if good else 'OUT OF'} bound {bound}")
    if args.report:
        told = {name: dict(zip(("value", "bound", "good"), verdict, strict=True)) for name, verdict in found.items()}
        write_report(args.report, report(figures, segmenter, args.source) | {"verdicts": told})
    return 0 if all(good for _, _, good in found.values()) else 1


def drawing(segmenter: Segmenter, source: str) -> float:
    """Return the time that preparing and painting take, as a part of that of inference, with nothing beside them."""
    with Pipeline(Camera(open_source(source), live=False, loop=True, limit=ALONE), segmenter, limit=ALONE) as pipeline:
        results = list(pipeline)
    painter, view, spent = Painter(), View(), []
    for result in results:
        marks = [time.perf_counter()]
        pixels = segmenter.prepare(result.frame)
        marks.append(time.perf_counter())
        segmenter.infer(pixels)
        marks.append(time.perf_counter())
        painter.paint(result, view)
        spent.append(np.diff([*marks, time.perf_counter()]))
    prepare, infer, paint = np.median(spent, axis=0)  # what else the machine does now and then is not theirs
    return float((prepare + paint) / infer)


def verdicts(figures: Figures, drawn: float, rss: list[float]) -> dict[str, tuple[float, float, Any]]:
    """Compare a run with the bounds: name -> (value, bound, whether it holds); memory only after 1000 frames."""
    overlap = figures.fps["loop"] / figures.fps["model"]
    found = {
        "loop FPS / model FPS": (overlap, OVERLAP, overlap >= OVERLAP),
        "(prepare + paint) / infer": (drawn, DRAWING, drawn <= DRAWING),
    }
    if len(rss) > 1:
        growth = max(rss) - rss[0]
        found[f"RSS beyond that after {SETTLED} frames, MB"] = (growth, GROWTH, growth <= GROWTH)
    return found
