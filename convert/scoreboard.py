"""Pictures of scores, so that a person sees why: which classes are taken for which, and where the worst masks fail."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from convert import data
from convert.data import IGNORED, Sample
from models import ClassInfo, ClassMap, Frame, restore

FACE, BOLD = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
STROKES = not hasattr(cv2, "FontFace")  # OpenCV 4 draws letters of strokes, 5 has a typeface and counts its whole line
Color = tuple[int, int, int]  # BGR
PAPER, INK, FAINT, RULE = (255, 255, 255), (42, 32, 28), (132, 122, 116), (226, 220, 216)
RIGHT, WRONG = (110, 118, 15), (38, 38, 220)  # teal and red
PAD, TEXT, TITLE = 24, 20, 28  # pixels: around everything, height of a line of text and of a title
PANEL = (480, 400)  # most columns and rows of one picture on a sheet
ROW, LEAST_CELL, BAR = 56, 84, 200  # pixels: height and least width of a matrix cell, length of an IoU of 100 %
LINE = 26  # pixels between the baselines of two words of a name
WORST = 10


@dataclass(frozen=True)
class Board:
    """Draw what `data.confusions` counted: `Board(classes, "person on voc/val").confusion(matrices)` is a BGR picture.

    Args:
        classes: names and colours; class 0 stays unpainted where its colour is black.
        about: the model and the pictures, for the titles.
    """

    classes: tuple[ClassInfo, ...]
    about: str

    @property
    def names(self) -> list[str]:
        """The classes' names, in order."""
        return [info.name for info in self.classes]

    def worst(self, matrices: NDArray[np.int64]) -> list[int]:
        """Return which pictures have the lowest mean IoU, at most ten, the lowest first; unlabelled ones do not count.

        Args:
            matrices: [pictures, classes, classes] from `data.confusions`.
        """
        means = {
            index: data.summary(matrix[np.newaxis], self.names).miou
            for index, matrix in enumerate(matrices)
            if matrix.any()
        }
        return sorted(means, key=lambda index: means[index])[:WORST]

    def confusion(self, matrices: NDArray[np.int64]) -> Frame:
        """Draw where the pixels of each label went, in per cent of its row, with each class's IoU.

        Args:
            matrices: [pictures, classes, classes] from `data.confusions`.
        """
        scores, matrix = data.summary(matrices, self.names), matrices.sum(axis=0)
        title = f"{self.about}: {scores.images} pictures, mIoU {_percent(scores.miou)}"
        heads = [name.split() for name in self.names]
        cell = max(LEAST_CELL, *(_width(word) + 20 for words in heads for word in words))
        left = 2 * PAD + 28 + max(_width(name) for name in [*self.names, "label"])
        top = PAD + TITLE + 3 * TEXT + LINE * max(len(words) for words in heads)
        right = left + cell * len(heads)
        width = max(right + 130 + BAR + PAD, 2 * PAD + _width(title, TITLE, BOLD))
        canvas = _paper(top + ROW * len(heads) + PAD + TEXT + PAD, width)
        _write(canvas, title, (PAD, PAD + TITLE), size=TITLE, face=BOLD)
        _write(canvas, "predicted as", (left, PAD + TITLE + 2 * TEXT - 6), FAINT)
        for words, x in (["label"], PAD), (["IoU"], right + PAD):
            _head(canvas, words, (x, top), FAINT)
        for column, words in enumerate(heads):
            _head(canvas, words, (left + cell * column + cell // 2, top), anchor=0.5)
        for row, info in enumerate(self.classes):
            y = top + ROW * row
            _swatch(canvas, info, (PAD, y + ROW // 2 - 9))
            _write(canvas, info.name, (PAD + 28, y + ROW // 2 + 7))
            for column, count in enumerate(matrix[row] if matrix[row].any() else ()):
                _cell(canvas, (left + cell * column, y, cell, ROW), count / matrix[row].sum(), right=row == column)
            _bar(canvas, (right + PAD, y + ROW // 2), scores.iou[info.name])
        _write(canvas, "per cent of the label's pixels; teal is right, red is wrong", (PAD, len(canvas) - PAD), FAINT)
        return canvas

    def sheet(self, sample: Sample, prediction: ClassMap, matrix: NDArray[np.int64], title: str) -> Frame:
        """Draw a picture, its label, the prediction and the mistakes side by side, with the IoU of each class.

        Args:
            sample: the labelled picture.
            prediction: uint8 class ids of any size.
            matrix: [classes, classes], the counts of this picture.
            title: names the picture.
        """
        scores = data.summary(matrix[np.newaxis], self.names)
        panels = self._panels(sample, prediction, _percent(1 - scores.pixel_accuracy))
        rows, columns = panels["picture"].shape[:2]
        titles = (title, f"mean IoU {_percent(scores.miou)}")
        width = max(PAD + len(panels) * (columns + PAD), 3 * PAD + sum(_width(text, TITLE, BOLD) for text in titles))
        shown = np.flatnonzero(matrix.any(axis=0) | matrix.any(axis=1))
        chips = [(self.classes[index], scores.iou[self.names[index]]) for index in shown]
        notes = ["striped: does not count"] if (sample.label == IGNORED).any() else []
        legend = _legend(chips, [*notes, self.about], width)
        top = PAD + TITLE + PAD + TEXT + 12
        canvas = _paper(top + rows + len(legend), width)
        _write(canvas, titles[0], (PAD, PAD + TITLE), size=TITLE, face=BOLD)
        _write(canvas, titles[1], (width - PAD, PAD + TITLE), WRONG, TITLE, BOLD, anchor=1.0)
        for place, (caption, panel) in enumerate(panels.items()):
            x = PAD + place * (columns + PAD)
            canvas[top : top + rows, x : x + columns] = panel
            _write(canvas, caption, (x, top - 10))
        canvas[top + rows :] = legend
        return canvas

    def _panels(self, sample: Sample, prediction: ClassMap, wrong: str) -> dict[str, Frame]:
        frame = _fitted(sample.frame)  # painted at the size shown: lines stay lines however large the picture is
        guess = restore(prediction, *sample.label.shape)  # by way of the size it is scored at
        label, guess = (restore(ids, *frame.shape[:2]) for ids in (sample.label, guess))
        return {
            "picture": frame,
            "label": self._painted(frame, label),
            "predicted": self._painted(frame, guess),
            f"wrong: {wrong}": _marked(frame, (label != guess) & (label != IGNORED)),
        }

    def _painted(self, frame: Frame, classes: ClassMap) -> Frame:
        """Lay the classes' colours on a dimmed grey picture, white lines between them, stripes where none counts."""
        table = np.zeros((256, 3), np.float32)
        table[: len(self.classes)] = [info.color[::-1] for info in self.classes]
        strength = np.full(256, 0.62, np.float32)
        strength[IGNORED] = 0.0
        if not any(self.classes[0].color):
            strength[0] = 0.0
        opacity = strength[classes][..., np.newaxis]
        painted = _dimmed(frame) * (1 - opacity) + table[classes] * opacity
        painted[_borders(classes)] = 255
        ignored = classes == IGNORED
        diagonals = np.indices(classes.shape).sum(axis=0) // 4 % 2
        painted[ignored & (diagonals == 0)], painted[ignored & (diagonals == 1)] = 150, 235
        return painted.astype(np.uint8)


def _dimmed(frame: Frame) -> NDArray[np.float32]:
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., np.newaxis].astype(np.float32)
    return 0.4 * grey + 0.3 * frame.astype(np.float32)


def _borders(classes: ClassMap) -> NDArray[np.bool_]:
    """Say where a pixel's class is not that of the one before it, in either direction."""
    changes = np.zeros(classes.shape, bool)
    changes[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    changes[1:] |= classes[1:] != classes[:-1]
    return changes


def _marked(frame: Frame, wrong: NDArray[np.bool_]) -> Frame:
    grey = np.repeat(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., np.newaxis], 3, axis=2) * 0.5 + 90
    grey[wrong] = 0.25 * grey[wrong] + 0.75 * np.array(WRONG)
    return grey.astype(np.uint8)


def _fitted(frame: Frame) -> Frame:
    scale = min(PANEL[0] / frame.shape[1], PANEL[1] / frame.shape[0])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=way)  # type: ignore[return-value]


def _legend(chips: Sequence[tuple[ClassInfo, float | None]], notes: Sequence[str], width: int) -> Frame:
    """Name the classes with their IoU, then the notes, in as many lines as they need."""
    words = [f"{info.name} {'in no label' if iou is None else _percent(iou)}" for info, iou in chips]
    words += notes
    places, x, y = [], PAD, 2 * PAD
    for word in words:
        if x + 28 + _width(word) + PAD > width and x > PAD:
            x, y = PAD, y + 34
        places.append((x, y))
        x += 28 + _width(word) + 36
    canvas = _paper(y + PAD, width)
    for number, (word, (x, y)) in enumerate(zip(words, places, strict=True)):
        if number < len(chips):
            _swatch(canvas, chips[number][0], (x, y - 16))
        _write(canvas, word, (x + 28 * (number < len(chips)), y), INK if number < len(chips) else FAINT)
    return canvas


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _paper(height: int, width: int) -> Frame:
    return np.full((height, width, 3), PAPER, np.uint8)


def _head(canvas: Frame, words: Sequence[str], place: tuple[int, int], ink: Color = INK, anchor: float = 0.0) -> None:
    """Write words one below the other, the last just above `place`."""
    for line, word in enumerate(reversed(words)):
        _write(canvas, word, (place[0], place[1] - 14 - LINE * line), ink, anchor=anchor)


def _cell(canvas: Frame, box: tuple[int, int, int, int], share: float, right: bool) -> None:
    """Fill one cell: the more, the darker; mistakes by the root of their share, so that small ones show."""
    x, y, width, height = box
    amount = share if right else min(1.0, share) ** 0.5
    paper, full = np.array(PAPER, float), np.array(RIGHT if right else WRONG, float)
    fill = paper + (full - paper) * (amount if share >= 0.0005 else 0)
    cv2.rectangle(canvas, (x + 1, y + 1), (x + width - 2, y + height - 2), [int(part) for part in fill], cv2.FILLED)
    ink = PAPER if amount > 0.7 else INK if share >= 0.0005 else FAINT
    words = f"{100 * share:.1f}" if share >= 0.0005 else "0"
    _write(canvas, words, (x + width // 2, y + height // 2 + 7), ink, anchor=0.5)


def _bar(canvas: Frame, place: tuple[int, int], iou: float | None) -> None:
    x, y = place
    if iou is None:
        _write(canvas, "in no label", (x, y + 7), FAINT)
        return
    _write(canvas, _percent(iou), (x + 72, y + 7), anchor=1.0)
    bar = canvas[y - 7 : y + 7, x + 86 : x + 86 + BAR]
    bar[:], bar[:, : round(BAR * iou)] = RULE, RIGHT


def _swatch(canvas: Frame, info: ClassInfo, place: tuple[int, int]) -> None:
    x, y = place
    cv2.rectangle(canvas, (x, y), (x + 17, y + 17), info.color[::-1], cv2.FILLED)
    cv2.rectangle(canvas, (x, y), (x + 17, y + 17), FAINT, 1)


def _write(
    canvas: Frame,
    text: str,
    place: tuple[int, int],
    ink: Color = INK,
    size: int = TEXT,
    face: int = FACE,
    anchor: float = 0.0,
) -> None:
    """Write a line whose baseline is at `place`; `anchor` is the part of it left of there."""
    x = round(place[0] - anchor * _width(text, size, face))
    weight = 2 if STROKES and face == BOLD else 1
    cv2.putText(canvas, text, (x, place[1]), face, _scale(size, face), ink, weight, cv2.LINE_AA)


def _width(text: str, size: int = TEXT, face: int = FACE) -> int:
    return cv2.getTextSize(text, face, _scale(size, face), 1)[0][0] if text else 0


def _scale(size: int, face: int) -> float:
    return (0.75 if STROKES else 1.0) * size / cv2.getTextSize("0", face, 1.0, 1)[0][1]
