"""The Segmenter in Keras 3, one definition for TensorFlow, PyTorch and JAX: raw pixels in, logits every few pixels out.

The network is a function of its named arrays (`Config.shapes`), so what is trained, saved, re-parameterised and
exported has the same names everywhere.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from convert import checkpoint
from convert.checkpoint import Arrays, Checkpoint, Config
from convert.floats import SIGMOID
from convert.resize import resize_patch, resize_positions
from convert.segm import BLOCK
from models import UserError

Tensor = Any  # a tensor of whichever backend Keras runs on
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: ops.gelu(x, approximate=False), "silu": ops.silu, "relu": ops.relu
}  # fmt: skip


def build(config: Config, drop_path: float = 0.0, seed: int = 0) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        config: its dimensions.
        drop_path: how often, in training only, the deepest block is skipped for a picture (stochastic depth,
            Huang et al., 2016); earlier blocks less, in proportion to their depth.
        seed: of the fresh weights and of `drop_path`.

    Returns:
        A Keras model, [B, height, width, 3] float32 RGB 0..255 -> [B, height/stride, width/stride, classes] logits.
    """
    pixels = keras.Input((config.height, config.width, 3), dtype="float32", name="pixels")
    model = keras.Model(pixels, Segmenter(config, drop_path, seed)(pixels), name="segmenter")
    assign(model, fresh(config, seed))
    return model


def arrays(model: keras.Model) -> Arrays:
    """Copy the weights of a `build` model out, by canonical name."""
    return {name: np.array(ops.convert_to_numpy(weight)) for name, weight in weights(model).items()}


