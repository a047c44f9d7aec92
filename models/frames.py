"""The way of a frame into the network and of a class map back: one geometry for the app, calibration and scores."""

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # HxWx3 uint8 BGR, values 0..255: what OpenCV reads and shows
ClassMap = NDArray[np.uint8]  # HxW uint8, class ids


def preprocess(frame: Frame, height: int, width: int) -> NDArray[np.uint8]:
    """Stretch a frame to the input size and hand it over as the network's tensor.

    Args:
        frame: HxWx3 uint8 BGR, 0..255, any size.
        height, width: input size of the network in pixels.

    Returns:
        1 x height x width x 3 uint8 RGB, 0..255, contiguous.

    INTER_AREA averages the pixels that fall together, so small things neither vanish nor alias. Halving is by far its
    fastest case, so a frame is halved as long as it stays large enough. If then only its width is left to shrink, by
    less than two (a camera's 640x480 for 256x240), two neighbours are all that fall together: INTER_LINEAR, in a third
    of the time.
    """
    while all(side >= 2 * wanted and side % 2 == 0 for side, wanted in zip(frame.shape, (height, width), strict=False)):
        frame = _resized(frame, frame.shape[0] // 2, frame.shape[1] // 2, cv2.INTER_AREA)
    if frame.shape[:2] != (height, width):
        little = frame.shape[0] == height and width < frame.shape[1] < 2 * width
        frame = _resized(frame, height, width, cv2.INTER_LINEAR if little else cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[np.newaxis]  # type: ignore[return-value]


def _resized(frame: Frame, height: int, width: int, interpolation: int) -> Frame:
    return cv2.resize(frame, (width, height), interpolation=interpolation)  # type: ignore[return-value]


def restore(classes: ClassMap, height: int, width: int) -> ClassMap:
    """Bring class ids back to a frame's size by nearest neighbour, the inverse geometry of `preprocess`.

    Args:
        classes: hxw uint8 class ids.
        height, width: size of the frame in pixels.

    Returns:
        height x width uint8 class ids.
    """
    if classes.shape == (height, width):
        return classes
    # INTER_NEAREST_EXACT takes the cell that holds the pixel's centre; INTER_NEAREST is half a cell off.
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]
