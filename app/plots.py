"""Plots as SVG text, for pages that must show without a network: strips, bars, points, lines."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, ROW = 480, 40  # pixels of a plot, which a phone has nearly, and of one row: a name with its bar below
LEFT, UPRIGHT = 8, 60  # pixels left of a plot, and of one with an axis upwards
INK, FAINT = "#1f2937", "#d1d5db"
COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#a16207")


def strips(rows: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """Draw how values spread, a row per name: the darker, the more values; a tick at the median. The axis is log."""
    values = np.concatenate([np.asarray(values) for _, values in rows])
    axis = _Axis(float(values.min()) * 0.95, float(values.max()) * 1.05, log=True)
    edges = np.geomspace(axis.low, axis.high, 121)
    parts = [axis.draw(len(rows) * ROW, unit)]
    for place, (name, own) in enumerate(rows):
        counts = np.histogram(own, edges)[0]
        parts.append(_name(name, place))
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            if count:
                shade = 0.15 + 0.85 * count / counts.max()
                parts.append(_box(axis.at(left), place, axis.at(right) - axis.at(left), COLORS[0], opacity=shade))
        parts.append(_box(axis.at(float(np.median(own))) - 1, place, 2, COLORS[4]))
    return _svg(parts, len(rows) * ROW)


def bars(rows: Sequence[tuple[str, Sequence[float]]], parts_named: Sequence[str], unit: str) -> str:
    """Draw stacked bars from zero, a row per name; `parts_named` says what the pieces of each bar are."""
    axis = _Axis(0.0, max(sum(values) for _, values in rows) * 1.12 or 1.0)
    parts = [axis.draw(len(rows) * ROW, unit)]
    for place, (name, values) in enumerate(rows):
        parts.append(_name(name, place))
        start = 0.0
        for value, color in zip(values, COLORS, strict=False):
            parts.append(_box(axis.at(start), place, axis.at(start + value) - axis.at(start), color))
            start += value
        parts.append(_text(axis.at(start) + 4, place * ROW + 32, f"{start:.3g}"))
    return _svg(parts, len(rows) * ROW) + _legend(parts_named)


def points(groups: Sequence[tuple[str, Sequence[tuple[float, float, str]]]], x: str, y: str, log: bool = False) -> str:
    """Draw named points (x, y, name) in groups of one colour each."""
    every = [point for _, group in groups for point in group]
    across = _Axis(*_reach([point[0] for point in every], log), log=log, start=UPRIGHT)
    up = _Axis(*_reach([point[1] for point in every]), start=300, end=20)
    parts = [across.draw(300, x), up.draw_upright(y)]
    for (_, group), color in zip(groups, COLORS * len(groups), strict=False):
        for left, height, name in group:
            place = f'cx="{across.at(left):.1f}" cy="{up.at(height):.1f}"'
            parts.append(f'<circle {place} r="5" fill="{color}"/>')
            parts.append(_text(across.at(left) + 8, up.at(height) + 4, name))
    return _svg(parts, 300) + _legend([name for name, _ in groups])


def line(values: Sequence[tuple[float, float]], x: str, y: str, color: int = 0) -> str:
    """Draw one line through (x, y) values; the y axis starts at zero."""
    across = _Axis(0.0, max(point[0] for point in values) or 1.0, start=UPRIGHT)
    up = _Axis(0.0, max(point[1] for point in values) * 1.1 or 1.0, start=200, end=10)
    path = " ".join(f"{across.at(left):.1f},{up.at(height):.1f}" for left, height in values)
    drawn = f'<polyline points="{path}" fill="none" stroke="{COLORS[color]}" stroke-width="2"/>'
    return _svg([across.draw(200, x), up.draw_upright(y), drawn], 200)


class _Axis:
    """From values to pixels, linear or logarithmic, with round marks."""

    def __init__(
        self, low: float, high: float, log: bool = False, start: float = LEFT, end: float = WIDTH - 40
    ) -> None:
        self.low, self.high, self.log, self.start, self.end = low, high, log, start, end

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def marks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [digit * 10.0**power for power in powers for digit in (1, 1.5, 2, 3, 5, 7)]
        else:
            rough = (self.high - self.low) / 5
            step = 10 ** math.floor(math.log10(rough))
            step = next(step * digit for digit in (1, 2, 5, 10) if step * digit >= rough)
            marks = [step * count for count in range(math.ceil(self.low / step), int(self.high / step) + 1)]
        return [mark for mark in marks if self.low <= mark <= self.high]

    def draw(self, height: float, title: str) -> str:
        """Draw the axis across, under a plot of the given height."""
        lines = [
            f'<line x1="{self.at(m):.1f}" x2="{self.at(m):.1f}" y1="0" y2="{height}" stroke="{FAINT}"/>'
            + _text(self.at(m), height + 16, f"{m:g}", "middle")
            for m in self.marks()
        ]
        return "".join(lines) + _text((self.start + self.end) / 2, height + 34, title, "middle")

    def draw_upright(self, title: str) -> str:
        """Draw the axis upwards, at the left of a plot."""
        lines = [
            f'<line x1="{UPRIGHT}" x2="{WIDTH - 40}" y1="{self.at(m):.1f}" y2="{self.at(m):.1f}" stroke="{FAINT}"/>'
            + _text(UPRIGHT - 8, self.at(m) + 4, f"{m:g}", "end")
            for m in self.marks()
        ]
        return "".join(lines) + _text(4, self.end + 4, title)


def _reach(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.6
    margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _svg(parts: Sequence[str], height: float) -> str:
    size = f'viewBox="0 0 {WIDTH} {height + 44}" style="width: 100%; max-width: {1.5 * WIDTH:g}px"'
    head = f'<svg {size} role="img" font-size="13" font-family="sans-serif">'
    return head + "".join(parts) + "</svg>"


def _legend(names: Sequence[str]) -> str:
    boxes = (
        f'<b style="color:{color}">■</b> {escape(name)}'
        for name, color in zip(names, COLORS * len(names), strict=False)
    )
    return f"<p>{' &nbsp; '.join(boxes)}</p>"


def _name(name: str, place: int) -> str:
    return _text(LEFT, place * ROW + 14, name)


def _box(left: float, place: int, width: float, color: str, opacity: float = 1.0) -> str:
    size = f'x="{left:.1f}" y="{place * ROW + 19}" width="{max(width, 0.5):.1f}" height="{ROW - 22}"'
    return f'<rect {size} fill="{color}" fill-opacity="{opacity:.2f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'
