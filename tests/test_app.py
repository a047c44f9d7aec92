"""The library's front, the front door, and that the page about both tells the truth."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

import app
import models
import run_demo
from app import live
from app.modes import MODES
from app.overlay import KEYS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "live.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_library_offers_the_models_own_segmenter() -> None:
    assert app.Segmenter is models.Segmenter
    assert set(app.__all__) >= {"Segmenter", "run"}


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_on_the_page_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "person" not in models.names():
        pytest.skip("the person model is not there")
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("python")[number], f"docs/live.md block {number}", "exec"), {})


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_on_the_page_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    command = words.pop(0) if words and words[0] in run_demo.COMMANDS else "live"
    parser = argparse.ArgumentParser()
    importlib.import_module(run_demo.COMMANDS[command][0]).configure(parser)
    parser.parse_args(words)


def test_the_page_names_every_key_mode_and_flag() -> None:
    keys = " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))
    for words in KEYS:
        for key in words.replace("1-9", "1").replace(",", " ").split():
            assert f"`{key}`" in keys or key == "click", f"key {key}"
    for mode in MODES:
        assert f"`{mode}`" in PAGE
    parser = argparse.ArgumentParser(add_help=False)
    live.configure(parser)
    for action in parser._actions:
        assert any(option in PAGE for option in action.option_strings), action.option_strings


def test_a_person_is_found_in_the_bundled_clip() -> None:
    if "person" not in models.names():
        pytest.skip("the person model is not there")
    frame = cv2.VideoCapture(str(ROOT / "assets" / "sample.mp4")).read()[1]
    classes = app.Segmenter("person").segment(frame)
    assert classes[150:210, 240:300].mean() > 0.9  # the astronaut's face
    assert classes[20:120, 560:].mean() < 0.1  # the wall and the shuttle beside her
    assert 0.2 < classes.mean() < 0.7


@pytest.mark.parametrize("kind", ["black", "white", "grey", "noise"])
def test_frames_without_a_picture_do_not_stop_the_model(kind: str) -> None:
    if "person" not in models.names():
        pytest.skip("the person model is not there")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    frame = {"black": noise * 0, "white": noise * 0 + 255, "grey": noise * 0 + 128, "noise": noise}[kind]
    classes = app.Segmenter("person").segment(frame)
    assert classes.shape == (480, 640) and classes.max() <= 1
    assert classes.mean() < 0.5
