"""What stays on disk: annotated video or pictures, masks, a row per frame, the report; each whole or not at all."""

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline import Result
from models import Frame, UserError

VIDEOS = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}  # encoders that come with every OpenCV wheel
PICTURES = {".png", ".jpg", ".jpeg"}
LONGEST_STILL = 2.0  # seconds that one picture may stand in a video when the camera pauses


class Output(ABC):
    """Something that takes results: `with output: output.write(result, picture)`.

    Leaving the block finishes the file; leaving it with an exception removes what was begun.
    """

    path: Path

    @abstractmethod
    def write(self, result: Result, picture: Frame) -> None:
        """Take one result and its annotated picture, HxWx3 uint8 BGR."""

    @abstractmethod
    def finish(self) -> None:
        """Complete what was begun; nothing to complete is no error."""

    def discard(self) -> None:  # noqa: B027 - what is written file by file has nothing to remove
        """Remove what is half written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish() if kind is None else self.discard()


class Video(Output):
    """A video of the annotated pictures, .mp4, .avi or .webm, with the size of the first and a constant rate.

    Frames of a clip are written one by one; a camera's are repeated or left out so that time runs true.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps, self._part = path, fps, begin(path)
        self._writer: cv2.VideoWriter | None = None
        self._written, self._start = 0, 0.0

    def write(self, result: Result, picture: Frame) -> None:
        if self._writer is None:
            self._size, self._start = (picture.shape[1], picture.shape[0]), result.stamp
            code = cv2.VideoWriter.fourcc(*VIDEOS[self.path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._part), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise UserError(f"This OpenCV cannot encode {self.path}: try a path that ends with .avi, or a folder.")
        due = round((result.stamp - self._start) * self._fps) + 1 - self._written
        longest = round(LONGEST_STILL * self._fps)
        if due > longest:  # the camera was away, or the user paused: cut the gap out
            self._start += (due - longest) / self._fps
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        for _ in range(min(due, longest)):
            self._writer.write(picture)
            self._written += 1

    def finish(self) -> None:
        if self._release():
            os.replace(self._part, self.path)
        else:
            self.discard()

    def discard(self) -> None:
        self._release()
        self._part.unlink(missing_ok=True)

    def _release(self) -> bool:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.release()
        return writer is not None


class LastPicture(Output):
    """The last annotated picture, as .png or .jpg."""

    def __init__(self, path: Path) -> None:
        begin(path).unlink()
        self.path = path
        self._picture: Frame | None = None

    def write(self, result: Result, picture: Frame) -> None:
        self._picture = picture

    def finish(self) -> None:
        if self._picture is not None:
            write_picture(self.path, self._picture)


class Folder(Output):
    """One annotated picture a frame, `000000.jpg` and on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _make_folder(path)

    def write(self, result: Result, picture: Frame) -> None:
        write_picture(self.path / f"{result.index:06d}.jpg", picture)

    def finish(self) -> None:
        """Every picture is complete already."""


class MaskFolder(Folder):
    """One class map a frame as an 8-bit grey PNG of class ids, `000000.png` and on."""

    def write(self, result: Result, picture: Frame) -> None:
        write_picture(self.path / f"{result.index:06d}.png", result.classes)


class CocoMasks(Output):
    """All masks in one .json in COCO's format: a run-length encoded annotation for each class of each frame."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, begin(path)
        self._file = self._part.open("w")
        self._images: list[dict[str, int]] = []
        self._categories: dict[int, str] = {}
        self._count = 0
        self._file.write('{"annotations": [')

    def write(self, result: Result, picture: Frame) -> None:
        height, width = result.classes.shape
        self._images.append({"id": result.index, "height": height, "width": width})
        for label in np.flatnonzero(np.bincount(result.classes.ravel(), minlength=1)).tolist():
            if label and label < len(result.card.classes):
                self._categories[label] = result.card.classes[label].name
                self._file.write(",\n" * (self._count > 0) + json.dumps(self._annotate(result, label)))

    def finish(self) -> None:
        categories = [{"id": label, "name": name} for label, name in sorted(self._categories.items())]
        self._file.write(f'],\n"images": {json.dumps(self._images)},\n"categories": {json.dumps(categories)}}}\n')
        self._file.close()
        os.replace(self._part, self.path)

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _annotate(self, result: Result, label: int) -> dict[str, Any]:
        mask = np.equal(result.classes, label)
        self._count += 1
        return {
            "id": self._count,
            "image_id": result.index,
            "category_id": label,
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "area": int(mask.sum()),
            "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
            "iscrowd": 0,
        }


class Rows(Output):
    """A .csv with a row per frame: time, latency, stages, and the share of each class of the first model."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, begin(path)
        self._file: IO[str] = self._part.open("w", newline="")
        self._writer: csv.DictWriter[str] | None = None

    def write(self, result: Result, picture: Frame) -> None:
        row: dict[str, Any] = {"frame": result.index, "seconds": round(result.stamp, 3), "model": result.card.name}
        row |= {f"{stage}_ms": round(1e3 * value, 3) for stage, value in result.seconds.items()}
        shares = zip(result.card.classes, result.shares.tolist(), strict=True)
        row |= {info.name: round(share, 5) for info, share in shares}
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow(row)

    def finish(self) -> None:
        self._file.close()
        os.replace(self._part, self.path)

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def open_output(path: Path, fps: float) -> Output:
    """Choose by the path's ending: a video, the last picture, or, without one, a folder of pictures."""
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return Video(path, fps)
    if suffix in PICTURES:
        return LastPicture(path)
    if suffix and not path.is_dir():
        raise UserError(f"Cannot save {path}: end it with {', '.join([*VIDEOS, *sorted(PICTURES)])}, or name a folder.")
    return Folder(path)


def open_masks(path: Path) -> Output:
    """Choose by the path's ending: one COCO file (.json), or a folder of PNGs."""
    return CocoMasks(path) if path.suffix.lower() == ".json" else MaskFolder(path)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, whole or not at all."""
    write_whole(path, (json.dumps(report, indent=2) + "\n").encode())


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Encode a picture by its path's ending and write it, whole or not at all."""
    write_whole(path, cv2.imencode(path.suffix, picture)[1].tobytes())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete."""
    part = begin(path)
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def begin(path: Path) -> Path:
    """Create the empty file beside `path` that becomes it in the end, so that a bad path is known at once."""
    if path.is_dir():
        raise _unwritable(path, IsADirectoryError(0, "it is a folder"))
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    _make_folder(path.parent)
    try:
        part.touch()
    except OSError as error:
        raise _unwritable(path, error) from None
    return part


def run_lengths(mask: NDArray[np.bool_]) -> str:
    """Encode a mask as COCO does: lengths of runs, column by column, from outside; as differences, 5 bits a letter.

    The format is that of pycocotools' `rleToString`: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return _letters(np.diff(np.concatenate(([0], changes, [flat.size]))).tolist())


def _letters(counts: Sequence[int]) -> str:
    letters = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(bits + 32 * more + 48))
    return "".join(letters)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path} ({error.strerror}): give another path.")
