"""The re-parameterised Segmenter, written once and run by several kinds of operators.

`segmenter(ops, config, pixels)` is the network after `convert/fold.py`: no LayerNorm gains, no biases in the residual
stream's way, only what an integer graph has. `ops` gives the steps their meaning:

- `convert.floats.FloatOps` computes them in float and watches the ranges (calibration, the float side of every check);
- `convert.simulate` and `convert.qat` round their results as the integer graph will;
- `convert.build.IntegerOps` writes them down as TFLite operators, `convert.shift` as those of I-ViT.

The name handed to a step names its weights and the range of its output, in all of them.
"""

from typing import Any, Protocol

from convert.checkpoint import Config

Value = Any  # an array of the operators' own kind, or a tensor of the graph
# A residual stream: its tokens, and the factor of each since registers appeared, None before
Stream = tuple[Value, Value | None]


class Ops(Protocol):
    """What the network is made of; shapes are those of one picture with a leading 1."""

    def patches(self, name: str, pixels: Value) -> Value:
        """1xHxWx3 pixels -> 1xNxD tokens, position embedding added."""

    def norm(self, name: str, x: Value) -> Value:
        """Divide each token by its root mean square over channels."""

    def linear(self, name: str, x: Value, activation: str | None = None, result: str = "") -> Value:
        """x W + b over the last axis, then an activation or nothing; W and b of `name`, the range of `result`."""

    def heads(self, qkv: Value) -> tuple[Value, Value, Value]:
        """1xNx3D -> queries, keys and values, each 1xheadsxNxhead_dim."""

    def merge(self, x: Value) -> Value:
        """1xheadsxNxhead_dim -> 1xNxD, the inverse of `heads`."""

    def matmul(self, name: str, a: Value, b: Value, transpose: bool = False) -> Value:
        """a b, or a bᵀ over the last two axes."""

    def exp(self, name: str, scores: Value) -> Value:
        """exp(scores - shift), in 0..1; the shift of a row is its largest score, or more where the row sum is large."""

    def divided(self, name: str, x: Value, weights: Value) -> Value:
        """Divide each row of x by the row sum of the weights."""

    def add(self, name: str, x: Value, y: Value) -> Value:
        """x + y, the residual stream."""

    def append(self, name: str, x: Value) -> Value:
        """1xNxD -> 1x(N+K)xD: the constant `name`, one row for each class, follows the patch tokens."""

    def tokens(self, name: str) -> Value:
        """The constant `name`, 1xKxD."""

    def join(self, x: Value, y: Value) -> Value:
        """1xNxD, 1xKxD -> 1x(N+K)xD, both of one range."""

    def rows(self, name: str, x: Value, start: int, count: int) -> Value:
        """Tokens start..start + count: 1xcountxD, for the inverse of `append`."""

    def centre(self, name: str, x: Value) -> Value:
        """1xKxM minus its mean over K."""

    def gain(self, name: str, x: Value) -> Value:
        """1xKxM, each row times a constant of its class."""

    def mask_norm(self, name: str, x: Value, gained: Value, offsets: Value) -> Value:
        """1xNxK gained + offsets + rms(x) bias, rms over K: a LayerNorm over classes, but for a positive factor."""

    def factor(self, name: str, y: Value) -> Value | None:
        """One factor per token: 1, and less where y makes it a register; None if the sum `name` makes none."""

    def scaled(self, name: str, x: Value, factor: Value) -> Value:
        """x * factor, one factor of at most 1 per token, in the range of x."""

    def per_sub_patch(self, x: Value, channels: int) -> Value:
        """1xKx(S channels) -> 1x(S K)xchannels, S = (patch / stride)² sub-patches."""

    def row(self, x: Value) -> Value:
        """1xMx1 -> 1x1xM."""


def segmenter(ops: Ops, config: Config, pixels: Value) -> Value:
    """Give 1xNx(S K) scores: for each patch, sub-patch by sub-patch (row by row), one score per class."""
    x = ops.norm("encoder/norm", _encoder(ops, config, ops.patches("patches", pixels)))
    if config.decoder == "linear":
        return ops.linear("head/scores", x, result="head/best")
    x = ops.linear("decoder/input", x)
    if config.precise:
        return _head(ops, config, *_decoder(ops, config, x))
    # Class embeddings are far smaller than patch tokens, too small for the scale they share in the stream. What the
    # first norm makes of them is a constant: it gets its full 8 bits.
    normed = ops.append("classes/normed", ops.norm("decoder/0/norm1", x)) if config.decoder_depth else None
    stream: Stream = ops.append("classes", x), None
    for i in range(config.decoder_depth):
        stream = _block(ops, config, f"decoder/{i}", stream, normed if i == 0 else None)
    x = ops.norm("decoder/norm", stream[0])
    classes = ops.rows("head/tokens", x, config.tokens, config.classes)
    return _head(ops, config, ops.rows("head/patches", x, 0, config.tokens), classes)


def _encoder(ops: Ops, config: Config, x: Value) -> Value:
    """Class and distillation tokens follow the patches here, attention does not see the order."""
    normed = ops.append("prefix/normed", ops.norm("encoder/0/norm1", x)) if config.prefix else None
    stream: Stream = ops.append("prefix", x) if config.prefix else x, None
    for i in range(config.depth):
        stream = _block(ops, config, f"encoder/{i}", stream, normed if i == 0 else None)
    return ops.rows("encoder/patches", stream[0], 0, config.tokens) if config.prefix else stream[0]


