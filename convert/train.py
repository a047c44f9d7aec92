"""Train a Segmenter on labelled pictures: `python -m convert train person --data DIR -o person.npz`.

The weights kept are the running average that scored best on the recipe's validation pictures. A killed run goes on
with --resume as if nothing had happened. KERAS_BACKEND=torch or jax trains on those instead of TensorFlow.
"""

import argparse
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import augment, data
from convert.checkpoint import ACTIVATIONS, Arrays, Checkpoint, Config, preset, read_arrays, write_arrays
from convert.data import Recipe, Sample, Scores
from convert.files import add_size, check_place
from convert.objective import Settings, from_labels, optimizer
from models import UserError, preprocess


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `python -m convert train`."""
    parser.add_argument("recipe", help="name of a recipe in convert/recipes, or the path of one")
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's paths start from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint to write, .npz")
    parser.add_argument("--init", type=Path, help="weights to start from: a checkpoint, or a timm ViT's .npz")
    parser.add_argument("--epochs", type=int, help="passes over the pictures, instead of the recipe's")
    parser.add_argument("--lr", type=float, help="learning rate of the last layers, instead of the recipe's")
    add_size(parser, "the recipe's")
    parser.add_argument("--patch", type=int, help="pixels along one side of a patch, instead of the recipe's")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="in the MLP, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn by chance (default 0)")
    parser.add_argument(
        "--quantize", type=Path, metavar="CHECKPOINT", help="fine-tune this trained checkpoint for int8 instead"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")


def main(args: argparse.Namespace) -> int:
    """Train as the command line says; the last line printed is the score of what was kept."""
    recipe = data.load_recipe(args.recipe)
    if args.output.suffix != ".npz":
        raise UserError(f"{args.output} must end in .npz: that is what a checkpoint is.")
    settings = _settings(recipe, args.epochs, args.lr)
    if args.quantize:
        from convert import qat

        return qat.main(args, recipe)
    asked = {name: getattr(args, name) for name in ("activation", "patch") if getattr(args, name) is not None}
    recipe = replace(recipe, network=recipe.network | asked)
    config = _config(recipe, args.size)
    try:
        kept = train(recipe, args.data, args.output, config, settings, args.init, args.seed, args.resume)
    except KeyboardInterrupt:
        raise UserError("Stopped: the same command with --resume goes on after the last whole epoch.") from None
    print(f"{args.output}: {told(kept)}")
    return 0


def _settings(recipe: Recipe, epochs: int | None, lr: float | None) -> Settings:
    unknown = sorted(set(recipe.training) - {entry.name for entry in fields(Settings)})
    if unknown:
        known = ", ".join(entry.name for entry in fields(Settings))
        raise UserError(f"Recipe '{recipe.name}' sets an unknown '{unknown[0]}' for training: choose from {known}.")
    wrong = [
        name for name, value in recipe.training.items() if not isinstance(value, (type(getattr(Settings, name)), int))
    ]
    if wrong:
        raise UserError(f"Recipe '{recipe.name}' sets '{wrong[0]}' to {recipe.training[wrong[0]]!r}: give a number.")
    settings = Settings(**recipe.training)
    settings = replace(settings, epochs=epochs if epochs is not None else settings.epochs)
    settings = replace(settings, lr=lr if lr is not None else settings.lr)
    if settings.epochs < 1 or settings.batch < 1 or not settings.lr > 0:
        raise UserError("Training needs at least one epoch, one picture in a batch and a rate above 0: give more.")
    return settings


def _config(recipe: Recipe, size: tuple[int, int] | None) -> Config:
    overrides = dict(recipe.network)
    if size:
        overrides |= {"height": size[0], "width": size[1]}
    return preset(overrides.pop("preset", "vit-ti"), len(recipe.classes), **overrides)


def train(
    recipe: Recipe,
    folder: Path,
    output: Path,
    config: Config,
    settings: Settings,
    init: Path | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Scores:
    """Train, writing the best checkpoint to `output` and after each epoch all that is needed to go on beside it.

    Returns:
        The validation scores of what was kept in `output`.
    """
    from tqdm import tqdm

    state = output.with_suffix(".state.npz")
    if state.exists() and not resume:
        raise UserError(f"{state} is of an unfinished run: add --resume to go on with it, or delete it.")
    check_place(output, state)  # now, rather than after the first epoch
    samples, held_back = data.load_set(recipe, "train", folder), data.load_set(recipe, "val", folder)
    settings = replace(settings, batch=min(settings.batch, len(samples)))
    weights = data.class_weights(data.frequencies(samples, config.classes), settings.balance)
    run = Run(recipe, config, settings, seed, len(samples) // settings.batch, init, weights)
    if resume:
        run.load(state)
    steps = settings.epochs * run.steps
    with tqdm(
        total=steps * settings.batch,
        initial=run.epoch * run.steps * settings.batch,
        unit="pictures",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        while run.epoch < settings.epochs:
            bar.set_description(f"epoch {run.epoch + 1}/{settings.epochs}")
            run.train_epoch(samples, bar)
            scores = run.keep_best(held_back, output)
            run.save(state)
            bar.write(f"epoch {run.epoch}/{settings.epochs}: loss {run.loss:.4f}, {told(scores)}")
    state.unlink(missing_ok=True)
    return Scores(**run.best)


class Run:
    """A training under way: network, optimizer, epochs done, best scores so far; `save` and `load` hold all of it."""

    def __init__(
        self,
        recipe: Recipe,
        config: Config,
        settings: Settings,
        seed: int,
        steps: int,
        init: Path | None,
        weights: NDArray[np.float32],
    ) -> None:
        import keras

        from convert import network

        self.recipe, self.config, self.settings, self.seed, self.steps = recipe, config, settings, seed, steps
        self.weights = weights  # of the classes
        self.init, self.commands = init.name if init else None, commands_of(init) if init else []
        self.network = network
        self.model = network.build(config, settings.drop_path, seed)
        if init is not None:
            network.assign(self.model, network.initial(config, init, seed))
        self.backend = f"{keras.backend.backend()}, keras {keras.__version__}"
        self.optimizer = optimizer(network.weights(self.model), config, settings, steps)
        self.model.compile(optimizer=self.optimizer, loss=self._loss, jit_compile=keras.backend.backend() == "jax")
        self.epoch, self.loss = 0, 0.0
        self.best: dict[str, Any] = {}

    def _loss(self, targets: Any, logits: Any) -> Any:
        return from_labels(targets, logits, self.weights, self.settings.jaccard)

    def train_epoch(self, samples: list[Sample], bar: Any) -> None:
        """Go once over the pictures."""
        settings, size = self.settings, (self.config.height, self.config.width)
        losses = []
        layers = self.model.get_layer("layers")
        layers.seed.state.assign(np.array([self.seed, self.epoch], np.uint32))  # the same chance after a resume
        for pixels, targets in augment.batches(
            samples, size, self.config.stride, self.weights, settings.batch, self.seed, self.epoch, settings.paste
        ):
            with _half_precision():
                losses.append(float(self.model.train_on_batch(pixels, targets)))
            if not np.isfinite(losses[-1]):
                raise UserError(f"The loss became {losses[-1]} in epoch {self.epoch + 1}: train with a smaller lr.")
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", refresh=False)
            bar.update(settings.batch)
        self.epoch, self.loss = self.epoch + 1, float(np.mean(losses))

    def keep_best(self, samples: list[Sample], output: Path) -> Scores:
        """Score the averaged weights; write them to `output` if none were better."""
        own = self.network.arrays(self.model)
        self.optimizer.finalize_variable_values(self.model.trainable_variables)  # puts the average in
        averaged = self.network.arrays(self.model)
        self.network.assign(self.model, averaged)  # as copies: JAX would free the optimizer's own
        scores = validate(self.model, self.config, samples, [entry.name for entry in self.recipe.classes])
        if not self.best or scores.miou > self.best["miou"]:
            self.best = scores.as_dict()
            Checkpoint(averaged, self.config, self.recipe.classes, self._story()).save(output)
        self.network.assign(self.model, own)
        return scores

    def save(self, path: Path) -> None:
        """Write all that `load` needs, whole or not at all."""
        state: dict[str, NDArray[Any]] = {f"weights/{k}": v for k, v in self.network.arrays(self.model).items()}
        state |= {f"optimizer/{i}": np.array(v) for i, v in enumerate(self._optimizer_values())}
        progress = {"epoch": self.epoch, "loss": self.loss, "best": self.best, "run": self._identity()}
        write_arrays(path, {**state, "progress": np.array(json.dumps(progress))})

    def load(self, path: Path) -> None:
        """Go back to where `save` was; `UserError` if that was another run."""
        if not path.is_file():
            raise UserError(f"There is no {path} to resume: start the run without --resume.")
        state = read_arrays(path)
        progress = json.loads(str(state.pop("progress")))
        if progress["run"] != self._identity():
            raise UserError(f"{path} is of a run with other settings: repeat its command, or delete it.")
        self.epoch, self.loss, self.best = progress["epoch"], progress["loss"], progress["best"]
        prefix = "weights/"
        own: Arrays = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.network.assign(self.model, own)
        for index, variable in enumerate(self.optimizer.variables):
            variable.assign(state[f"optimizer/{index}"])

    def _optimizer_values(self) -> list[NDArray[Any]]:
        from keras import ops

        return [ops.convert_to_numpy(variable) for variable in self.optimizer.variables]

    def _identity(self) -> dict[str, Any]:
        """Say what must be the same for a run to go on, as JSON gives it back."""
        told = {"config": asdict(self.config), "settings": asdict(self.settings), "seed": self.seed}
        told |= {"recipe": self.recipe.name, "steps": self.steps, "init": self.init}
        return dict(json.loads(json.dumps(told)))

    def _story(self) -> dict[str, Any]:
        sources = [source.images for source in self.recipe.train]
        size = f"{self.config.height}x{self.config.width}"
        command = f"python -m convert train {self.recipe.name} --data DATA --epochs {self.settings.epochs}"
        command += f" --lr {self.settings.lr} --size {size} --patch {self.config.patch}"
        command += f" --activation {self.config.activation} --seed {self.seed}"
        command += f" --init {self.init}" if self.init else ""
        return {
            "recipe": self.recipe.name,
            "data": self.recipe.data,
            "terms": self.recipe.terms,
            "train": sources,
            "val": [source.images for source in self.recipe.val],
            "epoch": self.epoch,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "init": self.init,
            "scores": self.best,
            "backend": self.backend,
            "commands": [*self.commands, command],
        }


def commands_of(path: Path) -> list[str]:
    """Return the commands that made a checkpoint, the first one first; none for other weights."""
    return Checkpoint.load(path).training.get("commands", []) if "meta" in read_arrays(path) else []


def validate(model: Any, config: Config, samples: list[Sample], names: list[str], batch: int = 8) -> Scores:
    """Score a `network.build` model with the geometry that it will run with."""

    def predictions() -> Any:
        for first in range(0, len(samples), batch):
            chunk = [preprocess(sample.frame, config.height, config.width) for sample in samples[first:][:batch]]
            logits = np.asarray(model.predict_on_batch(np.concatenate(chunk).astype(np.float32)))
            for classes in logits.argmax(axis=-1).astype(np.uint8):
                yield classes.repeat(config.stride, axis=0).repeat(config.stride, axis=1)

    return data.score(samples, predictions(), names)


def _half_precision() -> AbstractContextManager[Any]:
    """Form products in bfloat16 where PyTorch trains: twice as fast on a CPU that knows it, weights stay float32."""
    import keras

    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    kept: AbstractContextManager[Any] = torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    return kept


def told(scores: Scores) -> str:
    each = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in scores.iou.items())
    return f"mIoU {scores.miou:.4f} ({each}), pixel accuracy {scores.pixel_accuracy:.4f}"
