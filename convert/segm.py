"""Read the folders that `rstrudel/segmenter` trains and publishes: `checkpoint.pth` with `variant.yml` beside it.

Every size and patch, ViT and DeiT encoders, linear and mask transformer decoders. The network stays what it was: class
and distillation tokens, L2 norms and the LayerNorm over classes included. torch is not needed.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from convert import pth
from convert.checkpoint import Arrays, Checkpoint, Config, Shapes, check
from convert.resize import resize_positions
from models import ClassInfo, UserError

# Mean and standard deviation that a picture in 0..1 was normalised with, as `normalization` in variant.yml names them
STATISTICS = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of ImageNet
}
HEAD_DIM = 64  # the decoder has d_model / 64 heads, whatever the encoder has
BLOCK = {  # names inside a block -> ours; their matrices are [out, in]. The same as timm's.
    "norm1.weight": "norm1/gain", "norm1.bias": "norm1/bias", "norm2.weight": "norm2/gain", "norm2.bias": "norm2/bias",
    "attn.qkv.weight": "qkv/kernel", "attn.qkv.bias": "qkv/bias",
    "attn.proj.weight": "proj/kernel", "attn.proj.bias": "proj/bias",
    "mlp.fc1.weight": "fc1/kernel", "mlp.fc1.bias": "fc1/bias",
    "mlp.fc2.weight": "fc2/kernel", "mlp.fc2.bias": "fc2/bias",
}  # fmt: skip
ENCODER = {
    "patch_embed.proj.bias": "patch/bias",
    "norm.weight": "encoder/norm/gain", "norm.bias": "encoder/norm/bias",
}  # fmt: skip
LINEAR = {"head.weight": "head/scores/kernel", "head.bias": "head/scores/bias"}
MASK = {
    "proj_dec.weight": "decoder/input/kernel", "proj_dec.bias": "decoder/input/bias",
    "decoder_norm.weight": "decoder/norm/gain", "decoder_norm.bias": "decoder/norm/bias",
    "mask_norm.weight": "head/norm/gain", "mask_norm.bias": "head/norm/bias",
}  # fmt: skip
PROJECTIONS = {"proj_patch": "head/patch/kernel", "proj_classes": "head/classes/kernel"}  # [in, out], as ours are


def load(path: Path, size: tuple[int, int] | None = None) -> Checkpoint:
    """Read a network of the original Segmenter.

    Args:
        path: the folder, or the `checkpoint.pth` in it.
        size: height and width of the input instead of those of variant.yml; the position embedding is resized
            bilinearly, as the original does.

    Raises:
        UserError: a file is missing or not what it should be; a missing, extra or misshapen array is named.
    """
    weights = path / "checkpoint.pth" if path.is_dir() else path
    variant = _variant(weights.with_name("variant.yml"))
    config = _config(variant, weights.with_name("variant.yml"))
    state = pth.read_state(weights)
    names = _names(config)
    check(state, _shapes(config, names, state), weights)
    arrays = {ours: state[theirs].T for theirs, ours in names.items()}
    arrays |= {ours: state[f"decoder.{theirs}"] for theirs, ours in PROJECTIONS.items() if ours in config.shapes()}
    arrays["patch/kernel"] = state["encoder.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    tokens = [state[f"encoder.{name}"][0] for name in ("cls_token", "dist_token")[: config.prefix]]
    positions = state["encoder.pos_embed"][0]
    arrays["prefix"] = np.concatenate(tokens) + positions[: config.prefix]
    resized = replace(config, height=size[0], width=size[1]) if size else config
    arrays["position"] = resize_positions(positions[config.prefix :], config.grid, resized.grid, cv2.INTER_LINEAR)
    if config.decoder == "mask":
        arrays["decoder/classes"] = state["decoder.cls_emb"][0]
    floats: Arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    data = variant.get("dataset_kwargs", {}).get("dataset", "")
    training = {"data": data, "source": "rstrudel/segmenter", "backbone": variant["net_kwargs"].get("backbone", "")}
    return Checkpoint(floats, resized, _classes(config.classes), training)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values, and the tuple that variant.yml writes for a size."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


def _variant(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"No file {path}: the variant.yml of a Segmenter lies beside its checkpoint.pth.")
    try:
        read = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML ({' '.join(str(error).split())}): fetch it again.") from None
    if not (isinstance(read, Mapping) and isinstance(read.get("net_kwargs"), Mapping)):
        raise UserError(f"{path} has no 'net_kwargs': give the variant.yml that came with the checkpoint.")
    return dict(read)


def _config(variant: dict[str, Any], path: Path) -> Config:
    net = variant["net_kwargs"]
    try:
        height, width = np.broadcast_to(net["image_size"], 2).tolist()
        mean, std = STATISTICS[net["normalization"]]
        linear, decoder = "linear" in net["decoder"]["name"], net["decoder"]["name"]
        if not linear and decoder != "mask_transformer":
            raise UserError(f"{path} names a decoder '{decoder}': mask_transformer and linear are known.")
        config = Config(
            classes=net["n_cls"], height=height, width=width, patch=net["patch_size"], stride=net["patch_size"],
            dim=net["d_model"], depth=net["n_layers"], heads=net["n_heads"], prefix=2 if net.get("distilled") else 1,
            decoder="linear" if linear else "mask", decoder_depth=0 if linear else net["decoder"]["n_layers"],
            mask_dim=net["d_model"], cosine=not linear, mask_norm=not linear, precise=True, encoder_epsilon=1e-5,
            mean=_levels(mean), std=_levels(std),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} does not describe a Segmenter ({error!r}): give the one of this checkpoint.") from None
    if config.decoder == "mask" and config.heads != config.dim // HEAD_DIM:
        raise UserError(
            f"{path} has {config.heads} heads of {config.head_dim} channels, the decoder of such a network others of "
            f"{HEAD_DIM}: networks with as many heads in both are known."
        )
    return config


def _levels(shares: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = (255 * share for share in shares)
    return red, green, blue


def _names(config: Config) -> dict[str, str]:
    """Return our name for each of theirs whose array is ours, if need be transposed."""
    names = {f"encoder.{theirs}": ours for theirs, ours in ENCODER.items()}
    names |= {f"decoder.{theirs}": ours for theirs, ours in (LINEAR if config.decoder == "linear" else MASK).items()}
    for part, depth in (("encoder", config.depth), ("decoder", config.decoder_depth)):
        for i in range(depth):
            names |= {f"{part}.blocks.{i}.{theirs}": f"{part}/{i}/{ours}" for theirs, ours in BLOCK.items()}
    return names


def _shapes(config: Config, names: dict[str, str], state: Mapping[str, NDArray[Any]]) -> Shapes:
    """Return the shape of every array of theirs; the classifier the encoder was trained with is allowed to be there."""
    ours, dim, patch = config.shapes(), config.dim, config.patch
    shapes = {theirs: ours[name][::-1] for theirs, name in names.items()}
    shapes |= {f"decoder.{theirs}": ours[name] for theirs, name in PROJECTIONS.items() if name in ours}
    if config.decoder == "mask":
        shapes["decoder.cls_emb"] = (1, config.classes, dim)
    shapes["encoder.patch_embed.proj.weight"] = (dim, 3, patch, patch)
    shapes["encoder.pos_embed"] = (1, config.prefix + config.tokens, dim)
    for token, head in (("cls_token", "head"), ("dist_token", "head_dist"))[: config.prefix]:
        shapes[f"encoder.{token}"] = (1, 1, dim)
        labels = len(state.get(f"encoder.{head}.bias", ()))
        shapes |= {f"encoder.{head}.weight": (labels, dim), f"encoder.{head}.bias": (labels,)}
    return shapes


def _classes(count: int) -> tuple[ClassInfo, ...]:
    """Name classes by their number: neither file knows more. Colours are those of PASCAL VOC, which never repeat."""
    return tuple(ClassInfo(f"class {index}", _color(index + 1)) for index in range(count))


def _color(index: int) -> tuple[int, int, int]:
    """Spread the bits of a number over red, green and blue, the lowest ones to the top."""
    red, green, blue = (sum((index >> (3 * bit + part) & 1) << (7 - bit) for bit in range(8)) for part in range(3))
    return red, green, blue
