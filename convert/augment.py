"""What a network sees in training: labelled pictures cut, recoloured, mixed and batched, prepared ahead in threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.data import IGNORED, THREADS, Sample
from models import ClassMap, Frame, preprocess, restore

GREY = (127, 127, 127)  # beyond a picture's edge, where the label is IGNORED


def batches(
    samples: list[Sample],
    size: tuple[int, int],
    stride: int,
    weights: NDArray[np.float32],
    batch: int,
    seed: int,
    epoch: int,
    paste: float = 0.0,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Give one epoch of augmented batches, prepared ahead in threads; the same for the same seed and epoch.

    Args:
        samples: from `load_set`; those that do not fill a last batch are left out.
        size: (height, width) of the network.
        stride: pixels along one side of a cell of logits.
        weights: of the classes.
        batch: pictures in a batch.
        seed, epoch: all chance comes from them and a picture's place in the epoch.
        paste: share of the pictures that get the foreground of another one.

    Yields:
        [batch, H, W, 3] float32 RGB 0..255 and [batch, H/stride, W/stride, classes] float32 from `cell_targets`.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(samples))

    def prepare(first: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pixels, targets = [], []
        for place in range(first, first + batch):
            sample = samples[order[place]]
            rng = np.random.default_rng((seed, epoch, place))
            frame, label = augment(sample.frame, sample.label, rng, *size)
            if paste and rng.random() < paste:
                other = samples[rng.integers(len(samples))]
                frame, label = paste_foreground(frame, label, *augment(other.frame, other.label, rng, *size))
            pixels.append(preprocess(frame, *size))
            targets.append(cell_targets(label, stride, weights))
        return np.concatenate(pixels).astype(np.float32), np.stack(targets)

    ahead: deque[Future[tuple[NDArray[np.float32], NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(samples) - batch + 1, batch):
            ahead.append(pool.submit(prepare, first))
            if len(ahead) > 2 * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def cell_targets(label: ClassMap, stride: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Count the pixels of each class in each cell of stride x stride, times the class's weight, / stride².

    Cross entropy with these is exactly that of logits brought to full size by nearest neighbour with the label, which
    is how the finished network makes its class map, at a fraction of the work.
    """
    rows, columns = label.shape[0] // stride, label.shape[1] // stride
    cells = label.reshape(rows, stride, columns, stride)
    counts = [(cells == index).sum(axis=(1, 3), dtype=np.float32) for index in range(len(weights))]
    targets = np.stack(counts, axis=-1) * (weights / stride**2)  # [rows, columns, classes]
    return targets.astype(np.float32, copy=False)


def augment(frame: Frame, label: ClassMap, rng: np.random.Generator, height: int, width: int) -> tuple[Frame, ClassMap]:
    """Cut, flip and recolour a picture as a camera might have seen it.

    Args:
        frame: HxWx3 uint8 BGR.
        label: HxW uint8 class ids, 255 ignored.
        rng: all chance comes from it.
        height, width: of the result.

    Returns:
        height x width x 3 uint8 BGR, and height x width uint8 class ids, 255 beyond the picture's edge.

    The scale, 0.5 to 2, is relative to the stretch of `models.preprocess`, which is what the network meets later.
    """
    frame, label = _crop(frame, label, rng, height, width)
    if rng.random() < 0.5:
        frame, label = frame[:, ::-1], label[:, ::-1]
    return _recolour(np.ascontiguousarray(frame), rng), np.ascontiguousarray(label)


def _crop(frame: Frame, label: ClassMap, rng: np.random.Generator, height: int, width: int) -> tuple[Frame, ClassMap]:
    scale, aspect = np.exp(rng.uniform(np.log(0.5), np.log(2))), np.exp(rng.uniform(-0.3, 0.3))
    sides = (label.shape[0] / scale * aspect**0.5, label.shape[1] / scale / aspect**0.5)
    box = [max(2, round(side)) for side in sides]  # rows and columns of the picture to cut, edges may be beyond it
    starts = [
        round(rng.uniform(min(0, whole - cut), max(0, whole - cut)))
        for whole, cut in zip(label.shape, box, strict=True)
    ]
    top, left = (max(0, -start) for start in starts)
    rows, columns = (slice(max(0, start), start + cut) for start, cut in zip(starts, box, strict=True))
    frame, label = frame[rows, columns], label[rows, columns]
    edges = (top, box[0] - top - label.shape[0], left, box[1] - left - label.shape[1])
    frame = cv2.copyMakeBorder(frame, *edges, cv2.BORDER_CONSTANT, value=GREY)  # type: ignore[assignment]
    label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=(IGNORED,))  # type: ignore[assignment]
    way = cv2.INTER_AREA if box[0] > height else cv2.INTER_LINEAR
    return cv2.resize(frame, (width, height), interpolation=way), restore(label, height, width)  # type: ignore[return-value]


def _recolour(frame: Frame, rng: np.random.Generator) -> Frame:
    """Change light, contrast, gamma, hue and saturation; sometimes blur, compress, add noise or take the colour."""
    levels = np.arange(256) / 255.0
    gamma = np.exp(rng.normal(0, 0.25)) * (2.0 if rng.random() < 0.1 else 1.0)  # a tenth is dark
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-0.12, 0.12)
    tones = (levels**gamma - 0.5) * contrast + 0.5 + brightness
    frame = cv2.LUT(frame, np.clip(tones * 255, 0, 255).astype(np.uint8))  # type: ignore[assignment]
    hsv = cv2.cvtColor(frame, cv2.COLOR_BGR2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + rng.integers(-9, 10)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.6, 1.4), 0, 255)
    frame = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)  # type: ignore[assignment]
    if rng.random() < 0.05:
        frame = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
    if rng.random() < 0.15:
        frame = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.5, 1.5))  # type: ignore[assignment]
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(2, 12), frame.shape)
        frame = np.clip(frame + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        _, packed = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 80))])
        frame = cv2.imdecode(packed, cv2.IMREAD_COLOR)  # type: ignore[assignment]
    return frame


def paste_foreground(frame: Frame, label: ClassMap, other: Frame, ids: ClassMap) -> tuple[Frame, ClassMap]:
    """Put what is not class 0 in `other` (labelled `ids`) over a picture of the same size.

    Copy-paste (Ghiasi et al., 2021): people in front of other people's surroundings.
    """
    foreground = (ids != 0) & (ids != IGNORED)
    return np.where(foreground[..., np.newaxis], other, frame), np.where(foreground, ids, label)
