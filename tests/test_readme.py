"""The README: each command in it is run, or parsed where running needs a camera, data or minutes; its table is true."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import run_demo
from app import catalogue
from convert.__main__ import STEPS
from models import Card, ClassInfo, UserError, card, names

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))))

# What tests can run as it stands, from the root of the project, in seconds. All other commands are only parsed: they
# need a camera, data, a checkpoint or minutes, and have tests of their own for what they do.
RUN = (
    "python run_demo.py models",
    "python run_demo.py --source assets/sample.mp4 --show none --frames 30 --save out/sample.mp4 "
    "--report out/sample.json",
    "python -m convert verify models/person.tflite",
)


def commands(page: str) -> list[str]:
    """List the lines of a page's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


ALL = [(page, line) for page in PAGES for line in commands(page)]


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser that would take a Python command of ours, and the words that are left for it."""
    parser = argparse.ArgumentParser()
    if words[1] == "run_demo.py":
        rest = words[2:]
        command = rest.pop(0) if rest and not rest[0].startswith("-") else "live"
        importlib.import_module(run_demo.COMMANDS[command][0]).configure(parser)
    else:
        assert words[1:3] == ["-m", "convert"], words
        assert words[3] in STEPS
        importlib.import_module(f"convert.{words[3]}").configure(parser)
        rest = words[4:]
    return parser, rest


@pytest.mark.parametrize(("page", "line"), [pair for pair in ALL if pair[1].startswith("python ")])
def test_python_commands_parse(page: str, line: str) -> None:
    parser, rest = parser_of(shlex.split(line, comments=True))
    parser.parse_args(rest)  # exits with 2, and so fails, on an option that is not there


@pytest.mark.parametrize(("page", "line"), [pair for pair in ALL if pair[1].startswith("make ")])
def test_make_targets_exist(page: str, line: str) -> None:
    subprocess.run(["make", "--dry-run", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("line", RUN)
def test_commands_run(line: str) -> None:
    assert line in commands("README.md")
    done = subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_table_is_what_the_cards_say(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text())
    catalogue.rewrite(page, catalogue.markdown([card(name) for name in names()]))
    assert page.read_text() == (ROOT / "README.md").read_text(), "run `make readme`"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_table_words_scores_speeds_and_where_they_come_from(tmp_path: Path) -> None:
    rows = [
        {"variant": name, "threads": 2, "median_ms": ms, "peak_rss_mb": mb}
        for name, ms, mb in (("int8", 8.04, 91.0), ("float32", 24.4, 130.2))
    ]
    pair = {"threads": 2, "against": "float32", "ratio": 3.04}
    details = {
        "input": {"width": 256, "height": 128},
        "parameters": 6_680_448,
        "calibration": {"method": "quantisation-aware"},
        "scores": {
            "miou": 0.8262,
            "images": 150,
            "data": "voc/val",
            "against": [{"file": "a.npz", "miou": 0.8249}, {"file": "ptq.tflite", "miou": 0.8153}],
        },
        "speed": {
            "device": "a board",
            "runtime": "litert 2",
            "rows": rows,
            "ratios": [pair],
            "noise": {"noisy": True},
        },
    }
    file = tmp_path / "street.tflite"
    file.write_bytes(bytes(7_100_000))
    told = Card("street", file, (ClassInfo("background", (0, 0, 0)), ClassInfo("road", (1, 2, 3))), details)
    cells = catalogue.markdown([told]).splitlines()[2].strip("| ").split(" | ")
    assert cells == [
        "[street](models/street.json)", "road", "256x128", "6.7 M", "82.5", "81.5", "82.6",
        "24.4 / - / **8.0**, 2 threads", "3.04x / -", "130 / - / **91**", "7.1",
    ]  # fmt: skip
    notes = catalogue.markdown([told, told]).split("\n\n")[1]
    assert notes.count("a board, litert 2") == notes.count("noisy") == 1 and "--against float32 --record" in notes
    assert "150 pictures of voc/val" in notes
    details["calibration"] = {"method": "after training"}  # another .tflite beside it is not this one before
    assert catalogue.markdown([told]).splitlines()[2].split(" | ")[4:7] == ["82.5", "82.6", "-"]


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no table here")
    with pytest.raises(UserError, match="lacks the line"):
        catalogue.rewrite(page, "table")
    assert page.read_text() == "no table here"
