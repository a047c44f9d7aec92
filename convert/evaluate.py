"""Score a .tflite file, ours or any other, or the float network of a checkpoint, on labelled pictures.

  python -m convert evaluate models/person.tflite --images voc/val --labels voc/val_labels --ids person=15
  python -m convert evaluate models/person.tflite --images DIR --labels DIR --against float.npz ptq.tflite --record
  python -m convert evaluate models/person.tflite --images DIR --labels DIR --pictures out/person
  python -m convert evaluate models/street.tflite --recipe street --data DATA
  python -m convert evaluate other.tflite --describe other.json --images DIR --labels DIR --ids person=15

Labels are 8-bit .png pictures of ids with the stem and size of their picture. Without --ids the ids are those of the
classes; with it, ids not mentioned are class 0. Frames are stretched to the input size and class maps come back by
nearest neighbour, as in the live app; scores are computed at the label's own size. What --describe reads is in
convert/peer.py; a file named like one of convert/peers is described by that.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convert import data, floats, scoreboard
from convert.checkpoint import Checkpoint
from convert.data import Sample, Scores
from convert.files import check_place, write_whole
from convert.fold import fold
from convert.peer import PEERS, Description, Peer
from models import ClassInfo, ClassMap, Frame, Segmenter, UserError, card, preprocess, resolve

Segment = Callable[[Frame], ClassMap]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("file", type=Path, help="a .tflite file, or the checkpoint of a float network")
    configure_labels(parser)
    parser.add_argument("--describe", type=Path, metavar="JSON", help="what the outputs of a foreign FILE mean")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="more files to score in the same run")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw confusions and the worst ten pictures there")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores, at most 4)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("--record", action="store_true", help="write the scores into the card beside the file")


def configure_labels(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is scored on, for `labelled`."""
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--labels", type=Path, help="folder of their labels")
    parser.add_argument("--recipe", help="score on this recipe's validation pictures instead, found in --data")
    parser.add_argument("--data", type=Path, help="folder that the recipe's paths start from")
    parser.add_argument("--ids", nargs="+", metavar="CLASS=IDS", help="label ids of classes: person=15 or hair=3,7-9")
    parser.add_argument("--ignore", type=int, nargs="*", default=[255], help="label ids that do not count (255)")


def main(args: argparse.Namespace) -> int:
    """Score, print and draw; with --against the other files' scores stand beside."""
    segment, classes = _opened(args.file, args.threads, args.describe)
    names = [info.name for info in classes]
    others = {path: _opened(path, args.threads, size=_size(args.file)) for path in args.against}
    for path, (_, theirs) in others.items():
        if [info.name for info in theirs] != names:
            raise UserError(f"{path} has other classes than {args.file}: compare files of the same classes.")
    if args.record and not args.file.with_suffix(".json").is_file():
        raise UserError(f"{args.file} has no card to record the scores in: leave out --record, or quantise it first.")
    if args.pictures:
        check_place(args.pictures / "confusion.png")
    about, samples = labelled(args, classes)
    matrices = _confusions(segment, samples, classes)
    told = data.summary(matrices, names).as_dict()
    told["against"] = [
        {"file": path.name, **evaluate(other, samples, classes).as_dict()} for path, (other, _) in others.items()
    ]
    if args.pictures:
        _draw(args.pictures, scoreboard.Board(classes, f"{args.file.stem} on {about}"), segment, samples, matrices)
    if args.record:
        _record(args.file.with_suffix(".json"), {"data": about, **told})
    print(json.dumps(told, indent=2) if args.json else _text(told))
    return 0


def labelled(args: argparse.Namespace, classes: tuple[ClassInfo, ...]) -> tuple[str, list[Sample]]:
    """Read the labelled pictures that the command line names, and word where they are from."""
    if args.recipe and args.data and not (args.images or args.labels or args.ids):
        recipe = data.load_recipe(args.recipe)
        if recipe.classes != classes:
            raise UserError(f"Recipe '{recipe.name}' has other classes than the network: give the one it was made by.")
        return ", ".join(source.images for source in recipe.val), data.load_set(recipe, "val", args.data)
    if args.recipe or args.data or not (args.images and args.labels):
        raise UserError("Say which pictures to score on: --images DIR with --labels DIR, or --recipe with --data DIR.")
    table = data.lookup(classes, _ids(args.ids), args.ignore)
    return "/".join(args.images.parts[-2:]), data.load_pairs(args.images, args.labels, table)


