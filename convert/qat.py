"""Quantisation-aware fine-tuning: `python -m convert train RECIPE --quantize CHECKPOINT --data DIR -o OUT.npz`.

The re-parameterised network is trained with every result and kernel rounded as the integer graph will round it, with
the ranges that calibration chose. Rounding passes gradients straight through (Bengio et al., 2013; Jacob et al.,
2018), values cut off pass none. The teacher is the float network itself: its soft labels on augmented pictures, and
beside them the true ones where the recipe says so.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from tqdm import tqdm

from convert import augment, calibrate, data, quantised
from convert.build import EXP_FLOOR, LOWEST
from convert.checkpoint import Checkpoint, Config
from convert.data import Recipe
from convert.files import check_place
from convert.fold import PIXEL_ZERO, Folded
from convert.forward import segmenter
from convert.objective import Settings, cross_entropy, from_labels, schedule
from convert.quantised import Quantised, round_kernel
from convert.train import told, validate
from models import UserError, preprocess

Tensor = Any  # of whichever backend Keras runs on

STEPS, BATCH = 100, 8
CHECKS = 5  # times that the weights are scored
RATE = 1e-4  # relative to the root mean square of each array
PICTURES = 16  # to calibrate with
_TOLD_EVERY = 0.5 if sys.stderr.isatty() else 30  # seconds


def main(args: argparse.Namespace, recipe: Recipe) -> int:
    """Fine-tune as the command line says; the last line printed compares float, rounded and fine-tuned."""
    for option in ("patch", "activation", "init", "resume"):
        if getattr(args, option):
            raise UserError(f"--{option} does not go with --quantize: the checkpoint says all of it, leave it out.")
    check_place(args.output)
    checkpoint = Checkpoint.load(args.quantize, args.size)
    if checkpoint.config.precise:
        raise UserError(f"{args.quantize} is not of our making: fine-tuning takes what `convert train` wrote.")
    if checkpoint.config.classes != len(recipe.classes):
        raise UserError(f"{args.quantize} has {checkpoint.config.classes} classes: give the recipe it was trained by.")
    run = FineTuning(checkpoint, recipe, args.data, args.seed)
    steps = args.epochs * max(1, len(run.samples) // BATCH) if args.epochs else STEPS
    scores = {"float": run.score(run.teacher), "rounded": run.score(run.student)}
    print(f"float: {told(scores['float'])}\nrounded: {told(scores['rounded'])}")
    scores["fine-tuned"] = run.train(steps, args.lr or RATE, scores["rounded"])
    quantised.save(args.output, run.numbers(), replace(checkpoint, training=_story(args, checkpoint, scores)))
    print(f"{args.output}: {told(scores['fine-tuned'])}, by simulation; float {scores['float'].miou:.4f}")
    return 0


def _story(args: argparse.Namespace, checkpoint: Checkpoint, scores: dict[str, data.Scores]) -> dict[str, Any]:
    command = f"python -m convert train {args.recipe} --data DATA --quantize {args.quantize.name} --seed {args.seed}"
    command += f" --size {checkpoint.config.height}x{checkpoint.config.width}" if args.size else ""
    command += "".join(f" --{name} {getattr(args, name)}" for name in ("epochs", "lr") if getattr(args, name))
    return checkpoint.training | {
        "commands": [*checkpoint.training.get("commands", []), command],
        "fine-tuning": {stage: score.as_dict() for stage, score in scores.items()},
    }


class FineTuning:
    """A fine-tuning under way: the float network as teacher, the rounded one as student, and the pictures."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, folder: Path, seed: int) -> None:
        self.config, self.recipe, self.seed = checkpoint.config, recipe, seed
        self.settings = Settings(**recipe.training)
        self.samples, self.held_back = (data.load_set(recipe, part, folder) for part in ("train", "val"))
        shares = data.frequencies(self.samples, self.config.classes)
        self.weights = data.class_weights(shares, self.settings.balance)
        chosen = np.random.default_rng(seed).choice(len(self.samples), min(PICTURES, len(self.samples)), replace=False)
        height, width = self.config.height, self.config.width
        pictures = [preprocess(self.samples[index].frame, height, width) for index in chosen]
        folded = calibrate.rotated(checkpoint, pictures, seed)
        self.start = calibrate.numbers(folded, self.config, pictures)
        self.teacher = rounded_model(folded, self.config, None)
        self.student = rounded_model(self.start.folded, self.config, self.start)

    def train(self, steps: int, rate: float, best: data.Scores) -> data.Scores:
        """Follow the teacher on augmented pictures, and keep what scores best on validation, as float training does.

        `best` are the scores of the start: where nothing is better, the start stays.
        """
        rates = schedule(rate / 10, rate, steps // 10, steps)
        self.student.compile(optimizer=keras.optimizers.Adam(rates, global_clipnorm=1.0), loss=self._loss)
        layers, losses = self.student.get_layer("layers"), []
        kept = layers.arrays()
        bar = tqdm(islice(self._batches(), steps), total=steps, unit="steps", mininterval=_TOLD_EVERY)
        for step, (pixels, labels) in enumerate(bar, 1):
            taught = ops.convert_to_numpy(ops.softmax(self.teacher.predict_on_batch(pixels)))
            losses.append(float(self.student.train_on_batch(pixels, np.concatenate([taught, labels], axis=-1))))
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}", refresh=False)
            if step % max(1, steps // CHECKS) == 0 or step == steps:
                scores = self.score(self.student)
                bar.write(f"step {step}/{steps}: {told(scores)}")
                if scores.miou > best.miou:
                    best, kept = scores, layers.arrays()
        layers.assign(kept)
        return best

    def _loss(self, targets: Tensor, logits: Tensor) -> Tensor:
        taught, labels = ops.split(targets, 2, axis=-1)
        loss, share = cross_entropy(taught, logits), self.settings.labels
        return loss + share * from_labels(labels, logits, self.weights, self.settings.jaccard) if share else loss

    def _batches(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Give augmented pictures and their labels without end."""
        config, batch, paste = self.config, min(BATCH, len(self.samples)), self.settings.paste
        size, seed = (config.height, config.width), self.seed
        for epoch in count():
            yield from augment.batches(self.samples, size, config.stride, self.weights, batch, seed, epoch, paste)

    def score(self, model: keras.Model) -> data.Scores:
        """Score teacher or student on the recipe's validation pictures."""
        return validate(model, self.config, self.held_back, [entry.name for entry in self.recipe.classes])

    def numbers(self) -> Quantised:
        """Return what the integer graph needs: the ranges and scales of the start, the weights of now."""
        folded = self.student.get_layer("layers").arrays()
        kernels = {
            name: (round_kernel(folded[f"{name}/kernel"], scales), scales)
            for name, (_, scales) in self.start.kernels.items()
        }
        return Quantised(self.start.limits, kernels, folded)


def rounded_model(folded: Folded, config: Config, numbers: Quantised | None) -> keras.Model:
    """[B, H, W, 3] float32 RGB 0..255 -> [B, H/stride, W/stride, K] logits."""
    pixels = keras.Input((config.height, config.width, 3), dtype="float32")
    model = keras.Model(pixels, _Rounded(folded, config, numbers)(pixels))
    model.get_layer("layers").assign(folded)
    return model


class _Rounded(keras.layers.Layer):  # type: ignore[misc]
    """The re-parameterised network as one layer that owns the folded arrays.

    Each is trained in units of its own size: pixels' kernels are a hundred times smaller than others, and Adam's steps
    are of the same size for all.
    """

    def __init__(self, folded: Folded, config: Config, numbers: Quantised | None) -> None:
        super().__init__(name="layers", trainable=numbers is not None)
        self.config, self.numbers = config, numbers
        self.sizes = {name: max(float(np.square(array).mean() ** 0.5), 1e-9) for name, array in folded.items()}
        self.table = {
            name: self.add_weight(
                name=name.replace("/", "_"),
                shape=array.shape,
                initializer="zeros",
                trainable=not name.endswith(calibrate.SURVEYED),
            )
            for name, array in folded.items()
        }

    def assign(self, folded: Folded) -> None:
        """Put arrays in."""
        for name, weight in self.table.items():
            weight.assign(folded[name] / self.sizes[name])

    def arrays(self) -> Folded:
        """Copy the arrays out: the inverse of `assign`."""
        return {
            name: ops.convert_to_numpy(weight).astype(np.float64) * self.sizes[name]
            for name, weight in self.table.items()
        }

    def call(self, pixels: Tensor) -> Tensor:
        config, sized = self.config, {name: weight * self.sizes[name] for name, weight in self.table.items()}
        flat = segmenter(cast(Any, RoundedOps(sized, config, self.numbers)), config, pixels).values
        (rows, columns), sub = config.grid, config.sub
        tiles = ops.transpose(ops.reshape(flat, (-1, rows, columns, sub, sub * config.classes)), (0, 1, 3, 2, 4))
        # The graph's scores are larger than the network's logits: no class map depends on their scale
        return ops.reshape(tiles, (-1, rows * sub, columns * sub, config.classes)) * config.mask_dim**-0.5


@dataclass(frozen=True)
class Result:
    """A result of the network as the integer graph holds it: float values on the grid of its int8 scale."""

    values: Tensor
    limit: float = 0.0


class RoundedOps:
    """The steps of `convert/forward.py` in Keras operations, rounded as `build.IntegerOps` rounds them.

    Args:
        arrays: the folded arrays, by name.
        config: dimensions of the network.
        quantised: the ranges, and the scales of the kernels; None computes in float (the teacher).
    """

    def __init__(self, arrays: Mapping[str, Tensor], config: Config, quantised: Quantised | None) -> None:
        self.arrays, self.config, self.quantised = arrays, config, quantised

    def _rounded(
        self, name: str, values: Tensor, signed: bool = True, limit: float | None = None, lowest: float | None = None
    ) -> Result:
        if self.quantised is None:
            return Result(values)
        limit = self.quantised.limits[name] if limit is None else limit
        if lowest is None or limit <= -lowest:
            lowest, step = -limit * signed, limit / (127 if signed else 255)
        else:
            step = (limit - lowest) / 255
        return Result(_straight_through(ops.clip(values, lowest, limit), step), limit)

    def _kernel(self, name: str) -> Tensor:
        kernel = self.arrays[f"{name}/kernel"]
        if self.quantised is not None:
            scales = ops.convert_to_tensor(self.quantised.kernels[name][1].astype(np.float32))
            kernel = _straight_through(ops.clip(kernel, -127 * scales, 127 * scales), scales)
        return ops.reshape(kernel, (-1, kernel.shape[-1]))

    def patches(self, name: str, pixels: Tensor) -> Result:
        config, patch = self.config, self.config.patch
        rows, columns = config.grid
        tiles = ops.reshape(pixels - float(PIXEL_ZERO), (-1, rows, patch, columns, patch, 3))
        flat = ops.reshape(ops.transpose(tiles, (0, 1, 3, 2, 4, 5)), (-1, config.tokens, 3 * patch**2))
        position = self.arrays["position"][None]
        limit = float(np.abs(self.quantised.folded["position"]).max()) if self.quantised else None
        return self.add(
            f"{name}/sum", self.linear(name, Result(flat)), self._rounded("position", position, limit=limit)
        )

    def norm(self, name: str, x: Result) -> Result:
        epsilon = self.config.epsilon(name)
        squares = self._rounded(f"{name}/squares", ops.square(x.values), signed=False)
        factor = ops.rsqrt(ops.mean(squares.values, -1, keepdims=True) + epsilon)
        return self._rounded(name, x.values * self._rounded(f"{name}/factor", factor, signed=False).values)

    def linear(self, name: str, x: Result, activation: str | None = None, result: str = "") -> Result:
        y = ops.matmul(x.values, self._kernel(name)) + self.arrays[f"{name}/bias"]
        if (ceiling := self.arrays.get(f"{name}/ceiling")) is not None:
            y = ops.minimum(y, ceiling)
        if activation == "relu":
            return self._rounded(result or name, ops.relu(y), signed=False)
        if activation is None:
            return self._rounded(result or name, y)
        lowest, floor = LOWEST[activation]
        before = self._rounded(f"{result or name}/before", y, lowest=floor).values
        if activation == "gelu":
            return self._rounded(result or name, ops.gelu(before, approximate=False), lowest=lowest)
        gate = self._rounded("gate", ops.sigmoid(before), signed=False, limit=255 / 256).values
        return self._rounded(result or name, before * gate, lowest=lowest)

    def heads(self, qkv: Result) -> tuple[Result, Result, Result]:
        split = (-1, qkv.values.shape[1], self.config.heads, self.config.head_dim)
        q, k, v = (
            replace(qkv, values=ops.transpose(ops.reshape(part, split), (0, 2, 1, 3)))
            for part in ops.split(qkv.values, 3, axis=-1)
        )
        return q, k, v

    def merge(self, x: Result) -> Result:
        turned = ops.transpose(x.values, (0, 2, 1, 3))
        return replace(x, values=ops.reshape(turned, (-1, turned.shape[1], self.config.dim)))

    def matmul(self, name: str, a: Result, b: Result, transpose: bool = False) -> Result:
        return self._rounded(name, ops.matmul(a.values, ops.swapaxes(b.values, -1, -2) if transpose else b.values))

    def exp(self, name: str, scores: Result) -> Result:
        shift = ops.max(scores.values, axis=-1, keepdims=True)
        if (line := self.arrays.get(f"{name}/rise")) is not None:
            height = shift - ops.mean(scores.values, axis=-1, keepdims=True)
            shift = shift + line[0] * ops.maximum(0.0, line[1] - height)
        below = scores.values - ops.stop_gradient(shift)
        if self.quantised is not None:
            below = _straight_through(ops.clip(below, EXP_FLOOR, 0.0), -EXP_FLOOR / 255)
        return self._rounded(name, ops.exp(below), signed=False, limit=1.0)

    def divided(self, name: str, x: Result, weights: Result) -> Result:
        sums = ops.sum(weights.values, axis=-1, keepdims=True)
        inverse = 1 / sums
        if self.quantised is not None:
            most = 1 / self.quantised.limits[f"{name}/sums"]
            inverse = self._rounded(f"{name}/sums", inverse, signed=False, limit=most).values
        return self._rounded(name, x.values * inverse)

    def factor(self, name: str, y: Result) -> Result | None:
        if f"{name}/registers" not in self.arrays:
            return None
        size, squares = self.arrays[f"{name}/registers"], ops.mean(ops.square(y.values), -1, keepdims=True)
        return self._rounded(name, size * ops.rsqrt(ops.maximum(ops.square(size), squares)), signed=False, limit=1.0)

    def scaled(self, name: str, x: Result, factor: Result) -> Result:
        return self._rounded(name, x.values * factor.values, limit=x.limit)

    def add(self, name: str, x: Result, y: Result) -> Result:
        return self._rounded(name, x.values + y.values)

    def append(self, name: str, x: Result) -> Result:
        rows = self._rounded(name, self.arrays[name][None], limit=x.limit).values
        rows = ops.broadcast_to(rows, (ops.shape(x.values)[0], *rows.shape[1:]))
        return replace(x, values=ops.concatenate([x.values, rows], axis=1))

    def rows(self, name: str, x: Result, start: int, count: int) -> Result:
        return replace(x, values=x.values[:, start : start + count])

    def per_sub_patch(self, x: Result, channels: int) -> Result:
        split = ops.reshape(x.values, (-1, self.config.classes, self.config.sub**2, channels))
        rows = self.config.classes * self.config.sub**2
        return replace(x, values=ops.reshape(ops.swapaxes(split, 1, 2), (-1, rows, channels)))

    def row(self, x: Result) -> Result:
        return replace(x, values=ops.reshape(x.values, (-1, 1, x.values.shape[1])))


def _straight_through(values: Tensor, step: Any) -> Tensor:
    """Round to multiples of `step`, with the gradient of not rounding."""
    return values + ops.stop_gradient(ops.round(values / step) * step - values)
