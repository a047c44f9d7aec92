"""What can be run: the shipped models, their cards, and the way from a name or a path to a file and its classes."""

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import UserError

FOLDER = Path(__file__).parent
DEFAULT = "person"

# Distinct at a glance and from most scenes, RGB; class 0 is background and stays unpainted.
PALETTE = (
    (0, 0, 0), (255, 99, 71), (30, 144, 255), (255, 215, 0), (60, 179, 113), (186, 85, 211), (255, 140, 0),
    (64, 224, 208), (255, 105, 180), (154, 205, 50), (123, 104, 238), (210, 180, 140), (220, 20, 60),
)  # fmt: skip


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name and its colour as RGB, 0..255."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """What a model file is: its name, its classes, and everything else its JSON card tells.

    `classes[i]` describes class id `i`. `details` is the whole card as read: data, terms, scores, sha256.
    """

    name: str
    file: Path
    classes: tuple[ClassInfo, ...]
    details: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """List the models shipped in this folder, the default first."""
    found = sorted(path.stem for path in FOLDER.glob("*.tflite"))
    return sorted(found, key=lambda name: name != DEFAULT)


def resolve(name_or_path: str | Path) -> Path:
    """Find the file of a shipped model's name or of a path; `UserError` lists the names if it is neither."""
    path = Path(name_or_path)
    shipped = FOLDER / f"{name_or_path}.tflite"
    if path.suffix != ".tflite" and not path.exists() and shipped.is_file():
        return shipped
    if path.is_file():
        return path
    known = ", ".join(names()) or "none yet"
    raise UserError(f"No model '{name_or_path}': give a .tflite file or one of the shipped models ({known}).")


def card(name_or_path: str | Path) -> Card:
    """Read a model's card: the `.json` beside the file, or else the classes inside the file itself.

    Raises:
        UserError: there is no such model, its card is broken, or neither names the classes.
    """
    path = resolve(name_or_path)
    beside, embedded = path.with_suffix(".json"), embedded_classes(path)
    if not beside.is_file():
        if embedded is None:
            raise UserError(f"{path} does not say its classes: run a file that `python -m convert quantize` wrote.")
        return Card(path.stem, path, embedded)
    try:
        details: dict[str, Any] = json.loads(beside.read_text())
        classes = tuple(ClassInfo(entry["name"], _rgb(entry["color"])) for entry in details["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} is not a model card ({error!r}): write it again with `convert quantize`.") from None
    if embedded not in (None, classes):
        raise UserError(
            f"{beside} is not the card of {path}: their classes differ, write both with `convert quantize`."
        )
    return Card(details.get("name", path.stem), path, classes, details)


def embedded_classes(path: Path) -> tuple[ClassInfo, ...] | None:
    """Read the classes from the ZIP that the TFLite metadata convention appends to a model file; None without one."""
    try:
        with zipfile.ZipFile(path) as archive:
            labels = archive.read("labelmap.txt").decode().split("\n")
            colors = json.loads(archive.read("colors.json"))
    except (zipfile.BadZipFile, KeyError):
        return None
    return tuple(ClassInfo(name, _rgb(color)) for name, color in zip(labels, colors, strict=True))


def sha256(path: Path) -> str:
    """Return the hex digest that a card states for its file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rgb(color: list[int]) -> tuple[int, int, int]:
    red, green, blue = color
    return int(red), int(green), int(blue)
