"""Re-parameterise a trained Segmenter: the same function, with an ordinary-looking residual stream.

A pre-norm block reads the residual stream x only through LayerNorm and writes to it only through linear layers.
With C = I - 11ᵀ/D and any orthogonal Q:

1. centre: every writer is multiplied by C on its output side; the mean over channels is 0, LayerNorm is RMSNorm;
2. fold: LayerNorm's gain and bias go into the next linear layer, 1/sqrt(head_dim) into the queries, and the pixels'
   mean, standard deviation and half level into the patch embedding;
3. rotate: writers x Q, readers x Qᵀ. RMSNorm does not see Q, and outlier channels are spread over all channels
   (QuaRot, Ashkboos et al. 2024). Queries with keys, and values with the projection, get a rotation of each head.

All of it in float64 and exact: `tests/test_fold.py` compares the function before and after.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint, Config
from models import ClassInfo

Matrix = NDArray[np.float64]
Folded = dict[str, Matrix]  # named like the steps of `convert/forward.py`, kernels [in, out]

PIXEL_ZERO = 128  # the graph's int8 pixel is the uint8 pixel minus 128


def fold(
    checkpoint: Checkpoint, rotate: bool = True, seed: int = 0, streams: tuple[Matrix, Matrix] | None = None
) -> Folded:
    """Return the arrays of the re-parameterised network.

    Args:
        checkpoint: the trained network.
        rotate: False leaves Q = I, to see what the rotation is worth.
        seed: chooses the rotations.
        streams: orthogonal matrices [D, D] for the encoder's and the decoder's residual stream, in place of chosen ones
            (`calibrate.rotated` finds better ones).

    Returns:
        `patches/kernel` [p, p, 3, D] for pixels minus 128, `patches/bias` [D], `position` [N, D], `classes` [K, D],
        where there are such `prefix` [P, D] and `head/norm/gain`, `head/norm/bias` [K],
        and `NAME/kernel`, `NAME/bias` of every linear step; float64.
    """
    arrays = {name: array.astype(np.float64) for name, array in checkpoint.arrays.items()}
    config = checkpoint.config
    rng = np.random.default_rng(seed)
    turn = orthogonal if rotate else lambda size, rng: np.eye(size)
    encoder, decoder = streams or (turn(config.dim, rng), turn(config.dim, rng))
    folded = _entrance(arrays, config, _centre(config.dim) @ encoder)
    for stream, depth, rotation in (("encoder", config.depth, encoder), ("decoder", config.decoder_depth, decoder)):
        for i in range(depth):
            head_turns = [turn(config.head_dim, rng) for _ in range(2 * config.heads)]
            folded |= _block(arrays, f"{stream}/{i}", config, rotation, head_turns)
    if config.decoder == "linear":
        kernel, bias = _read(arrays, "head/scores", "encoder/norm", encoder)
        # Less their mean over classes, so that the largest is never negative; ARG_MAX does not see it
        return folded | {
            "head/scores/kernel": kernel - kernel.mean(-1, keepdims=True),
            "head/scores/bias": bias - bias.mean(),
        }
    writer = _centre(config.dim) @ decoder
    kernel, bias = _read(arrays, "decoder/input", "encoder/norm", encoder)
    folded |= {"decoder/input/kernel": kernel @ writer, "decoder/input/bias": bias @ writer}
    folded |= _tokens("classes", arrays["decoder/classes"] @ writer, config.decoder_epsilon)
    return folded | _head(arrays, config, decoder)


def _tokens(name: str, tokens: Matrix, epsilon: float) -> Folded:
    """Return tokens that are weights, and what the first norm of their stream makes of them."""
    rms = np.sqrt(np.square(tokens).mean(-1, keepdims=True) + epsilon)
    return {name: tokens, f"{name}/normed": tokens / rms}


def _centre(size: int) -> Matrix:
    return np.eye(size) - 1.0 / size


def orthogonal(size: int, rng: np.random.Generator) -> Matrix:
    """Draw a rotation: a Hadamard matrix with random signs where there is one, else a random matrix.

    Every vector along an axis becomes one whose channels are all of the same size.
    """
    hadamard = _paley() if size % 12 == 0 else np.ones((1, 1))
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    if len(hadamard) == size:
        return np.asarray(hadamard * rng.choice([-1.0, 1.0], size)[:, np.newaxis] / np.sqrt(size))
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return np.asarray(q * np.sign(np.diag(r)))


def _paley() -> Matrix:
    """Return the Hadamard matrix of order 12 (Paley, 1933): ViTs are 192, 384 or 768 wide, 12 times a power of two."""
    squares = {number * number % 11 for number in range(1, 11)}
    signs = np.array([0.0, *(1.0 if number in squares else -1.0 for number in range(1, 11))])
    matrix = np.ones((12, 12))
    matrix[1:, 0] = -1
    matrix[1:, 1:] = signs[(np.arange(11)[:, np.newaxis] - np.arange(11)) % 11] + np.eye(11)
    return matrix


def _entrance(arrays: Folded, config: Config, writer: Matrix) -> Folded:
    std = np.asarray(config.std)[:, np.newaxis]
    kernel = arrays["patch/kernel"] / std
    offset = (PIXEL_ZERO - np.asarray(config.mean))[:, np.newaxis]
    bias = arrays["patch/bias"] + (kernel * offset).sum((0, 1, 2))
    prefix = _tokens("prefix", arrays["prefix"] @ writer, config.encoder_epsilon) if config.prefix else {}
    return prefix | {
        "patches/kernel": kernel @ writer,
        "patches/bias": bias @ writer,
        "position": arrays["position"] @ writer,
    }


def _read(arrays: Folded, name: str, norm: str, rotation: Matrix) -> tuple[Matrix, Matrix]:
    """Fold a LayerNorm's gain and bias into the linear layer `name` that reads it, in the rotated stream."""
    kernel = arrays[f"{name}/kernel"]
    bias = arrays[f"{name}/bias"] + arrays[f"{norm}/bias"] @ kernel
    return rotation.T @ (arrays[f"{norm}/gain"][:, np.newaxis] * kernel), bias