def _decoder(ops: Ops, config: Config, patches: Value) -> tuple[Value, Value]:
    """Give patch and class tokens, each a residual stream of its own range that only attention joins.

    A network that was not trained with int8 in mind has class tokens far smaller than its patch tokens, and tells its
    classes apart by still smaller differences between them.
    """
    classes = ops.tokens("classes")
    for i in range(config.decoder_depth):
        name, streams = f"decoder/{i}", {f"decoder/{i}": patches, f"decoder/{i}/classes": classes}
        normed = [ops.norm(f"{part}/norm1", x) for part, x in streams.items()]
        q, k, v = ops.heads(ops.join(*(ops.linear(f"{name}/qkv", x) for x in normed)))
        attended = ops.merge(_attention(ops, name, q, k, v))
        branches = (ops.rows(f"{name}/attended/patches", attended, 0, config.tokens),
                    ops.rows(f"{name}/attended/classes", attended, config.tokens, config.classes))  # fmt: skip
        patches, classes = (
            _rest_of_block(ops, name, part, (x, None), branch, config)[0]
            for (part, x), branch in zip(streams.items(), branches, strict=True)
        )
    return ops.norm("decoder/norm", patches), ops.norm("decoder/norm/classes", classes)


def _head(ops: Ops, config: Config, patches: Value, classes: Value) -> Value:
    """Scores that are those of the network but for a positive factor of each patch, which ARG_MAX does not see.

    So the L2 norm of the patches is left out, and the norm over classes multiplies by its sigma instead of dividing:
    gain (m - mean) / sigma + bias becomes gain (m - mean) + bias sigma.
    """
    masks = ops.linear("head/classes", classes)
    masks = ops.norm("head/unit", masks) if config.cosine else masks
    masks = ops.centre("head/centred", masks) if config.mask_norm else masks
    products, offsets = _products(ops, config, "head", patches, masks)
    scores = ops.add("head/scores", products, offsets)
    if not config.mask_norm:
        return scores
    products, offsets = _products(ops, config, "head/gained", patches, ops.gain("head/gained", masks))
    return ops.mask_norm("head/norm", scores, products, offsets)


def _products(ops: Ops, config: Config, name: str, patches: Value, masks: Value) -> tuple[Value, Value]:
    """(patch P)(class C) = patch (class C Pᵀ): K small products in place of one for every patch."""
    templates = ops.per_sub_patch(ops.linear("head/templates", masks, result=f"{name}/templates"), config.dim)
    offsets = ops.per_sub_patch(ops.linear("head/offsets", masks, result=f"{name}/offsets"), 1)
    return ops.matmul(f"{name}/products", patches, templates, transpose=True), ops.row(offsets)


def _block(ops: Ops, config: Config, name: str, stream: Stream, normed: Value | None = None) -> Stream:
    normed = ops.norm(f"{name}/norm1", stream[0]) if normed is None else normed
    q, k, v = ops.heads(ops.linear(f"{name}/qkv", normed))
    return _rest_of_block(ops, name, name, stream, ops.merge(_attention(ops, name, q, k, v)), config)


def _rest_of_block(ops: Ops, name: str, part: str, stream: Stream, attended: Value, config: Config) -> Stream:
    """What follows attention, with the weights of `name` and the ranges of `part`.

    A network that was not trained with int8 in mind adds both branches to the stream at once: the sum between them,
    which only a norm reads, leaves no rounding error in it.
    """
    branch = ops.linear(f"{name}/proj", attended, result=f"{part}/proj")
    between = _sum(ops, f"{part}/sum1", stream, branch)
    hidden = ops.linear(f"{name}/fc1", ops.norm(f"{part}/norm2", between[0]), config.activation, result=f"{part}/fc1")
    second = ops.linear(f"{name}/fc2", hidden, result=f"{part}/fc2")
    if config.precise:
        return _sum(ops, f"{part}/sum2", stream, ops.add(f"{part}/branches", branch, second))
    return _sum(ops, f"{part}/sum2", between, second)


def _sum(ops: Ops, name: str, stream: Stream, branch: Value) -> Stream:
    """Add a branch to the residual stream.

    Some tokens of late blocks are registers, twenty times larger than the rest (Darcet et al., 2023): one scale does
    not fit both. Norms do not see the size of a token, so from the sum that makes them on they are held at a smaller
    one, and all that is added to them is as much smaller.
    """
    x, factor = stream
    if factor is None:
        factor = ops.factor(name, branch)
        x = x if factor is None else ops.scaled(f"{name}/stream", x, factor)
    if factor is not None:
        branch = ops.scaled(f"{name}/branch", branch, factor)
    return ops.add(name, x, branch), factor


def _attention(ops: Ops, name: str, q: Value, k: Value, v: Value) -> Value:
    """softmax(q kᵀ) v, the row sum divided out after the product with v.

    So each row of weights uses its own 8 bits: TFLite's SOFTMAX fixes the scale at 1/256, where the weights of 256
    tokens and more are 0 or 1.
    """
    weights = ops.exp(f"{name}/weights", ops.matmul(f"{name}/scores", q, k, transpose=True))
    return ops.divided(f"{name}/attended", ops.matmul(f"{name}/context", weights, v), weights)
