"""The contract between `convert/` and `app/`: shipped models, their cards, and the one loader that runs them."""

from models.catalogue import DEFAULT, PALETTE, Card, ClassInfo, card, names, resolve
from models.errors import UserError
from models.frames import ClassMap, Frame, preprocess, restore
from models.runtime import Segmenter, default_threads

__all__ = [
    "DEFAULT", "PALETTE", "Card", "ClassInfo", "ClassMap", "Frame", "Segmenter", "UserError",
    "card", "default_threads", "names", "preprocess", "resolve", "restore",
]  # fmt: skip
