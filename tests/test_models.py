"""The contract: geometry and colour of frames, cards, and the loader's refusals."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import models
from models import Segmenter, UserError, catalogue, preprocess, restore
from tests import tiny


def test_frames_turn_from_bgr_to_rgb_and_are_stretched() -> None:
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, :80] = (255, 0, 10)  # blue on the left
    pixels = preprocess(frame, 32, 64)
    assert pixels.shape == (1, 32, 64, 3) and pixels.dtype == np.uint8
    assert pixels[0, 5, 5].tolist() == [10, 0, 255]
    assert pixels[0, 5, 60].tolist() == [0, 0, 0]


def test_large_frames_are_halved_first_and_hardly_differ() -> None:
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 256, (48, 64, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    once = cv2.resize(frame, (272, 224), interpolation=cv2.INTER_AREA)[..., ::-1]
    halved = preprocess(frame, 224, 272)[0]
    assert 0 < np.abs(halved.astype(int) - once).mean() < 2
    exact = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA)[..., ::-1]
    np.testing.assert_array_equal(preprocess(frame, 240, 320)[0], exact)
    small = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA)  # of which only the width is too large
    linear = cv2.resize(small, (256, 240), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    np.testing.assert_array_equal(preprocess(frame, 240, 256)[0], linear)
    odd = frame[:479]  # cannot be halved
    np.testing.assert_array_equal(preprocess(odd, 224, 272)[0], cv2.resize(odd, (272, 224), interpolation=3)[..., ::-1])


def test_restoring_gives_each_pixel_the_cell_of_its_centre() -> None:
    cells = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(restore(cells, 4, 9), cells.repeat(2, 0).repeat(3, 1))
    odd = restore(cells, 5, 7)
    rows, columns = ((np.arange(n) + 0.5) * m // n for n, m in ((5, 2), (7, 3)))
    np.testing.assert_array_equal(odd, cells[rows.astype(int)][:, columns.astype(int)])


def test_stretching_and_restoring_keep_places() -> None:
    frame = np.zeros((120, 200, 3), np.uint8)
    cv2.rectangle(frame, (50, 30), (149, 89), (255, 255, 255), -1)
    seen = (preprocess(frame, 64, 64)[0, :, :, 0] > 127).astype(np.uint8)
    back = restore(seen, 120, 200)
    assert (back == (frame[..., 0] > 0)).mean() > 0.98


def test_every_shipped_model_has_a_card_that_is_true() -> None:
    assert models.names()[0] == models.DEFAULT
    for name in models.names():
        card = models.card(name)
        assert card.name == name and card.file.name == card.details["file"]
        assert catalogue.sha256(card.file) == card.details["sha256"], f"{name}: file and card differ"
        assert catalogue.embedded_classes(card.file) == card.classes
        assert {"training", "calibration", "scores", "terms", "data"} <= set(card.details)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("frame", ["black", "white", "grey", "noise"])
def test_shipped_models_stay_calm_on_frames_without_content(name: str, frame: str) -> None:
    levels = {"black": 0, "white": 255, "grey": 128}
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    pixels = noise if frame == "noise" else np.full((240, 320, 3), levels[frame], np.uint8)
    classes = Segmenter(name).segment(pixels)
    assert classes.shape == (240, 320)
    people = [index for index, info in enumerate(models.card(name).classes) if info.name == "person"]
    assert np.isin(classes, people).mean() < 0.05  # nobody is there


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(UserError, match="shipped models"):
        Segmenter("nobody")


def test_a_card_of_another_file_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(models.card(models.DEFAULT).file.read_bytes())
    model.with_suffix(".json").write_text('{"classes": [{"name": "x", "color": [1, 2, 3]}]}')
    with pytest.raises(UserError, match="is not the card of"):
        Segmenter(model)


def test_threads_must_be_positive() -> None:
    with pytest.raises(UserError, match="-1 threads are too few"):
        Segmenter(threads=-1)


@pytest.fixture
def float_model(tmp_path: Path) -> Path:
    """A float file in the shape of a segmentation model: float pixels in, float scores out."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), tf.float32)])
    def scores(pixels: object) -> object:
        return pixels * 2.0

    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([scores.get_concrete_function()]).convert())
    return path


def test_a_float_model_is_refused_with_the_way_to_an_integer_one(float_model: Path) -> None:
    with pytest.raises(UserError, match=r"float32 in, float32 out.*convert quantize"):
        Segmenter(float_model)


def test_a_text_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "text.tflite"
    path.write_text("I am a text file")
    with pytest.raises(UserError, match="is not a TFLite model"):
        Segmenter(path)


def test_a_cut_off_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(models.card(models.DEFAULT).file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load"):
        Segmenter(path)


def test_a_broken_card_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(models.card(models.DEFAULT).file.read_bytes())
    model.with_suffix(".json").write_text('{"classes": [{"name": "x"}]}')
    with pytest.raises(UserError, match=r"model\.json is not a model card"):
        Segmenter(model)


def test_classes_of_a_file_that_names_none(float_model: Path) -> None:
    with pytest.raises(UserError, match="does not say its classes"):
        models.card(float_model)


def test_palette_and_classes_fit() -> None:
    assert len(set(models.PALETTE)) == len(models.PALETTE)
    assert tiny.CLASSES[0].color == models.PALETTE[0]
