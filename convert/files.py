"""Files of the converter: pictures to calibrate with, and results that are written whole or not at all."""

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.data import PICTURES
from models import UserError, preprocess


def add_size(parser: argparse.ArgumentParser, default: str = "the checkpoint's") -> None:
    """Declare --size, the input's height and width instead of the default one."""
    parser.add_argument("--size", type=_size, metavar="HxW", help=f"height and width of the input (default: {default})")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write height x width, for instance 256x320")
    return int(height), int(width)


def draw_pictures(
    folders: Iterable[Path], count: int, height: int, width: int, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Draw `count` pictures from folders and prepare them as the app prepares frames.

    Returns:
        1xHxWx3 uint8 RGB each.

    Raises:
        UserError: a folder is missing, has too few pictures, or one of those drawn cannot be read.
    """
    if count < 1:
        raise UserError(f"{count} pictures are too few: take at least one.")
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"No folder {folder}: give one with pictures like those the camera will see.")
        found += sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if len(found) < count:
        raise UserError(
            f"{len(found)} pictures are too few to draw {count}: add some, or ask for fewer with --pictures."
        )
    drawn = np.random.default_rng(seed).choice(len(found), count, replace=False)
    return [_read(found[index], height, width) for index in sorted(drawn)]


def _read(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    try:
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that promises more pixels than OpenCV will hold
        frame = None
    if frame is None:
        raise UserError(f"{path} is not a readable picture: replace it, or take it out.")
    return preprocess(frame, height, width)  # type: ignore[arg-type]


@contextmanager
def stored(model: bytes) -> Iterator[Path]:
    """Put a model's bytes into a file for as long as it takes: interpreters open paths."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(model)
        yield path


def check_place(*paths: Path) -> None:
    """Refuse, before any long work, what could not be written later."""
    for path in paths:
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir():
            raise UserError(f"{path} is a folder: choose another place.")
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise UserError(f"{path} cannot be written, {nearest} is not a folder to write in: choose another place.")


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all of them appear complete, or none does."""
    check_place(*files)
    written: list[tuple[str, Path]] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            written.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)  # mkstemp's files are for their owner only
        for temporary, path in written:
            os.replace(temporary, path)
    except OSError as error:
        names = ", ".join(str(path) for path in files)
        raise UserError(f"{names} cannot be written ({error.strerror}): choose another place.") from None
    finally:
        for temporary, _ in written:
            if os.path.exists(temporary):
                os.unlink(temporary)
