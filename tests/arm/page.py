"""Run the commands of docs/raspberry-pi.md on an emulated Raspberry Pi, and say what each came to.

  python -m tests.arm.page --cache ~/.cache/edge-arm
  python -m tests.arm.page --cache ~/.cache/edge-arm --release trixie

Every line of the page's `bash` blocks runs in its order, in a copy of the project, with the release's own Python
emulated as a Cortex-A76 and pip fetching its wheels from PyPI; `sh` blocks need apt or a board and are left out. make
and the shell are this machine's. Emulation is slow and there is no camera: cameras become the bundled clip, which is
cut to a few frames, long runs become short ones (each such change is printed), the benchmark has two rounds, and only
the default model is there. A run that was interrupted goes on where it was; half an hour is to be expected. The exit
code is 1 if a command fails.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2

from models import DEFAULT, UserError
from tests.arm import debian
from tests.arm.emulate import PROJECT

PAGE = PROJECT / "docs/raspberry-pi.md"
FRAMES = 4
# What a board does in the page, and what is done here in its place
SHORTER = {
    r"--source (picamera|0)\b": "--source assets/sample.mp4",
    r"--frames \d+": f"--frames {FRAMES}",
    r"--sustained \d+": "--sustained 0.1",
}
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "out", "runs", "build", "*.gif", "*.egg-info", "tests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps what is fetched and what was run")
    parser.add_argument("--release", choices=("bookworm", "trixie"), default="bookworm", help="(default bookworm)")
    args = parser.parse_args()
    try:
        return run_page(args.cache.resolve(), args.release)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def commands(page: str) -> list[str]:
    """List the lines of all `bash` blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def run_page(cache: Path, release: str) -> int:
    """Run what was not run yet, print a line each, and return 1 if any command failed, else 0."""
    cache.mkdir(parents=True, exist_ok=True)
    python = debian.python(cache, release, "arm64", ["libstdc++6"])
    project = _copy(cache / f"page-{release}")
    kept = project / "commands.json"
    done: list[str] = json.loads(kept.read_text()) if kept.is_file() else []
    failed = 0
    for line in commands(PAGE.read_text()):
        if line in done:
            print(f"{'ok':<6} {'before':>8}  {line}")
        elif _run(line, project, python):
            done.append(line)
            kept.write_text(json.dumps(done))
        else:
            failed += 1
    return int(failed > 0)


def _copy(target: Path) -> Path:
    """Copy the project, with one model, a short clip and a short benchmark."""
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.new")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(PROJECT, partial, ignore=LEFT_OUT)
        for model in (partial / "models").glob("*.tflite"):
            if model.stem != DEFAULT:
                model.unlink()
        _shorten(partial / "assets/sample.mp4")
        benchmark = partial / "app/benchmark.py"
        benchmark.write_text(
            benchmark.read_text().replace("\nROUNDS = 6\nSECONDS = 1.0", "\nROUNDS = 2\nSECONDS = 0.0")
        )
        partial.rename(target)
    return target


def _shorten(clip: Path) -> None:
    opened = cv2.VideoCapture(str(clip))
    frames = [opened.read()[1] for _ in range(FRAMES)]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 25, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def _run(line: str, project: Path, python: Path) -> bool:
    """Run one line in a shell of its own, in the virtual environment if it is there."""
    shorter = line
    for pattern, instead in SHORTER.items():
        shorter = re.sub(pattern, instead, shorter)
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "DISPLAY")}
    environ |= {"EMULATED_CPU": "cortex-a76", "MAKEFLAGS": f"PYTHON={python}", "XDG_CONFIG_HOME": str(project / "home")}
    start = time.monotonic()
    script = f"[ -f .venv/bin/activate ] && . .venv/bin/activate; {shorter}"
    with (project / "commands.log").open("a") as log:
        print(f"\n$ {shorter}", file=log, flush=True)
        code = subprocess.run(["bash", "-c", script], cwd=project, env=environ, stdout=log, stderr=log).returncode
    changed = "" if shorter == line else f"  (on the page: {line})"
    print(f"{'FAILED' if code else 'ok':<6} {time.monotonic() - start:6.0f} s  {shorter}{changed}", flush=True)
    if code:
        print("\n".join((project / "commands.log").read_text().splitlines()[-8:]))
    return not code


if __name__ == "__main__":
    sys.exit(main())
