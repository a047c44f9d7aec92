"""A trained network on disk: one `.npz` of float32 arrays under canonical names, with its configuration and classes."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.resize import resize_patch, resize_positions, resize_sub_patches
from models import ClassInfo, UserError

ACTIVATIONS = ("gelu", "silu", "relu")
Arrays = dict[str, NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Config:
    """The dimensions of a Segmenter, and with them the name and shape of each of its arrays (`shapes`).

    A ViT encoder without class token, a mask transformer as decoder, and a head that gives each patch token
    sub x sub sub-tokens, so that classes are told apart every `stride` pixels (Strudel et al., Segmenter, 2021).
    `mean` and `std` are in units of 0..255 pixels, RGB. Four fields are what only the original networks have: class and
    distillation tokens (`prefix`), a linear decoder in place of the mask transformer, scores that are cosines of patch
    and class, and a LayerNorm over the scores of a patch. `precise` is of the integer network, for weights that were
    not trained with int8 in mind: class tokens get ranges of their own, and both branches of a block are added to the
    residual stream at once.
    """

    classes: int
    height: int = 256
    width: int = 256
    patch: int = 16
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    activation: str = "gelu"  # the exact one, by erf; or "silu", x sigmoid(x), or "relu"
    decoder_depth: int = 2
    stride: int = 4
    mask_dim: int = 64
    encoder_epsilon: float = 1e-6  # timm's ViT
    decoder_epsilon: float = 1e-5  # Segmenter's decoder
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    prefix: int = 0
    decoder: str = "mask"  # or "linear"
    cosine: bool = False
    mask_norm: bool = False
    precise: bool = False

    def __post_init__(self) -> None:
        """Refuse dimensions that do not fit together; the values may come from a user's recipe."""
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        rules = {
            f"height and width must be multiples of the patch ({self.patch})": not (
                self.height % self.patch or self.width % self.patch
            ),
            f"patch ({self.patch}) must be a multiple of stride ({self.stride})": self.patch % self.stride == 0,
            f"dim ({self.dim}) must be a multiple of heads ({self.heads})": self.dim % self.heads == 0,
            f"activation must be {' or '.join(ACTIVATIONS)}, not '{self.activation}'": self.activation in ACTIVATIONS,
            f"decoder must be mask or linear, not '{self.decoder}'": self.decoder in ("mask", "linear"),
            "a linear decoder has one score per patch and class: stride = patch, no blocks, no norms": (
                self.decoder == "mask"
                or (self.patch, 0, False, False) == (self.stride, self.decoder_depth, self.cosine, self.mask_norm)
            ),
            f"classes must be 2..255, not {self.classes}": 2 <= self.classes <= 255,  # 255 is the ignored label
            "height, width and depth must be positive": min(self.height, self.width, self.depth) > 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise UserError(f"This network cannot be built: {rule}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        """Patches in a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def sub(self) -> int:
        """Sub-tokens along one side of a patch."""
        return self.patch // self.stride

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(prod(shape) for shape in self.shapes().values())

    def epsilon(self, norm: str) -> float:
        """Return what is added to the variance in the norm of this name; a norm of class masks has none."""
        parts = {"encoder": self.encoder_epsilon, "decoder": self.decoder_epsilon}
        return parts.get(norm.partition("/")[0], 0.0)

    def shapes(self) -> Shapes:
        """Return every array's canonical name and shape; dense kernels are [in, out]."""
        dim, patch = self.dim, self.patch
        shapes: Shapes = {
            "patch/kernel": (patch, patch, 3, dim),
            "patch/bias": (dim,),
            "position": (self.tokens, dim),
        }
        if self.prefix:
            shapes["prefix"] = (self.prefix, dim)  # their position embeddings added
        for index in range(self.depth):
            shapes |= self._block(f"encoder/{index}")
        shapes |= _norm("encoder/norm", dim)
        if self.decoder == "linear":
            return shapes | _dense("head/scores", dim, self.classes)
        shapes |= _dense("decoder/input", dim, dim)
        shapes["decoder/classes"] = (self.classes, dim)
        for index in range(self.decoder_depth):
            shapes |= self._block(f"decoder/{index}")
        shapes |= _norm("decoder/norm", dim)
        shapes["head/patch/kernel"] = (dim, self.sub * self.sub * self.mask_dim)
        shapes["head/classes/kernel"] = (dim, self.mask_dim)
        return shapes | (_norm("head/norm", self.classes) if self.mask_norm else {})

    def _block(self, name: str) -> Shapes:
        dim, hidden = self.dim, self.dim * self.mlp_ratio
        return {
            **_norm(f"{name}/norm1", dim),
            **_dense(f"{name}/qkv", dim, 3 * dim),  # q | k | v, the heads in order inside each
            **_dense(f"{name}/proj", dim, dim),
            **_norm(f"{name}/norm2", dim),
            **_dense(f"{name}/fc1", dim, hidden),
            **_dense(f"{name}/fc2", hidden, dim),
        }


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}/gain": (dim,), f"{name}/bias": (dim,)}


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"dim": 32, "heads": 2, "depth": 2, "decoder_depth": 1, "mask_dim": 16, "height": 64, "width": 64},
    "vit-ti": {"dim": 192, "heads": 3, "depth": 12},
    "vit-s": {"dim": 384, "heads": 6, "depth": 12},
    "vit-b": {"dim": 768, "heads": 12, "depth": 12},
    "vit-l": {"dim": 1024, "heads": 16, "depth": 24},
}


