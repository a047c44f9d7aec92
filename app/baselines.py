"""What a model is compared with: the usual exports of the same network, and other runtimes.

The files come from `python -m convert`, called as a command: this half of the project never imports the converter.
"""

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from app.command import Failed, python
from app.sources import SAMPLE
from models import UserError, card

log = logging.getLogger("app")

KINDS = ("float32", "dynamic", "stock-int8")  # exports that LiteRT runs
# Other runtimes: the key of `trial.ENGINES`, the packages it takes, and the export it reads
OTHERS = {
    "openvino": ("openvino", ("openvino",), "float32"),
    "openvino-int8": ("openvino", ("openvino", "nncf"), "openvino-int8"),
    "onnxruntime": ("onnxruntime", ("onnxruntime", "tf2onnx"), "onnx"),
}
AGAINST = (*KINDS, *OTHERS)
ENDINGS = {"onnx": ".onnx", "openvino-int8": ".xml"}  # of exports that are no .tflite
CALIBRATED = ("stock-int8", "openvino-int8")
PICTURES = 8  # frames of the bundled clip that these are calibrated with


@dataclass(frozen=True)
class Rival:
    """One file to compare with: its model's path, what it is, the file, and the runtime (a key of `trial.ENGINES`)."""

    model: Path
    variant: str
    path: Path
    engine: str = "litert"


def rivals(models: Sequence[Path], against: Sequence[str], folder: Path) -> Iterator[Rival]:
    """Make what each model is to be compared with.

    Args:
        models: `.tflite` files of this project; others have no network to export anew.
        against: of `AGAINST`, or paths of `.tflite` files.
        folder: where exports are written.
    """
    for name in against:
        _check(name)
    for model in models:
        for name in against:
            if name.endswith(".tflite"):
                yield Rival(model, Path(name).stem, Path(name))
            elif name in OTHERS:
                engine, _, kind = OTHERS[name]
                yield Rival(model, name, _export(model, kind, folder), engine)
            else:
                yield Rival(model, name, _export(model, name, folder))


def profile(model: Path, threads: int) -> dict[str, Any]:
    """Time the operators of a `.tflite` file, see `python -m convert profile --help` for how."""
    return json.loads(convert("profile", str(model.resolve()), f"--threads={threads}", "--json"))  # type: ignore[no-any-return]


def convert(*words: str) -> str:
    """Run a step of the converter as a command and return what it printed; its error becomes ours."""
    try:
        return python("-m", "convert", *words)
    except Failed as problem:
        raise UserError(str(problem)) from None


def _export(model: Path, kind: str, folder: Path) -> Path:
    ours = card(model).details.get("network")
    if not ours:
        raise UserError(f"{model} is not of this project: compare it with a .tflite file, `--against FILE.tflite`.")
    path = folder / f"{model.stem}-{kind}{ENDINGS.get(kind, '.tflite')}"
    if not path.exists():
        log.info("Exporting %s as %s ...", model.stem, kind)
        # GELU as in the original Segmenter: the network that the integer one stands in for
        words = [str(model.resolve()), "--kind", kind, "--activation", "gelu", "-o", str(path)]
        if kind in CALIBRATED:
            words += ["--images", str(_pictures(folder)), "--pictures", str(PICTURES)]
        convert("baseline", *words)
    return path


def _pictures(folder: Path) -> Path:
    pictures = folder / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        clip = cv2.VideoCapture(str(SAMPLE))
        for number in range(PICTURES):
            clip.set(cv2.CAP_PROP_POS_FRAMES, number * clip.get(cv2.CAP_PROP_FRAME_COUNT) // PICTURES)
            cv2.imwrite(str(pictures / f"{number}.png"), clip.read()[1])
        clip.release()
    return pictures


def _check(name: str) -> None:
    """Refuse what cannot be compared with before the first export, which takes a minute."""
    if name.endswith(".tflite"):
        if not Path(name).is_file():
            raise UserError(f"There is no file {name} to compare with: give a .tflite, or one of {', '.join(AGAINST)}.")
    elif name not in AGAINST:
        raise UserError(f"'{name}' is nothing to compare with: choose from {', '.join(AGAINST)}, or a .tflite.")
    for package in OTHERS[name][1] if name in OTHERS else ():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed here: `pip install {package}`, or leave out {name}.")
