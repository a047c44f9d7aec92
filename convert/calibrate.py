"""Choose the numbers of the integer graph: the range of every result from a few pictures, and the int8 weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert import floats, rounding
from convert.build import BEST, EXP_FLOOR, LOWEST
from convert.checkpoint import Checkpoint, Config
from convert.fold import Folded, fold, orthogonal
from convert.forward import segmenter
from convert.quantised import Quantised, round_kernel

Sample = NDArray[np.float32]

# Shares of the largest magnitude tried as the limit of int8: a tighter one rounds finer and cuts off more.
SHARES = np.geomspace(0.02, 1.0, 60)
KEPT, KEPT_TOKENS = 4_000, 64  # values or whole tokens of each result kept from each picture
# The last part of a result's name says what is to be kept of it, and how its limit is chosen.
STREAM = ("sum", "sum1", "sum2", "input")  # the residual stream, which is read through norms
TABLES = ("/registers", "/rise")  # what `surveyed` adds to a folded network for our operators alone
SURVEYED = (*TABLES, "/ceiling", "/copies")  # and for all
EXTREMES = ("sums", "factor", "rms")
# Norms outside what calibration saw must not saturate at once: dark and flat pictures have small tokens.
HEADROOM = 1.5
# What enters a matrix product: queries, keys and values, attention's weights, and what linear layers read
PRODUCTS = ("qkv", "weights", "attended", "norm1", "norm2", "norm", "fc1", "classes", "templates")
TINY = 1e-9  # stands in for a divisor of 0
# A branch that makes registers: its largest token, in medians of the stream's; and the size they are then held at
REGISTER, HELD = 4.0, 2.0
# A hidden channel that is split: its largest value, in that of the tenth largest; and the room above what was seen
WIDE, ROOM = 4.0, 1.2
ROOT = 1 / 3  # the power of a row sum that is divided out before the product with the values, the rest after


@dataclass(frozen=True)
class Levers:
    """What calibration does; the defaults are what pays, the rest is for `convert ablate`.

    Attributes:
        ranges: the limit of a result is that of least "error", or its largest value ("max").
        stream: the error in the residual stream is that of "tokens" relative to their size, or that of "values".
        kernels: the scale of a kernel's output is that of least "error", or its largest weight ("max").
        rounding: of the weights, to the "nearest", or "gptq" with corrected biases (`convert/rounding.py`).
        registers: tokens far larger than the rest are "held" at a smaller size, or "cut" off.
        hidden: channels of an MLP far wider than the rest are "split", or left "whole".
        rows: of attention's scores are kept "apart" by their sums, or all given the range of "all".
        product_bits: of what enters a matrix product, the weights aside.
        weight_bits: of the weights.
    """

    ranges: str = "error"
    stream: str = "tokens"
    kernels: str = "error"
    rounding: str = "nearest"
    registers: str = "held"
    hidden: str = "split"
    rows: str = "apart"
    product_bits: int = 8
    weight_bits: int = 8

    def levels(self, name: str, signed: bool = True) -> int:
        """Return the largest integer that a result is rounded to."""
        bits = self.product_bits if name.rpartition("/")[2] in PRODUCTS else 8
        return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def rotated(checkpoint: Checkpoint, pictures: Iterable[NDArray[np.uint8]], seed: int = 0) -> Folded:
    """Fold a network with the `rotations` of these pictures."""
    return fold(checkpoint, seed=seed, streams=rotations(checkpoint, pictures, seed))


def rotations(
    checkpoint: Checkpoint, pictures: Iterable[NDArray[np.uint8]], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rotations of encoder and decoder that give the largest tokens channels of like size.

    A ViT's late blocks hold a few tokens forty times larger than the rest, nearly all in one direction (registers,
    Darcet et al., 2023), and the largest of their channels sets the stream's scale. Principal directions, turned by a
    Hadamard matrix, lie evenly over all channels; after a random rotation the largest is three times the mean.

    Args:
        checkpoint: the trained network.
        pictures: 1xHxWx3 uint8 RGB at its input size, those it will be calibrated with.
        seed: of the matrices' signs, and of the rotations inside the heads.
    """
    config, plain = checkpoint.config, fold(checkpoint, rotate=False)
    moments = {stream: np.zeros((config.dim, config.dim)) for stream in ("encoder", "decoder")}

    def watch(name: str, values: Any) -> None:
        if name.rpartition("/")[2] in STREAM:
            tokens = values.reshape(-1, config.dim).astype(np.float64)
            moments["decoder" if name.startswith("decoder") else "encoder"] += tokens.T @ tokens

    for pixels in tqdm(pictures, "rotating", unit="pictures", leave=False):
        floats.scores(plain, config, pixels, watch)
    rng = np.random.default_rng(seed)
    encoder, decoder = (np.linalg.eigh(moment)[1] @ orthogonal(config.dim, rng) for moment in moments.values())
    return encoder, decoder


