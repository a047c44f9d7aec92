"""A benchmark's report for people: the table on the terminal, CSV, and a page with plots that needs no network."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from app import device, plots
from app.catalogue import table
from app.outputs import begin, write_whole
from models import UserError

DEFINITIONS = {
    "median_ms, p5_ms, p95_ms, min_ms": "milliseconds of one run of the network, input already set, over all rounds",
    "fps": "1000 / median_ms: what the network alone would reach",
    "load_ms": "opening the file until it can run, median of the rounds",
    "first_ms": "the first run, which is not among the others",
    "rss_mb": device.MEMORY["rss"] + "; each row in processes of its own: Python, NumPy, OpenCV, runtime, one model",
    "pss_mb": device.MEMORY["pss"],
    "peak_rss_mb": device.MEMORY["peak_rss"],
    "before_mb": "RSS of the same process before it opened the file",
    "file_mb": "size of the file, 10^6 bytes",
    "miou": "mean intersection over union that the card states, 0..1",
    "clock_us": "what reading the clock adds to each run, in microseconds",
    "ratio": "milliseconds of the rival / of the model, in the same round: median, smallest and largest of the rounds",
    "drift": "largest difference of a row's median between the first and the second half of the rounds",
    "slack": "how far a row's median lies above its fastest run, the largest of all rows",
    "others": "share of the machine's CPU time that other programs took meanwhile",
}
COLUMNS = ("model", "variant", "threads", "median_ms", "p5_ms", "p95_ms", "min_ms", "fps", "load_ms", "rss_mb",
           "pss_mb", "peak_rss_mb", "file_mb")  # fmt: skip


def text(report: dict[str, Any]) -> str:
    """Word a report for the terminal."""
    parts = [f"{report['device']}\n{report['runtime']}, {_conditions(report)}"]
    parts.append(table(_cells(report["rows"])))
    if report["ratios"]:
        parts.append(table([("model", "against", "threads", "slower", "pairs"), *map(_pair, report["ratios"])]))
    parts += [_profile_text(profile) for profile in report.get("profiles", [])]
    if long := report.get("sustained"):
        parts.append(
            f"{long['model']} for {long['seconds']:.0f} s on {long['threads']} threads: "
            f"burst {long['burst_fps']:.1f} FPS, steady {long['steady_fps']:.1f} FPS"
        )
    return "\n\n".join(parts)


def check(paths: Iterable[Path]) -> None:
    """Refuse paths that cannot be written in the end, before minutes of measuring."""
    for path in paths:
        if path.suffix not in WRITERS:
            raise UserError(f"{path} is no report: end its name in {', '.join(WRITERS)}.")
        begin(path).unlink()


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report as its path's ending says, whole or not at all."""
    write_whole(path, WRITERS[path.suffix](report).encode())


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report | {"definitions": DEFINITIONS}) + "\n"


def _csv(report: dict[str, Any]) -> str:
    rows = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in report["rows"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["device", *rows[0]])
    writer.writeheader()
    writer.writerows({"device": report["device"]} | row for row in rows)
    return text.getvalue()


def html(report: dict[str, Any]) -> str:
    """Return a page of its own: no script, no font, nothing from elsewhere."""
    rows = report["rows"]
    sections = [
        ("Speed and memory", _html_table(_cells(rows))),
        ("Latency", latency(rows)),
        ("Memory", memory(rows)),
        ("Accuracy against latency", _pareto(rows)),
    ]
    if report["ratios"]:
        head = ("model", "against", "threads", "slower", "pairs")
        sections.insert(1, ("Against", _html_table([head, *map(_pair, report["ratios"])])))
    sections += [(f"Operators of {profile['model']}", _profile_html(profile)) for profile in report.get("profiles", [])]
    if long := report.get("sustained"):
        sections.append((f"{long['model']} sustained", _sustained(long)))
    sections.append(("What the figures mean", _html_table(list(DEFINITIONS.items()))))
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections if content)
    told = f"<h1>Benchmark</h1><p>{escape(report['device'])}<br>{escape(report['runtime'])}, {_conditions(report)}</p>"
    start = f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmark</title><style>{STYLE}</style>"
    return f"{start}{told}{body}</html>\n"


WRITERS = {".json": _json, ".csv": _csv, ".html": html}

STYLE = (
    "body{font:14px/1.45 sans-serif;color:#1f2937;max-width:1000px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
    "td,th{padding:3px 7px;border-bottom:1px solid #e5e7eb;text-align:left}"
)


