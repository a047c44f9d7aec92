"""Flicker goes, motion stays, and outlines move onto the picture's edges."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from app.refine import HOLD, Smoother, follow_edges


def disc(x: float, radius: int = 40, size: int = 128) -> np.ndarray:
    ys, xs = np.indices((size, size))
    return ((xs - x) ** 2 + (ys - size / 2) ** 2 < radius**2).astype(np.uint8)


def picture(labels: np.ndarray, noise: np.random.Generator | None = None) -> np.ndarray:
    levels = np.repeat(np.where(labels[..., None] > 0, 180, 60), 3, axis=2)
    return np.clip(levels + (noise.normal(0, 4, levels.shape) if noise else 0), 0, 255).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum())


def test_flicker_on_a_still_picture_disappears() -> None:
    noise, smoother, truth = np.random.default_rng(0), Smoother(), disc(64)
    raw, steady = [], []
    for _ in range(30):
        flipped = truth ^ (noise.random(truth.shape) < 0.05)
        raw.append(flipped)
        steady.append(smoother(picture(truth, noise), flipped))
    changes = [np.mean([(a != b).mean() for a, b in pairwise(maps[5:])]) for maps in (raw, steady)]
    assert changes[1] < changes[0] / 50
    assert iou(steady[-1], truth) > 0.95


def test_a_moving_thing_leaves_no_trail() -> None:
    noise, smoother = np.random.default_rng(0), Smoother()
    for step in range(20):
        truth = disc(30 + 3 * step)
        assert (smoother(picture(truth, noise), truth) == truth).mean() > 0.999


def test_a_lasting_change_of_mind_is_accepted_after_the_hold() -> None:
    smoother, still = Smoother(), picture(disc(64))
    smoother(still, disc(64))
    answers = [smoother(still, np.zeros((128, 128), np.uint8)).any() for _ in range(HOLD)]
    assert answers == [True] * (HOLD - 1) + [False]


def test_smoothing_is_integer_and_starts_anew_with_another_size() -> None:
    smoother = Smoother()
    assert smoother(picture(disc(64)), disc(64)).dtype == np.uint8
    smoother(picture(disc(64)), disc(70))
    small = disc(20, radius=8, size=48)
    assert (smoother(picture(small), small) == small).all()


def test_another_network_starts_anew_at_the_same_size() -> None:
    smoother, still = Smoother(), picture(disc(64))
    smoother(still, 7 * disc(64), "outfit")
    assert (smoother(still, disc(64), "person") == disc(64)).all()  # no 7, which the other does not know


def test_ids_coarser_than_the_picture_are_steadied_as_well() -> None:
    smoother, still, grid = Smoother(), picture(disc(64)), disc(32, radius=20, size=64)
    assert (smoother(still, grid) == grid).all()
    assert (smoother(still, 0 * grid) == grid).all()  # nothing moved: held


def test_a_label_kept_for_the_next_frame_is_not_the_callers_array() -> None:
    smoother, still = Smoother(), picture(disc(64))
    first = smoother(still, disc(64))
    kept = first.copy()
    for _ in range(HOLD):
        smoother(still, disc(80))
    assert (first == kept).all()


@pytest.mark.parametrize("count", [1, 3])
def test_outlines_follow_the_picture(count: int) -> None:
    """A mask of 10 px blocks comes closer to the true outline than by nearest neighbour."""
    frame, truth = np.full((480, 640, 3), 60, np.uint8), np.zeros((480, 640), np.uint8)
    for label in range(1, count + 1):
        centre = (640 * label // (count + 1), 240)
        cv2.circle(frame, centre, 80, (90 + 50 * label, 250 - 40 * label, 200), -1, cv2.LINE_AA)
        cv2.circle(truth, centre, 80, label, -1)
    coarse = cv2.resize(truth, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT)
    blocky = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_NEAREST_EXACT)
    refined = follow_edges(frame, coarse)
    assert refined.shape == truth.shape and refined.dtype == np.uint8
    assert set(np.unique(refined)) == set(range(count + 1))
    assert (refined != truth).mean() < (blocky != truth).mean() / 2


def test_without_an_edge_the_mask_stays() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 2
    refined = follow_edges(np.full((480, 640, 3), 128, np.uint8), mask)
    assert iou(refined, cv2.resize(mask, (640, 480), interpolation=cv2.INTER_NEAREST_EXACT)) > 0.95


def test_a_single_class_needs_no_filter() -> None:
    assert (follow_edges(np.zeros((48, 64, 3), np.uint8), np.full((8, 8), 7, np.uint8)) == 7).all()
