"""The models that can be run: names, input sizes, scores and classes, as their cards tell them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.outputs import write_whole
from app.preference import preferred
from models import Card, UserError, card, names

BEGIN, END = "<!-- models: written by `make readme` -->", "<!-- end of models -->"
VARIANTS = ("float32", "dynamic", "int8")  # whose speed stands side by side, ours last


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py models`."""
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"put the table of figures after {BEGIN} in FILE")


def main(args: argparse.Namespace) -> int:
    """Print one line per shipped model, or write their figures into a page."""
    known = [card(name) for name in names()]
    if not known:
        raise UserError("No model is there: put a .tflite file and its .json card into models/.")
    if args.readme:
        rewrite(args.readme, markdown(known))
        return 0
    print(table([("model", "input", "MB", "mIoU", "classes"), *map(line, known)]))
    print(f"\nRun one with `python run_demo.py --model NAME`; the default is {preferred()[0]}.")
    return 0


def line(told: Card) -> tuple[str, ...]:
    """Word one model's card: name, input size, file size, int8 score in percent, classes; what it lacks is "-"."""
    score = told.details.get("scores", {}).get("miou")
    return (
        told.name,
        _size(told),
        f"{told.file.stat().st_size / 1e6:.1f}",
        "-" if score is None else f"{100 * score:.1f}",
        ", ".join(info.name for info in told.classes[1:]),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of words into columns, the last one as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(cards: Sequence[Card]) -> str:
    """Word the cards' scores and speeds as a Markdown table, what they were measured on under it."""
    head = ("model", "finds", "input", "parameters", "mIoU float", "PTQ", "QAT", "ms float32 / dynamic / **ours**",
            "times faster", "peak MB", "file MB")  # fmt: skip
    rows = [head, ("---",) * len(head), *map(_figures, cards)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *_shared_notes(cards)])


def rewrite(page: Path, text: str) -> None:
    """Put a text between the two markers of a page, written whole or not at all."""
    try:
        before, begin, rest = page.read_text().partition(BEGIN)
    except OSError as error:
        raise UserError(f"{page} cannot be read ({error.strerror}): name the page that the table belongs to.") from None
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{page} lacks the line '{BEGIN}' or '{END}': write both where the table belongs.")
    write_whole(page, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def _figures(told: Card) -> tuple[str, ...]:
    scores, speed = told.details.get("scores", {}), told.details.get("speed", {})
    rows = {(row["threads"], row["variant"]): row for row in speed.get("rows", [])}
    ratios = {(pair["threads"], pair["against"]): f"{pair['ratio']:.2f}x" for pair in speed.get("ratios", [])}
    threads = sorted({count for count, _ in rows})
    tuned = told.details.get("calibration", {}).get("method") == "quantisation-aware"
    return (
        f"[{told.name}](models/{told.file.stem}.json)",
        ", ".join(info.name for info in told.classes[1:]),
        _size(told),
        f"{told.details['parameters'] / 1e6:.1f} M" if "parameters" in told.details else "-",
        _percent(other(scores, ".npz")),
        *(map(_percent, (other(scores, ".tflite"), scores) if tuned else (scores, None))),
        "<br>".join(f"{_ours_bold(rows, 'median_ms', '.1f', count)}, {_threads(count)}" for count in threads) or "-",
        "<br>".join(" / ".join(ratios.get((count, name), "-") for name in VARIANTS[:-1]) for count in threads) or "-",
        "<br>".join(_ours_bold(rows, "peak_rss_mb", ".0f", count) for count in threads) or "-",
        f"{told.file.stat().st_size / 1e6:.1f}",
    )


def _ours_bold(rows: dict[tuple[int, str], Any], key: str, digits: str, threads: int) -> str:
    """Put a figure of all variants side by side."""
    found = [rows.get((threads, name)) for name in VARIANTS]
    *others, own = ["-" if row is None else format(row[key], digits) for row in found]
    return " / ".join([*others, f"**{own}**"])


def _shared_notes(cards: Sequence[Card]) -> list[str]:
    """Say each note once, and of which models it is if not of all."""
    notes: dict[str, list[str]] = {}
    for told in cards:
        for note in _notes(told):
            notes.setdefault(note, []).append(told.name)
    return [note if len(names) == len(cards) else f"{', '.join(names)}: {note}" for note, names in notes.items()]


def _notes(told: Card) -> list[str]:
    scores, speed = told.details.get("scores"), told.details.get("speed")
    notes = []
    if speed:
        against = " ".join(dict.fromkeys(pair["against"] for pair in speed["ratios"]))
        compared = f" --against {against}", "; those are TensorFlow's exports of the same network with GELU"
        options, meaning = compared if against else ("", "")
        notes.append(
            f"Speed and memory of the network alone on {speed['device']}, {speed['runtime']}, by "
            f"`python run_demo.py benchmark{options} --record`{meaning}."
        )
        if speed["noise"]["noisy"]:
            notes.append("The machine was noisy meanwhile: the ratios, taken pair by pair, say more than milliseconds.")
    if scores:
        notes.append(f"mIoU on {scores['images']} pictures of {scores['data']}, by `python -m convert evaluate`.")
    return notes


def _size(told: Card) -> str:
    size = told.details.get("input")
    return f"{size['width']}x{size['height']}" if size else "-"


def other(scores: dict[str, Any], suffix: str) -> dict[str, Any] | None:
    """Find what the card's file was scored against: the float network's .npz, or the .tflite without fine-tuning."""
    return next((side for side in scores.get("against", []) if side["file"].endswith(suffix)), None)


def _percent(scores: dict[str, Any] | None) -> str:
    return f"{100 * scores['miou']:.1f}" if scores else "-"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"