def _conditions(report: dict[str, Any]) -> str:
    machine, method, noise = report["machine"], report["method"], report["noise"]
    words = [
        f"{method['rounds']} rounds of {method['seconds_per_round']:g} s",
        f"reading the clock {method['clock_us']} us",
    ]
    if machine["governor"]:
        words.append(f"governor {machine['governor']}")
    if machine["before"]["temperature_c"] is not None:
        words.append(f"{machine['before']['temperature_c']:.0f} to {machine['after']['temperature_c']:.0f} C")
    if machine["after"]["throttling"]:
        words.append(machine["after"]["throttling"])
    others = "" if noise["others"] is None else f", others took {noise['others']:.0%} of the CPU"
    words.append(
        f"{'NOISY machine' if noise['noisy'] else 'quiet machine'}: medians drift {noise['drift']:.1%}, "
        f"lie up to {noise['slack']:.0%} above the fastest run{others}"
    )
    return "; ".join(words)


def _cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [COLUMNS, *(tuple(_cell(row[column]) for column in COLUMNS) for row in rows)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return "-" if value is None else str(value)


def _pair(pair: dict[str, Any]) -> tuple[str, ...]:
    spread = f"{pair['low']:.2f} to {pair['high']:.2f}"
    return pair["model"], pair["against"], str(pair["threads"]), f"{pair['ratio']:.2f}x", spread


def _title(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['variant']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"


def latency(rows: Sequence[dict[str, Any]]) -> str:
    """Draw how long the runs of each row took, as SVG."""
    return plots.strips([(_title(row), row["times_ms"]) for row in rows], "ms, logarithmic")


def memory(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the memory of each row's process before and with its model, as SVG; "" where the system does not tell."""
    told = [row for row in rows if row["rss_mb"] is not None]
    parts = [(_title(row), [row["before_mb"], row["rss_mb"] - row["before_mb"]]) for row in told]
    return plots.bars(parts, ["before the file was opened", "with it running"], "RSS, MB") if parts else ""


def _pareto(rows: Sequence[dict[str, Any]]) -> str:
    scored = [row for row in rows if row["miou"] is not None]
    groups = {
        name: [
            (r["median_ms"], 100 * r["miou"], f"{r['variant']}, {r['threads']}") for r in scored if r["model"] == name
        ]
        for name in dict.fromkeys(row["model"] for row in scored)
    }
    note = "<p>Left is faster, up is more accurate; models with different classes cannot be compared upwards.</p>"
    return plots.points(list(groups.items()), "ms, logarithmic", "mIoU %", log=True) + note if groups else ""


def _profile_text(profile: dict[str, Any]) -> str:
    rows = [("operator", "count", "ms", "share", "XNNPACK"), *_kinds(profile)]
    return f"{profile['model']} by operator, 1 thread. {profile['method']}\n" + table(rows)


def _profile_html(profile: dict[str, Any]) -> str:
    kinds, blocks = profile["kinds"], profile["blocks"]
    names = ["taken by XNNPACK", "not taken"]
    by_kind = [(kind["name"], [kind["xnnpack_ms"], kind["ms"] - kind["xnnpack_ms"]]) for kind in kinds]
    by_block = [(block["name"], [block["xnnpack_ms"], block["ms"] - block["xnnpack_ms"]]) for block in blocks]
    return f"<p>{escape(profile['method'])}</p>" + plots.bars(by_kind, names, "ms") + plots.bars(by_block, names, "ms")


def _kinds(profile: dict[str, Any]) -> list[tuple[str, ...]]:
    total = sum(kind["ms"] for kind in profile["kinds"])
    return [
        (k["name"], str(k["count"]), f"{k['ms']:.3f}", f"{k['ms'] / total:.1%}", f"{k['xnnpack_ms'] / k['ms']:.0%}")
        for k in profile["kinds"]
    ]


def _sustained(long: dict[str, Any]) -> str:
    points = long["points"]
    told = f"<p>Burst {long['burst_fps']:.1f} FPS (first 10 s), steady {long['steady_fps']:.1f} FPS (last third).</p>"
    heat = [(point["t_s"], point["temperature_c"]) for point in points if point["temperature_c"] is not None]
    drawn = plots.line([(point["t_s"], point["fps"]) for point in points], "s", "FPS")
    return told + drawn + (plots.line(heat, "s", "°C", color=4) if heat else "")


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
