"""What is drawn: classes where they are, words that fit, nothing else touched."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from app import modes, overlay
from app.meter import Figures
from app.modes import MODES, View, compose
from app.overlay import Painter, draw_panel, figure_rows, legend_rows
from app.pipeline import Result
from models import Card, ClassInfo

CARD = Card("test", Path("test.tflite"), tuple(
    ClassInfo(*info) for info in (("background", (0, 0, 0)), ("cat", (255, 0, 0)), ("dog", (0, 0, 255)))
))  # fmt: skip
FIGURES = Figures(
    frames={"captured": 300, "processed": 200, "shown": 200, "dropped": 100},
    fps={"camera": 30.0, "loop": 24.83, "model": 88.3},
    latency_ms={"p50": 41.0, "p95": 55.0},
    stages_ms={"prepare": 1.9, "infer": 11.3, "refine": 4.2, "paint": 1.1},
    memory_mb={"rss": 142.3, "pss": None, "peak_rss": 150.1},
    temperature_c=56.2,
    throttling="under-voltage",
)


def scene(height: int = 480, width: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """A picture of noise; a cat in the upper left quarter, a dog in the lower right one."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    classes = np.zeros((height, width), np.uint8)
    classes[: height // 2, : width // 2], classes[height // 2 :, width // 2 :] = 1, 2
    return frame, classes


def result(height: int = 480, width: int = 640) -> Result:
    frame, classes = scene(height, width)
    shares = np.bincount(classes.ravel(), minlength=3) / classes.size
    return Result(frame, classes, shares, CARD, 0, 0.0, 0.0, {}, FIGURES)


def test_overlay_blends_the_class_colour_and_leaves_the_background() -> None:
    frame, classes = scene()
    picture = compose(frame, classes, CARD, View(opacity=50))
    assert (picture[classes == 0] == frame[classes == 0]).all()
    for label, bgr in ((1, (0, 0, 255)), (2, (255, 0, 0))):  # the card says RGB
        expected = (frame[classes == label].astype(float) + bgr) / 2
        assert np.abs(picture[classes == label] - expected).max() <= 0.5


@pytest.mark.parametrize("opacity", [0, 100])
def test_opacity_reaches_both_ends(opacity: int) -> None:
    frame, classes = scene()
    picture = compose(frame, classes, CARD, View(opacity=opacity))
    expected = frame if opacity == 0 else np.where((classes == 1)[..., None], (0, 0, 255), picture)
    assert (picture == expected).all()


def test_only_the_chosen_class_is_drawn() -> None:
    frame, classes = scene()
    picture = compose(frame, classes, CARD, View(chosen=frozenset({2})))
    assert (picture[classes != 2] == frame[classes != 2]).all()
    assert (picture[classes == 2] != frame[classes == 2]).any()


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("contour", [False, True])
def test_no_mode_touches_the_frame(mode: str, contour: bool) -> None:
    frame, classes = scene(120, 160)
    before = frame.copy()
    picture = compose(frame, classes, CARD, View(mode=mode, contour=contour))
    assert (frame == before).all()
    assert picture.dtype == np.uint8
    assert picture.shape == ((120, 320, 3) if mode == "side" else (120, 160, 3))


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (37, 53)])
def test_odd_sizes_are_drawn(mode: str, size: tuple[int, int]) -> None:
    picture = Painter().paint(result(*size), View(mode=mode, contour=True), ["a notice"], "h: help")
    assert picture.shape[0] == size[0]


def test_an_empty_scene_is_left_as_it_is() -> None:
    frame, classes = scene()
    assert (compose(frame, np.zeros_like(classes), CARD, View(contour=True)) == frame).all()


@pytest.mark.parametrize("mode", ["blur", "replace", "cutout"])
def test_the_classes_stay_sharp_before_another_background(mode: str) -> None:
    frame, classes = scene()
    picture = compose(frame, classes, CARD, View(mode=mode)).astype(int)
    inner = cv2.erode((classes > 0).astype(np.uint8), np.ones((9, 9))) > 0  # edges are soft
    outer = cv2.dilate((classes > 0).astype(np.uint8), np.ones((9, 9))) == 0
    assert np.abs(picture[inner] - frame[inner]).max() <= 1
    assert np.abs(picture[outer] - frame[outer]).mean() > 30


