"""What training minimises, and the steps it takes: losses, the optimizer, and the settings of both."""

from dataclasses import dataclass
from typing import Any

from convert.checkpoint import Config


@dataclass(frozen=True)
class Settings:
    """How to train; a recipe's "training" and the command line replace these."""

    epochs: int = 50
    batch: int = 16
    lr: float = 5e-4  # at the top, for the layers nearest the output
    weight_decay: float = 0.05  # of matrices only
    layer_decay: float = 0.85  # each encoder block learns this much slower than the next
    warmup: float = 0.05  # share of the steps
    drop_path: float = 0.0
    average: float = 0.99  # momentum of the running average of the weights
    clip: float = 1.0  # norm of all gradients together
    balance: float = 0.5  # classes weigh 1 / share of the pixels to this power: 0 all alike, below it rare ones less
    jaccard: float = 0.0  # weight of the soft Jaccard loss beside cross entropy
    labels: float = 0.0  # weight of all this beside the teacher's soft labels, in fine-tuning for int8
    paste: float = 0.0  # share of the pictures that get the foreground (all but class 0) of another one


def cross_entropy(targets: Any, logits: Any) -> Any:
    """Mean over the labelled pixels; `targets` are those of `augment.cell_targets`: ignored pixels weigh nothing."""
    from keras import ops

    return -ops.sum(targets * ops.log_softmax(logits, axis=-1)) / ops.maximum(ops.sum(targets), 1.0)


def jaccard(areas: Any, logits: Any) -> Any:
    """1 - mIoU of the batch, as far as probabilities can say (the soft Jaccard loss, Rahman and Wang, 2016).

    `areas` is the share of each class in each cell: for logits that leave no doubt this is the mIoU at full size.
    """
    from keras import ops

    cells = tuple(range(len(logits.shape) - 1))
    labelled = ops.sum(areas, axis=-1, keepdims=True)
    guessed = ops.softmax(logits, axis=-1)
    hits, shown = ops.sum(guessed * areas, axis=cells), ops.sum(areas, axis=cells)
    union = ops.sum(guessed * labelled, axis=cells) + shown - hits
    occurring = ops.cast(shown > 0, logits.dtype)
    return 1 - ops.sum(occurring * hits / ops.maximum(union, 1e-6)) / ops.maximum(ops.sum(occurring), 1.0)


def from_labels(targets: Any, logits: Any, weights: Any, share: float) -> Any:
    """Cross entropy and `share` of the soft Jaccard loss; `targets` are `augment.cell_targets` of `weights`."""
    loss = cross_entropy(targets, logits)
    return loss + share * jaccard(targets / weights, logits) if share else loss


def schedule(first: float, top: float, warmup: int, steps: int) -> Any:
    """From the first rate up to the top one in `warmup` of all steps, then down along a cosine to a hundredth of it."""
    from keras.optimizers.schedules import CosineDecay

    return CosineDecay(first, max(1, steps - warmup), alpha=0.01, warmup_target=top, warmup_steps=warmup)


def optimizer(weights: dict[str, Any], config: Config, settings: Settings, steps: int) -> Any:
    """AdamW (Loshchilov and Hutter, 2019), its rate warmed up, then along a cosine, and smaller for earlier layers."""
    import keras

    class LayerwiseAdamW(keras.optimizers.Adam):  # type: ignore[misc]
        """Adam that scales the rate of each variable, and decays matrices by that rate."""

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            rate = learning_rate * scales[self._var_key(variable)]
            if len(variable.shape) > 1:
                self.assign_sub(variable, variable * (rate * settings.weight_decay))
            super().update_step(gradient, variable, rate)

    total = steps * settings.epochs
    warmup = max(1, round(total * settings.warmup))
    rates = schedule(settings.lr * 1e-2, settings.lr, warmup, total)
    adam = LayerwiseAdamW(rates, global_clipnorm=settings.clip, use_ema=True, ema_momentum=settings.average)
    scales = {
        adam._var_key(weight): settings.layer_decay ** (config.depth + 1 - _level(name, config))
        for name, weight in weights.items()
    }
    adam.build(list(weights.values()))
    return adam


def _level(name: str, config: Config) -> int:
    """Count the layers below: 0 for the embeddings, then the encoder's blocks, depth + 1 for all the rest."""
    parts = name.split("/")
    if parts[0] in ("patch", "position"):
        return 0
    return int(parts[1]) + 1 if parts[0] == "encoder" and parts[1].isdigit() else config.depth + 1
