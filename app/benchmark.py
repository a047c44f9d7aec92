"""Measure what this device can do: speed and memory of models, threads and runtimes, in one run.

examples:
  python run_demo.py benchmark                                     every shipped model, 1, 2, 4 ... threads
  python run_demo.py benchmark --model person deeplab.tflite --report bench.json bench.csv bench.html
  python run_demo.py benchmark --against float32 dynamic stock-int8 openvino-int8
  python run_demo.py benchmark --best 15                           what reaches 15 FPS, from now on the default

Every row runs in processes of its own, in rounds: a slice of each row after the other, so that what drifts hits all
alike. Times are those of the network alone, its input already set; warm-up is apart.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from app import device, preference, report_page, trial
from app.baselines import AGAINST, Rival, profile, rivals
from app.catalogue import other
from app.live import positive
from app.outputs import begin, write_whole
from app.sustained import sustain
from app.trial import Trial
from models import UserError, catalogue, names, resolve
from models.runtime import cores

ROUNDS = 6
SECONDS = 1.0  # per row and round
NOISY = 0.05  # more difference than this between the halves of a run, or more work of others, makes a machine noisy
SLACK = 0.1  # so does a median that lies further than this above its row's fastest run
RECORDED = ("variant", "runtime", "threads", "median_ms", "p5_ms", "p95_ms", "fps", "load_ms", "rss_mb", "pss_mb",
            "peak_rss_mb", "file_mb")  # fmt: skip


@dataclass
class Row:
    """One line of the table: a file, its runtime and its threads, with what the rounds measured.

    Attributes:
        model: the model that the line belongs to.
        variant: "int8" for our files, the rival's name for what they are compared with, "file" for any other.
        path, engine, threads: what runs: the file, a key of `trial.ENGINES`, CPU threads.
        trials: one a round.
    """

    model: Path
    variant: str
    path: Path
    engine: str
    threads: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """The median milliseconds of each round."""
        return [statistics.median(trial.times_ms) for trial in self.trials]

    @property
    def slack(self) -> float:
        """How far the median of all runs lies above the fastest, relative to that."""
        times = np.concatenate([trial.times_ms for trial in self.trials])
        return float(np.median(times) / times.min()) - 1

    def report(self) -> dict[str, Any]:
        """Return the row as JSON-ready values; `report_page.DEFINITIONS` says what each means."""
        times = np.concatenate([trial.times_ms for trial in self.trials])
        low, middle, high = np.percentile(times, (5, 50, 95)).tolist()
        speed = {"median_ms": middle, "p5_ms": low, "p95_ms": high, "min_ms": float(times.min()), "fps": 1000 / middle}
        slow = {"load_ms": self._middle("load_ms"), "first_ms": self._middle("first_ms")}
        return {
            "model": self.model.stem,
            "variant": self.variant,
            "runtime": self.trials[0].runtime,
            "threads": self.threads,
            **{name: round(value, 3) for name, value in (speed | slow).items()},
            **{f"{name}_mb": self._memory(name) for name in ("rss", "pss", "peak_rss", "before")},
            "file_mb": round(_size(self.path) / 1e6, 2),
            "miou": _score(self.model, self.variant),
            "sha256": catalogue.sha256(self.path),
            "rounds_ms": [round(value, 3) for value in self.medians],
            "times_ms": [round(float(value), 3) for value in times],
        }

    def _middle(self, name: str) -> float:
        return float(statistics.median(getattr(trial, name) for trial in self.trials))

    def _memory(self, name: str) -> float | None:
        values = [value for trial in self.trials if (value := trial.memory_mb[name]) is not None]
        return round(statistics.median(values), 1) if values else None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py benchmark`."""
    add = parser.add_argument
    add("--model", nargs="+", default=[], metavar="MODEL", help="shipped names or .tflite files (default: all shipped)")
    add("--threads", nargs="+", type=positive, metavar="N", help="thread counts (default: 1, 2, 4 ... up to the cores)")
    add("--against", nargs="+", default=[], metavar="RIVAL", help=f"{', '.join(AGAINST)}, or a .tflite file")
    add("--report", nargs="+", type=Path, default=[], metavar="PATH", help="files to write: .json, .csv, .html")
    add("--profile", action="store_true", help="time per operator and block of each model too")
    add("--sustained", type=_amount, metavar="MINUTES", help="then run the first model so long: FPS and temperature")
    add("--best", type=_amount, metavar="FPS", help="pick model and threads that reach so many FPS, and keep them")
    add("--record", action="store_true", help="write the speed into the cards of the models")


