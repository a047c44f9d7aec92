"""The ablation table as a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

NOTES = {
    "Float": "The trained network in float32. Everything below is compared with its first row.",
    "Operators": "After training, 16 calibration pictures. [operators.md](operators.md) says what the operators are.",
    "Resolution of the classes": (
        "Scores averaged over a patch's sub-patches, which the mean of their templates gives exactly: it is the same "
        "network, not one trained for one class in each patch."
    ),
    "Calibration": "The first row of the operators with one thing changed.",
    "Widths, simulated": (
        "Weights (W) and what enters a matrix product (A) rounded to fewer bits in the float network. The residual "
        "stream, the inside of norms, attention's scores keep 8. W8A8 checks the simulation: it should be the "
        "first row of the operators."
    ),
    "Files": "Ready-made files, for instance fine-tuned ones.",
}


@dataclass(frozen=True)
class Row:
    """A line of the table: mIoU (0..1) for each draw; for a file, median ms on one and two threads, and its size."""

    group: str
    name: str
    miou: tuple[float, ...]
    ms: tuple[float, ...] = ()
    megabytes: float | None = None


def page(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the Markdown page.

    Args:
        about: `checkpoint`, `data`, `images`, `size`, `activation`, `seeds`, `device`, `runtime`.
        rows: grouped, the float network first.
    """
    reference = fmean(rows[0].miou)
    parts = [_heading(about)]
    for group in dict.fromkeys(row.group for row in rows):
        lines = [f"## {group}", NOTES[group], _table(reference, [row for row in rows if row.group == group])]
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _heading(about: Mapping[str, Any]) -> str:
    return (
        "# What each decision is worth\n\n"
        f"Written by `python -m convert ablate`: `{about['checkpoint']}` at {about['size']}, "
        f"{about['activation']} in the "
        f"MLP, scored on {about['images']} pictures of {about['data']}. Rows that chance has a part in (calibration "
        f"pictures, rotation) are the mean of {about['seeds']} draws, with the lowest and the highest. Milliseconds "
        f"are medians on one and on two threads of {about['device']}, {about['runtime']}: nothing here ran on a board."
    )


def _table(reference: float, rows: Iterable[Row]) -> str:
    lines = [
        "| | mIoU | against float | lowest to highest | ms, 1 thread | 2 threads | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean = fmean(row.miou)
        spread = f"{100 * min(row.miou):.2f} - {100 * max(row.miou):.2f}" if len(row.miou) > 1 else ""
        times = [f"{ms:.1f}" for ms in row.ms] or ["", ""]
        size = "" if row.megabytes is None else f"{row.megabytes:.1f}"
        cells = (row.name, f"{100 * mean:.2f}", f"{100 * (mean - reference):+.2f}", spread, *times, size)
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines)
