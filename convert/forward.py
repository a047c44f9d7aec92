"""The re-parameterised Segmenter, written once and run by two kinds of operators.

`segmenter(ops, config, pixels)` is the network after `convert/fold.py`: no LayerNorm gains, no biases in the residual
stream's way, only what an integer graph has. `ops` gives the steps their meaning:

- `convert.floats.FloatOps` computes them in float and watches the ranges (calibration, the float side of every check);
- `convert.build.IntegerOps` writes them down as TFLite operators.

The name handed to a step names its weights and the range of its output, in both.
"""

from typing import Any, Protocol

from convert.checkpoint import Config

Value = Any  # an array of the operators' own kind, or a tensor of the graph


class Ops(Protocol):
    """What the network is made of; shapes are those of one picture with a leading 1."""

    def patches(self, name: str, pixels: Value) -> Value:
        """1xHxWx3 pixels -> 1xNxD tokens, position embedding added."""

    def norm(self, name: str, x: Value) -> Value:
        """Divide each token by its root mean square over channels."""

    def linear(self, name: str, x: Value, activation: str | None = None) -> Value:
        """x W + b over the last axis, then "relu", "gelu" or nothing."""

    def heads(self, qkv: Value) -> tuple[Value, Value, Value]:
        """1xNx3D -> queries, keys and values, each 1xheadsxNxhead_dim."""

    def merge(self, x: Value) -> Value:
        """1xheadsxNxhead_dim -> 1xNxD, the inverse of `heads`."""

    def matmul(self, name: str, a: Value, b: Value, transpose: bool = False) -> Value:
        """a b, or a bᵀ over the last two axes."""

    def exp(self, name: str, scores: Value) -> Value:
        """exp(scores - row maximum), in 0..1."""

    def roots(self, name: str, e: Value) -> tuple[Value, Value]:
        """Two factors a, b per row with a b = 1 / row sum, each near 1 / sqrt(row sum)."""

    def scale_rows(self, name: str, x: Value, factor: Value) -> Value:
        """x * factor, one factor per row."""

    def add(self, name: str, x: Value, y: Value) -> Value:
        """x + y, the residual stream."""

    def append(self, name: str, x: Value) -> Value:
        """1xNxD -> 1x(N+K)xD: the constant `name`, one row for each class, follows the patch tokens."""

    def split(self, x: Value) -> tuple[Value, Value]:
        """The inverse of `append`: patch tokens 1xNxD, class tokens 1xKxD."""

    def per_sub_patch(self, x: Value, channels: int) -> Value:
        """1xKx(S channels) -> 1x(S K)xchannels, S = (patch / stride)² sub-patches."""

    def row(self, x: Value) -> Value:
        """1xMx1 -> 1x1xM."""


def segmenter(ops: Ops, config: Config, pixels: Value) -> Value:
    """Give 1xNx(S K) scores: for each patch, sub-patch by sub-patch (row by row), one score per class."""
    x = ops.patches("patches", pixels)
    for i in range(config.depth):
        x = _block(ops, f"encoder/{i}", x, config.activation)
    x = ops.linear("decoder/input", ops.norm("encoder/norm", x))
    # Class embeddings are far smaller than patch tokens, too small for the scale they share in the stream. What the
    # first norm makes of them is a constant: it gets its full 8 bits.
    normed = ops.append("classes/normed", ops.norm("decoder/0/norm1", x)) if config.decoder_depth else None
    x = ops.append("classes", x)
    for i in range(config.decoder_depth):
        x = _block(ops, f"decoder/{i}", x, config.activation, normed if i == 0 else None)
    patches, classes = ops.split(ops.norm("decoder/norm", x))
    # (patch P)(class C) = patch (class C Pᵀ): K small products in place of one for every patch
    masks = ops.linear("head/classes", classes)
    templates = ops.per_sub_patch(ops.linear("head/templates", masks), config.dim)
    offsets = ops.per_sub_patch(ops.linear("head/offsets", masks), 1)
    products = ops.matmul("head/products", patches, templates, transpose=True)
    return ops.add("head/scores", products, ops.row(offsets))


def _block(ops: Ops, name: str, x: Value, activation: str, normed: Value | None = None) -> Value:
    normed = ops.norm(f"{name}/norm1", x) if normed is None else normed
    q, k, v = ops.heads(ops.linear(f"{name}/qkv", normed))
    attended = ops.merge(_attention(ops, name, q, k, v))
    x = ops.add(f"{name}/sum1", x, ops.linear(f"{name}/proj", attended))
    hidden = ops.linear(f"{name}/fc1", ops.norm(f"{name}/norm2", x), activation)
    return ops.add(f"{name}/sum2", x, ops.linear(f"{name}/fc2", hidden))


def _attention(ops: Ops, name: str, q: Value, k: Value, v: Value) -> Value:
    """softmax(q kᵀ) v with the row sum divided out in two halves, one before and one after the product with v.

    So each row of weights uses its own full 8 bits: TFLite's SOFTMAX fixes the scale at 1/256, where the weights of
    256 tokens and more are 0 or 1.
    """
    e = ops.exp(f"{name}/exp", ops.matmul(f"{name}/scores", q, k, transpose=True))
    a, b = ops.roots(f"{name}/roots", e)
    context = ops.matmul(f"{name}/context", ops.scale_rows(f"{name}/weights", e, a), v)
    return ops.scale_rows(f"{name}/attended", context, b)
