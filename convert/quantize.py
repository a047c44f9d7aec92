"""Turn a checkpoint into an integer-only .tflite file with its card, calibrated on a few pictures.

  python -m convert quantize person.npz --images DIR -o models/person.tflite
  python -m convert quantize seg_tiny_mask --images DIR -o seg-tiny.tflite
  python -m convert quantize seg_tiny_mask --size 256x320 --images DIR -o seg-tiny.tflite

The second takes a folder of rstrudel/segmenter, `checkpoint.pth` with `variant.yml`; nothing in it is executed.
Pictures like those the camera will see are enough, without labels: 16 of them, or even one. The file and its card
(the same name, .json) are written together once the file is proven integer-only, or not at all.
"""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import calibrate, files, flatbuffer, floats, shift
from convert.build import build
from convert.checkpoint import Checkpoint
from convert.files import check_place, draw_pictures, stored, write_whole
from convert.fold import Folded, fold
from convert.quantised import Quantised, is_quantised, load
from convert.verify import Report, verify
from models import Segmenter, UserError

NORMS = ("l2", "mask")  # of an original Segmenter's scores
Pictures = list[NDArray[np.uint8]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "checkpoint", type=Path,
        help="what `convert train` wrote, .npz, fine-tuned or not, or a folder of rstrudel/segmenter",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures to calibrate with")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .tflite file to write")
    parser.add_argument("--pictures", type=int, default=16, help="how many pictures to calibrate with (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="draws the pictures and the rotation (default 0)")
    files.add_size(parser)
    parser.add_argument(
        "--drop", nargs="+", choices=NORMS, default=[], metavar="NORM",
        help=f"leave a norm of an original Segmenter's scores out: {', '.join(NORMS)}",
    )  # fmt: skip
    parser.add_argument(
        "--operators", choices=tuple(shift.OPERATORS), default="table",
        help="table: ours (default); shift: those of I-ViT; lambda-shift: those of I-Segmenter (docs/operators.md)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", action="store_true", help="give class ids every few pixels instead of at the input's size"
    )


def main(args: argparse.Namespace) -> int:
    """Quantise a checkpoint and write file and card."""
    if args.output.suffix != ".tflite":
        raise UserError(f"{args.output} must end in .tflite: that is what will be written.")
    if args.pictures < 1:
        raise UserError(f"{args.pictures} pictures are too few: calibrate with at least one.")
    check_place(args.output, args.output.with_suffix(".json"))
    tuned = args.checkpoint.suffix == ".npz" and is_quantised(args.checkpoint)
    numbers, original = load(args.checkpoint) if tuned else (None, Checkpoint.load(args.checkpoint, args.size))
    if tuned and args.size:
        raise UserError(f"{args.checkpoint} was fine-tuned at its size: leave out --size.")
    checkpoint = without(original, args.drop) if args.drop else original
    if checkpoint.config.precise and args.operators != "table":
        raise UserError("The operators of I-ViT are built for networks of `convert train`: leave out --operators.")
    config = checkpoint.config
    pictures = draw_pictures(args.images, args.pictures, config.height, config.width, args.seed)
    if numbers is None:
        numbers = calibrate.numbers(_folded(args, original, checkpoint, pictures), config, pictures)
    if args.operators != "table":
        numbers = shift.widened(numbers, config, pictures)
    model = quantise(checkpoint, numbers, "grid" if args.grid else "full", args.operators)
    report = _proven(model)
    card = _card(args, checkpoint, model, report)
    survey = {name: value for name, value in numbers.folded.items() if name.endswith(calibrate.SURVEYED)}
    card["calibration"]["survey"] = {name: np.round(value, 4).tolist() for name, value in survey.items()}
    card["calibration"]["method"] = "quantisation-aware" if tuned else "after training"
    kept = fold(original, rotate=False) if args.drop else numbers.folded
    card["calibration"]["agreement"] = agreement(original, kept, model, pictures)
    write_whole({args.output: model, args.output.with_suffix(".json"): (json.dumps(card, indent=2) + "\n").encode()})
    share = f"{card['calibration']['agreement']:.1%} of the calibration pictures as in float"
    print(f"{args.output}: integer-only, {len(model) / 1e6:.1f} MB, {share}")
    return 0


def _folded(args: argparse.Namespace, trained: Checkpoint, checkpoint: Checkpoint, pictures: Pictures) -> Folded:
    """Fold a network with the rotations of the size it was trained at, so that files of all sizes share kernels."""
    if args.size:
        trained = Checkpoint.load(args.checkpoint)
        height, width = trained.config.height, trained.config.width
        pictures = draw_pictures(args.images, args.pictures, height, width, args.seed)
    return fold(checkpoint, seed=args.seed, streams=calibrate.rotations(trained, pictures, args.seed))


def without(checkpoint: Checkpoint, norms: list[str]) -> Checkpoint:
    """Leave norms of `NORMS` out of a network's head; `UserError` if it does not have them."""
    config = checkpoint.config
    kept = {"l2": config.cosine, "mask": config.mask_norm}
    for norm in norms:
        if not kept[norm]:
            raise UserError(f"This network has no {norm} norm to drop: leave out --drop.")
        kept[norm] = False
    config = replace(config, cosine=kept["l2"], mask_norm=kept["mask"])
    return replace(checkpoint, config=config, arrays={name: checkpoint.arrays[name] for name in config.shapes()})


def quantise(checkpoint: Checkpoint, numbers: Quantised, output: str = "full", operators: str = "table") -> bytes:
    """Return the integer-only `.tflite` file of a trained network.

    Args:
        checkpoint: the network, for its dimensions and classes.
        numbers: from calibration (`calibrate.numbers`) or from fine-tuning; `shift.widened` for the other operators.
        output: "full" for class ids at the input's size, "grid" for one every `stride` pixels.
        operators: "table", or for comparison "shift" or "lambda-shift".
    """
    config = checkpoint.config
    graph = build(numbers, config, output, shift.OPERATORS[operators])
    height, width = config.height, config.width
    return flatbuffer.pack(graph, checkpoint.classes, f"Integer-only Segmenter, {width}x{height} pixels")


def _proven(model: bytes) -> Report:
    with stored(model) as path:
        report = verify(path)
    if not report.proven:
        raise RuntimeError(f"not integer-only after all: {report.float_tensors} {report.unsafe_lookups}")
    return report


def agreement(checkpoint: Checkpoint, folded: Folded, model: bytes, pictures: Pictures) -> float:
    """Return the share of pixels, 0..1, to which the integer file gives the class that the float network gives."""
    config = checkpoint.config
    with stored(model) as path:
        opened = Segmenter(path, threads=1)
    equal = []
    for pixels in pictures:
        ids = opened.infer(pixels)
        truth = floats.scores(folded, config, pixels)[0].argmax(-1)
        cell = len(ids) // len(truth)  # pixels along one side of a score's cell
        equal.append((truth.repeat(cell, 0).repeat(cell, 1) == ids).mean())
    return round(float(np.mean(equal)), 4)


def _card(args: argparse.Namespace, checkpoint: Checkpoint, model: bytes, report: Report) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "name": args.output.stem,
        "file": args.output.name,
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
        "input": {"height": config.height, "width": config.width, "type": "uint8 RGB, 0..255"},
        "output": "grid" if args.grid else "full",
        "operators": args.operators,
        "classes": [asdict(info) for info in checkpoint.classes],
        "network": asdict(config),
        "parameters": config.parameters,
        "data": checkpoint.training.get("data", ""),
        "terms": checkpoint.training.get("terms", ""),
        "training": checkpoint.training,
        "calibration": {
            "pictures": args.pictures,
            "folders": ["/".join(folder.parts[-2:]) for folder in args.images],
            "seed": args.seed,
        },
        "verify": {"integer_only": report.integer_only, "xnnpack_share": report.xnnpack_share},
    }
