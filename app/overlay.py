"""Words on the picture: figures, legend, help and notices on translucent panels, readable from 320x240 to 4K."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app.device import MEMORY
from app.meter import Figures
from app.modes import MODES, View, compose
from app.pipeline import Result
from models import Frame

FONT, BOLD = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
# OpenCV 5 draws these with a real typeface and tells the height of its line; OpenCV 4 draws strokes, whose weight we
# choose, and tells the height of the letter.
STROKES = not hasattr(cv2, "FontFace")
INK, FAINT, PAPER = (250, 250, 250), (178, 172, 168), (26, 22, 20)  # BGR
PAPER_OPACITY = 0.68
NOTICE_WIDTH = 36  # letters in a line
LEAST_SHARE = 0.005  # a class on fewer of the pixels is not listed

KEYS = {
    "m": "next mode: " + ", ".join(MODES),
    "1-9, click": "choose classes; 0: all",
    "- +": "opacity of the colours",
    "c": "contours on, off",
    "s": "smoothing over time on, off",
    "e": "masks follow edges on, off",
    "n": "next model",
    "t": "more threads, round again",
    "space": "pause, go on",
    "p": "picture and mask as files",
    "v": "record video and masks",
    "i": "figures on, off",
    "h": "this help",
    "q, Esc": "quit",
}


@dataclass(frozen=True)
class Row:
    """One line of a panel: a label, a value at the right or `left` in a column, perhaps a class's colour (BGR)."""

    label: str
    value: str = ""
    swatch: tuple[int, int, int] | None = None
    title: bool = False
    left: bool = False


