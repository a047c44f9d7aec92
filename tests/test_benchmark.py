"""benchmark, compare and profile: figures from known times, and real processes on the tiny model."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_demo
from app import baselines, benchmark, device, preference, report_page, sustained, trial
from app.benchmark import Row
from app.compare import compare, judge
from app.trial import Trial
from convert.profile import profile
from models import UserError, catalogue
from models.runtime import cores

KEYS = {"model", "variant", "threads", "median_ms", "p95_ms", "fps", "rss_mb", "peak_rss_mb", "file_mb"}


def trial_of(*times: float) -> Trial:
    memory: dict[str, float | None] = {"rss": 80.0, "pss": 70.0, "peak_rss": 90.0, "before": 50.0}
    return Trial("ai-edge-litert 1", list(times), load_ms=5.0, first_ms=9.0, memory_mb=memory, clock_us=0.2)


@pytest.fixture
def shipped(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models: "fine", 60 % mIoU, and "rough", 50 %; the settings of this user are out of reach."""
    for name, score in (("fine", 0.6), ("rough", 0.5)):
        (tmp_path / f"{name}.tflite").write_bytes(tiny.read_bytes())
        card = json.loads(tiny.with_suffix(".json").read_text())
        card |= {"name": name, "verify": {"integer_only": True}}
        card["scores"] = {"images": 9, "data": "here", "miou": score, "against": [{"file": "a.npz", "miou": 0.65}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of processes: "fine" takes 40 ms, "rough" 10 ms, others 100 ms, half of it on two threads."""
    order: list[tuple[str, int]] = []

    def run(path: Path, threads: int, seconds: float, engine: str) -> Trial:
        order.append((path.stem, threads))
        middle = {"fine": 40.0, "rough": 10.0}.get(path.stem, 100.0) / threads
        return trial_of(middle * 0.9, middle, middle * 1.1)

    monkeypatch.setattr(trial, "run", run)
    monkeypatch.setattr(device, "busy_seconds", lambda: None)
    return order


def bench(*words: object) -> int:
    return run_demo.main(["benchmark", *map(str, words)])


def test_a_row_states_what_its_rounds_measured(tiny: Path) -> None:
    row = Row(tiny, "file", tiny, "litert", 2, [trial_of(1, 2, 3), trial_of(4, 5, 6)])
    told = row.report()
    assert told["rounds_ms"] == [2, 5] and told["times_ms"] == [1, 2, 3, 4, 5, 6]
    assert told["median_ms"] == 3.5 and told["min_ms"] == 1 and told["fps"] == round(1000 / 3.5, 3)
    assert told["p5_ms"] == round(float(np.percentile([1, 2, 3, 4, 5, 6], 5)), 3)
    assert (told["rss_mb"], told["pss_mb"], told["peak_rss_mb"], told["before_mb"]) == (80, 70, 90, 50)
    assert told["sha256"] == catalogue.sha256(tiny) and told["file_mb"] == round(tiny.stat().st_size / 1e6, 2)


def test_memory_that_the_system_does_not_tell_stays_unknown(tiny: Path) -> None:
    unknown = replace(trial_of(1.0), memory_mb=dict.fromkeys(("rss", "pss", "peak_rss", "before")))
    assert Row(tiny, "file", tiny, "litert", 1, [unknown]).report()["rss_mb"] is None


def test_rounds_go_there_and_back_through_all_rows(shipped: Path, timed: list[tuple[str, int]]) -> None:
    assert bench("--threads", 1, 2) == 0
    there = [("fine", 1), ("fine", 2), ("rough", 1), ("rough", 2)]
    assert timed == (there + there[::-1]) * (benchmark.ROUNDS // 2)


def test_ratios_pair_the_rounds(tiny: Path) -> None:
    own = Row(tiny, "int8", tiny, "litert", 1, [trial_of(10), trial_of(20), trial_of(10)])
    other = Row(tiny, "float32", tiny.with_name("other"), "litert", 1, [trial_of(30), trial_of(40), trial_of(25)])
    elsewhere = Row(tiny, "float32", tiny.with_name("other"), "litert", 2, [trial_of(1)] * 3)
    (pair,) = benchmark.ratios([own, other, elsewhere])
    assert (pair["against"], pair["threads"]) == ("float32", 1)
    assert (pair["ratio"], pair["low"], pair["high"]) == (2.5, 2.0, 3.0)  # of 3, 2 and 2.5


@pytest.mark.parametrize(
    ("rounds", "slack", "others", "noisy"),
    [
        ([[10, 10, 10, 10]], 0.0, 0.0, False),
        ([[10, 10, 10.4, 10.4]], 0.09, None, False),
        ([[10, 10, 10, 10], [10, 10, 10.6, 10.6]], 0.0, 0.0, True),  # the second row drifts by 6 %
        ([[10, 10, 9.4, 9.4]], 0.0, 0.0, True),  # and so does what gets faster
        ([[10, 10, 10, 10]], 0.0, 0.06, True),
        ([[10, 10, 10, 10]], 0.11, 0.0, True),  # all rounds are slow alike
    ],
)
def test_noise_is_drift_or_slack_or_work_of_others(
    rounds: list[list[float]], slack: float, others: float | None, noisy: bool
) -> None:
    assert benchmark.noise(rounds, [0.0, slack], others)["noisy"] is noisy


def test_threads_double_up_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, wanted in ((1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])):
        monkeypatch.setattr(benchmark, "cores", lambda count=count: count)
        assert benchmark.thread_counts() == wanted
    assert cores() >= 1


def test_reports_as_json_csv_and_page(shipped: Path, timed: list[tuple[str, int]], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "float32.tflite"
    other.parent.mkdir()
    other.write_bytes((shipped / "fine.tflite").read_bytes())
    paths = [tmp_path / f"r{ending}" for ending in (".json", ".csv", ".html")]
    assert bench("--threads", 1, "--against", other, "--report", *paths) == 0
    report = json.loads(paths[0].read_text())
    assert {"device", "rows", "definitions"} <= set(report) and all(set(row) >= KEYS for row in report["rows"])
    assert [(row["model"], row["variant"], row["miou"]) for row in report["rows"]] == [
        ("fine", "int8", 0.6), ("fine", "float32", 0.65), ("rough", "int8", 0.5), ("rough", "float32", 0.65),
    ]  # fmt: skip
    assert [pair["ratio"] for pair in report["ratios"]] == [2.5, 10.0]
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert [row["median_ms"] for row in rows] == ["40.0", "100.0", "10.0", "100.0"] and rows[0]["device"]
    page = paths[2].read_text()
    assert page.count("<svg") == 3 and "http://" not in page and "https://" not in page and "<script" not in page
    assert "2.50x" in page and report["device"].split(",")[0].split("(")[0] in page


def test_the_page_shows_profile_and_sustained_run() -> None:
    entry = {"name": "MUL", "count": 2, "ms": 2.0, "xnnpack_ms": 1.0}
    told = {"model": "fine", "method": "cut out", "kinds": [entry], "blocks": [entry | {"name": "encoder/0"}]}
    assert report_page._profile_html(told).count("<svg") == 2
    assert "50%" in report_page._profile_text(told)
    point = {"t_s": 5.0, "fps": 20.0, "temperature_c": 61.0, "throttling": ""}
    long = {"points": [point, point | {"t_s": 10.0}], "burst_fps": 21.0, "steady_fps": 19.0}
    assert report_page._sustained(long).count("<svg") == 2
    cold = {**long, "points": [point | {"temperature_c": None}]}
    assert report_page._sustained(cold).count("<svg") == 1


def test_best_takes_the_most_accurate_that_is_fast_enough(
    shipped: Path, timed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    # "fine" reaches 1000 / 44 ms on one thread and the double on two, "rough" 1000 / 11 ms and the double
    for wanted, kept in ((20, ("fine", 1)), (40, ("fine", 2)), (80, ("rough", 1)), (999, ("rough", 2))):
        assert bench("--threads", 1, 2, "--best", wanted) == 0
        assert preference.preferred() == kept
    assert "Nothing reaches 999 FPS here" in capsys.readouterr().out
    (shipped / "rough.tflite").unlink()
    assert preference.preferred() == (catalogue.DEFAULT, None)  # a model that is gone is nobody's default


def test_record_writes_the_cards(shipped: Path, timed: list[tuple[str, int]]) -> None:
    assert bench("--threads", 1, "--record") == 0
    speed = json.loads((shipped / "rough.json").read_text())["speed"]
    assert speed["device"] == device.describe() and [row["median_ms"] for row in speed["rows"]] == [10.0]
    assert "times_ms" not in speed["rows"][0]


def test_one_real_process_measures_time_and_its_own_memory(tiny: Path) -> None:
    measured = trial.run(tiny, threads=1, seconds=0.01)
    assert len(measured.times_ms) >= trial.LEAST_RUNS and min(measured.times_ms) > 0
    assert measured.runtime.partition(" ")[0] in ("ai-edge-litert", "tflite-runtime", "tensorflow")
    memory = measured.memory_mb
    if memory["rss"] is not None:  # where the system tells
        assert memory["before"] <= memory["rss"] <= memory["peak_rss"]


def test_a_sustained_run_keeps_burst_and_steady_apart(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0.0, 1e6, 0.5).tolist())  # every look at the clock takes half a second
    monkeypatch.setattr(sustained.time, "perf_counter", lambda: next(clock))
    told = sustained.sustain(tiny, threads=1, seconds=30, every=5)
    assert told["seconds"] >= 30 and len(told["points"]) >= 5
    assert told["burst_fps"] > 0 and told["steady_fps"] > 0
    assert set(told["points"][0]) == {"t_s", "fps", "temperature_c", "throttling"}


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "nothing"],
        ["--model", "README.md"],
        ["--model", "fine", "{folder}/twin/fine.tflite"],
        ["--report", "report.pdf"],
        ["--report", "{folder}/fine.json/report.json"],
        ["--against", "tensorrt"],
        ["--against", "missing.tflite"],
        ["--model", "{folder}/twin/fine.tflite", "--against", "float32"],
        ["--model", "{folder}/twin/fine.tflite", "--record"],
        ["--model", "{folder}/twin/fine.tflite", "--best", "10"],
        ["--model", "{folder}/unproven.tflite", "--best", "10"],
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 2)
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    if "README.md" not in words:  # a file that only its runtime refuses
        monkeypatch.setattr(benchmark, "measure", lambda rows: pytest.fail("minutes of measuring before the error"))
    (shipped / "unproven.tflite").write_bytes((shipped / "fine.tflite").read_bytes())
    details = json.loads((shipped / "fine.json").read_text()) | {"verify": {}}
    (shipped / "unproven.json").write_text(json.dumps(details))
    (shipped / "twin").mkdir()
    (shipped / "twin" / "fine.tflite").write_bytes((shipped / "fine.tflite").read_bytes())
    assert bench("--threads", 1, *(word.format(folder=shipped) for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and error.endswith(".") and "Traceback" not in error


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "many"])
def test_amounts_are_above_zero(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bench(f"--best={word}")
    assert stop.value.code == 2 and "not a number above 0" in capsys.readouterr().err


def test_rivals_come_from_the_converter_as_a_command(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def convert(*words: str) -> str:
        calls.append(words)
        Path(words[words.index("-o") + 1]).write_bytes(b"made")
        return ""

    details = json.loads((shipped / "fine.json").read_text()) | {"network": {"depth": 1}}
    (shipped / "fine.json").write_text(json.dumps(details))
    monkeypatch.setattr(baselines, "convert", convert)
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: name)  # all is installed
    found = list(baselines.rivals([shipped / "fine.tflite"], ["float32", "stock-int8", "openvino-int8"], shipped))
    assert [(rival.variant, rival.path.name, rival.engine) for rival in found] == [
        ("float32", "fine-float32.tflite", "litert"), ("stock-int8", "fine-stock-int8.tflite", "litert"),
        ("openvino-int8", "fine-openvino-int8.xml", "openvino"),
    ]  # fmt: skip
    assert [call[call.index("--kind") + 1] for call in calls] == ["float32", "stock-int8", "openvino-int8"]
    assert "--images" not in calls[0]
    pictures = Path(calls[1][calls[1].index("--images") + 1])
    assert len(list(pictures.glob("*.png"))) == int(calls[1][calls[1].index("--pictures") + 1])


def test_a_runtime_that_is_not_installed_is_named(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(baselines, "convert", lambda *words: pytest.fail("an export before the error"))
    for name, package in (("openvino", "openvino"), ("openvino-int8", "openvino"), ("onnxruntime", "onnxruntime")):
        with pytest.raises(UserError, match=f"pip install {package}"):
            list(baselines.rivals([shipped / "fine.tflite"], ["float32", name], shipped))


def test_the_converters_error_becomes_ours() -> None:
    with pytest.raises(UserError, match="not a TFLite model"):
        baselines.convert("verify", "README.md")
    with pytest.raises(UserError, match="No file"):
        baselines.convert("profile", "missing.tflite")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([10, 10, 10], [10.3, 10.3, 10.3], "same"),  # under 5 %
        ([10, 10, 12], [11, 11, 13], "within noise"),  # their rounds overlap
        ([10, 10, 10], [11, 11, 11], "SLOWER"),
        ([11, 11, 11], [10, 10, 10], "faster"),
        ([30, 30, 30], [10, 10, 10], "TOO GOOD TO BE TRUE"),
    ],
)
def test_verdicts(before: list[float], after: list[float], verdict: str) -> None:
    assert judge(before, after, np.median(before) / np.median(after), same_device=True) == verdict


def test_another_device_may_be_much_faster() -> None:
    assert judge([30, 30], [10, 10], 3.0, same_device=False) == "faster"


def report_file(path: Path, milliseconds: float, noisy: bool = False, **changes: Any) -> Path:
    row = {"model": "fine", "variant": "int8", "threads": 1, "median_ms": milliseconds, "rss_mb": 80.0, "sha256": "a",
           "rounds_ms": [milliseconds] * 3, "min_ms": 0.8 * milliseconds}  # fmt: skip
    report = {"device": "board", "runtime": "litert", "noise": {"noisy": noisy}, "rows": [row | changes]}
    path.write_text(json.dumps(report))
    return path


def test_compare_flags_what_got_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = report_file(tmp_path / "a.json", 10), report_file(tmp_path / "b.json", 15, rss_mb=None, sha256="b")
    assert run_demo.main(["compare", str(before), str(after)]) == 1
    told = capsys.readouterr().out
    assert "fine int8, 1 threads" in told and "0.67x" in told and "SLOWER (another file)" in told
    assert run_demo.main(["compare", str(before), str(before)]) == 0
    (change,) = compare(*(json.loads(path.read_text()) for path in (after, before)))
    assert change.speedup == 1.5 and change.verdict == "faster"


def test_a_noisy_report_may_be_slow_in_all_its_rounds(tmp_path: Path) -> None:
    quiet = json.loads(report_file(tmp_path / "a.json", 10).read_text())
    for milliseconds, noisy, verdict in ((12, False, "SLOWER"), (12, True, "within noise"), (13, True, "SLOWER")):
        later = json.loads(report_file(tmp_path / "b.json", milliseconds, noisy).read_text())
        (change,) = compare(quiet, later)
        assert change.verdict == verdict


def test_compare_refuses_what_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = report_file(tmp_path / "a.json", 10)
    other = report_file(tmp_path / "b.json", 10, model="another")
    wrong = tmp_path / "c.json"
    wrong.write_text('{"rows": []}')
    for second in (other, wrong, tmp_path / "missing.json", Path(__file__)):
        assert run_demo.main(["compare", str(good), str(second)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_a_profile_accounts_for_every_operator(tiny: Path) -> None:
    told = profile(tiny)
    assert len(told["operators"]) == sum(kind["count"] for kind in told["kinds"])
    assert sum(kind["ms"] for kind in told["kinds"]) == pytest.approx(told["sum_ms"], abs=0.01)
    assert sum(block["ms"] for block in told["blocks"]) == pytest.approx(told["sum_ms"], abs=0.01)
    assert all(0 <= kind["xnnpack_ms"] <= kind["ms"] for kind in told["kinds"])
    assert f"{told['whole_ms']:.2f} ms" in told["method"] and all(cost["ms"] > 0 for cost in told["operators"])


def test_profile_as_a_command(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convert.__main__ import main

    assert main(["profile", str(tiny), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"
    assert main(["profile", str(tiny)]) == 0
    assert "share" in capsys.readouterr().out
    assert main(["profile", "missing.tflite"]) == 2
