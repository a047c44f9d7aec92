"""Labelled pictures: recipes that say which, reading and checking, and scoring class maps."""

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import class_infos
from models import ClassInfo, ClassMap, Frame, UserError, restore

RECIPES = Path(__file__).parent / "recipes"
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
IGNORED = 255  # label of pixels that neither train nor score
UNKNOWN = -1  # in a lookup table: a label id that must not occur
THREADS = 2  # for reading: OpenCV lets go of Python's lock

Table = NDArray[np.int16]  # 256 entries, label id -> class id, IGNORED or UNKNOWN


@dataclass(frozen=True)
class Source:
    """A folder of pictures with its folder of labels, and how label ids become class ids (`table`)."""

    images: str
    labels: str
    ids: Mapping[str, Any] | None = None
    ignore: tuple[int, ...] = (IGNORED,)
    repeat: int = 1
    only: str | None = None  # file that lists the names to take, beside the recipe
    without: str | None = None  # file that lists the names to leave out ("except" in the recipe)


@dataclass(frozen=True)
class Recipe:
    """What to train: classes, dimensions of the network, pictures, and the settings of the training."""

    name: str
    folder: Path  # where the recipe is, and its lists of names
    classes: tuple[ClassInfo, ...]
    network: dict[str, Any]
    train: tuple[Source, ...]
    val: tuple[Source, ...]
    training: dict[str, Any] = field(default_factory=dict)
    data: str = ""  # where the pictures come from and on what terms, for the card
    terms: str = ""


@dataclass(frozen=True)
class Sample:
    """One labelled picture: HxWx3 uint8 BGR, and HxW uint8 class ids with 255 where it is not to count."""

    name: str
    frame: Frame
    label: ClassMap


@dataclass(frozen=True)
class Scores:
    """How well class maps match labels; `iou` is None for a class that no label shows, and `miou` leaves it out."""

    images: int
    miou: float
    iou: dict[str, float | None]
    pixel_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe of ours by name, or any other by path; `UserError` says what is wrong with it."""
    ours = RECIPES / f"{name_or_path}.json"
    path = ours if ours.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.json")))
        raise UserError(f"No recipe '{name_or_path}': give a .json file or one of ours ({known}).")
    try:
        told = json.loads(path.read_text())
        classes = class_infos(told["classes"])
        train, val = (tuple(_source(entry) for entry in told[part]) for part in ("train", "val"))
        recipe = Recipe(path.stem, path.parent, classes, told.get("network", {}), train, val)
        recipe = replace(recipe, **{key: told[key] for key in ("training", "data", "terms") if key in told})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a recipe ({error!r}): compare it with {RECIPES / 'person.json'}.") from None
    return recipe


def _source(entry: dict[str, Any]) -> Source:
    values = {("without" if key == "except" else key): value for key, value in entry.items()}
    return Source(**{**values, "ignore": tuple(values.get("ignore", (IGNORED,)))})


def lookup(classes: tuple[ClassInfo, ...], ids: Mapping[str, Any] | None, ignore: Iterable[int]) -> Table:
    """Say what each label id means: `ids` maps class names to label ids, for instance `{"person": [15, "17-20"]}`.

    Ids not mentioned are class 0. Without `ids` the label ids are class ids, and others are UNKNOWN.
    """
    names = [entry.name for entry in classes]
    table = np.zeros(256, np.int16)
    if ids is None:
        table = np.where(np.arange(256) < len(names), np.arange(256), UNKNOWN).astype(np.int16)
    for name, parts in (ids or {}).items():
        if name not in names:
            raise UserError(f"There are ids for '{name}', which is not one of the classes: take {', '.join(names)}.")
        table[listed(parts)] = names.index(name)
    table[listed(list(ignore))] = IGNORED
    return table


def listed(parts: Any) -> list[int]:
    """Write out label ids: `[15, "17-19"]` is 15, 17, 18, 19."""
    ids: list[int] = []
    for part in parts if isinstance(parts, list) else [parts]:
        first, _, last = str(part).partition("-")
        if not (re.fullmatch(r"\d+(-\d+)?", str(part)) and int(first) <= int(last or first) < 256):
            raise UserError(f"'{part}' is not a label id: give 0..255, or a range such as \"1-58\".")
        ids += range(int(first), int(last or first) + 1)
    return ids


def load_set(recipe: Recipe, part: str, data: str | Path) -> list[Sample]:
    """Read all pictures of the recipe's "train" or "val" into memory, those with `repeat` that many times.

    Args:
        recipe: what to read.
        part: "train" or "val".
        data: the folder that the recipe's paths start from.

    Raises:
        UserError: an empty folder, an unreadable picture, one without label or with a label of another size, a label
            with an id that is no class, or a class to be trained that never occurs.
    """
    samples: list[Sample] = []
    for source in getattr(recipe, part):
        table = lookup(recipe.classes, source.ids, source.ignore)
        images, labels = Path(data) / source.images, Path(data) / source.labels
        only, without = (_names(recipe.folder, file) for file in (source.only, source.without))
        samples += load_pairs(images, labels, table, only, without) * source.repeat
    missing = np.flatnonzero(frequencies(samples, len(recipe.classes)) == 0)
    if part == "train" and missing.size:
        name = recipe.classes[missing[0]].name
        raise UserError(f"No label of '{recipe.name}' shows the class '{name}': check its ids, or leave it out.")
    return samples


def _names(folder: Path, file: str | None) -> set[str] | None:
    if file is None:
        return None
    if not (folder / file).is_file():
        raise UserError(f"No list of names {folder / file}: the recipe mentions it, put it there.")
    return set((folder / file).read_text().split())


def load_pairs(
    images: str | Path,
    labels: str | Path,
    table: Table,
    only: set[str] | None = None,
    without: set[str] | None = None,
) -> list[Sample]:
    """Read the pictures of a folder with their labels, `.png` of 8-bit ids with the same stem, in order of names.

    Args:
        images, labels: the two folders.
        table: from `lookup`.
        only, without: stems to take or to leave out.
    """
    found = sorted(path for path in Path(images).glob("*") if path.suffix.lower() in PICTURES)
    chosen = [path for path in found if (only is None or path.stem in only) and path.stem not in (without or ())]
    if not chosen:
        raise UserError(f"No pictures in {images}: give a folder of .jpg or .png files.")
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda path: _read_pair(path, Path(labels) / f"{path.stem}.png", table), chosen))


def _read_pair(image: Path, label: Path, table: Table) -> Sample:
    if not label.is_file():
        raise UserError(f"{image} has no label {label}: add it, or take the picture out.")
    frame, ids = cv2.imread(str(image), cv2.IMREAD_COLOR), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    for path, read in ((image, frame), (label, ids)):
        if read is None:
            raise UserError(f"{path} is not a readable picture: replace it, or take it out.")
    assert frame is not None and ids is not None
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise UserError(f"{label} is not an 8-bit picture of class ids (grey, no palette): write it as one.")
    if frame.shape[:2] != ids.shape:
        sizes = f"{ids.shape[1]}x{ids.shape[0]} and not {frame.shape[1]}x{frame.shape[0]} as its picture"
        raise UserError(f"{label} is {sizes}: both must have the same size.")
    classes = table[ids]
    if (classes == UNKNOWN).any():
        raise UserError(f"{label} has the id {ids[classes == UNKNOWN][0]}, which is no class: add it, or to `ignore`.")
    return Sample(image.stem, frame, classes.astype(np.uint8))  # type: ignore[arg-type]


def frequencies(samples: list[Sample], classes: int) -> NDArray[np.float64]:
    """Return each class's share of the labelled pixels."""
    counts = np.zeros(256)
    for sample in samples:
        counts += np.bincount(sample.label.ravel(), minlength=256)
    shares: NDArray[np.float64] = counts[:classes] / max(1.0, counts[:classes].sum())
    return shares