def main(args: argparse.Namespace) -> int:
    """Measure, print the table, write what was asked for."""
    models = [resolve(name) for name in args.model or names()]
    if not models:
        raise UserError("No model is there: give one with --model, or put a .tflite file and its card into models/.")
    if len({path.stem for path in models}) < len(models):
        raise UserError("Two of the models have the same name: rename one, rows are told apart by it.")
    threads = args.threads or thread_counts()
    refuse(models, args)
    with tempfile.TemporaryDirectory() as folder:
        rows = plan(models, threads, rivals(models, args.against, Path(folder)))
        profiles = [profile(path, 1) for path in models] if args.profile else []
        report = measure(rows) | ({"profiles": profiles} if profiles else {})
    if args.sustained:
        report["sustained"] = sustain(models[0], max(threads), 60 * args.sustained)
    print(report_page.text(report))
    for path in args.report:
        report_page.write(path, report)
    if args.record:
        record(models, report)
    if args.best:
        print(keep_best(models, report, args.best))
    return 0


def refuse(models: Sequence[Path], args: argparse.Namespace) -> None:
    """Raise `UserError` for what could only fail after minutes of measuring."""
    report_page.check(args.report)
    for path in models if args.record else ():
        if not path.with_suffix(".json").is_file():
            raise UserError(f"{path} has no card to record in: leave out --record, or name only models with a card.")
        begin(path.with_suffix(".json")).unlink()
    if args.best:
        if not competitors(models):
            raise UserError("No model has a score: `--best` chooses among integer files whose card has one.")
        begin(preference.file()).unlink()


def thread_counts() -> list[int]:
    """Return 1, 2, 4 ... up to the cores this process may use, the cores themselves included."""
    return sorted({cores(), *(2**power for power in range(cores().bit_length()))})


def plan(models: Sequence[Path], threads: Sequence[int], against: Iterable[Rival]) -> list[Row]:
    """List the rows to measure, each model's own before its rivals'."""
    compared = list(against)
    rows = []
    for path in models:
        files = [
            (_variant(path), path, "litert"),
            *((r.variant, r.path, r.engine) for r in compared if r.model == path),
        ]
        rows += [Row(path, *file, count) for count in threads for file in files]
    return rows


