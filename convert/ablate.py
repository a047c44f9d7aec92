"""Write the ablation table of a network: what each decision is worth in accuracy and time.

  python -m convert ablate street.npz --recipe street --data DATA -o docs/ablation.md
  python -m convert ablate mine.npz --images val --labels val_labels --ids person=15 --calibrate train \\
    --file "fine-tuned=mine.tflite" --json -o docs/ablation.md

Every row is the same trained network on the same labelled pictures; integer rows are real files run by LiteRT unless
they say "simulated". What chance decides (the calibration pictures and the rotation) is drawn --seeds times: the mean
stands in the table with the lowest and the highest. The same command writes the same scores.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert import ablate_text, baseline, calibrate, data, evaluate, floats, profile, quantize, shift, simulate
from convert.ablate_text import Row
from convert.calibrate import Levers
from convert.checkpoint import Checkpoint, Config
from convert.data import Sample
from convert.files import add_size, check_place, draw_pictures, stored, write_whole
from convert.fold import Folded, fold
from convert.quantised import Quantised
from models import ClassMap, UserError, preprocess, restore
from models.runtime import interpreter

PICTURES = 16  # to calibrate with, but for the row that says otherwise
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Variant:
    """One row that chance has a part in: how the network is quantised. The defaults are those of `quantize`."""

    group: str
    name: str
    rotation: str = "principal"  # or "random", or "none"
    pictures: int = PICTURES
    operators: str = "table"
    per_patch: bool = False
    levers: Levers = field(default_factory=Levers)
    simulated: bool = False


OPERATORS, OUTPUT, CALIBRATION, WIDTHS = "Operators", "Resolution of the classes", "Calibration", "Widths, simulated"
VARIANTS = (
    Variant(OPERATORS, "table: ours"),
    Variant(OPERATORS, "shift: I-ViT", operators="shift"),
    Variant(OPERATORS, "lambda-shift: I-Segmenter", operators="lambda-shift"),
    Variant(OUTPUT, "one class for each patch", per_patch=True),
    Variant(CALIBRATION, "one picture", pictures=1),
    Variant(CALIBRATION, "rotation: random", rotation="random"),
    Variant(CALIBRATION, "rotation: none", rotation="none"),
    Variant(CALIBRATION, "registers: cut off", levers=Levers(registers="cut")),
    Variant(CALIBRATION, "hidden channels: none split", levers=Levers(hidden="whole")),
    Variant(CALIBRATION, "attention: one range for all rows", levers=Levers(rows="all")),
    Variant(CALIBRATION, "ranges: the largest value seen", levers=Levers(ranges="max")),
    Variant(CALIBRATION, "ranges: no rotation, the largest value", rotation="none", levers=Levers(ranges="max")),
    Variant(CALIBRATION, "stream: squared error, not by token", levers=Levers(stream="values")),
    Variant(CALIBRATION, "kernels: the largest weight", levers=Levers(kernels="max")),
    Variant(CALIBRATION, "kernels: GPTQ, biases corrected", levers=Levers(rounding="gptq")),
    Variant(CALIBRATION, "kernels: GPTQ, biases corrected, one picture", pictures=1, levers=Levers(rounding="gptq")),
    *(
        Variant(
            WIDTHS, f"W{weights}A{products}{', no rotation' * (rotation == 'none')}", rotation, simulated=True,
            levers=Levers(weight_bits=weights, product_bits=products),
        )
        for weights, products in ((8, 8), (6, 6), (4, 8)) for rotation in ("principal", "none")
    ),
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("checkpoint", type=Path, help="the trained network, .npz or a folder of rstrudel/segmenter")
    add_size(parser)
    evaluate.configure_labels(parser)
    parser.add_argument("--calibrate", type=Path, nargs="+", help="folders of pictures to calibrate with, if no recipe")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .md file to write")
    parser.add_argument("--seeds", type=int, default=3, help="how often chance is drawn (default 3)")
    parser.add_argument("--limit", type=int, help="score on that many pictures, evenly taken (default: all)")
    parser.add_argument("--file", nargs="*", default=[], metavar="NAME=PATH", help=".tflite files for more rows")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, too")


def main(args: argparse.Namespace) -> int:
    """Measure all rows and write the table."""
    check_place(args.output)
    if args.output.suffix != ".md":
        raise UserError(f"{args.output} must end in .md: that is what will be written.")
    if args.seeds < 1:
        raise UserError(f"{args.seeds} draws are too few: take at least one.")
    checkpoint = Checkpoint.load(args.checkpoint, args.size)
    files = [_named(text) for text in args.file]
    source, samples = evaluate.labelled(args, checkpoint.classes)
    folders = args.calibrate or _trained_on(args)
    if args.limit:
        samples = samples[:: -(-len(samples) // args.limit)]
    rows = Bench(checkpoint, samples, folders, args.seeds).rows(files)
    about = {
        "checkpoint": args.checkpoint.name,
        "data": source,
        "images": len(samples),
        "size": f"{checkpoint.config.width}x{checkpoint.config.height}",
        "activation": checkpoint.config.activation,
        "seeds": args.seeds,
        **profile.machine(),
    }
    write_whole({args.output: ablate_text.page(about, rows).encode()})
    if args.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2))
    return 0


def _trained_on(args: argparse.Namespace) -> list[Path]:
    """Name the folders of the recipe's training pictures."""
    if not args.recipe:
        raise UserError("Say which pictures to calibrate with: --calibrate DIR, not those that are scored on.")
    return [args.data / source.images for source in data.load_recipe(args.recipe).train]


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.rpartition("=")
    if not equals or not Path(path).is_file():
        raise UserError(f"'{text}' does not name a file: write --file NAME=PATH.tflite.")
    return name, Path(path)