class _SurveyOps(floats.FloatOps):
    """The float steps, writing down what the integer network has to know of tokens and of rows of scores."""

    def __init__(self, folded: Folded, config: Config) -> None:
        super().__init__(folded, config)
        self.sizes: dict[str, list[tuple[Sample, Sample]]] = {}  # of the encoder's sums, and of what they add
        self.flatness: dict[str, list[tuple[Sample, Sample]]] = {}  # maximum above mean, logarithm of the row sum
        self.widths: dict[str, Sample] = {}  # of the encoder's hidden channels

    def add(self, name: str, x: Sample, y: Sample) -> Sample:
        total = super().add(name, x, y)
        if name.startswith("encoder") and name.rpartition("/")[2] in STREAM:
            self.sizes.setdefault(name, []).append((_sizes(total), _sizes(y)))
        return total

    def _seen(self, name: str, values: Sample) -> Sample:
        if name.startswith("encoder") and name.endswith("/fc1"):
            self.widths[name] = np.maximum(self.widths.get(name, 0), values.max((0, 1)))
        return super()._seen(name, values)

    def exp(self, name: str, scores: Sample) -> Sample:
        e = super().exp(name, scores)
        height = scores.max(-1) - scores.mean(-1)
        self.flatness.setdefault(name, []).append((height.ravel(), np.log(e.sum(-1)).ravel()))
        return e


def _sizes(tokens: Sample) -> Sample:
    return np.ravel(np.sqrt(np.square(tokens).mean(-1)))


def surveyed(
    folded: Folded, config: Config, pictures: Iterable[NDArray[np.uint8]], levers: Levers = Levers()
) -> Folded:
    """Add to a folded network what its integer form needs to know and its function does not depend on.

    `SUM/registers`: the size at which to hold the registers that SUM makes. `WEIGHTS/rise`: slope and end of the
    straight line that tells a third of the logarithm of a row sum by how far the row's maximum lies above its mean.
    `FC1/ceiling` and `FC1/copies`: where an MLP's hidden channels saturate, and which of them to `split`.
    """
    ops, found = _SurveyOps(folded, config), dict(folded)
    for pixels in tqdm(pictures, "surveying", unit="pictures", leave=False):
        segmenter(ops, config, pixels)
    for name, parts in ops.sizes.items() if levers.registers == "held" else ():
        stream, added = map(np.concatenate, zip(*parts, strict=True))
        usual = float(np.median(stream))
        between = config.precise and name.endswith("sum1")  # such a network has both branches added by the next sum
        if added.max() > REGISTER * usual and not between:
            found[f"{name}/registers"] = np.array(HELD * usual)
            break
    for name, parts in ops.flatness.items() if levers.rows == "apart" else ():
        heights, logs = map(np.concatenate, zip(*parts, strict=True))
        slope = -ROOT * float(np.polyfit(heights, logs, 1)[0])
        if slope > 0:
            found[f"{name}/rise"] = np.array([slope, np.quantile(heights, 0.999)])
    for name, widths in ops.widths.items() if levers.hidden == "split" else ():
        wide = np.flatnonzero(widths > WIDE * np.sort(widths)[-10])
        if 0 < len(wide) < 10:
            ceiling = ROOM * float(np.delete(widths, wide).max())
            found[f"{name}/ceiling"] = np.array(ceiling)
            found[f"{name}/copies"] = wide.repeat((ROOM * widths[wide] / ceiling).astype(int)).astype(np.float64)
    return split(found)


