"""Pictures and labels are read, checked, mixed and scored as a recipe says."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert import augment, data
from models import ClassInfo, UserError, preprocess

CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("person", (255, 99, 71)), ClassInfo("cat", (0, 0, 255)))
SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_pair(folder: Path, name: str, label: np.ndarray, frame: np.ndarray | None = None) -> None:
    """Put a picture into `folder/images` and its label into `folder/labels`."""
    (folder / "images").mkdir(exist_ok=True, parents=True)
    (folder / "labels").mkdir(exist_ok=True)
    if frame is None:
        frame = np.random.default_rng(0).integers(0, 256, (*label.shape[:2], 3), np.uint8)
    cv2.imwrite(str(folder / "images" / f"{name}.png"), frame)
    cv2.imwrite(str(folder / "labels" / f"{name}.png"), label)


def label(*ids: int, shape: tuple[int, int] = (24, 40)) -> np.ndarray:
    """Stripes of label ids from left to right."""
    return np.repeat(np.array(ids, np.uint8), -(-shape[1] // len(ids)))[None, : shape[1]].repeat(shape[0], axis=0)


def write_recipe(folder: Path, **changes: Any) -> data.Recipe:
    source = {"images": "images", "labels": "labels"}
    told = {
        "classes": [{"name": entry.name, "color": list(entry.color)} for entry in CLASSES],
        "train": [source],
        "val": [source],
    }
    (folder / "recipe.json").write_text(json.dumps(told | changes))
    return data.load_recipe(folder / "recipe.json")


# Recipes


@pytest.mark.parametrize("name", ["person", "outfit", "street"])
def test_shipped_recipes_are_whole(name: str) -> None:
    recipe = data.load_recipe(name)
    assert recipe.name == name and len(recipe.classes) >= 2
    for source in recipe.train + recipe.val:
        used = set(data.lookup(recipe.classes, source.ids, source.ignore)) - {data.IGNORED, data.UNKNOWN}
        assert used == set(range(len(recipe.classes)))  # every class has a label id


def test_outfit_keeps_its_validation_pictures_out_of_training() -> None:
    recipe = data.load_recipe("outfit")
    assert recipe.train[0].without == recipe.val[0].only
    assert len(data._names(recipe.folder, recipe.val[0].only) or ()) == 151  # 15 % of 1004


@pytest.mark.skipif(not (SHARED / "voc_person").is_dir(), reason="the shared pictures are not here")
def test_the_person_recipe_finds_the_shared_pictures() -> None:
    samples = data.load_set(data.load_recipe("person"), "val", SHARED)
    assert len(samples) == 150
    assert set(np.unique(np.concatenate([sample.label.ravel() for sample in samples]))) == {0, 1, data.IGNORED}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "person"),  # no such recipe: the sentence lists ours
        ("no JSON", "is not a recipe"),
        ("[]", "is not a recipe"),
        ('{"classes": []}', "is not a recipe"),
        ('{"classes": [{"name": "a", "color": [0, 0, 300]}], "train": [], "val": []}', "beyond 0..255"),
        ('{"classes": [{"name": "a", "color": [0, 0]}], "train": [], "val": []}', "is not a recipe"),
        ('{"classes": [], "train": [{"images": "i", "labels": "l", "twice": 1}], "val": []}', "twice"),
    ],
)
def test_a_broken_recipe_is_one_sentence(content: str | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=word):
        data.load_recipe(path)


def test_label_ids_become_class_ids() -> None:
    table = data.lookup(CLASSES, {"person": [15, "17-19"], "cat": 8}, [255, 3])
    assert [int(table[index]) for index in (0, 8, 15, 16, 17, 19, 20, 255, 3)] == [0, 2, 1, 0, 1, 1, 0, 255, 255]


def test_without_ids_labels_are_class_ids() -> None:
    table = data.lookup(CLASSES, None, [11])
    assert [int(table[index]) for index in (0, 2, 3, 11, 255)] == [0, 2, data.UNKNOWN, 255, data.UNKNOWN]


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        ({"dog": [1]}, "'dog'"),
        ({"cat": ["5-"]}, "5-"),
        ({"cat": ["9-4"]}, "9-4"),
        ({"cat": [256]}, "256"),
        ({"cat": ["x"]}, "x"),
    ],
)
def test_odd_label_ids_are_refused(ids: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        data.lookup(CLASSES, ids, [])


# Reading


def test_a_set_is_read_in_order_with_repeats_and_lists_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_pair(tmp_path, name, label(0, 1, 2, 255))
    (tmp_path / "held_back.txt").write_text("b\n")
    source = {"images": "images", "labels": "labels"}
    recipe = write_recipe(
        tmp_path,
        train=[{**source, "repeat": 2, "except": "held_back.txt"}],
        val=[{**source, "only": "held_back.txt"}],
    )
    train = data.load_set(recipe, "train", tmp_path)
    assert [sample.name for sample in train] == ["a", "c", "a", "c"]
    assert train[0] is train[2]  # a repeat costs no memory
    assert [sample.name for sample in data.load_set(recipe, "val", tmp_path)] == ["b"]
    np.testing.assert_array_equal(train[0].label, label(0, 1, 2, 255))
    assert train[0].frame.shape == (24, 40, 3) and train[0].frame.dtype == np.uint8


def spoil(folder: Path, how: str) -> str:
    """Break the picture `a`, and return what the sentence must name."""
    images, labels = folder / "images", folder / "labels"
    if how == "no pictures":
        (images / "a.png").unlink()
        return str(images)
    if how == "no label":
        (labels / "a.png").unlink()
        return "has no label"
    if how == "other size":
        write_pair(folder, "a", label(0, 1, 2), np.zeros((30, 20, 3), np.uint8))
        return "40x24 and not 20x30"
    if how == "text as picture":
        (images / "a.png").write_text("text")
        return f"{images / 'a.png'} is not a readable picture"
    if how == "text as label":
        (labels / "a.png").write_text("text")
        return f"{labels / 'a.png'} is not a readable picture"
    if how == "coloured label":
        write_pair(folder, "a", label(0, 1, 2)[..., None].repeat(3, axis=2))
        return "not an 8-bit picture of class ids"
    if how == "no class":
        write_pair(folder, "a", label(0, 1, 2, 7))
        return "a.png has the id 7"
    assert how == "class never occurs"
    write_pair(folder, "a", label(0, 1))
    return "shows the class 'cat'"


@pytest.mark.parametrize(
    "how",
    [
        "no pictures",
        "no label",
        "other size",
        "text as picture",
        "text as label",
        "coloured label",
        "no class",
        "class never occurs",
    ],
)
def test_bad_pictures_are_named(how: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "a", label(0, 1, 2))
    recipe = write_recipe(tmp_path)
    data.load_set(recipe, "train", tmp_path)  # fine so far
    with pytest.raises(UserError, match=re.escape(spoil(tmp_path, how))):
        data.load_set(recipe, "train", tmp_path)


def test_a_missing_list_of_names_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train=[{"images": "images", "labels": "labels", "only": "gone.txt"}])
    with pytest.raises(UserError, match=r"gone\.txt"):
        data.load_set(recipe, "train", tmp_path)


# Augmenting and batching


def coded(shape: tuple[int, int] = (60, 90)) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose brightness tells its class: dark 0, grey 1, bright 2."""
    ids = label(0, 1, 2, shape=shape)
    return (ids * 110)[..., None].repeat(3, axis=2), ids


