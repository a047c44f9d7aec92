"""What the page's buttons and its API do with pictures, clips and the benchmark."""

import csv
import io
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from app import benchmark, report_page
from app.camera import Camera
from app.modes import View, compose, labels_of, mask_of, read_colour
from app.outputs import Rows, Video
from app.pipeline import Pipeline
from app.refine import follow_edges
from app.web.engine import Engine
from app.web.live import read_view
from app.web.pictures import CLIP_SECONDS, open_clip
from models import Card, ClassMap, Frame, UserError

KEPT = 600.0  # seconds that a file written here stays; Gradio serves a copy of its own
MOST_PICTURES = 50  # at once
VIDEO_SIDE = 1280  # px, of the clip that is handed out
TOLD = 0.3  # seconds between two words on progress

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Look:
    """What is to be drawn, as the page and the API word it.

    `mode` is a key of `modes.MODES`, `classes` are names (none stands for all), `opacity` is 0..100, `background` and
    `colour` are "#rrggbb" ("" for none): of what replaces the background, and of the chosen classes.
    """

    mode: str = "overlay"
    classes: Sequence[str] = ()
    opacity: float = 50
    contour: bool = False
    edges: bool = True
    background: str = ""
    colour: str = ""

    def on(self, card: Card) -> tuple[View, Card]:
        """Return the view for a model's classes, and its card in the colours wanted."""
        chosen = labels_of(self.classes, card)
        wish = {"mode": self.mode, "opacity": str(int(self.opacity)), "background": _hex(self.background)}
        view = read_view(wish | {"contour": str(int(self.contour))})
        view.chosen = chosen
        return view, _recoloured(card, chosen, _hex(self.colour)) if self.colour else card


@dataclass(frozen=True)
class Segmented:
    """A picture done: what is drawn (HxWx3 uint8 BGR), its HxW uint8 class ids, the share of each class, 0..1."""

    drawn: Frame
    classes: ClassMap
    shares: dict[str, float]


class Tasks:
    """The work behind the page: `picture`, `pictures`, `clip`, `benchmark`.

    Args:
        engine: whose models and turns are used.
        folder: where files that are handed out are written; swept as new ones come.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder

    def picture(self, frame: Frame, model: str, look: Look) -> Segmented:
        """Segment and draw one HxWx3 uint8 BGR picture, when it is its turn among the visitors' frames."""
        return self._engine.submit(secrets.token_hex(8), lambda: self._picture(frame, model, look)).result()

    def files(self, frame: Frame, done: Segmented, look: Look, model: str) -> list[str]:
        """Write what can be taken home: the picture (cut out: with a transparent ground) and the mask of class ids."""
        folder = self._new()
        if look.mode == "cutout":
            view, _ = look.on(self._engine.segmenter(model).card)
            alpha = cv2.blur(mask_of(done.classes, view.chosen), (3, 3))
            _write(folder / "cutout.png", cv2.merge([*cv2.split(frame), alpha]))
        else:
            _write(folder / "picture.jpg", done.drawn)
        _write(folder / "mask.png", done.classes)
        return sorted(map(str, folder.iterdir()), reverse=True)

    def pictures(
        self, frames: Sequence[tuple[str, Callable[[], Frame]]], model: str, look: Look, progress: Progress
    ) -> tuple[list[tuple[Any, str]], str]:
        """Segment several pictures; give them drawn (RGB, with their names) and a ZIP of pictures, masks and shares.

        Args:
            frames: a name and what opens the picture; one that cannot be read is named in the list of shares.
        """
        if len(frames) > MOST_PICTURES:
            raise UserError(f"{len(frames)} pictures are too many at once: bring at most {MOST_PICTURES}.")
        target, drawn, rows = self._new() / "segmented.zip", [], list[dict[str, Any]]()
        with zipfile.ZipFile(target, "w") as archive:
            for number, (name, opener) in enumerate(frames):
                progress(number / len(frames), f"{number} of {len(frames)} pictures")
                stem = f"{number:03d}-{_plain(name)}"
                try:
                    done = self.picture(opener(), model, look)
                except UserError as error:
                    rows.append({"picture": name, "problem": str(error)})
                    continue
                archive.writestr(f"{stem}.jpg", cv2.imencode(".jpg", done.drawn)[1].tobytes())
                archive.writestr(f"{stem}-mask.png", cv2.imencode(".png", done.classes)[1].tobytes())
                drawn.append((done.drawn[..., ::-1], name))
                rows.append({"picture": name} | {key: round(share, 5) for key, share in done.shares.items()})
            archive.writestr("shares.csv", _csv(rows))
        if not drawn:
            raise UserError(f"None of the files is a picture that can be read: {rows[0]['problem'] if rows else ''}")
        return drawn, str(target)

    def clip(self, path: Path, model: str, look: Look, progress: Progress) -> Iterator[tuple[str, str, str]]:
        """Segment a clip; yields now and then while it works, and in the end video, shares as CSV and a sentence.

        Leaving the loop ends the work and removes what was begun.
        """
        source, count = open_clip(path)
        rate = source.fps or 25.0
        segmenter, folder = self._engine.segmenter(model), self._new()
        view, card = look.on(segmenter.card)
        target, table, told = folder / "segmented.webm", folder / "shares.csv", time.monotonic()
        camera = Camera(source, limit=int(CLIP_SECONDS * rate))
        with (
            Pipeline(camera, segmenter, refine=look.edges) as pipeline,
            Video(target, rate) as video,
            Rows(table) as rows,
        ):
            for result in pipeline:
                video.write(result, _fit(compose(result.frame, result.classes, card, view)))
                rows.write(result, result.frame)
                if time.monotonic() - told > TOLD:
                    told = time.monotonic()
                    done = result.index + 1
                    progress(min(0.99, done / count if count else 0.5), f"{done} of {count or '?'} frames")
                    yield "", "", f"{done} frames so far"
            figures = pipeline.meter.summary()
        frames = figures.frames["processed"]
        cut = f" The file tells of {count} frames: the rest is damaged or cut off." if frames < 0.95 * count else ""
        speed = f"{figures.fps['loop']:.1f} FPS, the model {figures.stages_ms['infer']:.1f} ms a frame"
        yield str(target), str(table), f"{frames} frames at {speed}.{cut}"

    def benchmark(self, model: str) -> str:
        """Measure a model on this device, see `app.benchmark`, and give table and plots as HTML."""
        path = self._engine.segmenter(model).card.file
        report = benchmark.measure(benchmark.plan([path], benchmark.thread_counts(), []))
        return report_html(report)

    def _picture(self, frame: Frame, model: str, look: Look) -> Segmented:
        segmenter = self._engine.segmenter(model)
        view, card = look.on(segmenter.card)
        coarse = segmenter.infer(segmenter.prepare(frame))
        classes = follow_edges(frame, coarse) if look.edges else segmenter.restore(coarse, *frame.shape[:2])
        shares = np.bincount(classes.ravel(), minlength=len(card.classes)) / classes.size
        named = {info.name: float(share) for info, share in zip(card.classes, shares, strict=False)}
        return Segmented(compose(frame, classes, card, view), classes, named)

    def _new(self) -> Path:
        for old in self._folder.iterdir():
            if old.stat().st_mtime < time.time() - KEPT:
                shutil.rmtree(old, ignore_errors=True)
        folder = self._folder / secrets.token_hex(8)
        folder.mkdir()
        return folder


