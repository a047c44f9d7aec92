"""Render `assets/sample.mp4` from two public-domain portraits: `python assets/make_sample.py`.

Slow pans and zooms, a cross-fade and the sway of a hand-held camera turn the photographs into a clip that
moves like a webcam's. Both come inside wheels of the `dev` extra (scikit-image and Matplotlib), nothing is fetched.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from matplotlib import cbook
from numpy.typing import NDArray
from skimage import data

WIDTH, HEIGHT, FPS = 640, 480, 25
SECONDS_EACH, SECONDS_FADE = 3.2, 0.6
CODEC = "mp4v"  # MPEG-4 Part 2: every OpenCV reads it, in 1.2 ms a frame where VP9 took 5.3 ms

Picture = NDArray[np.uint8]  # HxWx3 BGR
Shot = tuple[Picture, tuple[float, float, float], tuple[float, float, float]]


def shots() -> list[Shot]:
    """Return (BGR photograph, first view, last view); a view is its centre's x and y and its width, in pixels."""
    astronaut = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)  # 512x512
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)  # 600x512
    return [
        (astronaut, (262.0, 192.0, 496.0), (222.0, 148.0, 376.0)),
        (hopper, (252.0, 176.0, 400.0), (256.0, 208.0, 500.0)),
    ]


def view(photo: Picture, first: NDArray[np.float64], last: NDArray[np.float64], t: float) -> Picture:
    """Cut the view at time t, 0..1 of its shot, out of the photograph: eased from first to last, swaying a little."""
    eased = t * t * (3 - 2 * t)
    x, y, width = first + (last - first) * eased
    x += 1.6 * np.sin(17.0 * t) + 0.8 * np.sin(41.0 * t + 1)
    y += 1.3 * np.sin(23.0 * t + 2) + 0.7 * np.sin(37.0 * t)
    scale = WIDTH / width
    move = np.array([[scale, 0, WIDTH / 2 - scale * x], [0, scale, HEIGHT / 2 - scale * y]])
    return cv2.warpAffine(photo, move, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def frames() -> list[Picture]:
    """Return all frames of the clip, HEIGHT x WIDTH x 3 uint8 BGR."""
    length, fade = int(SECONDS_EACH * FPS), int(SECONDS_FADE * FPS)
    reel: list[Picture] = []
    for photo, first, last in shots():
        shot = [view(photo, np.array(first), np.array(last), i / (length - 1)) for i in range(length)]
        for i in range(min(fade, len(reel))):  # the last `fade` frames so far dissolve into the first of this shot
            weight = (i + 1) / (fade + 1)
            reel[i - fade] = cv2.addWeighted(reel[i - fade], 1 - weight, shot[i], weight, 0)
        reel += shot[fade if reel else 0 :]
    return reel


def main() -> None:
    """Write the clip beside this file, whole or not at all."""
    target = Path(__file__).with_name("sample.mp4")
    part = target.with_name("sample.part.mp4")
    writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*CODEC), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        sys.exit(f"error: this OpenCV cannot encode {CODEC}: install opencv-python-headless from PyPI.")
    reel = frames()
    for frame in reel:
        writer.write(frame)
    writer.release()
    part.replace(target)
    print(f"{target}: {len(reel)} frames, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