def assign(model: keras.Model, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Put weights into a `build` model; names, count and shapes must be exactly its own."""
    own = weights(model)
    checkpoint.check(values, {name: tuple(weight.shape) for name, weight in own.items()}, "The set of weights")
    for name, weight in own.items():
        weight.assign(values[name])


def weights(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a `build` model by canonical name."""
    return dict(model.get_layer("layers").table)


class Segmenter(keras.layers.Layer):  # type: ignore[misc]
    """The whole network as one layer that owns the named arrays; use `build`."""

    def __init__(self, config: Config, drop_path: float = 0.0, seed: int = 0) -> None:
        super().__init__(name="layers")
        self.config, self.drop_path = config, drop_path
        self.seed = keras.random.SeedGenerator(seed)
        self.table = {
            name: self.add_weight(name=name.replace("/", "_"), shape=shape, initializer="zeros")
            for name, shape in config.shapes().items()
        }

    def call(self, pixels: Tensor, training: bool = False) -> Tensor:
        """[B, H, W, 3] raw pixels -> [B, H/stride, W/stride, K] logits."""
        config, drops = self.config, self._drops(training)
        x = self._embed(pixels)  # [B, N, D]
        for index in range(config.depth):
            x = self._block(f"encoder/{index}", x, config.encoder_epsilon, drops[index])
        x = x[:, config.prefix :] if config.prefix else x
        x = self._norm("encoder/norm", x, config.encoder_epsilon)
        if config.decoder == "linear":
            return ops.reshape(self._dense("head/scores", x), (-1, *config.grid, config.classes))

        x = self._dense("decoder/input", x)
        x = ops.concatenate([x, self._repeated("decoder/classes", x)], axis=1)  # [B, N + K, D]
        for index in range(config.decoder_depth):
            x = self._block(f"decoder/{index}", x, config.decoder_epsilon, drops[config.depth + index])
        return self._head(self._norm("decoder/norm", x, config.decoder_epsilon))

    def _embed(self, pixels: Tensor) -> Tensor:
        config = self.config
        mean, std = (np.array(values, np.float32) for values in (config.mean, config.std))
        x = ops.conv(
            (pixels - mean) / std,
            self.table["patch/kernel"],
            strides=config.patch,
            padding="valid",
            data_format="channels_last",
        )
        x = ops.reshape(x, (-1, config.tokens, config.dim))
        x = x + (self.table["patch/bias"] + self.table["position"])
        return ops.concatenate([self._repeated("prefix", x), x], axis=1) if config.prefix else x

    def _repeated(self, name: str, x: Tensor) -> Tensor:
        """Repeat tokens that are weights for each picture of the batch."""
        tokens = self.table[name]
        return ops.broadcast_to(tokens[None], (ops.shape(x)[0], *tokens.shape))

    def _block(self, name: str, x: Tensor, epsilon: float, drop: float) -> Tensor:
        """Pre-norm transformer block (Dosovitskiy et al., 2021)."""
        x = x + self._skip(self._attention(name, self._norm(f"{name}/norm1", x, epsilon)), drop)
        hidden = self._dense(f"{name}/fc1", self._norm(f"{name}/norm2", x, epsilon))
        hidden = ACTIVATIONS[self.config.activation](hidden)
        return x + self._skip(self._dense(f"{name}/fc2", hidden), drop)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        """softmax(q kᵀ / sqrt(head_dim)) v for each head."""
        config, tokens = self.config, x.shape[1]
        split = (-1, tokens, config.heads, config.head_dim)
        q, k, v = (
            ops.transpose(ops.reshape(part, split), (0, 2, 1, 3))
            for part in ops.split(self._dense(f"{name}/qkv", x), 3, axis=-1)
        )  # each [B, heads, N, head_dim]
        scores = ops.softmax(ops.matmul(q * config.head_dim**-0.5, ops.transpose(k, (0, 1, 3, 2))))  # [B, heads, N, N]
        x = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
        return self._dense(f"{name}/proj", ops.reshape(x, (-1, tokens, config.dim)))

    def _head(self, x: Tensor) -> Tensor:
        """Match each patch's sub-tokens with the class tokens; rearrange the small logits, not the tokens."""
        config, (rows, columns) = self.config, self.config.grid
        sub, classes = config.sub, config.classes
        patches = ops.matmul(x[:, : config.tokens], self.table["head/patch/kernel"])
        patches = ops.reshape(patches, (-1, config.tokens * sub * sub, config.mask_dim))
        masks = ops.matmul(x[:, config.tokens :], self.table["head/classes/kernel"])  # [B, K, mask_dim]
        if config.cosine:
            patches, masks = ops.normalize(patches), ops.normalize(masks)
        else:
            masks = masks * config.mask_dim**-0.5
        logits = ops.matmul(patches, ops.transpose(masks, (0, 2, 1)))  # [B, N * sub * sub, K]
        if config.mask_norm:
            logits = self._norm("head/norm", logits, config.decoder_epsilon)
        logits = ops.reshape(logits, (-1, columns, sub, sub * classes))
        logits = ops.transpose(logits, (0, 2, 1, 3))  # a row of patches becomes `sub` rows of sub-tokens
        return ops.reshape(logits, (-1, rows * sub, columns * sub, classes))

    def _dense(self, name: str, x: Tensor) -> Tensor:
        return ops.matmul(x, self.table[f"{name}/kernel"]) + self.table[f"{name}/bias"]

    def _norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        return ops.layer_normalization(x, self.table[f"{name}/gain"], self.table[f"{name}/bias"], epsilon=epsilon)

    def _drops(self, training: bool) -> list[float]:
        """Return how often each block is skipped: from 0 for the first to `drop_path` for the last."""
        blocks = self.config.depth + self.config.decoder_depth
        return [self.drop_path * index / max(1, blocks - 1) if training else 0.0 for index in range(blocks)]

    def _skip(self, x: Tensor, drop: float) -> Tensor:
        """Drop a branch for some pictures of the batch, the others scaled up to keep the mean."""
        if not drop:
            return x
        kept = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seed) >= drop
        return x * ops.cast(kept, x.dtype) / (1 - drop)


def fresh(config: Config, seed: int = 0) -> Arrays:
    """Draw initial weights: gains 1, biases 0, everything else normal with deviation 0.02, cut off at two of them.

    Class embeddings have deviation 1: they share the stream, and its int8 scale, with tokens of that size.
    """
    rng = np.random.default_rng(seed)
    drawn: Arrays = {}
    for name, shape in config.shapes().items():
        normal = rng.standard_normal(shape, np.float32)
        while (outside := np.abs(normal) > 2).any():
            normal[outside] = rng.standard_normal(int(outside.sum()), np.float32)
        last = name.rsplit("/", 1)[-1]
        special = {"gain": np.ones_like(normal), "bias": np.zeros_like(normal), "classes": normal}
        drawn[name] = special.get(last, normal * np.float32(0.02))
    return drawn