def evaluate(segment: Segment, samples: list[Sample], classes: tuple[ClassInfo, ...]) -> Scores:
    """Score a function from frame to class map on labelled pictures.

    Args:
        segment: HxWx3 uint8 BGR -> uint8 class ids of any size.
        samples: from `data.load_pairs`.
        classes: names for the scores.
    """
    return data.summary(_confusions(segment, samples, classes), [info.name for info in classes])


def _confusions(segment: Segment, samples: list[Sample], classes: tuple[ClassInfo, ...]) -> NDArray[np.int64]:
    from tqdm import tqdm

    predictions: Iterable[ClassMap] = (segment(sample.frame) for sample in tqdm(samples, unit="pictures", leave=False))
    return data.confusions(samples, predictions, len(classes))


def _size(path: Path) -> tuple[int, int] | None:
    """Return the input size on a file's card: beside it a checkpoint is scored at the same one."""
    told = path.with_suffix(".json")
    doors = json.loads(told.read_text()).get("input") if path.suffix == ".tflite" and told.is_file() else None
    return (doors["height"], doors["width"]) if doors else None


def _opened(
    path: Path, threads: int | None, described: Path | None = None, size: tuple[int, int] | None = None
) -> tuple[Segment, tuple[ClassInfo, ...]]:
    known = PEERS / f"{path.stem}.json"
    if described or known.is_file():
        description = Description.load(described or known)
        return Peer(path, description, threads).segment, description.classes
    if path.suffix in (".npz", ".pth") or path.is_dir():
        return _float(path, size)
    if not resolve(path).with_suffix(".json").is_file():
        try:
            card(path)  # or else the classes inside the file
        except UserError:
            raise UserError(f"{path} does not say its classes: describe them with --describe (see {PEERS}).") from None
    model = Segmenter(path, threads)
    return model.segment, model.card.classes


def _float(path: Path, size: tuple[int, int] | None) -> tuple[Segment, tuple[ClassInfo, ...]]:
    checkpoint = Checkpoint.load(path, size)
    folded, config = fold(checkpoint, rotate=False), checkpoint.config

    def segment(frame: Frame) -> ClassMap:
        scores = floats.scores(folded, config, preprocess(frame, config.height, config.width))
        cells: ClassMap = scores[0].argmax(-1).astype(np.uint8)
        return cells.repeat(config.stride, 0).repeat(config.stride, 1)

    return segment, checkpoint.classes


def _draw(
    folder: Path, board: scoreboard.Board, segment: Segment, samples: list[Sample], matrices: NDArray[np.int64]
) -> None:
    """Write confusion.png and worst-01.png ..., by the mean IoU of the classes in a picture's label."""
    drawn = {folder / "confusion.png": board.confusion(matrices)}
    for place, index in enumerate(board.worst(matrices), 1):
        sample = samples[index]  # segmented again: ten more are less than keeping all the class maps
        title = f"worst {place} of {len(samples)}: {sample.name}"
        drawn[folder / f"worst-{place:02}.png"] = board.sheet(sample, segment(sample.frame), matrices[index], title)
    write_whole({path: cv2.imencode(".png", picture)[1].tobytes() for path, picture in drawn.items()})
    for stale in set(folder.glob("worst-[0-9][0-9].png")) - set(drawn):  # of an earlier run on more pictures
        stale.unlink()


def _ids(texts: list[str] | None) -> dict[str, list[str]] | None:
    if texts is None:
        return None
    ids = {}
    for text in texts:
        name, equals, parts = text.partition("=")
        if not (equals and parts and all(side.isdigit() for part in parts.split(",") for side in part.split("-"))):
            raise UserError(f"'{text}' does not give label ids of a class: write person=15 or hair=3,7-9.")
        ids[name] = parts.split(",")
    return ids


def _record(path: Path, scores: dict[str, Any]) -> None:
    card = json.loads(path.read_text())
    card["scores"] = scores
    write_whole({path: (json.dumps(card, indent=2) + "\n").encode()})


def _text(told: dict[str, Any]) -> str:
    sides = [told, *told["against"]]
    rows = [("class IoU", *("" if value is told else value["file"] for value in sides))]
    rows += [(name, *(_percent(side["iou"][name]) for side in sides)) for name in told["iou"]]
    rows += [("mIoU", *(_percent(side["miou"]) for side in sides))]
    rows += [("pixels right", *(_percent(side["pixel_accuracy"]) for side in sides))]
    widths = [max(14, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    body = "\n".join("  ".join(line) for line in lines)
    return f"{told['images']} pictures\n{body}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
