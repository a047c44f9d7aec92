"""Any TFLite segmentation model, run as what a few lines of JSON say of its classes, so that peers are scored alike.

  {"classes": [{"name": "background", "color": [0, 0, 0], "ids": ["0-14", "16-20"]},
               {"name": "person", "color": [255, 99, 71], "ids": [15]}],
   "range": [-1, 1]}

"ids" are the model's own outputs that make up a class; those of no class are class 0, and without any "ids" they are
class ids already. "range" says what pixels 0 and 255 are to the model; it may be left out for an integer input that
takes pixels as they are. "threshold" (0.5) is for a model with one score: what is above it is its id 1.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import class_infos
from convert.data import UNKNOWN, Table, listed, lookup
from models import ClassInfo, ClassMap, Frame, UserError, default_threads, preprocess, resolve
from models.runtime import interpreter

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Description:
    """What a model's numbers mean: its classes, output id -> class id, the input's range, the score's threshold."""

    classes: tuple[ClassInfo, ...]
    table: Table
    range: tuple[float, float] | None = None
    threshold: float = 0.5

    @classmethod
    def load(cls, path: Path) -> "Description":
        """Read one from JSON; `UserError` says what is wrong with it."""
        if not path.is_file():
            raise UserError(f"No description {path}: write one like those in {PEERS}.")
        try:
            told = json.loads(path.read_text())
            classes = class_infos(told["classes"])
            ids = {entry["name"]: listed(entry["ids"]) for entry in told["classes"] if "ids" in entry}
            low, high = (float(end) for end in told.get("range", (0, 0)))
            threshold = float(told.get("threshold", 0.5))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a description ({error!r}): compare it with those in {PEERS}.") from None
        every = [label for own in ids.values() for label in own]
        if len(every) > len(set(every)):
            twice = next(label for label in every if every.count(label) > 1)
            raise UserError(f"{path} gives the id {twice} to two classes: leave it in one of them.")
        return cls(classes, lookup(classes, ids or None, ()), (low, high) if "range" in told else None, threshold)


class Peer:
    """Segment frames with a foreign model: `Peer(file, Description.load(json)).segment(frame)` gives a class map.

    Args:
        file: a `.tflite` with one picture in, [1, H, W, 3], uint8, int8 or float32, and as its first output ids
            [1, h, w] or [1, h, w, 1], a score for each class [1, h, w, C], or one score [1, h, w, 1].
        description: what these mean.
        threads: CPU threads, by default the cores of this machine, at most 4.

    Raises:
        UserError: not a model, one with operators this runtime lacks, or one that the description does not fit.
    """

    def __init__(self, file: str | Path, description: Description, threads: int | None = None) -> None:
        self.path, self.description = resolve(file), description
        self._interpreter = interpreter(self.path, threads or default_threads())
        self._source, self._sink = (
            details[0] for details in (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        )
        _check(self.path, self._source, self._sink, description)
        self._levels = _levels(self.path, self._source, description.range)

    def segment(self, frame: Frame) -> ClassMap:
        """Return class ids, hxw uint8 at the size of the model's output, for an HxWx3 uint8 BGR frame."""
        height, width = (int(side) for side in self._source["shape"][1:3])
        self._interpreter.set_tensor(self._source["index"], self._levels[preprocess(frame, height, width)])
        self._interpreter.invoke()
        ids = self._ids(self._interpreter.get_tensor(self._sink["index"])[0])
        classes = self.description.table[np.clip(ids, 0, 255)]
        unknown = (classes == UNKNOWN) | (ids < 0) | (ids > 255)
        if unknown.any():
            raise UserError(f"{self.path} gives the id {ids[unknown][0]}, which is no class: describe it under `ids`.")
        return classes.astype(np.uint8)

    def _ids(self, output: NDArray[Any]) -> NDArray[np.int64]:
        """Return the model's own ids, hxw: as they are, the class of the best score, or 1 above the threshold."""
        if output.ndim == 3 and output.shape[-1] > 1:
            best: NDArray[np.int64] = output.argmax(-1)  # of integers too: one scale, one order
            return best
        values = output.reshape(output.shape[:2])
        if not _is_score(self._sink):
            return values.astype(np.int64)
        scale, zero = self._sink["quantization"]
        scores = (values.astype(np.float32) - zero) * (scale or 1.0)
        above: NDArray[np.int64] = (scores > self.description.threshold).astype(np.int64)
        return above


def _is_score(sink: dict[str, Any]) -> bool:
    return bool(np.issubdtype(sink["dtype"], np.floating) or sink["quantization"][0])


def _check(path: Path, source: dict[str, Any], sink: dict[str, Any], description: Description) -> None:
    """Refuse what would be scored as something it is not."""
    into, out = (tuple(int(side) for side in details["shape"]) for details in (source, sink))
    if len(into) != 4 or into[0] != 1 or into[3] != 3 or -1 in list(source["shape_signature"])[1:]:
        raise UserError(f"{path} takes {into} and not one RGB picture of a fixed size: export it as [1, H, W, 3].")
    if len(out) not in (3, 4) or out[0] != 1 or abs(out[1] / into[1] - out[2] / into[2]) > 0.1:
        raise UserError(f"{path} gives {out} and no class map of its picture: export it as [1, h, w] or [1, h, w, C].")
    scores = out[3] if len(out) == 4 and out[3] > 1 else 2 if _is_score(sink) else 256
    highest = int(np.flatnonzero(description.table > 0).max(initial=0))
    if highest >= scores:
        raise UserError(f"{path} has ids 0 to {scores - 1} only, not {highest}: correct its description.")


def _levels(path: Path, source: dict[str, Any], ends: tuple[float, float] | None) -> NDArray[Any]:
    """Return the input's value for each of the 256 pixel values, in its own type."""
    kind, pixels = np.dtype(source["dtype"]), np.arange(256)
    if kind not in (np.uint8, np.int8, np.float32):
        raise UserError(f"{path} takes {kind}: export it with an input of uint8, int8 or float32.")
    scale, zero = source["quantization"]
    if ends is None:
        if kind == np.float32:
            raise UserError(f"{path} takes float32: say in its description what `range` pixels have, such as [0, 1].")
        return (pixels + np.iinfo(kind).min).astype(kind)
    values = ends[0] + pixels / 255 * (ends[1] - ends[0])
    if kind == np.float32:
        return values.astype(kind)
    if not scale:
        raise UserError(f"{path} does not say how its input is quantised: leave `range` out of its description.")
    limits = np.iinfo(kind)
    levels: NDArray[Any] = np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(kind)
    return levels