def _block(arrays: Folded, name: str, config: Config, rotation: Matrix, turns: list[Matrix]) -> Folded:
    writer = _centre(config.dim) @ rotation
    qkv_kernel, qkv_bias = _read(arrays, f"{name}/qkv", f"{name}/norm1", rotation)
    proj = arrays[f"{name}/proj/kernel"] @ writer
    for head in range(config.heads):
        score_turn, value_turn = turns[2 * head], turns[2 * head + 1]
        for part, turn in enumerate((score_turn * config.head_dim**-0.5, score_turn, value_turn)):
            columns = head_slice(config, head, part)
            qkv_kernel[:, columns] = qkv_kernel[:, columns] @ turn
            qkv_bias[columns] = qkv_bias[columns] @ turn
        rows = head_slice(config, head)
        proj[rows] = value_turn.T @ proj[rows]
    fc1_kernel, fc1_bias = _read(arrays, f"{name}/fc1", f"{name}/norm2", rotation)
    return {
        f"{name}/qkv/kernel": qkv_kernel,
        f"{name}/qkv/bias": qkv_bias,
        f"{name}/proj/kernel": proj,
        f"{name}/proj/bias": arrays[f"{name}/proj/bias"] @ writer,
        f"{name}/fc1/kernel": fc1_kernel,
        f"{name}/fc1/bias": fc1_bias,
        f"{name}/fc2/kernel": arrays[f"{name}/fc2/kernel"] @ writer,
        f"{name}/fc2/bias": arrays[f"{name}/fc2/bias"] @ writer,
    }


def head_slice(config: Config, head: int, part: int = 0) -> slice:
    """Return the columns of a head among the queries (part 0), keys (1) or values (2) of a fused projection."""
    start = part * config.dim + head * config.head_dim
    return slice(start, start + config.head_dim)


