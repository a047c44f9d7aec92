"""Live segmentation: a camera or a clip in, overlay and figures out, in a window or without one.

examples:
  python run_demo.py                                       the first camera there is, or the bundled clip
  python run_demo.py --source clip.mp4 --show none --save out.mp4 --report report.json
  python run_demo.py --source 0 --mode blur                background out of focus
  python run_demo.py --show web --host 0.0.0.0             in the browsers of this network

Keys in the window: h shows them all.
"""

import argparse
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from app import device, web
from app.camera import Camera
from app.controls import Controls
from app.meter import Figures
from app.modes import MODES, View, labels_of, read_colour
from app.outputs import Output, Rows, begin, open_masks, open_output, write_report
from app.overlay import Painter
from app.pipeline import Pipeline, Result, warm_up
from app.preference import preferred
from app.sources import Pictures, open_source, read_picture
from app.window import Surface, Window, obstacle
from models import Segmenter, UserError

log = logging.getLogger("app")

PROGRESS_SECONDS = 5.0
IDLE_REPAINT = 0.04  # seconds between repaints while no new frame comes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py live`."""
    add = parser.add_argument
    add("--source", default="auto", help="auto, a camera's index, a clip, picture, folder, URL, picamera or synthetic")
    model, threads = preferred()
    add("--model", default=model, help="a shipped model's name or a .tflite file (default: %(default)s)")
    add("--threads", type=positive, default=threads, metavar="N", help="of the network (default: the cores, at most 4)")
    add("--show", choices=("auto", "window", "web", "none"), default="auto", help="auto: a window where a display is")
    add("--frames", type=positive, metavar="N", help="end after so many frames")
    add(
        "--save",
        type=Path,
        metavar="PATH",
        help="annotated .mp4, .avi, .webm, last picture .png, .jpg, or a folder",
    )
    add("--masks", type=Path, metavar="PATH", help="class maps: a folder of PNGs, or one .json with COCO RLE")
    add("--csv", type=Path, metavar="PATH", help="a row per frame: time, stages, class shares")
    add("--report", type=Path, metavar="PATH", help="figures of the run as .json")
    add("--mode", choices=tuple(MODES), default="overlay", help="what is drawn (default: %(default)s)")
    add("--class", dest="chosen", action="append", default=[], metavar="NAME", help="only this class; repeatable")
    add("--opacity", type=int, choices=range(101), default=50, metavar="0-100", help="of the colours, in percent")
    add("--contour", action="store_true", help="outline the classes")
    add("--background", default="", metavar="PATH|#RRGGBB", help="for --mode replace")
    switch = argparse.BooleanOptionalAction
    add("--smooth", action=switch, default=True, help="steady labels over time (default)")
    add("--edges", action=switch, default=True, help="masks follow the picture's edges (default)")
    web.configure_door(parser.add_argument_group("the page of --show web"))


def main(args: argparse.Namespace) -> int:
    """Run until the source ends, the frames are done, or the user quits; print the summary."""
    windowed = _windowed(args.show)
    segmenter = Segmenter(args.model, args.threads)
    view = View(args.mode, args.opacity, args.contour, labels_of(args.chosen, segmenter.card))
    if args.background:
        view.backdrop = _backdrop(args.background)
    if args.report:
        begin(args.report).unlink()  # a path that cannot be written shall not be found out in the end
    source = open_source(args.source)
    log.info("%s with %s on %s threads: %s", source.title, segmenter.card.name, segmenter.threads, segmenter.runtime)
    log.info("Warm-up took %.0f ms.", 1e3 * warm_up(segmenter))
    # In a window a clip plays like a camera, at its own pace; nothing is left out of what is saved.
    keeping = any((args.save, args.masks, args.csv))
    camera = Camera(
        source,
        live=source.live or (windowed and not keeping),
        loop=windowed and (args.source == "auto" or args.show == "web") and not keeping,
        limit=args.frames,
    )
    pipeline = Pipeline(camera, segmenter, limit=args.frames, smooth=args.smooth, refine=args.edges)
    with ExitStack() as stack:
        stack.enter_context(pipeline)
        outputs = [stack.enter_context(output) for output in _outputs(args, source.fps)]
        window = _surface(args, stack) if windowed else None
        session = Session(pipeline, view, outputs, window)
        stack.callback(session.close)
        stack.enter_context(_Signals(session))
        session.run()
    figures = pipeline.meter.summary()
    print(summary(figures, pipeline.segmenter, source.title, [output.path for output in outputs]))
    if args.report:
        write_report(args.report, report(figures, pipeline.segmenter, source.title))
    return 0


