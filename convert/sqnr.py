"""Say where the accuracy goes: each tensor of the integer network beside its float value, the worst first.

  python -m convert sqnr models/person.tflite --images DIR
  python -m convert sqnr models/street.tflite --against street.npz --images DIR --picture out/street.svg
  python -m convert sqnr street.npz --images DIR
  python -m convert sqnr vit-s vit-b vit-l --images DIR

SQNR is the power of the float values over the power of the difference, in decibels: 6 dB are one bit. `total` is the
difference of the whole networks up to that tensor; `alone` is what rounding and cutting off this tensor would cost by
itself: it names the tensors that need a better range. In the residual stream, which is read through norms, each token
counts the same whatever its size. `clipped` is the share of values at an end of their range while
the float value lies beyond it.

The float side of a file is --against, folded and rotated as the file's card says, or else the file's own rounded
weights: then only the activations differ. A checkpoint is quantised on the way, with 16 other pictures of the folder.
The name of a network (vit-ti, vit-s, vit-b, vit-l) stands for one with random weights: what its structure costs.
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert import baseline, calibrate, flatbuffer, floats, profile, proof, sqnr_picture
from convert.build import BEST
from convert.calibrate import STREAM, SURVEYED, TINY
from convert.checkpoint import PRESETS, Checkpoint, Config, preset
from convert.files import check_place, draw_pictures, stored, write_whole
from convert.fold import Folded, fold
from convert.graph import Tensor
from convert.quantised import is_quantised, load
from convert.quantize import quantise
from convert.sqnr_picture import Row
from models import ClassInfo, UserError, card

CALIBRATION = 16  # pictures that a checkpoint is quantised with
SHOWN = 20  # rows of the printed table
RANDOM = "random weights"
Pictures = list[NDArray[np.uint8]]


@dataclass
class Tally:
    """Sums over pictures for one tensor of the integer network."""

    tensor: Tensor
    signal: float = 0.0
    total: float = 0.0
    alone: float = 0.0
    clipped: int = 0
    values: int = 0

    def add(self, real: floats.Array, integers: NDArray[Any]) -> None:
        """Count one picture: the float network's values and the integer network's."""
        tensor = self.tensor
        step, zero, ends = tensor.step, tensor.zero_point, np.iinfo(np.dtype(tensor.dtype))
        low, high = (ends.min - zero) * step, (ends.max - zero) * step
        found = (integers.astype(np.float64) - zero) * step
        real = np.maximum(real, 0) if tensor.name == BEST else real  # below 0 it saturates, see `build.BEST`
        real = real.reshape(found.shape)
        rounded = np.clip(np.round(real / step), ends.min - zero, ends.max - zero) * step
        powers = [np.square(x, dtype=np.float64) for x in (real, found - real, rounded - real)]
        if tensor.name.rpartition("/")[2] in (*STREAM, "squares"):
            weight = 1 / np.maximum(powers[0].sum(-1, keepdims=True), TINY)
            powers = [power * weight for power in powers]
        signal, total, alone = (float(power.sum()) for power in powers)
        self.signal, self.total, self.alone = self.signal + signal, self.total + total, self.alone + alone
        above, below = (integers == ends.max) & (real > high), (integers == ends.min) & (real < low)
        self.clipped += int(above.sum() + below.sum())
        self.values += real.size

    def row(self) -> Row:
        """Return the shares and ratios of what was counted."""
        signal = self.signal
        return Row(self.tensor.name, _db(signal, self.total), _db(signal, self.alone), self.clipped / self.values)


def _db(signal: float, noise: float) -> float:
    """10 log10 of a ratio, at most 120 dB: for tensors without any error."""
    return round(10 * math.log10(max(signal, 1e-30) / max(noise, 1e-12 * signal, 1e-30)), 2)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    names = ", ".join(name for name in PRESETS if name != "tiny")
    parser.add_argument("sources", nargs="+", help=f".tflite files of ours, .npz checkpoints, or networks: {names}")
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--against", type=Path, help="the checkpoint that a .tflite file came from")
    parser.add_argument("--pictures", type=int, default=4, help="how many pictures to compare on (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="draws the pictures, and random weights (default 0)")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw it there (of one source)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def main(args: argparse.Namespace) -> int:
    """Compare every source and print its table, or a line for each of several."""
    if args.pictures < 1:
        raise UserError(f"{args.pictures} pictures are too few: compare on at least one.")
    if args.picture and len(args.sources) > 1:
        raise UserError("One picture shows one network: name a single source with --picture.")
    if args.against and any(not source.endswith(".tflite") for source in args.sources):
        raise UserError("--against is for .tflite files: a checkpoint is compared with itself.")
    if args.picture:
        check_place(args.picture)
    reports = [_report(source, args) for source in tqdm(args.sources, unit="networks", leave=False)]
    if args.picture:
        write_whole({args.picture: sqnr_picture.draw(reports[0]["name"], _rows(reports[0])).encode()})
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        print(_table(reports[0]) if len(reports) == 1 else _lines(reports))
    return 0


def _report(source: str, args: argparse.Namespace) -> dict[str, Any]:
    if source.endswith(".tflite"):
        folded, config = _float_side(Path(source), args.against)
        pictures = draw_pictures([args.images], args.pictures, config.height, config.width, args.seed)
        return _compared(Path(source).stem, Path(source).read_bytes(), folded, config, pictures)
    checkpoint = _random(source, args.seed) if source in PRESETS else Checkpoint.load(source)
    config = checkpoint.config
    pictures = draw_pictures([args.images], args.pictures + CALIBRATION, config.height, config.width, args.seed)
    folded = calibrate.rotated(checkpoint, pictures[args.pictures :], args.seed)
    numbers = calibrate.numbers(folded, config, pictures[args.pictures :])
    model = quantise(checkpoint, numbers)
    name = f"{source}, {RANDOM}" if source in PRESETS else Path(source).stem
    return _compared(name, model, numbers.folded, config, pictures[: args.pictures])


def _compared(name: str, model: bytes, folded: Folded, config: Config, pictures: Pictures) -> dict[str, Any]:
    with stored(model) as path:
        rows = compare(path, folded, config, pictures)
        milliseconds = {f"ms_{threads}": round(profile.latency(path, threads), 2) for threads in (1, 2)}
    return {
        "name": name,
        "pictures": len(pictures),
        "parameters": config.parameters,
        "file_mb": round(len(model) / 1e6, 2),
        **milliseconds,
        "scores": rows[-1].total,
        "clipped": max(row.clipped for row in rows),
        "tensors": [asdict(row) for row in rows],
    }


def compare(path: Path, folded: Folded, config: Config, pictures: Iterable[NDArray[np.uint8]]) -> list[Row]:
    """Run the integer and the float network side by side.

    Args:
        path: a `.tflite` file of ours.
        folded: the float network, in the same rotation.
        config: its dimensions.
        pictures: 1xHxWx3 uint8 RGB of the input's size.

    Returns:
        A row for each tensor that both have, in the order of the network.
    """
    data = path.read_bytes()
    places = zip(flatbuffer.unpack(data).operators, flatbuffer.tensor_indices(data), strict=True)
    made: dict[str, list[tuple[Tensor, int]]] = {}  # patch and class tokens share names of what one layer makes of both
    for operator, (_, sink) in places:
        if isinstance(operator.output.scale, float):
            made.setdefault(operator.output.name, []).append((operator.output, sink))
    opened, tallies = proof.preserved(path), dict[str, Tally]()

    def watch(name: str, values: floats.Array) -> None:
        if name in left:
            tensor, sink = next(left[name])
            tallies.setdefault(name, Tally(tensor)).add(values, opened.get_tensor(sink))

    for pixels in tqdm(pictures, "comparing", unit="pictures", leave=False):
        left = {name: iter(tensors) for name, tensors in made.items()}
        opened.set_tensor(opened.get_input_details()[0]["index"], pixels)
        opened.invoke()
        floats.scores(folded, config, pixels, watch)
    return [tally.row() for tally in tallies.values()]


def _float_side(path: Path, against: Path | None) -> tuple[Folded, Config]:
    own, config = baseline.folded(path)
    if against is None:
        return own, config
    tuned = is_quantised(against)
    numbers, checkpoint = load(against) if tuned else (None, Checkpoint.load(against))
    if checkpoint.config != config:
        raise UserError(f"{against} has other dimensions than {path}: give the checkpoint that the file came from.")
    if numbers:
        return numbers.folded, config
    seed = card(path).details["calibration"]["seed"]
    survey = {name: value for name, value in own.items() if name.endswith(SURVEYED)}
    turned = fold(checkpoint, seed=seed, streams=_streams(fold(checkpoint, rotate=False), own))
    return calibrate.split(turned | survey), config


def _streams(plain: Folded, turned: Folded) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the rotations of a file's residual streams: those that bring the plain writers nearest to the file's."""

    def nearest(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
        left, _, right = np.linalg.svd(ours.T @ theirs)  # the orthogonal Procrustes problem (Schönemann, 1966)
        return np.asarray(left @ right)

    width = plain["position"].shape[-1]
    encoder = nearest(*(arrays["patches/kernel"].reshape(-1, width) for arrays in (plain, turned)))
    decoder, name = encoder, "decoder/input/kernel"
    if name in plain:  # a linear decoder has no stream
        decoder = nearest(encoder.T @ plain[name], turned[name])
    return encoder, decoder


def _random(name: str, seed: int) -> Checkpoint:
    from convert import network  # and with it Keras

    config = preset(name, classes=2)
    return Checkpoint(network.fresh(config, seed), config, (ClassInfo("a", (0, 0, 0)), ClassInfo("b", (255, 0, 0))))


def _rows(report: dict[str, Any]) -> list[Row]:
    return [Row(**row) for row in report["tensors"]]


def _table(report: dict[str, Any]) -> str:
    rows = sorted(_rows(report), key=lambda row: row.total)
    width = max(len(row.name) for row in rows)
    lines = [
        f"{report['name']}, {report['pictures']} pictures: scores {report['scores']:.1f} dB; the worst first, in dB",
        f"{'tensor':<{width}}  total  alone  clipped",
        *(f"{row.name:<{width}} {row.total:6.1f} {row.alone:6.1f} {row.clipped:8.3%}" for row in rows[:SHOWN]),
    ]
    if len(rows) > SHOWN:
        lines.append(f"and {len(rows) - SHOWN} more: --json has them all, --picture shows them")
    return "\n".join(lines)


def _lines(reports: list[dict[str, Any]]) -> str:
    width = max(len(report["name"]) for report in reports)
    head = f"{'network':<{width}} {'parameters':>11} {'file MB':>8} {'ms, 1 and 2 threads':>20} {'scores dB':>10}"
    lines = [
        f"{report['name']:<{width}} {report['parameters']:>11,} {report['file_mb']:>8.1f} "
        f"{report['ms_1']:>11.1f} {report['ms_2']:>8.1f} {report['scores']:>10.1f}"
        for report in reports
    ]
    return "\n".join([head, *lines])
