"""Write the page as a Hugging Face Space: our packages, the models, and the three files that a Space wants."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models import UserError, resolve

ROOT = Path(__file__).parents[2]
CARD = """---
title: Edge Segmenter
emoji: 🧩
colorFrom: red
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: space.py
license: other
short_description: Live segmentation with an integer-only vision transformer
---

# Edge Segmenter

Live semantic segmentation with a vision transformer in which every number is an integer, on a CPU. The code is under
the Apache License 2.0; the weights are for research and other non-commercial use, see the cards in `models/`.
"""
START = '''"""What the Space runs: the same page as `python run_demo.py web`, for everybody."""

import os
import sys

import run_demo

sys.exit(run_demo.main(["web", "--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860"){models}]))
'''
PACKAGES = ("opencv-python-headless", "numpy", "ai-edge-litert", "tqdm", "cryptography", "segno")


def export(folder: Path, models: Sequence[str | Path]) -> None:
    """Write the Space into a folder that is new, empty, or holds an earlier export; hidden files in it are left alone.

    Raises:
        UserError: there is no such model, or the folder holds something else or cannot be written.
    """
    files = [resolve(name) for name in models]
    if len({path.stem for path in files}) < len(files):
        raise UserError("Two of the models have the same name: offer each name once.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a new folder to export to.")
    others = [path for path in folder.iterdir() if path.name[0] != "."] if folder.exists() else []
    if others and not (folder / "space.py").exists():
        raise UserError(f"{folder} holds other files: give a new or empty folder to export to.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            _build(Path(scratch), files)
            for entry in sorted(Path(scratch).iterdir()):
                if (folder / entry.name).is_dir():
                    shutil.rmtree(folder / entry.name)
                entry.replace(folder / entry.name)
    except OSError as error:
        raise UserError(f"Cannot write {folder} ({error.strerror}): give another folder.") from None


def _build(folder: Path, files: Sequence[Path]) -> None:
    leave_out = shutil.ignore_patterns("__pycache__", "*.tflite", "*.json", "node_modules")
    shutil.copytree(ROOT / "app", folder / "app", ignore=leave_out)
    shutil.copytree(ROOT / "models", folder / "models", ignore=leave_out)
    for path in files:
        for part in (path, path.with_suffix(".json")):
            if part.is_file():
                shutil.copy(part, folder / "models")
    (folder / "assets").mkdir()
    shutil.copy(ROOT / "assets" / "sample.mp4", folder / "assets")
    for name in ("run_demo.py", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text(CARD.format(gradio=version("gradio")))
    # The Space itself brings Gradio, in the version that its README names.
    (folder / "requirements.txt").write_text("".join(f"{name}=={_installed(name)}\n" for name in PACKAGES))
    chosen = "".join(f', "--model", "{path.stem}"' for path in files)
    (folder / "space.py").write_text(START.format(models=chosen))


def _installed(package: str) -> str:
    """Return the version that works here; the OpenCV with windows has the same as the one without."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(package.removesuffix("-headless"))
