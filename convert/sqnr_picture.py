"""Draw what `convert/sqnr.py` found as SVG: every tensor from the picture to the scores, and the worst by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, TOP, PLOT = 1120, 60, 84, 320  # pixels; PLOT is the height of the diagram
STRIP = 70  # pixels of the clipping strip below it
CEILING = 60.0  # dB at the top
WORST, LINE = 12, 19  # tensors named below, pixels of a line
FULL = 0.01  # share clipped that fills the strip
INK, FAINT, TOTAL, ALONE, RED = "#1c202a", "#747a84", "#0f766e", "#94a3b8", "#dc2626"


@dataclass(frozen=True)
class Row:
    """One tensor: SQNR of the whole network up to it and of its own rounding, in dB, and the share (0..1) clipped."""

    name: str
    total: float
    alone: float
    clipped: float


def draw(title: str, rows: Sequence[Row]) -> str:
    """Return an SVG document.

    Args:
        title: what was compared.
        rows: the tensors, in the order of the network.
    """
    step = (WIDTH - LEFT - 20) / max(1, len(rows))
    below = TOP + PLOT + STRIP + 64
    worst = sorted(rows, key=lambda row: row.total)[:WORST]
    parts = [*_heading(title), *_grid(), *_blocks(rows, step)]
    for place, row in enumerate(rows):
        x = LEFT + step * (place + 0.5)
        parts += [_dot(x, row.alone, ALONE, row), _dot(x, row.total, TOTAL, row)]
        if row.clipped:
            tall = STRIP * min(1.0, row.clipped / FULL)
            parts.append(
                f'<rect x="{x - step / 2:.1f}" y="{TOP + PLOT + STRIP - tall:.1f}" width="{max(1.0, step):.1f}" '
                f'height="{tall:.1f}" fill="{RED}"/>'
            )
    parts += _named(worst, below)
    height = below + LINE * (len(worst) + 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _text(x: float, y: float, text: str, fill: str = INK, **more: str) -> str:
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}"{extra}>{escape(text)}</text>'


def _y(decibels: float) -> float:
    return TOP + PLOT * (1 - min(max(decibels, 0.0), CEILING) / CEILING)


def _dot(x: float, decibels: float, fill: str, row: Row) -> str:
    about = f"{row.name}: total {row.total:.1f} dB, alone {row.alone:.1f} dB, clipped {row.clipped:.3%}"
    return f'<circle cx="{x:.1f}" cy="{_y(decibels):.1f}" r="3" fill="{fill}"><title>{escape(about)}</title></circle>'


def _heading(title: str) -> list[str]:
    parts = [_text(16, 28, f"Where the accuracy goes: {title}", font_size="19", font_weight="bold")]
    x = 16.0
    for color, words in (
        (TOTAL, "total: the networks up to this tensor differ by"),
        (ALONE, "alone: what rounding this tensor would cost"),
        (RED, f"clipped, full bar {FULL:.0%}"),
    ):
        parts += [f'<circle cx="{x + 5:.0f}" cy="48" r="5" fill="{color}"/>', _text(x + 16, 53, words, FAINT)]
        x += 40 + 6.6 * len(words)
    return parts


def _grid() -> list[str]:
    parts = []
    for decibels in range(0, int(CEILING) + 1, 10):
        y = _y(decibels)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{decibels} dB", FAINT, text_anchor="end"))
    parts.append(_text(LEFT - 8, TOP + PLOT + STRIP, "clipped", FAINT, text_anchor="end"))
    return parts


def _blocks(rows: Sequence[Row], step: float) -> list[str]:
    """Rule off the blocks of the network and write their names below."""
    parts: list[str] = []
    before, free = "", 0.0  # where the next name finds room
    for place, row in enumerate(rows):
        stream, _, rest = row.name.partition("/")
        block = f"{stream[:3]} {rest.split('/')[0]}" if rest[:1].isdigit() else stream
        if block != before:
            x = LEFT + step * place
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + PLOT + STRIP}" stroke="#cbd5e1"/>')
            if x >= free:
                parts.append(_text(x + 4, TOP + PLOT + STRIP + 18, block, FAINT, font_size="11"))
                free = x + 7 * len(block) + 8
        before = block
    return parts


def _named(worst: Sequence[Row], top: float) -> list[str]:
    columns = ((16, "start"), (420, "end"), (520, "end"), (640, "end"))
    cells = [("the worst", "total dB", "alone dB", "clipped")]
    cells += [(row.name, f"{row.total:.1f}", f"{row.alone:.1f}", f"{row.clipped:.3%}") for row in worst]
    return [
        _text(x, top + LINE * line, cell, INK if line else FAINT, text_anchor=anchor)
        for line, row in enumerate(cells)
        for cell, (x, anchor) in zip(row, columns, strict=True)
    ]
