"""The numbers of an integer graph - ranges, int8 kernels - and how fine-tuned ones are kept on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint, Config, class_infos, read_arrays, write_arrays
from convert.fold import Folded
from models import UserError


@dataclass(frozen=True)
class Quantised:
    """Everything the graph needs in numbers.

    Attributes:
        limits: for each named result of the network the largest magnitude its int8 holds (`.../sums`: the smallest
            row sum, `.../factor` and `.../rms`: the largest factor of a norm and the largest size of a token).
        kernels: for each linear step the int8 kernel [in, out] and its scale per output.
        folded: the float arrays, for biases and embeddings.
    """

    limits: dict[str, float]
    kernels: dict[str, tuple[NDArray[np.int8], NDArray[np.float64]]]
    folded: Folded


def save(path: str | Path, quantised: Quantised, checkpoint: Checkpoint) -> None:
    """Write fine-tuned numbers as one `.npz`, whole or not at all; of `checkpoint` its dimensions, classes, training.

    The arrays are those of the re-parameterised network: no LayerNorm network has exactly their function.
    """
    arrays: dict[str, NDArray[Any]] = {f"folded/{name}": array for name, array in quantised.folded.items()}
    arrays |= {f"scales/{name}": scales for name, (_, scales) in quantised.kernels.items()}
    meta = {
        "config": asdict(checkpoint.config),
        "classes": [asdict(entry) for entry in checkpoint.classes],
        "training": checkpoint.training,
        "limits": quantised.limits,
    }
    packed = {name: array.astype(np.float32) for name, array in arrays.items()}
    write_arrays(path, {**packed, "quantised": np.array(json.dumps(meta))})


def is_quantised(path: str | Path) -> bool:
    """Return whether `save` wrote this `.npz`."""
    return "quantised" in read_arrays(path)


def load(path: str | Path) -> tuple[Quantised, Checkpoint]:
    """Read what `save` wrote; the checkpoint has no arrays of its own. `UserError` if it is something else."""
    arrays = read_arrays(path)
    try:
        meta = json.loads(str(arrays.pop("quantised")))
        folded = {name.removeprefix("folded/"): arrays[name].astype(float) for name in arrays if name[0] == "f"}
        scales = {name.removeprefix("scales/"): arrays[name].astype(float) for name in arrays if name[0] == "s"}
        kernels = {name: (round_kernel(folded[f"{name}/kernel"], steps), steps) for name, steps in scales.items()}
        checkpoint = Checkpoint({}, Config(**meta["config"]), class_infos(meta["classes"]), meta["training"])
        return Quantised(meta["limits"], kernels, folded), checkpoint
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a fine-tuned network ({error!r}): give a file that `convert train --quantize` wrote."
        ) from None


def round_kernel(kernel: NDArray[np.float64], scales: NDArray[np.float64], most: int = 127) -> NDArray[np.int8]:
    """Round a kernel [..., out] to int8, or to narrower integers up to `most`, with a scale per output."""
    return np.clip(np.round(kernel / scales), -most, most).astype(np.int8)
