"""The ablation table: every row is measured, the page says how, and the same command gives the same scores."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert import ablate, data, floats, simulate
from convert.__main__ import main
from convert.calibrate import Levers, numbers
from convert.files import draw_pictures
from convert.fold import fold
from tests import tiny

FEW = tuple(variant for variant in ablate.VARIANTS if variant.operators != "shift" and variant.levers == Levers())


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, pictures, and labels that are what the float network says, but for a frame that does not count."""
    folder = tmp_path_factory.mktemp("ablate")
    checkpoint = tiny.checkpoint("gelu")
    checkpoint.save(folder / "tiny.npz")
    images = tiny.pictures(folder / "images")
    (folder / "labels").mkdir()
    pixels = draw_pictures([images], 4, 64, 64)
    for path, picture in zip(sorted(images.iterdir()), pixels, strict=True):
        ids = floats.scores(fold(checkpoint), checkpoint.config, picture)[0].argmax(-1).astype(np.uint8)
        label = cv2.resize(ids, (96, 80), interpolation=cv2.INTER_NEAREST_EXACT)
        label[:4] = 255
        cv2.imwrite(str(folder / "labels" / f"{path.stem}.png"), label)
    return folder


def arguments(folder: Path, output: Path, *options: str) -> list[str]:
    return [
        "ablate", str(folder / "tiny.npz"), "--images", str(folder / "images"), "--labels", str(folder / "labels"),
        "--calibrate", str(folder / "images"), "-o", str(output), *options,
    ]  # fmt: skip


def test_the_command_writes_page_and_rows(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(replace(variant, pictures=min(variant.pictures, 4)) for variant in FEW)
    monkeypatch.setattr(ablate, "VARIANTS", few)
    page = tmp_path / "ablation.md"
    ready = Path(__file__).parent / "data" / "tiny.tflite"
    assert main(arguments(scored, page, "--seeds", "2", "--json", "--file", f"ready=made={ready}")) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {(row["group"], row["name"]): row for row in told["rows"]}
    best = rows[("Float", "nearest neighbour")]
    assert best["miou"][0] > 0.97 and len(best["ms"]) == 2 and best["megabytes"] > 0  # the labels are its own
    ours = rows[("Operators", "table: ours")]
    assert len(ours["miou"]) == 2 and 0.7 < min(ours["miou"]) <= best["miou"][0] and len(ours["ms"]) == 2
    assert abs(rows[("Widths, simulated", "W8A8")]["miou"][0] - ours["miou"][0]) < 0.1
    coarse = [row["miou"][0] for key, row in rows.items() if key[1] == "one class for each patch"]
    assert len(coarse) == 2 and abs(coarse[0] - coarse[1]) < 0.1 and max(coarse) < best["miou"][0]
    assert rows[("Files", "ready=made")]["megabytes"] > 0
    text = page.read_text()
    assert all(f"| {name} |" in text for _, name in rows) and "mean of 2 draws" in text
    assert all(f"## {group}" in text for group, _ in rows)


def test_fewer_bits_lose_more_and_the_simulation_is_the_integer_file(scored: Path) -> None:
    checkpoint = ablate.Checkpoint.load(scored / "tiny.npz")
    folded, config = fold(checkpoint), checkpoint.config
    pictures = draw_pictures([scored / "images"], 4, 64, 64)

    def noise(levers: Levers) -> float:
        found = simulate.scores(numbers(folded, config, pictures, levers), config, levers, pictures[0])
        real = floats.scores(folded, config, pictures[0])
        return float(np.square(found - real).sum() / np.square(real).sum())

    eight, six, four = (noise(Levers(weight_bits=w, product_bits=p)) for w, p in ((8, 8), (6, 6), (4, 8)))
    assert eight < six / 3 and eight < four / 3
    assert 10 ** -(24.5 / 10) / 3 < eight < 10 ** -(24.5 / 10) * 3  # the file's scores have 24.5 dB (`convert sqnr`)


def test_one_class_for_each_patch_is_the_mean_of_its_scores(scored: Path) -> None:
    checkpoint = ablate.Checkpoint.load(scored / "tiny.npz")
    folded, config = fold(checkpoint), checkpoint.config
    (pixels,) = draw_pictures([scored / "images"], 1, 64, 64)
    coarse, per_patch = ablate.averaged(folded, config)
    fine = floats.scores(folded, config, pixels)[0]
    expected = fine.reshape(4, 4, 4, 4, 3).mean((1, 3))
    np.testing.assert_allclose(floats.scores(coarse, per_patch, pixels)[0], expected, atol=1e-4 * np.abs(fine).max())


def test_equal_draws_give_equal_scores(scored: Path) -> None:
    checkpoint = ablate.Checkpoint.load(scored / "tiny.npz")
    samples = data.load_pairs(scored / "images", scored / "labels", data.lookup(tiny.CLASSES, None, [255]))
    bench = ablate.Bench(checkpoint, samples, [scored / "images"], 1)
    variant = ablate.Variant("group", "name", pictures=2)
    first, second = (bench.measure(variant, lambda: None) for _ in range(2))
    assert first == second
    assert bench.measure(replace(variant, rotation="none"), lambda: None) != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seeds", "0"], "take at least one"),
        (["--file", "nothing"], "write --file NAME=PATH.tflite"),
        (["-o", "table.txt"], "must end in .md"),
        (["--images", "nowhere"], "No pictures in nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    page = tmp_path / "ablation.md"
    assert main(arguments(scored, page, *options)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not page.exists()