def _head(arrays: Folded, config: Config, rotation: Matrix) -> Folded:
    """Turn patch and class projections into templates: (x P_s) (c C)ᵀ = x (c C P_sᵀ)ᵀ for each sub-patch s.

    The bias of the decoder's norm reaches the scores through P as well: one offset per class and sub-patch.
    """
    gain, bias = arrays["decoder/norm/gain"], arrays["decoder/norm/bias"]
    classes = arrays["head/classes/kernel"]
    patch = arrays["head/patch/kernel"].reshape(config.dim, config.sub**2, config.mask_dim)
    templates = np.einsum("de,d,dsm->mse", rotation, gain, patch)
    masks = _mask_norm(arrays, config, patch) if config.mask_norm else {}
    return masks | {
        "head/classes/kernel": rotation.T @ (gain[:, np.newaxis] * classes),
        "head/classes/bias": bias @ classes,
        "head/templates/kernel": templates.reshape(config.mask_dim, -1),
        "head/templates/bias": np.zeros(config.sub**2 * config.dim),
        "head/offsets/kernel": np.einsum("d,dsm->ms", bias, patch),
        "head/offsets/bias": np.zeros(config.sub**2),
    }


def _mask_norm(arrays: Folded, config: Config, patch: Matrix) -> Folded:
    """Return the norm over classes for scores that are multiples of the network's, one factor for each patch.

    Its epsilon grows by the square of that factor: sqrt(mask_dim), and in cosines the length of the projected patch,
    for which its root mean square stands. A bias that is 0 at least lets no largest score be negative.
    """
    gain, bias = arrays["decoder/norm/gain"], arrays["decoder/norm/bias"]
    projected = np.vstack([gain[:, np.newaxis] * patch[:, 0], bias @ patch[:, 0]])
    square = np.square(projected).sum() if config.cosine else 1.0
    return {
        "head/norm/gain": arrays["head/norm/gain"][:, np.newaxis],
        "head/norm/bias": arrays["head/norm/bias"] - arrays["head/norm/bias"].min(),
        "head/norm/epsilon": np.array(config.decoder_epsilon * config.mask_dim * square),
    }


def unfold(folded: Folded, config: Config) -> Checkpoint:
    """Return a network with LayerNorms that computes what the re-parameterised one does: an inverse of `fold`.

    The rotation is forgotten, but the one direction in which no writer writes is still there to be seen. Turned onto
    (1, ..., 1), it makes every mean over channels 0 again, and LayerNorm the RMSNorm that the arrays were made for.
    """
    arrays, into = (
        dict(_unfolded_stream(folded, config, "encoder", config.depth)),
        _mean_turn(folded, "encoder", config),
    )
    arrays["patch/kernel"] = folded["patches/kernel"].reshape(config.patch, config.patch, 3, -1) @ into
    arrays["patch/bias"], arrays["position"] = folded["patches/bias"] @ into, folded["position"] @ into
    if config.prefix:
        arrays["prefix"] = np.atleast_2d(_sized(folded, "prefix")) @ into
    if config.decoder == "linear":
        arrays["head/scores/kernel"] = into.T @ folded["head/scores/kernel"]
        arrays["head/scores/bias"] = folded["head/scores/bias"]
    else:
        arrays |= _unfolded_decoder(folded, config, into)
    network = replace(config, mean=(PIXEL_ZERO,) * 3, std=(1.0,) * 3)
    shaped = {name: arrays[name].astype(np.float32) for name in network.shapes()}
    return Checkpoint(shaped, network, tuple(ClassInfo(str(index), (0, 0, 0)) for index in range(config.classes)))


