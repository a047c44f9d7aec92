"""What becomes of the picture: coloured classes, blurred or replaced background, cut-outs, masks, side by side."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from models import Card, ClassMap, Frame, UserError

Mask = NDArray[np.uint8]  # HxW, 255 inside and 0 outside, between them along soft edges

OPACITY_STEP = 10  # percent, per key press
BLURRED_HEIGHT = 60  # px that the background is reduced to: the same blur at every size, and cheap


@dataclass
class View:
    """What the user wants to see; keys and flags change it.

    Attributes:
        mode: a key of `MODES`.
        opacity: of the classes' colours, 0..100 percent.
        contour: draw outlines around the classes.
        chosen: class ids that the mode is about; none means all but the background, class 0.
        backdrop: HxWx3 uint8 BGR picture or one BGR colour, for mode "replace".
        figures, help: whether these panels are drawn.
    """

    mode: str = "overlay"
    opacity: int = 50
    contour: bool = False
    chosen: frozenset[int] = frozenset()
    backdrop: Frame | tuple[int, int, int] = (96, 160, 40)
    figures: bool = True
    help: bool = False
    _fitted: dict[tuple[int, int], Frame] = field(default_factory=dict, repr=False)

    def fitted_backdrop(self, height: int, width: int) -> Frame:
        """Return the backdrop at a frame's size, cut so that it covers it; kept, since frames keep their size."""
        if (height, width) not in self._fitted:
            self._fitted = {(height, width): cover(self.backdrop, height, width)}
        return self._fitted[height, width]

    def choose(self, label: int) -> None:
        """Add a class to those chosen, or take it away; class 0 stands for all."""
        self.chosen = frozenset() if label == 0 else self.chosen ^ {label}


def read_colour(text: str) -> tuple[int, int, int]:
    """Read "#rrggbb" as blue, green, red, 0..255."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise UserError(f"'{text[:30]}' is no colour: give one like #28a060.")
    red, green, blue = bytes.fromhex(text[1:])
    return blue, green, red


def labels_of(names: Sequence[str], card: Card) -> frozenset[int]:
    """Return the ids of a model's classes with these names."""
    labels = {info.name: label for label, info in enumerate(card.classes)}
    for name in names:
        if name not in labels:
            raise UserError(f"{card.name} has no class '{name[:40]}': choose from {', '.join(labels)}.")
    return frozenset(labels[name] for name in names)


def compose(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    """Draw one frame in the view's mode.

    Args:
        frame: HxWx3 uint8 BGR, left as it is.
        classes: HxW uint8 class ids.
        card: gives the classes their colours.

    Returns:
        A new HxWx3 uint8 BGR picture; twice as wide in mode "side".
    """
    picture = MODES[view.mode][0](frame, classes, card, view)
    return _outline(picture, classes, card, view) if view.contour else picture


def mask_of(classes: ClassMap, chosen: frozenset[int]) -> Mask:
    """Return 255 where the class is among the chosen, or where it is not background if none is."""
    table = np.zeros(256, np.uint8)
    table[list(chosen) or slice(1, None)] = 255
    return cv2.LUT(classes, table)  # type: ignore[return-value]


def cover(backdrop: Frame | tuple[int, int, int], height: int, width: int) -> Frame:
    """Scale a picture so that it covers height x width and cut off what stands out; fill it if it is a colour."""
    if isinstance(backdrop, tuple):
        return np.full((height, width, 3), backdrop, np.uint8)
    scale = max(height / backdrop.shape[0], width / backdrop.shape[1])
    size = (max(width, round(backdrop.shape[1] * scale)), max(height, round(backdrop.shape[0] * scale)))
    scaled = cv2.resize(backdrop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width], np.uint8)


def _overlay(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    picture = frame.copy()
    mask = mask_of(classes, view.chosen) if view.chosen else classes  # anything but 0 counts as inside
    x, y, width, height = cv2.boundingRect(mask)
    if width and view.opacity:
        part = np.s_[y : y + height, x : x + width]  # blending where there is something to blend saves half the time
        tint = cv2.applyColorMap(classes[part], _palette(card))
        blended = cv2.addWeighted(frame[part], 1 - view.opacity / 100, tint, view.opacity / 100, 0)
        cv2.copyTo(blended, mask[part], picture[part])
    return picture


def _mask(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    mask = mask_of(classes, view.chosen)
    return cv2.copyTo(cv2.applyColorMap(classes, _palette(card)), mask)  # type: ignore[return-value]


def _side(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    return cv2.hconcat([frame, _overlay(frame, classes, card, view)])  # type: ignore[return-value]


def _blur(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    return _before(frame, _blurred(frame), classes, view)


def _hide(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    return _before(_blurred(frame), frame, classes, view)


def _replace(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    return _before(frame, view.fitted_backdrop(*frame.shape[:2]), classes, view)


def _cutout(frame: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    height, width = frame.shape[:2]
    cells = np.indices((16 * height // width or 1, 16)).sum(axis=0) % 2  # the chequers that stand for "nothing there"
    board = np.where(cells[..., None], 205, 245).astype(np.uint8).repeat(3, axis=2)
    return _before(frame, cv2.resize(board, (width, height), interpolation=cv2.INTER_NEAREST), classes, view)  # type: ignore[arg-type]


def _blurred(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (width * BLURRED_HEIGHT // height or 1, BLURRED_HEIGHT), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.blur(small, (5, 5)), (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _before(frame: Frame, backdrop: Frame, classes: ClassMap, view: View) -> Frame:
    """Put the chosen classes of the frame before a backdrop of the same size, with edges a few pixels soft."""
    soft = 2 * round(frame.shape[0] / 320) + 1
    alpha = cv2.merge([cv2.blur(mask_of(classes, view.chosen), (soft, soft))] * 3)
    front = cv2.multiply(frame, alpha, scale=1 / 255)
    return cv2.add(front, cv2.multiply(backdrop, cv2.bitwise_not(alpha), scale=1 / 255))  # type: ignore[return-value]


def _outline(picture: Frame, classes: ClassMap, card: Card, view: View) -> Frame:
    thick = 2 * max(1, round(classes.shape[0] / 240)) + 1
    # What erosion takes away is the inner rim; beyond the picture's border everything counts as inside.
    lower, upper = (change(classes, np.ones((thick, thick), np.uint8)) for change in (cv2.erode, cv2.dilate))
    rim = cv2.bitwise_and(cv2.compare(lower, upper, cv2.CMP_NE), mask_of(classes, view.chosen))
    bright = cv2.applyColorMap(classes, 255 - (255 - _palette(card)) // 3)
    left = picture.shape[1] - classes.shape[1]  # the right half in mode "side"
    cv2.copyTo(bright, rim, picture[:, left:])
    return picture


def _palette(card: Card) -> NDArray[np.uint8]:
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(card.classes), 0] = [info.color[::-1] for info in card.classes]  # RGB on the card, BGR here
    return table


# Name -> how it is drawn and what the help screen says.
MODES: dict[str, tuple[Callable[[Frame, ClassMap, Card, View], Frame], str]] = {
    "overlay": (_overlay, "classes in their colours"),
    "blur": (_blur, "background out of focus"),
    "hide": (_hide, "the classes out of focus"),
    "replace": (_replace, "another background"),
    "cutout": (_cutout, "the classes alone"),
    "side": (_side, "camera and overlay side by side"),
    "mask": (_mask, "class colours only"),
}