@dataclass(frozen=True)
class Bench:
    """A network, the labelled pictures it is scored on, and the folders it is calibrated with."""

    checkpoint: Checkpoint
    samples: list[Sample]
    folders: list[Path]
    seeds: int

    def rows(self, files: Iterable[tuple[str, Path]] = ()) -> list[Row]:
        """Measure every row: float baselines, all that apply of `VARIANTS`, and ready-made files."""
        files = list(files)
        variants = [variant for variant in VARIANTS if self._applies(variant)]
        with tqdm(total=self.seeds * len(variants) + len(files) + 1, unit="networks") as bar:
            return list(self._all(variants, files, bar))

    def _all(self, variants: list[Variant], files: list[tuple[str, Path]], bar: Any) -> Iterator[Row]:
        bar.set_description("float")
        yield from self._float()
        bar.update()
        for variant in variants:
            bar.set_description(variant.name)
            yield self.measure(variant, bar.update)
        for name, path in files:
            bar.set_description(name)
            yield Row("Files", name, (self._file_miou(path),), *_figures(path))
            bar.update()

    def _applies(self, variant: Variant) -> bool:
        """ReLU needs no GELU, imported networks have tables alone, and one class for each patch may be all there is."""
        config = self.checkpoint.config
        if config.precise and variant.operators != "table":
            return False
        if variant.operators == "lambda-shift" and config.activation == "relu":
            return False
        return not (variant.per_patch and config.sub == 1)

    def _float(self) -> Iterator[Row]:
        """Score the float network with each way to full size; times are those of its LiteRT files."""
        group, config = "Float", self.checkpoint.config
        scores = list(self._scores(self.checkpoint))
        nearest = self._miou(map(_classes, scores))
        with stored(baseline.export(self.checkpoint, "float32", [])) as path:
            yield Row(group, "nearest neighbour", (nearest,), *_figures(path))
        with stored(baseline.export(self.checkpoint, "dynamic", [])) as path:
            yield Row(group, "nearest neighbour, int8 weights", (self._file_miou(path),), *_figures(path))
        yield Row(group, "bilinear", (self._miou(map(_bilinear, scores, self.samples)),))
        if config.sub > 1:
            maps = (_classes(_averaged_scores(part, config.sub)) for part in scores)
            yield Row(group, "one class for each patch", (self._miou(maps),))
        if config.cosine:  # imported networks alone have it
            plain = quantize.without(self.checkpoint, ["l2"])
            yield Row(group, "without L2 norm", (self._miou(map(_classes, self._scores(plain))),))

    def _scores(self, network: Checkpoint) -> Iterator[floats.Array]:
        """Run the float network on every picture: H/stride x W/stride x K each."""
        folded = fold(network)
        return (floats.scores(folded, network.config, pixels)[0] for pixels in self._pixels())

    def measure(self, variant: Variant, done: Callable[[], Any]) -> Row:
        """Quantise and score the network as often as chance is drawn, and tell `done` each time."""
        mious: list[float] = []
        figures: tuple[Any, ...] = ()
        for seed in range(self.seeds):
            quantised, config = self._numbers(variant, seed)
            if variant.simulated:
                maps = (simulate.scores(quantised, config, variant.levers, pixels)[0] for pixels in self._pixels())
                mious.append(self._miou(map(_classes, maps)))
            else:
                network = replace(self.checkpoint, config=config)
                with stored(quantize.quantise(network, quantised, "full", variant.operators)) as path:
                    mious.append(self._file_miou(path))
                    if not seed and variant.group in (OPERATORS, OUTPUT):
                        figures = _figures(path)
            done()
        return Row(variant.group, variant.name, tuple(mious), *figures)

    def _numbers(self, variant: Variant, seed: int) -> tuple[Quantised, Config]:
        config = self.checkpoint.config
        pictures = draw_pictures(self.folders, variant.pictures, config.height, config.width, seed)
        if variant.rotation == "principal":
            folded = calibrate.rotated(self.checkpoint, pictures, seed)
        else:
            folded = fold(self.checkpoint, variant.rotation == "random", seed)
        if variant.per_patch:
            folded, config = averaged(folded, config)
        quantised = calibrate.numbers(folded, config, pictures, variant.levers)
        return (shift.widened(quantised, config, pictures) if variant.operators != "table" else quantised), config

    def _pixels(self) -> Iterator[Pixels]:
        config = self.checkpoint.config
        return (preprocess(sample.frame, config.height, config.width) for sample in self.samples)

    def _file_miou(self, path: Path) -> float:
        return self._miou(_maps(path, self.samples))

    def _miou(self, maps: Iterable[ClassMap]) -> float:
        """Score class maps of any size, one for each labelled picture."""
        whole = (restore(ids, *sample.label.shape) for ids, sample in zip(maps, self.samples, strict=True))
        progress = tqdm(whole, total=len(self.samples), unit="pictures", leave=False)
        names = [info.name for info in self.checkpoint.classes]
        return data.summary(data.confusions(self.samples, progress, len(names)), names).miou


