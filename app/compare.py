"""Hold two benchmark reports against each other: two devices, or the same before and after a change.

  python run_demo.py compare before.json after.json

Rows pair by model, variant and threads. A row counts as slower or faster when its median moved by more than 5 % and
further than the rounds of either report lie apart (from the fastest run on, where the machine was noisy). Twice as fast
on the same machine is flagged as too good to be true: look whether the model still does its work. The exit code is 1 if
a row is slower or too good, else 0.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.catalogue import table
from models import UserError

LEAST = 0.05  # smaller changes count as none, however quiet the machine
TOO_GOOD = 2.0  # times faster on the same machine


@dataclass(frozen=True)
class Change:
    """How one row changed: its title, both rows, `speedup` (above 1 is faster) and the verdict in a word or two."""

    title: str
    before: dict[str, Any]
    after: dict[str, Any]
    speedup: float
    verdict: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_demo.py compare`."""
    parser.add_argument("before", type=Path, help="a report of `benchmark --report A.json`")
    parser.add_argument("after", type=Path, help="another one")


def main(args: argparse.Namespace) -> int:
    """Print the comparison; exit with 1 where something is slower or too good to be true."""
    before, after = load(args.before), load(args.after)
    changes = list(compare(before, after))
    if not changes:
        raise UserError("The reports share no row: measure the same models and threads in both.")
    print("\n".join(_origin(path, report) for path, report in ((args.before, before), (args.after, after))) + "\n")
    print(table([("row", "ms", "RSS MB", "speed-up", "verdict"), *map(_words, changes)]))
    return int(any(change.verdict in ("SLOWER", "TOO GOOD TO BE TRUE") for change in changes))


def load(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON report, or raise `UserError` where it is none."""
    try:
        report = json.loads(path.read_text())
        _ = [(row["rounds_ms"], row["min_ms"]) for row in report["rows"]], report["device"], report["noise"]["noisy"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a report of `benchmark --report`.") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{path} is not a benchmark's report: write one with `benchmark --report {path}`.") from None
    return report  # type: ignore[no-any-return]


def compare(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Yield the rows that both reports have."""
    earlier = {_key(row): row for row in before["rows"]}
    for row in after["rows"]:
        if _key(row) in earlier:
            old = earlier[_key(row)]
            speedup = old["median_ms"] / row["median_ms"]
            model, variant, threads = _key(row)
            verdict = judge(_range(old, before), _range(row, after), speedup, before["device"] == after["device"])
            yield Change(f"{model} {variant}, {threads} threads", old, row, speedup, verdict)


def judge(before: list[float], after: list[float], speedup: float, same_device: bool) -> str:
    """Say what a change is worth.

    Args:
        before, after: what each was measured to take, in milliseconds, see `_range`.
        speedup: ratio of the medians, above 1 for faster.
        same_device: both were measured on one machine.
    """
    if max(speedup, 1 / speedup) < 1 + LEAST:
        return "same"
    if min(after) <= max(before) and min(before) <= max(after):
        return "within noise"
    if speedup < 1:
        return "SLOWER"
    return "TOO GOOD TO BE TRUE" if same_device and speedup >= TOO_GOOD else "faster"


def _range(row: dict[str, Any], report: dict[str, Any]) -> list[float]:
    """Return the medians of a row's rounds and, if the machine was noisy, its fastest run: all rounds may be slow."""
    return [*row["rounds_ms"], *[row["min_ms"]] * report["noise"]["noisy"]]


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["variant"], row["threads"]


def _origin(path: Path, report: dict[str, Any]) -> str:
    return f"{path}: {report['device']}, {report['runtime']}{', NOISY' * report['noise']['noisy']}"


def _words(change: Change) -> tuple[str, ...]:
    old, new = change.before, change.after
    memory = [row["rss_mb"] for row in (old, new)]
    note = "" if old["sha256"] == new["sha256"] else " (another file)"
    return (
        change.title,
        f"{old['median_ms']:.1f} -> {new['median_ms']:.1f}",
        "-" if None in memory else f"{memory[0]:.0f} -> {memory[1]:.0f}",
        f"{change.speedup:.2f}x",
        change.verdict + note,
    )
