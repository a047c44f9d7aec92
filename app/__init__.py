"""Live segmentation: a camera or a clip in, class maps, figures and pictures out.

from app import Segmenter, run

classes = Segmenter("person").segment(frame)          # one HxWx3 uint8 BGR picture -> HxW uint8 class ids
for result in run("clip.mp4", frames=100): ...        # frames, class maps, shares and figures, as they come
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.pipeline import Result, run
    from models import Segmenter

__all__ = ["Result", "Segmenter", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: `doctor` must speak where NumPy or OpenCV does not load."""
    if name not in __all__:
        raise AttributeError(f"module 'app' has no attribute '{name}'")
    return getattr(import_module("models" if name == "Segmenter" else "app.pipeline"), name)