def measure(rows: Sequence[Row]) -> dict[str, Any]:
    """Run all rounds and return the report, keys as in `report_page.DEFINITIONS`."""
    heat, start, busy, own = device.heat(), time.perf_counter(), device.busy_seconds(), _own_seconds()
    with tqdm(total=ROUNDS * len(rows), unit="slice", leave=False, disable=None) as bar:
        for turn in range(ROUNDS):
            for row in rows if turn % 2 == 0 else reversed(rows):  # a steady drift cancels out of the ratios
                bar.set_description(f"{row.model.stem} {row.variant}, {row.threads} threads")
                row.trials.append(trial.run(row.path, row.threads, SECONDS, row.engine))
                bar.update()
    now = device.busy_seconds()
    available = (os.cpu_count() or 1) * (time.perf_counter() - start)
    others = None if busy is None or now is None else max(0.0, now - busy - (_own_seconds() - own)) / available
    return {
        "device": device.describe(),
        "runtime": rows[0].trials[0].runtime,
        "machine": {"cores": os.cpu_count(), "governor": device.governor(), "before": heat, "after": device.heat()},
        "method": {
            "rounds": ROUNDS,
            "seconds_per_round": SECONDS,
            "warm_up_seconds": trial.WARM_UP_SECONDS,
            "clock_us": round(statistics.median(each.clock_us for row in rows for each in row.trials), 3),
        },
        "noise": noise([row.medians for row in rows], [row.slack for row in rows], others),
        "rows": [row.report() for row in rows],
        "ratios": ratios(rows),
    }


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how many times slower each rival is than the model itself, pair by pair: one pair a round.

    `ratio` is the median of the pairs, `low` and `high` are the smallest and the largest.
    """
    found = []
    for own in (row for row in rows if row.path == row.model):
        for rival in (row for row in rows if (row.model, row.threads) == (own.model, own.threads) and row is not own):
            pairs = [theirs / ours for theirs, ours in zip(rival.medians, own.medians, strict=True)]
            middle, low, high = statistics.median(pairs), min(pairs), max(pairs)
            spread = {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}
            found.append({"model": own.model.stem, "against": rival.variant, "threads": own.threads, **spread})
    return found


def noise(rounds: Sequence[Sequence[float]], slacks: Sequence[float], others: float | None) -> dict[str, Any]:
    """Tell whether the machine was quiet.

    Args:
        rounds: for each row, the median of each round.
        slacks: for each row, how far its median lies above its fastest run: what slows all rounds alike shows there.
        others: the share of the machine's CPU time that other programs took, 0..1; None if not known.

    Returns:
        `drift`: the largest relative difference of any row between the median of its first and of its second half;
        `slack`: the largest; `others`; `noisy`: the first or the last is above 5 %, or the slack above 10 %.
    """
    halves = [(statistics.median(row[: len(row) // 2]), statistics.median(row[len(row) // 2 :])) for row in rounds]
    drift, slack = max(abs(later / earlier - 1) for earlier, later in halves), max(slacks)
    noisy = drift > NOISY or slack > SLACK or (others or 0.0) > NOISY
    rounded = None if others is None else round(others, 4)
    return {"drift": round(drift, 4), "slack": round(slack, 4), "others": rounded, "noisy": noisy}


def record(models: Sequence[Path], report: dict[str, Any]) -> None:
    """Write the rows of each model that has a card into it, under "speed"."""
    for path in models:
        beside = path.with_suffix(".json")
        rows = [{key: row[key] for key in RECORDED} for row in report["rows"] if row["model"] == path.stem]
        pairs = [pair for pair in report["ratios"] if pair["model"] == path.stem]
        shared = {key: report[key] for key in ("device", "runtime", "noise")}
        details = json.loads(beside.read_text()) | {"speed": {**shared, "rows": rows, "ratios": pairs}}
        write_whole(beside, (json.dumps(details, indent=2) + "\n").encode())


def keep_best(models: Sequence[Path], report: dict[str, Any], wanted: float) -> str:
    """Choose the most accurate model that reaches a rate in 19 of 20 frames, make it the default, and say so."""
    paths = competitors(models)
    rows = [row for row in report["rows"] if row["variant"] == "int8" and row["model"] in paths]
    enough = [row for row in rows if 1000 / row["p95_ms"] >= wanted]
    best = max(enough, key=lambda row: (row["miou"], -row["threads"])) if enough else min(rows, key=_slowness)
    path = paths[best["model"]]
    kept = preference.remember(path.stem if path.parent == catalogue.FOLDER else str(path.resolve()), best["threads"])
    told = f"{path.stem} on {best['threads']} threads: {best['fps']:.1f} FPS, mIoU {100 * best['miou']:.1f} %"
    found = "Best" if enough else f"Nothing reaches {wanted:g} FPS here; the fastest"
    return f"{found}: {told}. Now the default ({kept})."


def competitors(models: Iterable[Path]) -> dict[str, Path]:
    """Return the proven models whose card has a score, by name.

    Only those with the classes of the first one compete: scores of different classes cannot be compared.
    """
    found = {path.stem: path for path in models if _variant(path) == "int8" and _score(path, "int8") is not None}
    classes = [_details(path)["classes"] for path in found.values()]
    return {name: path for (name, path), told in zip(found.items(), classes, strict=True) if told == classes[0]}


def _slowness(row: dict[str, Any]) -> float:
    return float(row["p95_ms"])


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def _details(path: Path) -> dict[str, Any]:
    """Return a file's card, or nothing where it has none."""
    beside = path.with_suffix(".json")
    return catalogue.card(path).details if beside.is_file() else {}


def _size(path: Path) -> int:
    """Return the bytes of a model; OpenVINO's weights lie beside its `.xml`."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def _variant(path: Path) -> str:
    return "int8" if _details(path).get("verify", {}).get("integer_only") else "file"


def _score(path: Path, variant: str) -> float | None:
    """Return the mIoU, 0..1, that the card states for the integer file or for the float network."""
    scores = _details(path).get("scores", {})
    told = {"int8": scores, "float32": other(scores, ".npz")}.get(variant) or {}
    return told.get("miou")


def _own_seconds() -> float:
    """Return the CPU seconds of this process and of those it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