def test_the_label_moves_with_its_picture() -> None:
    frame, ids = coded()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cut, moved = augment._crop(frame, ids, rng, 48, 64)
        assert cut.shape == (48, 64, 3) and moved.shape == (48, 64)
        inside = moved != data.IGNORED
        agree = np.abs(cut[..., 0][inside].astype(int) - moved[inside].astype(int) * 110) < 30
        assert agree.mean() > 0.93  # all but the blended edges
        if inside.mean() < 0.9:
            assert np.median(cut[~inside]) == augment.GREY[0]


def test_augmenting_varies_everything_and_follows_its_seed() -> None:
    frame, ids = coded()
    results = [augment.augment(frame, ids, np.random.default_rng(seed), 48, 64) for seed in range(40)]
    again, same = augment.augment(frame, ids, np.random.default_rng(7), 48, 64)
    np.testing.assert_array_equal(again, results[7][0])
    np.testing.assert_array_equal(same, results[7][1])
    assert all(f.dtype == i.dtype == np.uint8 and f.flags.c_contiguous and i.flags.c_contiguous for f, i in results)
    ignored = [float((i == data.IGNORED).mean()) for _, i in results]
    assert min(ignored) == 0 and max(ignored) > 0.4  # near and far
    leaning = [np.polyfit(np.arange(i.shape[1]), np.where(i == 255, 1, i).mean(axis=0), 1)[0] for _, i in results]
    assert min(leaning) < 0 < max(leaning)  # flipped or not
    light = [float(f.mean()) for f, _ in results]
    assert np.std(light) > 10
    assert {int(value) for _, i in results for value in np.unique(i)} == {0, 1, 2, 255}


