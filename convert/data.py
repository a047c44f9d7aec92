"""Labelled pictures: recipes that say which, reading and checking, augmenting, batching, and scoring class maps."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import class_infos
from models import ClassInfo, ClassMap, Frame, UserError, preprocess, restore

RECIPES = Path(__file__).parent / "recipes"
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
IGNORED = 255  # label of pixels that neither train nor score
UNKNOWN = -1  # in a lookup table: a label id that must not occur
GREY = (127, 127, 127)  # beyond a picture's edge, where the label is IGNORED
THREADS = 2  # for reading and augmenting: OpenCV lets go of Python's lock

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
