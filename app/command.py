"""Run this Python anew: what must not share our process, or might end it, and steps of the converter."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


class Failed(Exception):
    """The command failed; the message is the last line it printed, without "error: "."""


def python(*words: str) -> str:
    """Run `python WORDS` in the project's folder and return what it printed; raises `Failed`."""
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(told[-1].removeprefix("error: "))
    return done.stdout
