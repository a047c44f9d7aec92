"""Better masks from the same network: labels steadied over time, and outlines that follow the picture."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models import ClassMap, Frame

HOLD = 3  # frames in a row that a new label must be seen where the picture stands still
MOTION = 6  # grey levels, 0..255, beyond which a place counts as moving; sensor noise after blurring stays below
RADIUS = 12  # px at 640x480: the filter sees beyond one cell of a stride-4 mask, which is 10 px wide there
EPSILON = 1e-4  # of a grey scale 0..1, squared: an edge fainter than 1 % of the range is no edge
SHRINK = 4  # the filter's coefficients are smooth: computing them on every 4th pixel changes the masks little


class Smoother:
    """Remove flicker without trails: `classes = smoother(pixels, classes)`, frame after frame.

    Where the picture moves, a new label counts at once. Where it stands still there is no reason for a change, and a
    new label must be seen in three frames in a row, which flicker is not. So nothing lags behind a moving thing, and
    nothing is wrong for longer than three frames. Integer arithmetic only.
    """

    def __init__(self) -> None:
        self._shown = self._seen = np.zeros((0, 0), np.uint8)
        self._grey: Any = self._shown

    def __call__(self, pixels: NDArray[np.uint8], classes: ClassMap) -> ClassMap:
        """Take the hxwx3 uint8 RGB input of the network and its hxw uint8 ids, return steadied ids."""
        grey = cv2.blur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (5, 5))
        if grey.shape != self._grey.shape:  # the first frame, or another model
            self._shown, self._seen = classes, np.zeros_like(classes)
        else:
            _, moving = cv2.threshold(cv2.absdiff(grey, self._grey), MOTION, 1, cv2.THRESH_BINARY)
            moving = cv2.dilate(moving, np.ones((5, 5), np.uint8))  # the blur has thinned what it spread
            new = classes != self._shown
            self._seen = (self._seen + 1) * new  # frames in a row; never beyond HOLD, so uint8 suffices
            accepted = new & ((moving > 0) | (self._seen >= HOLD))
            self._shown = np.where(accepted, classes, self._shown)
        self._grey = grey
        return self._shown


def follow_edges(frame: Frame, classes: ClassMap) -> ClassMap:
    """Bring a coarse class map to the frame's size so that its outlines follow the picture's.

    Each class's mask is filtered with the frame's grey picture as guide, and each pixel takes the class that is
    strongest there. The fast guided filter: K. He, J. Sun, "Guided Image Filtering", PAMI 2013, eq. 5, 6 and 8;
    "Fast Guided Filter", 2015.

    Args:
        frame: HxWx3 uint8 BGR.
        classes: hxw uint8 class ids.

    Returns:
        HxW uint8 class ids.
    """
    height, width = frame.shape[:2]
    present = np.flatnonzero(cv2.calcHist([classes], [0], None, [256], [0, 256]))
    if len(present) == 1:
        return np.full((height, width), present[0], np.uint8)
    guide = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    small = (max(1, width // SHRINK), max(1, height // SHRINK))
    window = 2 * max(1, round(RADIUS * min(width / 640, height / 480) / SHRINK)) + 1
    coarse = cv2.resize(guide, small, interpolation=cv2.INTER_AREA)
    mean = _mean(coarse, window)
    variance = _mean(coarse * coarse, window) - mean * mean + EPSILON
    result = np.full((height, width), present[0], np.uint8)
    rest, best = np.ones((height, width), np.float32), np.full((height, width), -np.inf, np.float32)
    for label in present[1:]:
        mask = cv2.resize((classes == label).astype(np.float32), small, interpolation=cv2.INTER_LINEAR)
        inside = _mean(mask, window)
        slope = (_mean(coarse * mask, window) - mean * inside) / variance
        offset = _mean(inside - slope * mean, window)
        score = cv2.resize(_mean(slope, window), (width, height)) * guide + cv2.resize(offset, (width, height))
        rest -= score
        stronger = score > best
        result[stronger], best[stronger] = label, score[stronger]
    # Scores of all classes add up to 1, because the filter is linear: the first class need not be filtered.
    result[rest > best] = present[0]
    return result


def _mean(values: Any, window: int) -> Any:
    return cv2.blur(values, (window, window))
