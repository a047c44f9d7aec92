"""The loop, its keys and its files: what a user runs, with the tiny model on a clip of which every answer is known."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import run_demo
from app import Segmenter, live, outputs, run, soak
from app.camera import Camera
from app.controls import Controls
from app.modes import MODES, View
from app.overlay import KEYS, Painter
from app.pipeline import Pipeline
from app.sources import Synthetic, open_source
from models import UserError, catalogue
from models.runtime import cores

REPORT_KEYS = {"model", "runtime", "threads", "frames", "fps", "latency_ms", "stages_ms", "memory_mb", "device"}


def expected(frame: np.ndarray) -> np.ndarray:
    """The tiny model's answer at its own size, brought back by nearest neighbour; see `tests/data/make_tiny.py`."""
    brightest = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA).max(axis=2)
    labels = (brightest >= 85).astype(np.uint8) + (brightest >= 170)
    return cv2.resize(labels, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def play(*words: object) -> int:
    return run_demo.main(["--show", "none", *map(str, words)])


def read_all(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1])
    capture.release()
    return frames


def test_report_has_the_keys_other_scripts_rely_on(tiny: Path, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    assert play("--source", clip, "--model", tiny, "--report", path, "--threads", 1) == 0
    told = json.loads(path.read_text())
    assert set(told) >= REPORT_KEYS
    assert told["model"] == "tiny" and told["threads"] == 1
    assert told["frames"] == {"captured": 12, "processed": 12, "shown": 0, "dropped": 0}
    assert set(told["fps"]) == {"camera", "loop", "model"}
    assert set(told["latency_ms"]) == {"p50", "p95"}
    assert set(told["stages_ms"]) >= {"capture", "prepare", "infer", "refine", "paint", "show"}
    assert set(told["memory_mb"]) == {"rss", "peak_rss", "pss"}
    assert all(value > 0 for value in [*told["fps"].values(), *told["latency_ms"].values(), told["stages_ms"]["infer"]])
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_summary_is_printed_as_a_table(tiny: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play("--source", clip, "--model", tiny, "--frames", 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:8]] == [
        "model", "source", "device", "frames", "FPS", "latency ms", "stages ms", "memory MB",
    ]  # fmt: skip
    assert "captured 3   processed 3   shown 0   dropped 0" in lines[3]


@pytest.mark.parametrize("name", ["out.avi", "out.mp4"])
def test_a_saved_video_has_every_frame_annotated(tiny: Path, clip: Path, tmp_path: Path, name: str) -> None:
    assert play("--source", clip, "--model", tiny, "--save", tmp_path / name, "--opacity", 100) == 0
    frames = read_all(tmp_path / name)
    assert len(frames) == 12
    assert frames[0].shape == (120, 160, 3)
    assert np.abs(frames[-1][60, 150] - np.array([255.0, 144.0, 30.0])).max() < 30  # the colour of "bright", as BGR
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_saved_picture_is_the_last_one(tiny: Path, clip: Path, tmp_path: Path) -> None:
    assert play("--source", clip, "--model", tiny, "--save", tmp_path / "last.png", "--opacity", 100) == 0
    assert cv2.imread(str(tmp_path / "last.png"))[60, 150].tolist() == [255, 144, 30]


def test_folders_take_a_picture_and_a_mask_a_frame(tiny: Path, clip: Path, tmp_path: Path) -> None:
    assert play("--source", clip, "--model", tiny, "--save", tmp_path / "all", "--masks", tmp_path / "masks") == 0
    assert sorted(file.name for file in (tmp_path / "all").iterdir()) == [f"{n:06d}.jpg" for n in range(12)]
    for number, frame in enumerate(read_all(clip)):
        mask = cv2.imread(str(tmp_path / "masks" / f"{number:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask == expected(frame)).all()


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """Undo COCO's run lengths, written after the description of the format rather than after the encoder."""
    runs: list[int] = []
    letters = iter(counts)
    for letter in letters:
        value, shift, bits = 0, 0, ord(letter) - 48
        while True:
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
            bits = ord(next(letters)) - 48
        value -= (bits & 16) << (shift - 4)  # the sign
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    assert sum(runs) == height * width
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_run_lengths_are_cocos(share: float) -> None:
    mask = np.random.default_rng(1).random((37, 53)) < share
    assert (decode(outputs.run_lengths(mask), 37, 53) == mask).all()
    column = np.zeros((400, 3), bool)
    column[7:390, 1] = True
    assert outputs.run_lengths(column) == "g<o;j<"  # as pycocotools encodes it


def test_coco_file_holds_every_mask(tiny: Path, clip: Path, tmp_path: Path) -> None:
    assert play("--source", clip, "--model", tiny, "--masks", tmp_path / "masks.json") == 0
    told = json.loads((tmp_path / "masks.json").read_text())
    assert told["categories"] == [{"id": 1, "name": "grey"}, {"id": 2, "name": "bright"}]
    assert [image["id"] for image in told["images"]] == list(range(12))
    maps = [expected(frame) for frame in read_all(clip)]
    assert len(told["annotations"]) == sum(len(np.unique(classes[classes > 0])) for classes in maps)
    for annotation in told["annotations"]:
        mask = maps[annotation["image_id"]] == annotation["category_id"]
        height, width = annotation["segmentation"]["size"]
        assert (decode(annotation["segmentation"]["counts"], height, width) == mask).all()
        assert annotation["area"] == mask.sum()


def test_csv_has_a_row_a_frame(tiny: Path, clip: Path, tmp_path: Path) -> None:
    assert play("--source", clip, "--model", tiny, "--csv", tmp_path / "rows.csv") == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(12))
    assert float(rows[3]["seconds"]) == 0.3
    assert float(rows[0]["background"]) == 1 and float(rows[-1]["bright"]) == 1
    assert all(float(row["infer_ms"]) > 0 for row in rows)


def test_a_failure_half_way_leaves_no_file(tiny: Path, clip: Path, tmp_path: Path, monkeypatch) -> None:
    paint, calls = Painter.paint, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise ZeroDivisionError("a bug")
        return paint(self, *args)

    monkeypatch.setattr(Painter, "paint", failing)
    with pytest.raises(ZeroDivisionError):
        play("--source", clip, "--model", tiny, "--save", tmp_path / "a.avi", "--csv", tmp_path / "a.csv",
             "--masks", tmp_path / "a.json", "--report", tmp_path / "r.json")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_summary(tiny: Path, tmp_path: Path, monkeypatch, number: int, capsys) -> None:
    paint, calls = Painter.paint, []

    def signalling(self, *args):
        calls.append(args)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return paint(self, *args)

    monkeypatch.setattr(Painter, "paint", signalling)
    before = signal.getsignal(number)
    assert play("--source", "synthetic", "--model", tiny, "--save", tmp_path / "a.avi") == 0
    assert len(read_all(tmp_path / "a.avi")) == 5
    assert "processed" in capsys.readouterr().out
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fly"], "There is no command 'fly'"),
        (["--model", "nothing"], "No model 'nothing'"),
        (["--model", __file__], "is not a TFLite model"),
        (["--source", "nowhere.mp4"], "There is no source"),
        (["--save", "{tmp}/out.gif"], "Cannot save"),
        (["--save", "{tmp}/file/out.png"], "Cannot write"),
        (["--save", "{tmp}/folder.png"], "it is a folder"),
        (["--report", "{tmp}/file/report.json"], "Cannot write"),
        (["--csv", "."], "it is a folder"),
        (["--masks", "{tmp}/file/masks"], "Cannot write"),
        (["--class", "cat"], "tiny has no class 'cat': choose from background, grey, bright"),
        (["--mode", "replace", "--background", "#12"], "neither a picture nor a colour"),
        (["--show", "window"], "No window can be shown: there is none here"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(
    words: list[str], said: str, tiny: Path, clip: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(live, "obstacle", lambda: "there is none here")
    defaults = [] if words == ["fly"] else ["--model", str(tiny), "--source", str(clip), "--show", "none"]
    given = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert run_demo.main(given + defaults if words == ["fly"] else defaults + given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize("words", [["--frames", "0"], ["--frames", "x"], ["--opacity", "200"], ["--mode", "none"]])
def test_bad_options_exit_with_2(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        play(*words)
    assert caught.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_without_a_display_the_app_says_what_it_does_instead(tiny, clip, monkeypatch, caplog) -> None:
    monkeypatch.setattr(live, "obstacle", lambda: "there is no display")
    monkeypatch.setattr(live, "Window", None)  # calling it would fail
    caplog.set_level("INFO", "app")
    assert run_demo.main(["--source", str(clip), "--model", str(tiny)]) == 0
    assert "No window (there is no display): running without one" in caplog.text


class FakeWindow:
    """A window whose user follows a script: after each picture, the next keys and clicks."""

    script: Iterator[tuple[str, list[tuple[int, int]]]]
    shown: list[np.ndarray]
    watched, hint = True, "h: help"

    def __init__(self) -> None:
        self.closed = False
        type(self).shown = []

    def show(self, picture: np.ndarray) -> None:
        self.shown.append(picture)

    def events(self) -> tuple[str, list[tuple[int, int]]]:
        return next(self.script, ("q", []))

    def close(self) -> None: ...


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> type[FakeWindow]:
    monkeypatch.setattr(live, "obstacle", lambda: None)
    monkeypatch.setattr(live, "Window", FakeWindow)
    return FakeWindow


def test_a_window_shows_frames_until_q(window: type[FakeWindow], tiny: Path, clip: Path, tmp_path: Path) -> None:
    window.script = iter([("", [])] * 8)
    assert run_demo.main(["--source", "synthetic", "--model", str(tiny), "--report", str(tmp_path / "r.json")]) == 0
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["frames"]["shown"] == told["frames"]["processed"] > 0
    assert told["frames"]["captured"] == told["frames"]["processed"] + told["frames"]["dropped"]


def test_a_picture_stays_in_the_window_until_q(window: type[FakeWindow], tiny: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.png"), np.full((48, 64, 3), 200, np.uint8))
    window.script = iter([("", [])] * 5)
    assert run_demo.main(["--source", str(tmp_path / "p.png"), "--model", str(tiny)]) == 0
    assert len(window.shown) >= 2


@pytest.fixture
def controls(tiny: Path, tmp_path: Path) -> Iterator[Controls]:
    with Pipeline(Camera(Synthetic(64, 48)), Segmenter(tiny, 1)) as pipeline:
        yield Controls(View(), pipeline, tmp_path)


def step(controls: Controls):
    while not (result := controls.pipeline.poll()):
        pass
    controls.remember(result, result.frame)
    return result


def test_every_key_of_the_help_screen_does_something(controls: Controls) -> None:
    named = {"space": " ", "1-9, click": "1", "- +": "-", "q, Esc": "q"}
    for words in KEYS:
        key = named.get(words, words)
        assert key.isdecimal() or key in controls._keys, f"the help names {words}"


def test_m_goes_through_all_modes(controls: Controls) -> None:
    seen = []
    for _ in MODES:
        seen.append(controls.view.mode)
        controls.press("m")
    assert seen == list(MODES) and controls.view.mode == seen[0]


def test_toggles_and_opacity(controls: Controls) -> None:
    for key, owner, name in (("c", controls.view, "contour"), ("i", controls.view, "figures"),
                             ("h", controls.view, "help"), ("s", controls.pipeline, "smooth"),
                             ("e", controls.pipeline, "refine")):  # fmt: skip
        before = getattr(owner, name)
        controls.press(key)
        assert getattr(owner, name) is not before
    for _ in range(20):
        controls.press("+")
    assert controls.view.opacity == 100
    for _ in range(20):
        controls.press("-")
    assert controls.view.opacity == 0


def test_classes_are_chosen_by_number_and_by_click(controls: Controls) -> None:
    result = step(controls)
    controls.press("2")
    assert controls.view.chosen == {2}
    assert controls.notices() == ["bright"]
    controls.press("9")  # there is no ninth class
    assert controls.view.chosen == {2}
    controls.press("0")
    assert controls.view.chosen == frozenset()
    y, x = map(int, np.argwhere(result.classes == 2)[0])
    controls.click(x, y, result)
    assert controls.view.chosen == {2}
    controls.click(x + 64, y, result)  # the right half of "side by side": the same pixel once more
    assert controls.view.chosen == frozenset()
    controls.click(10, 1000, result)  # below the picture


def test_snapshot_writes_picture_and_mask(controls: Controls, tmp_path: Path) -> None:
    controls.press("p")  # nothing to save yet
    result = step(controls)
    controls.press("p")
    controls.press("p")  # in the same second: another name
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    masks = [file for file in files if "-mask" in file.name]
    assert len(masks) == 2
    assert (cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED) == result.classes).all()


def test_v_records_video_and_masks_and_stops(controls: Controls, tmp_path: Path) -> None:
    controls.press("v")
    for _ in range(4):
        step(controls)
    assert "recording" in controls.notices()
    controls.press("v")
    video = next(tmp_path.glob("recording-*.mp4"))
    assert len(read_all(video)) == round(3 * 25 / 30) + 1  # 4 frames of 1/30 s at 25 FPS
    assert len(list(next(tmp_path.glob("recording-*-masks")).iterdir())) == 4
    assert "recording" not in controls.notices()


def test_a_recording_without_a_frame_leaves_nothing(controls: Controls, tmp_path: Path) -> None:
    controls.press("v")
    controls.press("v")
    assert controls.notices() == ["nothing to save: no frame came"]
    assert list(tmp_path.iterdir()) == []


def test_closing_finishes_a_recording(controls: Controls, tmp_path: Path) -> None:
    controls.press("v")
    step(controls)
    controls.close()
    assert len(read_all(next(tmp_path.glob("recording-*.mp4")))) == 1


def test_models_and_threads_are_switched_live(controls: Controls, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("alpha", "beta"):
        (tmp_path / f"{name}.tflite").write_bytes(tiny.read_bytes())
        card = tiny.with_suffix(".json").read_text().replace('"tiny"', f'"{name}"')
        (tmp_path / f"{name}.json").write_text(card)
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    names = []
    for _ in range(3):
        controls.press("n")
        for _ in range(3):
            step(controls)  # the frames that were under way
        names.append(step(controls).card.name)
    assert names == ["alpha", "beta", "alpha"]
    before = controls.pipeline.segmenter.threads
    controls.press("t")
    assert controls.pipeline.segmenter.threads == before % cores() + 1
    assert step(controls).classes.shape == (48, 64)


def test_a_key_that_fails_says_so_and_the_show_goes_on(controls: Controls, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    controls.press("n")
    assert controls.notices() == ["There is no other model: put one into models/."]


def test_run_yields_frames_masks_and_figures(tiny: Path, clip: Path) -> None:
    results = list(run(clip, tiny, threads=1, frames=7))
    assert [result.index for result in results] == list(range(7))
    for result, frame in zip(results, read_all(clip), strict=False):
        assert (result.frame == frame).all()
        assert (result.classes == expected(frame)).all()
        assert result.shares == pytest.approx(np.bincount(result.classes.ravel(), minlength=3) / result.classes.size)
    assert results[-1].figures.fps["loop"] > 0


def test_soak_tells_which_bounds_hold(tiny: Path, clip: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(soak, "SETTLED", 10)
    monkeypatch.setattr(soak, "ALONE", 5)
    words = ["soak", "--model", tiny, "--source", clip, "--frames", 30, "--report", tmp_path / "soak.json"]
    status = run_demo.main(list(map(str, words)))
    told = json.loads((tmp_path / "soak.json").read_text())["verdicts"]
    assert list(told) == ["loop FPS / model FPS", "(prepare + paint) / infer", "RSS beyond that after 10 frames, MB"]
    assert status == (not all(verdict["good"] for verdict in told.values()))
    assert told["(prepare + paint) / infer"]["value"] > 0
    assert capsys.readouterr().out.count("bound") == 3


def test_soak_judges_by_its_bounds(tiny: Path, clip: Path) -> None:
    figures = list(run(clip, tiny, threads=1, frames=2))[-1].figures
    figures.fps.update(loop=89.0, model=100.0)
    good = [verdict[2] for verdict in soak.verdicts(figures, 0.21, [100.0, 105.1]).values()]
    assert good == [False, False, False]
    figures.fps.update(loop=90.0)
    assert [verdict[2] for verdict in soak.verdicts(figures, 0.2, [100.0, 105.0]).values()] == [True, True, True]
    assert len(soak.verdicts(figures, 0.2, [100.0])) == 2


def test_leaving_the_loop_closes_the_source(tiny: Path) -> None:
    class Watched(Synthetic):
        closed = False

        def close(self) -> None:
            self.closed = True

    source = Watched()
    for _ in run(source, tiny):
        break
    assert source.closed


def test_a_bug_in_the_worker_is_raised_to_the_caller(tiny: Path) -> None:
    class Broken(Segmenter):
        def infer(self, pixels: np.ndarray) -> np.ndarray:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError), Pipeline(Camera(Synthetic()), Broken(tiny, 1)) as pipeline:
        list(pipeline)


def test_a_time_out_in_a_source_is_raised_to_the_caller(tiny: Path) -> None:
    class Stuck(Synthetic):
        def read(self) -> np.ndarray:
            raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        list(run(Stuck(), tiny, threads=1))


def test_unrelated_pictures_are_not_smoothed(tiny: Path, tmp_path: Path) -> None:
    """Two pictures that differ by little, on either side of a threshold: the second keeps its own answer."""
    for name, level in (("a.png", 84), ("b.png", 86)):
        cv2.imwrite(str(tmp_path / name), np.full((64, 64, 3), level, np.uint8))
    assert [int(result.classes.max()) for result in run(tmp_path, tiny)] == [0, 1]
    with Pipeline(Camera(open_source(tmp_path)), Segmenter(tiny, 1)) as pipeline:
        pipeline.camera.source.unrelated = False
        assert [int(result.classes.max()) for result in pipeline] == [0, 0]


def test_a_cameras_video_runs_true_to_time(tmp_path: Path, tiny: Path) -> None:
    """Frames of a camera come when they come: at 10 a second a video of 20 a second shows each twice."""
    result = next(iter(run("synthetic", tiny, frames=1)))
    with outputs.Video(tmp_path / "v.avi", 20.0) as video:
        for stamp in (5.0, 5.1, 5.2, 65.2):  # then the camera was away for a minute
            video.write(type(result)(**{**vars(result), "stamp": stamp}), result.frame)
    assert len(read_all(tmp_path / "v.avi")) == 1 + 2 + 2 + int(outputs.LONGEST_STILL * 20)


def test_an_encoder_that_is_missing_is_said_to_be(tiny: Path, clip: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(outputs.VIDEOS, ".mp4", "none")
    assert play("--source", clip, "--model", tiny, "--save", tmp_path / "out.mp4") == 2
    assert "cannot encode" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_to_be(tmp_path: Path, monkeypatch) -> None:
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        outputs.write_whole(tmp_path / "x.png", b"...")
    assert list(tmp_path.iterdir()) == []
