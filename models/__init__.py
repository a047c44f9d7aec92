"""The contract between `convert/` and `app/`: shipped models, their cards, and the one loader that runs them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.catalogue import DEFAULT, PALETTE, Card, ClassInfo, card, names, resolve
from models.errors import UserError

if TYPE_CHECKING:
    from models.frames import ClassMap, Frame, preprocess, restore
    from models.runtime import Segmenter, default_threads

__all__ = [
    "DEFAULT", "PALETTE", "Card", "ClassInfo", "ClassMap", "Frame", "Segmenter", "UserError",
    "card", "default_threads", "names", "preprocess", "resolve", "restore",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs NumPy or OpenCV on first use: `doctor` must speak where one of them does not load."""
    if name not in __all__:
        raise AttributeError(f"module 'models' has no attribute '{name}'")
    late = "models.runtime" if name in ("Segmenter", "default_threads") else "models.frames"
    return getattr(import_module(late), name)
