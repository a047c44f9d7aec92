"""Turn the annotated sample clip into the README's moving picture: `python assets/make_gif.py OUT.gif [MODEL]`.

It shows what the app draws, figures included, measured while the pictures are made. Pillow comes with the `dev` extra.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from app import run
from app.modes import View
from app.overlay import Painter
from models import DEFAULT

SIZE, EVERY, COLORS = (480, 360), 3, 128  # one frame in three, 8.3 a second: small enough for a page


def main() -> None:
    """Render, reduce the colours to one palette for all frames, and write."""
    target, model = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else DEFAULT
    painter, view, pictures = Painter(), View(contour=True), []
    for result in run(Path(__file__).with_name("sample.mp4"), model, refine=True):
        picture = painter.paint(result, view)
        if result.index % EVERY == 0:
            small = cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)
            pictures.append(Image.fromarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB)))
    sheet = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures[::8]]))  # all scenes
    palette = sheet.quantize(COLORS)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    first.save(target, save_all=True, append_images=others, duration=1000 * EVERY // 25, loop=0, optimize=True)
    print(f"{target}: {len(pictures)} frames, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