class Session:
    """The loop of one run: take a result, paint it, show it, save it, heed the user.

    Args:
        pipeline: where results come from.
        view: what is drawn.
        outputs: what takes every result.
        window: where pictures are shown, or None; closed with the session.
    """

    def __init__(self, pipeline: Pipeline, view: View, outputs: Sequence[Output], window: Surface | None) -> None:
        self.pipeline, self.view, self.outputs = pipeline, view, outputs
        self.controls = Controls(view, pipeline)
        self.stopped = False
        self._painter, self._window = Painter(), window
        self._last: Result | None = None
        self._told = time.perf_counter()

    def run(self) -> None:
        """Go on until the pipeline has ended, the user quits, or `stopped` is set; a picture in a window stays."""
        still = self._window is not None and isinstance(self.pipeline.camera.source, Pictures)
        rested = False
        while not self.stopped and not self.controls.quit and (still or not self.pipeline.ended):
            resting = self._resting()
            result = None if self.controls.paused or resting else self.pipeline.poll()
            if rested and result:
                result, rested = None, False  # it was under way when the last viewer left: old by now
            rested = rested or resting
            if result:
                self._deliver(result)
                self._tell(result.figures)
            elif self._window:
                self._idle()
            self._heed()

    def close(self) -> None:
        """Finish a recording and take the window away."""
        self.controls.close()
        if self._window:
            self._window.close()

    def _deliver(self, result: Result) -> None:
        clock, self._last = self.pipeline.meter.clock, result
        start = clock()
        hint = self._window.hint if self._window else ""
        picture = self._painter.paint(result, self.view, self.controls.notices(), hint)
        painted = clock()
        if self._window:
            self._window.show(picture)
        shown = clock()
        for output in self.outputs:
            output.write(result, picture)
        self.controls.remember(result, picture)
        spent = {"paint": painted - start, "show": shown - painted, "save": clock() - shown}
        self.pipeline.meter.deliver(result.captured, self._window is not None, **spent)

    def _idle(self) -> None:
        """Keep the window alive, and let changes of the view be seen, while no new frame comes."""
        if self._last and self._window:
            self._window.show(self._painter.paint(self._last, self.view, self.controls.notices(), self._window.hint))
        if self.controls.paused or self.pipeline.ended or self._resting():
            time.sleep(IDLE_REPAINT)

    def _resting(self) -> bool:
        """Tell whether nobody looks at the page and nothing is kept: then there is no need to segment."""
        unseen = self._window is not None and not self._window.watched
        return unseen and not self.outputs and self.pipeline.limit is None

    def _heed(self) -> None:
        if not self._window:
            return
        key, clicks = self._window.events()
        self.controls.press(key)
        for x, y in clicks:
            if self._last:
                self.controls.click(x, y, self._last)
        self.stopped = self.stopped or self._window.closed

    def _tell(self, figures: Figures) -> None:
        now = time.perf_counter()
        if now - self._told >= PROGRESS_SECONDS and not self._window:
            self._told = now
            log.info(
                "%d frames, %.1f FPS, model %.1f ms, RSS %s MB",
                figures.frames["processed"],
                figures.fps["loop"],
                figures.stages_ms["infer"],
                figures.memory_mb["rss"],
            )


class _Signals:
    """Let Ctrl-C and a service manager's SIGTERM end the session with its summary; a second one ends it at once."""

    def __init__(self, session: Session) -> None:
        self._session, self._before = session, dict[int, Any]()

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._session.stopped:
            raise KeyboardInterrupt
        self._session.stopped = True


def report(figures: Figures, segmenter: Segmenter, source: str) -> dict[str, Any]:
    """Return the figures of a run with what they were measured on, as `--report` writes them."""
    origin = {"model": segmenter.card.name, "runtime": segmenter.runtime, "threads": segmenter.threads}
    return origin | {"source": source} | figures.report() | {"device": device.describe()}


def summary(figures: Figures, segmenter: Segmenter, source: str, saved: Sequence[Path]) -> str:
    """Word the figures of a run as a table."""
    told = figures.report()
    rows = {
        "model": f"{segmenter.card.name}, {segmenter.threads} threads, {segmenter.runtime}",
        "source": source,
        "device": device.describe(),
        "frames": _pairs(told["frames"], "d"),
        "FPS": _pairs(told["fps"], ".1f"),
        "latency ms": _pairs(told["latency_ms"], ".1f"),
        "stages ms": _pairs(told["stages_ms"], ".2f"),
        "memory MB": _pairs({key: value for key, value in told["memory_mb"].items() if value is not None}, ".0f"),
        "CPU": f"{told['temperature_c']:.0f} C {told['throttling'] or ''}" if told["temperature_c"] else "",
        "saved": ", ".join(map(str, saved)),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items() if text)


def _pairs(values: dict[str, float], form: str) -> str:
    return "   ".join(f"{name} {value:{form}}" for name, value in values.items())


def _outputs(args: argparse.Namespace, fps: float) -> Iterator[Output]:
    if args.save:
        yield open_output(args.save, fps or 25.0)
    if args.masks:
        yield open_masks(args.masks)
    if args.csv:
        yield Rows(args.csv)


def _windowed(show: str) -> bool:
    """Decide whether there will be a window or a page; say what happens instead where there cannot be a window."""
    if show == "web":
        return True
    problem = None if show == "none" else obstacle()
    if problem and show == "window":
        raise UserError(f"No window can be shown: {problem}; use `--show none` with `--save` or `--report`.")
    if problem:
        log.info("No window (%s): running without one; `--save PATH` keeps the pictures.", problem)
    return show != "none" and problem is None


def _surface(args: argparse.Namespace, stack: ExitStack) -> Surface:
    return stack.enter_context(web.screen(args)) if args.show == "web" else Window()


def _backdrop(text: str) -> Any:
    with suppress(UserError):  # no colour, but perhaps a file
        return read_colour(text)
    picture = read_picture(text)
    if picture is None:
        raise UserError(f"{text} is neither a picture nor a colour: give a file, or for instance '#28a060'.")
    return picture


def positive(text: str) -> int:
    """Read a number of frames or threads from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")
    return int(text)