def split(folded: Folded) -> Folded:
    """Let hidden channels that are far wider than the rest be several each, which saturate one after the other.

    One channel of one MLP makes the registers, up to thirty times wider than any other, and alone would set the scale
    of all. With a ceiling c for all channels, y is min(y, c) + min(max(y - c, 0), c) + ...: copies of it whose biases
    lie c apart. An activation that is not quite 0 below 0 makes a negligible difference to so large a value.
    """
    found = dict(folded)
    for name in [name.removesuffix("/ceiling") for name in folded if name.endswith("/ceiling")]:
        channels, reader = folded[f"{name}/copies"].astype(int), f"{name[:-1]}2/kernel"
        turns = np.array([(channels[: place + 1] == channel).sum() for place, channel in enumerate(channels)])
        lower = folded[f"{name}/bias"][channels] - folded[f"{name}/ceiling"] * turns
        found[f"{name}/kernel"] = np.hstack([folded[f"{name}/kernel"], folded[f"{name}/kernel"][:, channels]])
        found[f"{name}/bias"] = np.append(folded[f"{name}/bias"], lower)
        found[reader] = np.vstack([folded[reader], folded[reader][channels]])
    return found


def calibrate(
    folded: Folded, config: Config, pictures: Iterable[NDArray[np.uint8]], levers: Levers = Levers()
) -> dict[str, float]:
    """Run the float network on pictures and return the limit of every named result.

    Args:
        folded: the re-parameterised network.
        pictures: 1xHxWx3 uint8 RGB, as `models.preprocess` gives them.
        levers: how the limits are chosen.
    """
    rng = np.random.default_rng(0)
    kept: dict[str, list[Sample]] = {}

    def watch(name: str, values: Any) -> None:
        kept.setdefault(name, []).append(_sample(name, values, rng))

    for pixels in tqdm(pictures, "calibrating", unit="pictures", leave=False):
        floats.scores(folded, config, pixels, watch)
    ranges = tqdm(kept.items(), "ranges", unit="tensors", leave=False)
    limits = {name: _limit(name, np.concatenate(samples), levers, config.activation) for name, samples in ranges}
    ceilings = {name.removesuffix("/ceiling"): float(top) for name, top in folded.items() if name.endswith("/ceiling")}
    smooth = {f"{name}/before": top for name, top in ceilings.items() if f"{name}/before" in limits}
    return limits | ceilings | smooth


def _sample(name: str, values: Any, rng: np.random.Generator) -> Sample:
    last = name.rsplit("/", 1)[-1]
    if last in EXTREMES:
        return np.ravel(values)
    if last in STREAM or last == "squares":
        rows = values.reshape(-1, values.shape[-1])
        return np.asarray(rng.permutation(rows)[:KEPT_TOKENS])
    if last == "scores" and not name.startswith("head"):
        # Scores far below their row's largest become 0 whatever their value: let them be cut off.
        values = values[values > values.max(-1, keepdims=True) + EXP_FLOOR]
    if name == BEST:
        values = np.sort(values, axis=-1)[..., -2:]
    values = np.ravel(values)
    extremes = values[[values.argmin(), values.argmax()]]
    return np.concatenate([rng.choice(values, min(KEPT, values.size)), extremes])