def initial(config: Config, path: str | Path, seed: int = 0) -> Arrays:
    """Start from trained weights: a checkpoint of ours, or a ViT classifier's `.npz` under timm's names.

    From a classifier comes the encoder; its class token, with that token's position, and its classification head
    are dropped, the decoder is fresh. From a checkpoint comes all of it, but the class embeddings only if their
    number is the same. Position embeddings, patches and sub-patches are resized to the input, the patch and the stride.
    A network with SiLU starts as the one with GELU that it is nearly the same as.

    Raises:
        UserError: not such a file, or an array in it is missing, too many or of another shape, which is named.
    """
    if "meta" in (read := checkpoint.read_arrays(path)):
        saved = Checkpoint.load(path)
        found = saved.resized(config.height, config.width, config.patch, config.stride).arrays
        if (saved.config.activation, config.activation) == ("gelu", "silu"):
            found = _gelu_as_silu(found)
        if saved.config.classes != config.classes:
            found["decoder/classes"] = fresh(config, seed)["decoder/classes"]
        checkpoint.check(found, config.shapes(), path)
        return found
    encoder = _from_timm(config, read, path)  # with GELU
    return fresh(config, seed) | (_gelu_as_silu(encoder) if config.activation == "silu" else encoder)


def _gelu_as_silu(arrays: Arrays) -> Arrays:
    """x sigmoid(a x) = silu(a x) / a: what enters an MLP's activation grows by a, what reads it shrinks."""
    factors = {"fc1/kernel": SIGMOID, "fc1/bias": SIGMOID, "fc2/kernel": 1 / SIGMOID}
    return {
        name: array * np.float32(factors.get("/".join(name.split("/")[-2:]), 1.0)) for name, array in arrays.items()
    }


def _from_timm(config: Config, read: dict[str, NDArray[Any]], path: str | Path) -> Arrays:
    """Rename and transpose a timm ViT's arrays to our encoder's, every one of them accounted for."""
    ours = config.shapes()
    names = {"norm.weight": "encoder/norm/gain", "norm.bias": "encoder/norm/bias"}
    names["patch_embed.proj.bias"] = "patch/bias"
    for index in range(config.depth):
        names |= {f"blocks.{index}.{theirs}": f"encoder/{index}/{name}" for theirs, name in BLOCK.items()}
    side = _source_grid(read, path)
    patch = np.atleast_1d(read.get("patch_embed.proj.weight", np.empty(config.patch))).shape[-1]
    labels = read["head.bias"].shape[0] if "head.bias" in read else 0
    expected = {theirs: ours[name][::-1] for theirs, name in names.items()} | {
        "cls_token": (1, 1, config.dim),
        "pos_embed": (1, 1 + side * side, config.dim),
        "patch_embed.proj.weight": (config.dim, 3, patch, patch),
        "head.weight": (labels, config.dim),
        "head.bias": (labels,),
    }
    checkpoint.check(read, expected, path)
    found = {name: read[theirs].T.astype(np.float32) for theirs, name in names.items()}
    found["patch/kernel"] = resize_patch(read["patch_embed.proj.weight"].transpose(2, 3, 1, 0), config.patch)
    found["position"] = resize_positions(read["pos_embed"][0, 1:], (side, side), config.grid)
    return found


def _source_grid(read: dict[str, NDArray[Any]], path: str | Path) -> int:
    """Return the side of the square grid of patches that a classifier was trained on."""
    shape = read["pos_embed"].shape if "pos_embed" in read else ()
    side = round((shape[1] - 1) ** 0.5) if len(shape) == 3 else 0
    if not side or side * side != shape[1] - 1:
        raise UserError(f"{path} has no 'pos_embed' of a square grid with class token: give a timm ViT's .npz.")
    return side