def test_replacing_takes_a_colour_or_a_picture() -> None:
    frame, classes = scene(100, 100)
    assert compose(frame, classes, CARD, View(mode="replace", backdrop=(1, 2, 3)))[10, 90].tolist() == [1, 2, 3]
    backdrop = np.zeros((50, 200, 3), np.uint8)  # the middle square of it covers the frame
    backdrop[:, 75:125] = 9
    assert compose(frame, classes, CARD, View(mode="replace", backdrop=backdrop))[10, 90].tolist() == [9, 9, 9]


def test_a_contour_is_drawn_along_classes_but_not_along_the_picture() -> None:
    frame, classes = scene()
    picture = compose(frame, classes, CARD, View(opacity=0, contour=True))
    changed = (picture != frame).any(axis=2)
    assert changed[100, 319] and changed[239, 100]  # the inner rim of the cat
    assert not changed[100, 320] and not changed[0, 100] and not changed[100, 0]


def test_choosing_toggles_and_zero_means_all() -> None:
    view = View()
    view.choose(2)
    view.choose(1)
    assert view.chosen == {1, 2}
    view.choose(1)
    assert view.chosen == {2}
    view.choose(0)
    assert view.chosen == frozenset()


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (640, 360), (1080, 1920), (2160, 3840)])
def test_panels_fit_at_every_size(size: tuple[int, int]) -> None:
    """Letters are big enough to read, and figures and legend leave most of the picture free."""
    height, width = size
    drawn = result(height, width)
    view = View(opacity=0)
    picture = Painter().paint(drawn, view)
    changed = (picture != drawn.frame).any(axis=2)
    assert changed.any()
    assert changed.mean() < 0.45
    assert not changed[:, width * 9 // 10 :].any()
    letters = overlay.text_height(height, width)
    assert letters >= 9
    assert height / letters > 20


def test_the_most_important_figures_come_first() -> None:
    words = [f"{row.label} {row.value}" for row in figure_rows(FIGURES, "person")]
    assert words[0] == "24.8 FPS person"
    assert words[1] == "model 11.3 ms  88 FPS"
    assert words[2] == "RSS / PSS / peak 142 / - / 150 MB"
    assert "CPU 56 C under-voltage" in words
    assert "prep / edges / paint 1.9 / 4.2 / 1.1 ms" in words


def test_the_legend_lists_what_is_there_with_its_share() -> None:
    rows = legend_rows(result(), View())
    assert [(row.label, row.value, row.swatch) for row in rows] == [
        ("cat", "25 %", (0, 0, 255)),
        ("dog", "25 %", (255, 0, 0)),
    ]
    greyed = legend_rows(result(), View(chosen=frozenset({1})))[1]
    assert greyed.swatch == overlay.FAINT


def test_a_panel_is_translucent_paper_with_opaque_letters() -> None:
    ink, through = draw_panel([overlay.Row("word", "value")], 13)
    assert ink.shape == through.shape
    assert through[0, 0].tolist() == [255, 255, 255]  # a rounded corner
    assert through.min() < 20  # a letter
    paper = round(255 * (1 - overlay.PAPER_OPACITY))
    assert abs(int(np.median(through)) - paper) <= 1


def test_help_fits_on_a_small_picture_by_enlarging_it() -> None:
    picture = Painter().paint(result(240, 320), View(help=True))
    needed = draw_panel(overlay.HELP, overlay.text_height(240, 320))[0].shape
    assert picture.shape[0] >= needed[0] and picture.shape[1] >= needed[1]


def test_mask_of_takes_all_but_background_or_what_is_chosen() -> None:
    classes = np.array([[0, 1, 2]], np.uint8)
    assert modes.mask_of(classes, frozenset()).tolist() == [[0, 255, 255]]
    assert modes.mask_of(classes, frozenset({1})).tolist() == [[0, 255, 0]]