def preset(name: str, classes: int, **overrides: Any) -> Config:
    """Return the `Config` of a preset, some of its fields replaced: `preset("vit-ti", 2, activation="relu")`.

    Raises:
        UserError: there is no such preset or field, or the dimensions do not fit together.
    """
    if name not in PRESETS:
        raise UserError(f"No network '{name}': choose one of {', '.join(PRESETS)}.")
    unknown = sorted(set(overrides) - {entry.name for entry in fields(Config)})
    if unknown:
        raise UserError(f"A network has no '{unknown[0]}': choose from {', '.join(f.name for f in fields(Config))}.")
    try:
        return Config(classes=classes, **{**PRESETS[name], **overrides})
    except (TypeError, ValueError, ZeroDivisionError) as error:  # text for a number, a zero patch
        raise UserError(f"This network cannot be built ({error}): compare its fields with {name}'s.") from None


@dataclass(frozen=True)
class Checkpoint:
    """A trained network: its arrays (float32, named as `config.shapes()` says), its classes, how it was trained."""

    arrays: Arrays
    config: Config
    classes: tuple[ClassInfo, ...]
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, size: tuple[int, int] | None = None) -> "Checkpoint":
        """Read and check a checkpoint.

        Args:
            path: an `.npz` of ours, or a folder of the original Segmenter (or the `.pth` in it).
            size: height and width of the input instead of the checkpoint's own; position embeddings are resized.

        Raises:
            UserError: no such file, not a checkpoint, or an array that is missing, too many or of another shape.
        """
        path = Path(path)
        if path.is_dir() or path.suffix == ".pth":
            from convert import segm  # which reads into a `Checkpoint`

            return segm.load(path, size)
        arrays = read_arrays(path)
        try:
            meta = json.loads(str(arrays.pop("meta")))
            config = Config(**meta["config"])
            classes = class_infos(meta["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a checkpoint ({error!r}): give a file that `convert train` wrote."
            ) from None
        check(arrays, config.shapes(), path)
        if len(classes) != config.classes:
            raise UserError(f"{path} names {len(classes)} classes but has {config.classes}: train it again.")
        floats = {name: array.astype(np.float32) for name, array in arrays.items()}
        for name, array in floats.items():
            if not np.isfinite(array).all():
                raise UserError(
                    f"{path} has '{name}' with values that are no numbers: take one from before it diverged."
                )
        loaded = cls(floats, config, classes, meta.get("training", {}))
        return loaded.resized(*size) if size else loaded

    def resized(self, height: int, width: int, patch: int | None = None, stride: int | None = None) -> "Checkpoint":
        """Return the network for another input size, its position embedding resized bicubically.

        Another patch or stride resizes what stands for pixels and sub-patches, too: a start to train from.
        """
        old, arrays = self.config, dict(self.arrays)
        config = replace(old, height=height, width=width, patch=patch or old.patch, stride=stride or old.stride)
        arrays["position"] = resize_positions(arrays["position"], old.grid, config.grid)
        if config.patch != old.patch:
            arrays["patch/kernel"] = resize_patch(arrays["patch/kernel"], config.patch)
        if config.sub != old.sub:
            arrays["head/patch/kernel"] = resize_sub_patches(arrays["head/patch/kernel"], old.sub, config.sub)
        return replace(self, arrays=arrays, config=config)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint whole or not at all."""
        check(self.arrays, self.config.shapes(), Path(path))
        meta = {
            "config": asdict(self.config),
            "classes": [asdict(entry) for entry in self.classes],
            "training": self.training,
        }
        write_arrays(path, {**self.arrays, "meta": np.array(json.dumps(meta))})


def check(arrays: Mapping[str, NDArray[Any]], shapes: Shapes, source: str | Path) -> None:
    """Assert that `arrays` are exactly those of `shapes`; the `UserError` names the first that is not."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{source} lacks '{name}': give a whole file of the network it is used for.")
        if arrays[name].shape != shape:
            raise UserError(
                f"{source} has '{name}' of shape {arrays[name].shape} instead of {shape}: "
                "give a file of the network it is used for."
            )
    extra = [name for name in arrays if name not in shapes]
    if extra:
        raise UserError(f"{source} has '{extra[0]}', which the network does not: give a file of the network it is for.")


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read an `.npz` whole, never unpickling; `UserError` if there is none or it is something else."""
    if not Path(path).is_file():
        raise UserError(f"No file {path}: give the .npz of a checkpoint or of initial weights.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} is not a readable .npz: give one that `convert train` wrote.") from None


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an `.npz`, whole or not at all: a kill never leaves half a file."""
    from convert.files import write_whole  # which reads pictures for a `Config`

    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    write_whole({Path(path): packed.getvalue()})


def class_infos(entries: list[dict[str, Any]]) -> tuple[ClassInfo, ...]:
    """Read classes from JSON, `[{"name": "person", "color": [255, 99, 71]}, ...]`; ValueError if they are not such."""
    classes = []
    for entry in entries:
        red, green, blue = (int(value) for value in entry["color"])
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise ValueError(f"a color of {entry['color']}, beyond 0..255")
        classes.append(ClassInfo(str(entry["name"]), (red, green, blue)))
    if len({entry.name for entry in classes}) < len(classes):
        raise ValueError("two classes of one name")
    return tuple(classes)