def class_weights(shares: NDArray[np.float64], balance: float = 0.5, most: float = 10.0) -> NDArray[np.float32]:
    """Weigh classes by 1 / share ** balance, the rarest at most `most` times the commonest, the mean pixel 1."""
    weights: NDArray[np.float64] = np.maximum(shares, 1e-12) ** -balance
    weights = np.minimum(weights, most * weights.min())
    weights /= (weights * shares).sum()
    return weights.astype(np.float32)


def confusion(labels: ClassMap, prediction: ClassMap, classes: int, ignore: int = IGNORED) -> NDArray[np.int64]:
    """Count pixels by label (row) and predicted class (column); both arrays HxW uint8 class ids."""
    counted = labels != ignore
    pairs = labels[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score(samples: list[Sample], predictions: Iterable[ClassMap], names: list[str]) -> Scores:
    """Score a class map of any size for each sample, brought to the label's own size by `models.restore`."""
    return summary(confusions(samples, predictions, len(names)), names)


def confusions(samples: list[Sample], predictions: Iterable[ClassMap], classes: int) -> NDArray[np.int64]:
    """Count each sample's pixels at its label's size: [samples, classes (label), classes (predicted)]."""
    pairs = zip(samples, predictions, strict=True)
    counts = [confusion(sample.label, restore(guess, *sample.label.shape), classes) for sample, guess in pairs]
    return np.array(counts, np.int64).reshape(-1, classes, classes)


def summary(matrices: NDArray[np.int64], names: list[str]) -> Scores:
    """Score pictures together, from what `confusions` counted of each."""
    matrix = matrices.sum(axis=0)
    hits, labelled = np.diag(matrix), matrix.sum(axis=1)
    union = labelled + matrix.sum(axis=0) - hits
    iou = {name: float(hits[index] / union[index]) if labelled[index] else None for index, name in enumerate(names)}
    occurring = [value for value in iou.values() if value is not None]
    accuracy = float(hits.sum() / max(1, matrix.sum()))
    return Scores(len(matrices), float(np.mean(occurring)) if occurring else 0.0, iou, accuracy)