def report_html(report: dict[str, Any]) -> str:
    """Draw a benchmark's report for the page: latency, memory, and what they were measured on."""
    rows = report["rows"]
    drawn = {
        "Latency of the network alone; the tick is the median": report_page.latency(rows),
        "Memory of a process that runs it": report_page.memory(rows),
    }
    figures = [f"<figure><figcaption>{title}</figcaption>{plot}</figure>" for title, plot in drawn.items() if plot]
    cells = [
        f"<div><dt>{row['threads']} thread{'s' * (row['threads'] > 1)}</dt>"
        f"<dd>{row['median_ms']:.1f} ms · {row['fps']:.0f} FPS</dd></div>"
        for row in rows
    ]
    noisy = " The machine was busy with other work: measure again when it is quiet." * report["noise"]["noisy"]
    note = f'<p class="note">{report["device"]}, {report["runtime"]}.{noisy}</p>'
    return f'<div class="plots"><div class="card"><dl>{"".join(cells)}</dl></div>{"".join(figures)}{note}</div>'


def _recoloured(card: Card, chosen: frozenset[int], colour: str) -> Card:
    blue, green, red = read_colour(colour)
    classes = [
        replace(info, color=(red, green, blue)) if label in chosen else info for label, info in enumerate(card.classes)
    ]
    return replace(card, classes=tuple(classes))


def _hex(colour: str) -> str:
    """Turn "rgba(40, 160, 96, 1)", as Gradio's picker may word a colour, into "#28a060"; leave others as they are."""
    if not colour or not colour.startswith("rgb"):
        return colour
    try:
        numbers = [round(float(part)) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
        return "#" + bytes(numbers).hex()
    except (ValueError, OverflowError):
        return colour  # `read_colour` says what is wrong with it


def _fit(picture: Frame) -> Frame:
    """Scale a picture down to what is handed out, with even sides, which video encoders want."""
    scale = min(1.0, VIDEO_SIDE / max(picture.shape[:2]))
    size = [max(2, round(side * scale) // 2 * 2) for side in (picture.shape[1], picture.shape[0])]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _write(path: Path, picture: Any) -> None:
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def _plain(name: str) -> str:
    """Keep letters and digits of a visitor's file name: it becomes a name inside the ZIP."""
    return "".join(letter if letter.isalnum() else "-" for letter in Path(name).stem)[:60]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