def _figures(path: Path) -> tuple[tuple[float, ...], float]:
    """Time a file on one and two threads, and weigh it."""
    return tuple(round(profile.latency(path, threads), 2) for threads in (1, 2)), round(path.stat().st_size / 1e6, 3)


def _maps(path: Path, samples: Iterable[Sample]) -> Iterator[ClassMap]:
    """Run any file with uint8 pixels in and class ids out, at its own size."""
    opened = interpreter(path)
    source, sink = opened.get_input_details()[0], opened.get_output_details()[0]
    for sample in samples:
        opened.set_tensor(source["index"], preprocess(sample.frame, *source["shape"][1:3]))
        opened.invoke()
        yield opened.get_tensor(sink["index"])[0]


def _classes(scores: floats.Array) -> ClassMap:
    ids: ClassMap = scores.argmax(-1).astype(np.uint8)
    return ids


def _bilinear(scores: floats.Array, sample: Sample) -> ClassMap:
    height, width = sample.label.shape
    sized = [cv2.resize(np.ascontiguousarray(part), (width, height)) for part in np.moveaxis(scores, -1, 0)]
    return _classes(np.stack(sized, axis=-1))


def _averaged_scores(scores: floats.Array, sub: int) -> floats.Array:
    rows, columns, classes = scores.shape
    tiles: floats.Array = scores.reshape(rows // sub, sub, columns // sub, sub, classes).mean((1, 3))
    return tiles


def averaged(folded: Folded, config: Config) -> tuple[Folded, Config]:
    """Return the network whose patches have the mean of their sub-patches' scores: the mean of their templates."""
    mean = {}
    for part, width in (("templates", config.dim), ("offsets", 1)):
        for array in ("kernel", "bias"):
            values = folded[f"head/{part}/{array}"]
            mean[f"head/{part}/{array}"] = values.reshape(*values.shape[:-1], config.sub**2, width).mean(-2)
    return {**folded, **mean}, replace(config, stride=config.patch)
