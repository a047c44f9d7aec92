"""Trained weights for other sizes: positions for another grid, patches of other pixels, other sub-patches."""

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_positions(
    position: NDArray[np.floating], old: tuple[int, int], new: tuple[int, int], interpolation: int = cv2.INTER_CUBIC
) -> NDArray[np.float32]:
    """Resize an embedding of the old grid's positions, [rows * columns, D], to the new one's."""
    grid = position.astype(np.float32).reshape(*old, -1)
    if old == new:
        return grid.reshape(old[0] * old[1], -1)
    # One channel at a time: OpenCV takes at most 512 in one picture
    channels = [
        cv2.resize(np.ascontiguousarray(channel), new[::-1], interpolation=interpolation)
        for channel in np.moveaxis(grid, -1, 0)
    ]
    return np.stack(channels, axis=-1).reshape(new[0] * new[1], -1).astype(np.float32)


def resize_patch(kernel: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """Resize a patch embedding, [p, p, 3, D], to patches of side x side pixels.

    The new network does with a picture what the old one does with that picture resized: each patch shrinks to p x p
    pixels by area, R patch Rᵀ, and the kernel takes R in (as FlexiViT, Beyer et al., 2023, but for the pseudo-inverse).
    """
    old = kernel.shape[0]
    area = cv2.resize(np.eye(side, dtype=np.float32), (side, old), interpolation=cv2.INTER_AREA)  # R, [p, side]
    resized: NDArray[np.float32] = np.einsum("ai,bj,abcd->ijcd", area, area, kernel).astype(np.float32)
    return resized


def resize_sub_patches(kernel: NDArray[np.floating], old: int, new: int) -> NDArray[np.float32]:
    """Resize [D, old² M] to [D, new² M], for each of the M dimensions a picture of old x old sub-patches."""
    dim = kernel.shape[0]
    pictures = kernel.reshape(dim, old * old, -1).swapaxes(0, 1).reshape(old * old, -1)
    resized = resize_positions(pictures, (old, old), (new, new), cv2.INTER_LINEAR)
    return resized.reshape(new * new, dim, -1).swapaxes(0, 1).reshape(dim, -1)
