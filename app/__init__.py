"""Live segmentation: a camera or a clip in, class maps, figures and pictures out.

from app import Segmenter, run

classes = Segmenter("person").segment(frame)          # one HxWx3 uint8 BGR picture -> HxW uint8 class ids
for result in run("clip.mp4", frames=100): ...        # frames, class maps, shares and figures, as they come
"""

from app.pipeline import Result, run
from models import Segmenter

__all__ = ["Result", "Segmenter", "run"]