def test_batches_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, ids = coded()
    samples = [data.Sample(str(index), frame, ids) for index in range(7)]
    weights = np.array([1, 2, 3], np.float32)

    def epoch(number: int, threads: int) -> list[tuple[np.ndarray, np.ndarray]]:
        monkeypatch.setattr(data, "THREADS", threads)
        return list(augment.batches(samples, (32, 48), 4, weights, batch=2, seed=3, epoch=number))

    once, twice, later = epoch(0, 1), epoch(0, 4), epoch(1, 1)
    assert len(once) == 3  # the seventh does not fill a batch
    for (pixels, targets), (others, wanted) in zip(once, twice, strict=True):
        assert pixels.shape == (2, 32, 48, 3) and targets.shape == (2, 8, 12, 3)
        assert pixels.dtype == targets.dtype == np.float32
        np.testing.assert_array_equal(pixels, others)
        np.testing.assert_array_equal(targets, wanted)
    assert not np.array_equal(once[0][0], later[0][0])


def test_batches_hand_over_rgb() -> None:
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[..., 0] = 200  # BGR
    samples = [data.Sample("blue", blue, np.zeros((32, 32), np.uint8))] * 8
    for pixels, targets in augment.batches(samples, (32, 32), 4, np.ones(2, np.float32), batch=8, seed=0, epoch=0):
        inside = targets.sum(axis=-1).repeat(4, 1).repeat(4, 2) == 1
        red, _, blues = pixels[inside].mean(axis=0)
        assert blues > red + 50


def test_cell_targets_are_the_cross_entropy_at_full_size() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 12))
    weights = np.array([0.5, 1, 3], np.float32)
    logits = rng.normal(size=(2, 3, 3))
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    full = logs.repeat(4, axis=0).repeat(4, axis=1)
    expected = sum(weights[ids[y, x]] * full[y, x, ids[y, x]] for y in range(8) for x in range(12) if ids[y, x] != 255)
    targets = augment.cell_targets(ids, 4, weights)
    assert np.isclose((targets * logs).sum() * 16, expected)


def test_rare_classes_weigh_more_up_to_a_limit() -> None:
    shares = np.array([0.9, 0.0999, 0.0001])
    weights = data.class_weights(shares)
    assert np.isclose((weights * shares).sum(), 1)
    assert np.isclose(weights[1] / weights[0], (0.9 / 0.0999) ** 0.5) and np.isclose(weights[2] / weights[0], 10)


# Scores


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
    guess = np.array([[0, 0, 1, 1], [1, 0, 2, 0]], np.uint8)  # the last two do not count
    assert data.confusion(truth, guess, 3).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    sample = data.Sample("a", np.zeros((2, 4, 3), np.uint8), truth)
    scores = data.score([sample], [guess], ["background", "person", "cat"])
    assert scores.iou == {"background": 0.5, "person": 0.5, "cat": None}  # no label shows a cat
    assert scores.as_dict() == {"images": 1, "miou": 0.5, "iou": scores.iou, "pixel_accuracy": 4 / 6}


def test_scores_count_pixels_over_all_pictures() -> None:
    shapes = [(10, 10), (30, 30)]
    samples = [data.Sample("", np.zeros((*shape, 3), np.uint8), label(0, 1, shape=shape)) for shape in shapes]
    predictions = [label(0, 1, shape=(10, 10)), np.zeros((30, 30), np.uint8)]
    scores = data.score(samples, predictions, ["background", "person"])
    assert scores.iou["person"] == 50 / 500 and scores.iou["background"] == 500 / 950
    assert scores.pixel_accuracy == 550 / 1000


def test_scores_are_taken_at_the_size_of_the_label() -> None:
    frame, ids = coded((37, 91))  # odd, so that the way to 16x32 and back is not exact
    small = (preprocess(frame, 16, 32)[0, ..., 0] // 100).astype(np.uint8)
    assert small.shape == (16, 32)
    scores = data.score([data.Sample("a", frame, ids)], [small], ["dark", "grey", "bright"])
    assert scores.pixel_accuracy > 0.95


def test_nothing_labelled_scores_nothing() -> None:
    sample = data.Sample("a", np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 255, np.uint8))
    scores = data.score([sample], [np.zeros((2, 2), np.uint8)], ["a", "b"])
    assert (scores.miou, scores.pixel_accuracy, scores.iou) == (0.0, 0.0, {"a": None, "b": None})