class Painter:
    """Draw results: `painter.paint(result, view)` gives the picture that is shown and saved.

    Panels are drawn once and kept until their words change, so that most frames only pay for laying them on.
    """

    def __init__(self) -> None:
        self._panels: dict[str, tuple[Any, NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def paint(self, result: Result, view: View, notices: Sequence[str] = (), hint: str = "") -> Frame:
        """Return the composed picture with its panels.

        Args:
            result: what was segmented; its frame is left as it is.
            view: mode and panels wanted.
            notices: short sentences, shown at the lower right.
            hint: a word on keys, shown there when there is nothing else to say.
        """
        picture = compose(result.frame, result.classes, result.card, view)
        if view.help:
            return self._help(picture)
        size = text_height(*picture.shape[:2])
        if view.figures:
            rows = figure_rows(result.figures, result.card.name)
            self._lay(picture, "figures", rows[: _fitting(picture, size, 0.45)], size, (0.0, 0.0))
        legend = legend_rows(result, view)[: _fitting(picture, size, 0.4)]
        self._lay(picture, "legend", legend, size, (0.0, 1.0))
        words = [line for notice in notices for line in wrap(notice, NOTICE_WIDTH)] or [hint] * bool(hint)
        self._lay(picture, "notices", [Row(line) for line in words], size, (1.0, 1.0))
        return picture

    def _help(self, picture: Frame) -> Frame:
        """Lay the help over the picture, which grows if it is too small for it."""
        size = text_height(*picture.shape[:2])
        room = [side + 2 * size for side in draw_panel(HELP, size)[0].shape[:2]]
        scale = max(1.0, room[0] / picture.shape[0], room[1] / picture.shape[1])
        picture = cv2.resize(picture, None, fx=scale, fy=scale)  # type: ignore[assignment]
        self._lay(picture, "help", HELP, size, (0.5, 0.5))
        return picture

    def _lay(self, picture: Frame, name: str, rows: list[Row], size: int, place: tuple[float, float]) -> None:
        if not rows:
            return
        key = (tuple(rows), size)
        if name not in self._panels or self._panels[name][0] != key:
            self._panels[name] = (key, *draw_panel(rows, size))
        _, ink, through = self._panels[name]
        margin = round(0.7 * size)
        height, width = (min(side, room - margin) for side, room in zip(ink.shape, picture.shape[:2], strict=False))
        if height <= 0 or width <= 0:
            return
        y = max(0, round(margin + place[1] * (picture.shape[0] - height - 2 * margin)))
        x = max(0, round(margin + place[0] * (picture.shape[1] - width - 2 * margin)))
        part = picture[y : y + height, x : x + width]
        cv2.add(cv2.multiply(part, through[:height, :width], scale=1 / 255), ink[:height, :width], part)


def figure_rows(figures: Figures, model: str) -> list[Row]:
    """Word the figures, the most important first: a small picture has room for a few only."""
    fps, latency, frames, stages = figures.fps, figures.latency_ms, figures.frames, figures.stages_ms
    stages = {"prep": stages["prepare"], "edges": stages["refine"], "paint": stages["paint"]}
    if not figures.stages_ms["refine"]:
        del stages["edges"]
    memory = {name: f"{value:.0f}" if value else "-" for name, value in figures.memory_mb.items()}
    rows = [
        Row(f"{fps['loop']:.1f} FPS", model, title=True),
        Row("model", f"{figures.stages_ms['infer']:.1f} ms  {fps['model']:.0f} FPS"),
        Row("RSS / PSS / peak", f"{memory['rss']} / {memory['pss']} / {memory['peak_rss']} MB"),
        Row("latency", f"{latency['p50']:.0f} ms  p95 {latency['p95']:.0f}"),
        Row("camera", f"{fps['camera']:.0f} FPS  {frames['dropped']} dropped"),
        Row(" / ".join(stages), " / ".join(f"{value:.1f}" for value in stages.values()) + " ms"),
    ]
    if figures.temperature_c is not None:
        rows.append(Row("CPU", f"{figures.temperature_c:.0f} C {figures.throttling or ''}".strip()))
    return rows


def legend_rows(result: Result, view: View) -> list[Row]:
    """List the classes present, with colour and share of the picture; the ones not chosen without a swatch."""
    rows = []
    for label, (info, share) in enumerate(zip(result.card.classes, result.shares, strict=True)):
        if label and share >= LEAST_SHARE:
            blue_first = (info.color[2], info.color[1], info.color[0])
            shown = not view.chosen or label in view.chosen
            rows.append(Row(info.name, f"{100 * share:.0f} %", blue_first if shown else FAINT))
    return rows


HELP = [
    Row("Keys", title=True),
    *(Row(key, meaning, left=True) for key, meaning in KEYS.items()),
    Row("Figures", title=True),
    Row("FPS", "frames finished a second, over the last seconds", left=True),
    Row("model", "the network alone, and the FPS it alone would reach", left=True),
    Row("latency", "from capture to screen: median and 95th percentile", left=True),
    *(Row(name, text, left=True) for name, text in zip(("RSS", "PSS", "peak"), MEMORY.values(), strict=True)),
]


def text_height(height: int, width: int) -> int:
    """Return the height of the letters in pixels for a picture of this size: 10 at 320x240, 13 at 480p, 33 at 4K."""
    return max(8, round(10 + 0.012 * (min(height, 0.75 * width) - 240)))


def draw_panel(rows: Sequence[Row], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw rows on rounded translucent paper.

    Returns:
        (ink, through), both hxwx3 uint8: what the panel adds, and how much of the picture, 0..255, shines through it.
    """
    pad, swatch = size, round(1.7 * size)
    sizes = [round(1.4 * size) if row.title else size for row in rows]
    labels = [
        _width(row.label, own, row.title) + bool(row.swatch) * swatch for row, own in zip(rows, sizes, strict=True)
    ]
    values = [_width(row.value, size) for row in rows]
    gap, column = (size if any(values) else 0), max(labels)
    height, width = round(0.8 * size + 1.75 * sum(sizes)), 2 * pad + column + gap + max(values)
    paper = _rounded(height, width, round(0.6 * size))
    color, text = np.full((height, width, 3), PAPER, np.uint8), np.zeros((height, width), np.uint8)
    top = 0.3 * size
    for row, own, value in zip(rows, sizes, values, strict=True):
        base, x = round(top + 1.375 * own), pad
        if row.swatch:
            for canvas, shade in ((color, row.swatch), (text, 255)):
                cv2.rectangle(canvas, (x, base - own), (x + own, base), shade, -1)
            x += swatch
        _write(color, text, row.label, x, base, own, INK if row.title or row.swatch else FAINT, row.title)
        x = pad + column + gap if row.left else width - pad - value
        _write(color, text, row.value, x, base, size, FAINT if row.title else INK)
        top += 1.75 * own
    alpha = np.maximum(paper * np.float32(PAPER_OPACITY / 255), text / np.float32(255))[..., None]
    return (color * alpha).astype(np.uint8), np.repeat(255 - 255 * alpha, 3, axis=2).astype(np.uint8)


def _write(
    color: Frame, coverage: NDArray[np.uint8], text: str, x: int, y: int, size: int, ink: Any, bold: bool = False
) -> None:
    face, scale, weight = _face(size, bold)
    # Full colour under the letters, their soft edges in the coverage: so text looks the same on any background.
    cv2.putText(color, text, (x, y), face, scale, ink, weight, cv2.LINE_AA)
    cv2.putText(coverage, text, (x, y), face, scale, 255, weight, cv2.LINE_AA)


def _face(size: int, bold: bool) -> tuple[int, float, int]:
    face = BOLD if bold else FONT
    scale = size / cv2.getTextSize("0", face, 1.0, 1)[0][1]
    return (face, 0.75 * scale, max(1, round(size / 14))) if STROKES else (face, scale, 1)


def _width(text: str, size: int, bold: bool = False) -> int:
    return cv2.getTextSize(text, *_face(size, bold))[0][0] if text else 0


def _rounded(height: int, width: int, radius: int) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    for y in (radius, height - 1 - radius):
        for x in (radius, width - 1 - radius):
            cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA)
    mask[radius : height - radius] = 255
    mask[:, radius : width - radius] = 255
    return mask


def _fitting(picture: Frame, size: int, part: float) -> int:
    """Return how many rows fit into this part of the picture's height."""
    return max(1, int((part * picture.shape[0] - 1.5 * size) / (1.75 * size)))
