"""The operators of I-ViT and I-Segmenter in TFLite builtins: Shiftmax, ShiftGELU, I-LayerNorm, residuals in int16.

`ShiftOps` writes the same network as `convert/build.py` with the integer arithmetic of I-ViT (Li and Gu, 2023), to
compare with: shifts, integer divisions and Newton's square root in place of tables and hinges. `LambdaShiftOps` is the
same with lambda-ShiftGELU (I-Segmenter, Sassoon et al. 2025). docs/operators.md goes through them one by one.

int32 everywhere inside; the comments say why nothing overflows. TFLite divides towards zero: in every division below
both signs are the same, so that is the floor.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert import floats
from convert.build import BIAS_LIMIT, IntegerOps
from convert.calibrate import TABLES
from convert.checkpoint import Config
from convert.floats import SIGMOID
from convert.graph import Tensor, constant
from convert.quantised import Quantised

LARGEST = 2**31 - 1  # of int32
SOFTMAX_BITS, GELU_BITS = 15, 23  # powers of two below 1 that ShiftExp tells apart (I-ViT's n)
LAMBDA = 6.0  # lambda-ShiftGELU: where the sigmoid's argument is cut off
SQUARE_ROOT_STEPS, SQUARE_ROOT_START = 10, 2**16  # I-ViT's Newton iteration
COARSE = 5  # bits that a token too large for int32 squares loses
HEADROOM = 1.5  # int16 can spare half a bit for larger tokens than calibration saw
WRITERS = ("proj", "fc2", "input")  # linear layers that write to the residual stream, and the patch embedding
WIDE = ("sum", "sum1", "sum2", *WRITERS)


def widened(quantised: Quantised, config: Config, pictures: Iterable[NDArray[np.uint8]]) -> Quantised:
    """Replace the limits of the residual stream by those of int16: nothing need be cut off there."""
    limits = dict.fromkeys(filter(_is_wide, quantised.limits), 1e-6)
    folded = {name: array for name, array in quantised.folded.items() if not name.endswith(TABLES)}

    def watch(name: str, values: floats.Array) -> None:
        if name in limits:
            limits[name] = max(limits[name], HEADROOM * float(np.abs(values).max()))

    for pixels in tqdm(pictures, "widening", unit="pictures", leave=False):
        floats.scores(folded, config, pixels, watch)
    return replace(quantised, limits={**quantised.limits, **limits}, folded=folded)


def _is_wide(name: str) -> bool:
    return name.rpartition("/")[2] in WIDE or name == "patches"


class ShiftOps(IntegerOps):
    """The steps of `convert/forward.py` by I-ViT's operators; needs `widened` limits."""

    cutoff = math.inf  # of the sigmoid's argument

    def scale(self, name: str) -> float:
        """Return the scale of a symmetric result: int16 in the residual stream, else int8."""
        return float(np.float32(self.limits[name] / 32767)) if _is_wide(name) else super().scale(name)

    def _embedding(self, name: str, scale: float | None = None, dtype: type[np.generic] = np.int8) -> Tensor:
        return super()._embedding(name, scale, np.int16 if name == "position" else dtype)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """I-Segmenter's residual: two int16 tensors, added in int32 and requantised to int16."""
        if not _is_wide(name):
            return super().add(name, x, y)
        return self.graph.add("ADD", (x, y), name, x.shape, np.int16, self.scale(name), potScaleInt16=False)

    def linear(self, name: str, x: Tensor, activation: str | None = None, result: str = "") -> Tensor:
        return self._writer(name, x) if _is_wide(name) else super().linear(name, x, activation, result)

    def _range(self, name: str, lowest: float | None = None) -> dict[str, Any]:
        """Symmetric but after a ReLU, as I-ViT's quantisers are."""
        return super()._range(name, None if lowest else lowest)

    def _writer(self, name: str, x: Tensor) -> Tensor:
        """x W + b requantised from int32 to int16; FULLY_CONNECTED gives int8 only, BATCH_MATMUL the int32 itself.

        QUANTIZE requantises with one scale, so the scales of the outputs are whole multiples of one.
        """
        rows, multiples, base = self._whole_multiples(name, x.step)
        scale = x.step * base
        bias = np.round(self.folded[f"{name}/bias"] / scale) - x.zero_point * rows.sum(-1) * multiples
        weights = constant(f"{name}/rows", rows[np.newaxis], base)
        sums = self._batched(f"{name}/sums", x, weights, scale, np.int32)
        scaled = self._int("MUL", sums, multiples, f"{name}/scaled")
        whole = self._int("ADD", scaled, bias, f"{name}/whole", scale)
        return self.graph.add("QUANTIZE", (whole,), name, whole.shape, np.int16, self.scale(name))

    def _whole_multiples(self, name: str, step: float) -> tuple[NDArray[np.int8], NDArray[np.int64], float]:
        """Return an int8 kernel [out, in], each output's multiple, and the scale they are multiples of.

        The multiples are as fine as leaves every sum, bias included, within int32; `step` is the input's scale.
        """
        kernel, scales = self.folded[f"{name}/kernel"], self.kernels[name][1]
        kernel = kernel.reshape(-1, kernel.shape[-1])
        least = np.abs(self.folded[f"{name}/bias"]).max() / (step * BIAS_LIMIT)
        for finest in (127, 64, 32, 16, 8, 4, 2, 1):
            base = float(np.float32(max(scales.max() / finest, least)))
            multiples = np.maximum(1, np.round(scales / base)).astype(np.int64)
            rows = np.clip(np.round(kernel / (multiples * base)), -127, 127).astype(np.int8).T
            if (np.abs(rows.astype(np.int64)).sum(-1) * multiples).max() * 512 < LARGEST:  # 2 x 255, and the bias
                break
        return np.ascontiguousarray(rows), multiples, base

    def norm(self, name: str, x: Tensor) -> Tensor:
        """I-LayerNorm: sum of squares, Newton's square root, one division for each token.

        The mean is 0: `convert/fold.py` took it out of the weights, as it did with gain and bias.
        """
        y = self._halved(name, self._cast(x, np.int32, f"{name}/wide"))
        variance = self._sum(self._int("MUL", y, y, f"{name}/squares/wide"), f"{name}/variance")
        factor = self._int("DIV", LARGEST, self._square_root(name, variance), f"{name}/inverse")
        # |y| <= floor(sqrt(variance)) <= root, since Newton comes from above: y * factor is within int32
        scaled = self._int("MUL", y, factor, f"{name}/scaled")
        divided = self._int("RIGHT_SHIFT", scaled, 1, f"{name}/divided", x.shape[-1] ** 0.5 / 2**30)
        return self.graph.add("QUANTIZE", (divided,), name, x.shape, scale=self.scale(name))

    def _halved(self, name: str, y: Tensor) -> Tensor:
        """Drop 5 bits of the tokens whose sum of squares might not fit into int32: the norm does not see it."""
        coarse = self._int("RIGHT_SHIFT", y, COARSE, f"{name}/coarse")
        energy = self._sum(self._int("MUL", coarse, coarse, f"{name}/coarse/squares"), f"{name}/energy")
        above = self._int("RIGHT_SHIFT", energy, 30 - 2 * COARSE, f"{name}/above")
        large = self._int("MINIMUM", above, 1, f"{name}/large")  # 0 or 1
        half = self._int("ADD", y, self._int("MUL", large, 2 ** (COARSE - 1), f"{name}/rounding"), f"{name}/raised")
        return self._int("RIGHT_SHIFT", half, self._int("MUL", large, COARSE, f"{name}/bits"), f"{name}/token")

    def _square_root(self, name: str, v: Tensor) -> Tensor:
        """k = (k + v / k) / 2 in integers, from 2**16 down; never below 64 in ten steps, so never 0."""
        k = self._int("DIV", v, SQUARE_ROOT_START, f"{name}/root/first")
        k = self._int("RIGHT_SHIFT", self._int("ADD", k, SQUARE_ROOT_START, f"{name}/root/sum"), 1, f"{name}/root/0")
        for step in range(1, SQUARE_ROOT_STEPS):
            total = self._int(
                "ADD", k, self._int("DIV", v, k, f"{name}/root/{step}/quotient"), f"{name}/root/{step}/sum"
            )
            k = self._int("RIGHT_SHIFT", total, 1, f"{name}/root/{step}")
        return k

    def exp(self, name: str, scores: Tensor) -> Tensor:
        """Shiftmax: int16 weights of scale 2**-15, divided by their row sum already."""
        wide = self._cast(scores, np.int32, f"{name}/wide")
        below = self._int("SUB", wide, self._wide_largest(scores, name), f"{name}/below")
        e = self._shift_exp(f"{name}/exp", below, scores.step, SOFTMAX_BITS, scores.shape[-1])
        factor = self._int("DIV", LARGEST, self._sum(e, f"{name}/total"), f"{name}/inverse")
        return self._int("RIGHT_SHIFT", self._int("MUL", e, factor, f"{name}/scaled"), 16, name, 2.0**-15)

    def divided(self, name: str, x: Tensor, weights: Tensor) -> Tensor:
        return x

    def _wide_largest(self, x: Tensor, name: str) -> Tensor:
        return self._cast(self._reduced("REDUCE_MAX", x, f"{name}/largest"), np.int32, f"{name}/largest/wide")

    def _shift_exp(self, name: str, x: Tensor, step: float, bits: int, terms: int) -> Tensor:
        """exp(step x) for x <= 0 as 2**-q (1 - r / 2): shifts, and one division by a constant.

        Args:
            name: of the result.
            x: int32.
            step: what one of x is worth.
            bits: powers of two to tell apart, fewer where the sum of `terms` results would not fit into int32.
            terms: how many results are added up later.
        """
        one = math.ceil(1 / step)  # -x0 of the paper: the integer that stands for 1
        bits = min(bits, int(math.log2(LARGEST / (terms * one))))
        half = self._int("ADD", x, self._int("RIGHT_SHIFT", x, 1, f"{name}/half"), f"{name}/more")
        base_2 = self._int(
            "SUB", half, self._int("RIGHT_SHIFT", x, 4, f"{name}/sixteenth"), f"{name}/base2"
        )  # x log2 e
        base_2 = self._int("MAXIMUM", base_2, -bits * one, f"{name}/bounded")
        q = self._int("DIV", base_2, -one, f"{name}/quotient")
        r = self._int("ADD", base_2, self._int("MUL", q, one, f"{name}/whole"), f"{name}/rest")  # -one < r <= 0
        line = self._int("ADD", self._int("RIGHT_SHIFT", r, 1, f"{name}/slope"), one, f"{name}/line")
        raised = self._int("MUL", line, 2**bits, f"{name}/raised")
        return self._int("RIGHT_SHIFT", raised, q, name, 1 / (one * 2.0**bits))

    def matmul(self, name: str, a: Tensor, b: Tensor, transpose: bool = False) -> Tensor:
        if not name.endswith("/context"):
            return super().matmul(name, a, b, transpose)
        return self._attend(name.removesuffix("/context"), a, b)

    def _attend(self, name: str, weights: Tensor, v: Tensor) -> Tensor:
        """int16 weights times int8 values, exact in int32, requantised to int8.

        TFLite multiplies equal types only: the weights go in two halves of 8 bits, w = 256 high + (low - 128) + 128.
        """
        high = self._int("RIGHT_SHIFT", weights, 8, f"{name}/high/wide")
        rest = self._int("SUB", weights, self._int("MUL", high, 256, f"{name}/high/scaled"), f"{name}/low/unsigned")
        low = self._int("SUB", rest, 128, f"{name}/low/wide")
        turned = self._transpose(v, (0, 1, 3, 2))
        halves = {part: self._cast(half, np.int8, f"{name}/{part}") for part, half in (("high", high), ("low", low))}
        products = [
            self._batched(f"{name}/{part}/product", half, turned, v.step * 2.0**-15, np.int32)
            for part, half in halves.items()
        ]
        axis = self._shared("axis", np.array([2], np.int32))
        values = self._cast(v, np.int32, f"{name}/values")
        shape = (*v.shape[:2], 1, v.shape[3])
        total = self.graph.add("SUM", (values, axis), f"{name}/values/total", shape, np.int32, keepDims=True)
        offset = self._int("MUL", total, 128, f"{name}/offset")
        upper = self._int("MUL", products[0], 256, f"{name}/upper")
        lower = self._int("ADD", products[1], offset, f"{name}/lower")
        whole = self._int("ADD", upper, lower, f"{name}/whole", v.step * 2.0**-15)
        name = f"{name}/attended"
        return self.graph.add("QUANTIZE", (whole,), name, whole.shape, scale=self.scale(name))

    def smooth(self, name: str, y: Tensor) -> Tensor:
        """x sigmoid(1.702 x), or x sigmoid(x) for SiLU, the sigmoid in 8 bits; 1.702 goes into the scale."""
        step, name_s = (SIGMOID if self.config.activation == "gelu" else 1.0) * y.step, f"{name}/sigmoid"
        x, largest = self._cast(y, np.int32, f"{name_s}/wide"), self._wide_largest(y, name_s)
        if self.cutoff < 127 * step:
            cutoff = int(self.cutoff / step)
            x = self._int("MINIMUM", x, cutoff, f"{name_s}/cut")
            largest = self._int("MINIMUM", largest, cutoff, f"{name_s}/largest/cut")
        # exp(x - m) and exp(-m) must both be at most 1, so m is at least 0 (I-ViT's code has the row's maximum alone)
        m = self._int("MAXIMUM", largest, 0, f"{name_s}/most")
        e = self._shift_exp(f"{name_s}/exp", self._int("SUB", x, m, f"{name_s}/below"), step, GELU_BITS, 2)
        one = self._shift_exp(f"{name_s}/one", self._int("SUB", 0, m, f"{name_s}/least"), step, GELU_BITS, 2)
        factor = self._int("DIV", LARGEST, self._int("ADD", e, one, f"{name_s}/total"), f"{name_s}/inverse")
        sigmoid = self._int("RIGHT_SHIFT", self._int("MUL", e, factor, f"{name_s}/scaled"), 24, f"{name_s}/128")
        narrow = self._cast(sigmoid, np.int8, name_s, 1 / 128)
        return self._multiply(name, y, narrow, self.scale(name))

    def _int(self, kind: str, a: Any, b: Any, name: str, scale: float | None = None) -> Tensor:
        """Append an int32 operator of two inputs; numbers and arrays become constants."""
        a, b = (
            x if isinstance(x, Tensor) else self._shared("number", np.atleast_1d(x).astype(np.int32)) for x in (a, b)
        )
        return self.graph.add(kind, (a, b), name, np.broadcast_shapes(a.shape, b.shape), np.int32, scale)


class LambdaShiftOps(ShiftOps):
    """`ShiftOps` with lambda-ShiftGELU: a bounded argument keeps long tails from taking the sigmoid's resolution.

    That lambda cuts the sigmoid's argument off, and at 6, is a hypothesis: the paper's body could not be read.
    """

    cutoff = LAMBDA


OPERATORS: dict[str, type[IntegerOps]] = {"table": IntegerOps, "shift": ShiftOps, "lambda-shift": LambdaShiftOps}