def _limit(name: str, values: Sample, levers: Levers, activation: str) -> float:
    last = name.rsplit("/", 1)[-1]
    if last == "sums":
        return float(values.min()) / HEADROOM
    if last in EXTREMES:
        return float(values.max()) * HEADROOM
    if last == "offsets":  # may be all 0, and are added to scores: a scale far below theirs would leave XNNPACK
        return max(clip_limit(values), 1e-3)
    levels = levers.levels(name, signed=bool(values.min() < 0))
    if levers.ranges == "max":
        return max(float(np.abs(values).max()), 1e-6)
    if last in STREAM and levers.stream == "tokens":
        return _best_limit(values, levels, _token_error)
    if last == "squares":
        return _best_limit(values, levels, _sum_error)
    for part, lowest in zip(("fc1", "before"), LOWEST.get(activation, ()), strict=False):
        if last == part and values.min() < 0:
            shifted = np.maximum(values, np.float32(lowest)) - np.float32(lowest)
            limit = clip_limit(shifted, levers.levels(name, signed=False)) + lowest
            return limit if limit > -lowest else clip_limit(values, levels)
    return clip_limit(values, levels)


def _best_limit(values: Sample, levels: int, error: Callable[[Sample, Sample], float]) -> float:
    largest = max(float(np.abs(values).max()), 1e-6)
    limits = largest * SHARES
    steps = limits / levels
    # Python's own floats leave float32 values float32
    errors = [error(values, np.clip(np.round(values / step), -levels, levels) * step) for step in steps.tolist()]
    return float(limits[int(np.argmin(errors))])


def _token_error(tokens: Sample, rounded: Sample) -> float:
    """Mean relative error of a token: what a norm makes of it, and tokens of unusual size count no more than others."""
    sizes = np.maximum(np.linalg.norm(tokens, axis=-1), TINY)
    return float((np.linalg.norm(rounded - tokens, axis=-1) / sizes).mean())


def _sum_error(squares: Sample, rounded: Sample) -> float:
    """Mean relative error of the row sums."""
    sums = np.maximum(squares.sum(-1), TINY)
    return float((np.abs(rounded.sum(-1) - sums) / sums).mean())


def clip_limit(values: Sample, levels: int = 127) -> float:
    """Return the magnitude at which cutting off costs as much as rounding saves (least squared error)."""
    return _best_limit(values, levels, lambda real, rounded: float(np.square(rounded - real).mean()))


def quantise_kernel(
    kernel: NDArray[np.float64], levers: Levers = Levers()
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Round a kernel [..., out] to int8 with the best scale per output in squared error."""
    flat, most = np.abs(kernel.reshape(-1, kernel.shape[-1])), 2 ** (levers.weight_bits - 1) - 1
    largest = np.maximum(flat.max(0), 1e-9)
    best, scales = np.full(len(largest), np.inf), largest / most
    for share in np.linspace(0.5 if most < 127 else 0.7, 1.0, 16) if levers.kernels == "error" else ():
        step = largest * share / most
        error = np.square(flat - np.minimum(np.round(flat / step), most) * step).sum(0)
        scales = np.where(error < best, step, scales)
        best = np.minimum(error, best)
    scales = scales.astype(np.float32).astype(np.float64)
    return round_kernel(kernel, scales, most), scales


def numbers(
    folded: Folded, config: Config, pictures: Iterable[NDArray[np.uint8]], levers: Levers = Levers()
) -> Quantised:
    """Return the numbers of the integer graph after training: ranges from pictures, weights rounded."""
    folded = surveyed(folded, config, pictures, levers)
    limits = calibrate(folded, config, pictures, levers)
    named = {name.removesuffix("/kernel"): array for name, array in folded.items() if name.endswith("/kernel")}
    progress = tqdm(named.items(), "rounding", unit="kernels", leave=False)
    kernels = {name: quantise_kernel(array, levers) for name, array in progress}
    quantised = Quantised(limits, kernels, folded)
    if levers.rounding == "nearest":
        return quantised
    return rounding.compensated(
        quantised, rounding.moments(folded, config, pictures), 2 ** (levers.weight_bits - 1) - 1
    )
