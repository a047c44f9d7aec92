"""A tiny Segmenter with random weights that are not at rest: no gain is 1, no bias is 0, no channel is centred."""

from pathlib import Path

import cv2
import numpy as np

from convert import network
from convert.checkpoint import Checkpoint, preset
from models import ClassInfo

CLASSES = (ClassInfo("ground", (0, 0, 0)), ClassInfo("fox", (255, 99, 71)), ClassInfo("hen", (30, 144, 255)))


def checkpoint(activation: str = "relu", classes: tuple[ClassInfo, ...] = CLASSES, **overrides: int) -> Checkpoint:
    """Make one that tells classes apart at random, three of them about evenly."""
    config = preset("tiny", len(classes), activation=activation, **overrides)
    rng = np.random.default_rng(1)
    arrays = {
        name: array + rng.normal(0, 0.15, array.shape).astype(np.float32)
        for name, array in network.fresh(config).items()
    }
    return Checkpoint(arrays, config, classes)


def pictures(folder: Path, count: int = 4) -> Path:
    """Write pictures with some structure: smoothed noise of several scales."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(2)
    for number in range(count):
        frame = sum(
            cv2.resize(rng.uniform(0, 1, (cells, cells, 3)), (96, 80), interpolation=cv2.INTER_CUBIC)
            for cells in (2, 5, 20)
        )
        cv2.imwrite(str(folder / f"{number}.png"), np.clip(frame / 3 * 255, 0, 255).astype(np.uint8))
    return folder