def _unfolded_decoder(folded: Folded, config: Config, into: Matrix) -> Folded:
    arrays, out = (
        _unfolded_stream(folded, config, "decoder", config.decoder_depth),
        _mean_turn(folded, "decoder", config),
    )
    arrays["decoder/input/kernel"] = into.T @ folded["decoder/input/kernel"] @ out
    arrays["decoder/input/bias"] = folded["decoder/input/bias"] @ out
    arrays["decoder/classes"] = _sized(folded, "classes") @ out
    arrays["head/classes/kernel"] = out.T @ folded["head/classes/kernel"]
    templates = folded["head/templates/kernel"].reshape(config.mask_dim, config.sub**2, config.dim) @ out  # [m, s, d]
    arrays["head/patch/kernel"] = templates.transpose(2, 1, 0).reshape(config.dim, -1)
    # What the bias of the last norm adds, read through P for the scores' offsets and through C for the class tokens
    readers = np.concatenate([templates.reshape(-1, config.dim), arrays["head/classes/kernel"].T])
    added = np.concatenate([folded["head/offsets/kernel"].ravel(), folded["head/classes/bias"]])
    bias, *_ = np.linalg.lstsq(readers, added, rcond=None)
    masks = {f"head/norm/{part}": folded[f"head/norm/{part}"].ravel() for part in ("gain", "bias") if config.mask_norm}
    return arrays | masks | {"decoder/norm/bias": np.asarray(bias, np.float64)}


def _sized(folded: Folded, name: str) -> Matrix:
    """Return tokens that are weights: rounded with the patch tokens' scale they keep their size, normed direction."""
    if f"{name}/normed" not in folded:  # rounded with a scale of their own
        return folded[name]
    sizes: Matrix = (folded[name] * folded[f"{name}/normed"]).mean(-1, keepdims=True)
    return sizes * folded[f"{name}/normed"]


def _unfolded_stream(folded: Folded, config: Config, stream: str, depth: int) -> Folded:
    turn, plain = _mean_turn(folded, stream, config), {"gain": np.ones(config.dim), "bias": np.zeros(config.dim)}
    arrays = {f"{stream}/norm/{part}": values for part, values in plain.items()}
    queries = np.concatenate([np.full(config.dim, config.head_dim**0.5), np.ones(2 * config.dim)])
    hidden = config.dim * config.mlp_ratio
    for name in (f"{stream}/{i}" for i in range(depth)):
        arrays |= {f"{name}/norm{i}/{part}": values for i in (1, 2) for part, values in plain.items()}
        arrays |= {f"{name}/qkv/kernel": turn.T @ folded[f"{name}/qkv/kernel"] * queries}
        arrays |= {f"{name}/qkv/bias": folded[f"{name}/qkv/bias"] * queries}
        # Copies of wide channels (`calibrate.surveyed`) come last, and are for integers only
        arrays |= {f"{name}/fc1/kernel": turn.T @ folded[f"{name}/fc1/kernel"][:, :hidden]}
        arrays |= {f"{name}/fc1/bias": folded[f"{name}/fc1/bias"][:hidden]}
        arrays |= {f"{name}/{w}/{part}": folded[f"{name}/{w}/{part}"] @ turn
                   for w in ("proj", "fc2") for part in ("kernel", "bias")}  # fmt: skip
        arrays[f"{name}/fc2/kernel"] = arrays[f"{name}/fc2/kernel"][:hidden]
    return arrays


def _mean_turn(folded: Folded, stream: str, config: Config) -> Matrix:
    """Return the reflection (Householder) that takes the direction nobody writes in to (1, ..., 1)."""
    writers = [
        array
        for name, array in folded.items()
        if name.startswith(stream) and name.endswith(("proj/kernel", "fc2/kernel", "input/kernel"))
    ]
    unwritten = np.linalg.svd(np.concatenate(writers))[2][-1]
    normal = unwritten - np.full(config.dim, config.dim**-0.5)
    if (length := np.square(normal).sum()) < 1e-12:
        return np.eye(config.dim)
    return np.asarray(np.eye(config.dim) - 2 * np.outer(normal, normal) / length)
