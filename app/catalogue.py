"""The models that can be run: names, input sizes, scores and classes, as their cards tell them."""

import argparse
from collections.abc import Sequence

from models import DEFAULT, UserError, card, names


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py models`: there are none."""


def main(args: argparse.Namespace) -> int:
    """Print one line per shipped model."""
    known = names()
    if not known:
        raise UserError("No model is there: put a .tflite file and its .json card into models/.")
    print(table([("model", "input", "MB", "IoU", "classes"), *(line(name) for name in known)]))
    print(f"\nRun one with `python run_demo.py --model NAME`; the default is {DEFAULT}.")
    return 0


def line(name: str) -> tuple[str, ...]:
    """Word one model's card: name, input size, file size, int8 score in percent, classes; what it lacks is "-"."""
    told = card(name)
    size, scores = told.details.get("input", {}), told.details.get("scores", {})
    score = scores.get("int8", {}).get("miou")
    return (
        name,
        f"{size['width']}x{size['height']}" if size else "-",
        f"{told.file.stat().st_size / 1e6:.1f}",
        f"{100 * score:.1f}" if score is not None else "-",
        ", ".join(info.name for info in told.classes[1:]),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of words into columns, the last one as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
