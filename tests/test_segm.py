"""Folders of the original Segmenter: read, computed as the original computes, and converted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import baseline, flatbuffer, floats, network
from convert.__main__ import main
from convert.checkpoint import Checkpoint
from convert.files import draw_pictures
from convert.fold import fold, unfold
from convert.proof import kernels
from convert.verify import verify
from models import Segmenter, UserError
from tests import original, tiny

# Encoders, patches and decoders as they were published, on pictures of a few patches
VARIANTS: dict[str, dict[str, Any]] = {
    "vit mask": {},
    "deit mask": {"distilled": True},
    "vit linear": {"decoder": "linear"},
    "deit linear": {"distilled": True, "decoder": "linear"},
    "patch 8, rectangular": {"patch": 8, "size": (32, 48), "classes": 19},
    "patch 32": {"patch": 32, "size": (128, 128), "width": 64},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))


def folder(path: Path, **options: Any) -> tuple[Path, dict[str, Any], original.State]:
    described = original.variant(**options)
    weights = original.state(described)
    return original.write(path / "segmenter", described, weights), described, weights


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (1, *size, 3), np.uint8)


def logits(checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    model = network.build(checkpoint.config)
    network.assign(model, checkpoint.arrays)
    return np.asarray(model.predict_on_batch(pixels.astype(np.float32)))[0]


@every_variant
def test_logits_are_those_of_the_original(tmp_path: Path, options: dict[str, Any]) -> None:
    path, described, weights = folder(tmp_path, **options)
    checkpoint = Checkpoint.load(path)
    pixels = picture((checkpoint.config.height, checkpoint.config.width))
    expected = original.forward(weights, described, pixels[0])
    np.testing.assert_allclose(logits(checkpoint, pixels), expected, atol=1e-4)
    assert np.ptp(expected) > 1


def test_another_size_resizes_positions_as_the_original_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    path, _, weights = folder(tmp_path)
    grid = torch.tensor(weights["encoder.pos_embed"][:, 1:]).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(6, 3), mode="bilinear").permute(0, 2, 3, 1).reshape(18, -1)
    resized = Checkpoint.load(path, (96, 48))
    np.testing.assert_allclose(resized.arrays["position"], expected.numpy(), atol=1e-6)
    assert resized.config.grid == (6, 3)


@every_variant
def test_folding_keeps_the_function(tmp_path: Path, options: dict[str, Any]) -> None:
    """Scores are the logits but for what ARG_MAX does not see: a shift and a positive factor for each patch."""
    path, described, weights = folder(tmp_path, **options)
    checkpoint = Checkpoint.load(path)
    pixels, seen = picture((checkpoint.config.height, checkpoint.config.width)), {}
    scores = floats.scores(fold(checkpoint), checkpoint.config, pixels, seen.__setitem__)[0]
    if checkpoint.config.mask_norm:
        scores = scores / seen["head/norm/rms"].reshape(*scores.shape[:2], 1)
    expected = original.forward(weights, described, pixels[0])
    scores, expected = (values - values.mean(-1, keepdims=True) for values in (scores, expected))
    # What the epsilon over classes does to a patch of other than root mean square length is all that differs
    np.testing.assert_allclose(scores, expected, atol=0.02 if checkpoint.config.mask_norm else 1e-4)


def test_folding_is_exact_but_for_the_epsilon_over_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, described, weights = folder(tmp_path, distilled=True)
    weights["decoder.cls_emb"] *= 3
    monkeypatch.setattr(original, "EPSILON", 1e-12)
    checkpoint = Checkpoint.load(original.write(path, described, weights))
    for epsilon in ("encoder_epsilon", "decoder_epsilon"):
        object.__setattr__(checkpoint.config, epsilon, 1e-12)
    pixels, seen = picture((64, 64)), {}
    scores = floats.scores(fold(checkpoint), checkpoint.config, pixels, seen.__setitem__)[0]
    scores = scores / seen["head/norm/rms"].reshape(4, 4, 1)
    expected = original.forward(weights, described, pixels[0])
    scores, expected = (values - values.mean(-1, keepdims=True) for values in (scores, expected))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("options", [{"distilled": True}, {"decoder": "linear"}], ids=["mask", "linear"])
def test_what_was_folded_can_be_taken_back_out(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoint = Checkpoint.load(folder(tmp_path, **options)[0])
    pixels = picture((checkpoint.config.height, checkpoint.config.width))
    before, after = logits(checkpoint, pixels), logits(unfold(fold(checkpoint), checkpoint.config), pixels)
    before, after = (values - values.mean(-1, keepdims=True) for values in (before, after))
    np.testing.assert_allclose(after, before, atol=1e-3)


def quantize(tmp_path: Path, *arguments: str, **options: Any) -> tuple[Path, Path]:
    path, *_ = folder(tmp_path, **options)
    pictures = tiny.pictures(tmp_path / "pictures", 8)
    file = tmp_path / "out" / "segm.tflite"
    command = ["quantize", str(path), "--images", str(pictures), "--pictures", "8", "-o", str(file), *arguments]
    assert main(command) == 0
    return path, file


@every_variant
def test_conversion_is_proven_and_keeps_nine_patches_in_ten(tmp_path: Path, options: dict[str, Any]) -> None:
    path, file = quantize(tmp_path, **options)
    report = verify(file)
    assert report.proven and report.xnnpack_share > 0.9
    dense = [each for each in flatbuffer.unpack(file.read_bytes()).operators if each.kind == "FULLY_CONNECTED"]
    assert all(len(each.inputs) == 3 and each.inputs[2] for each in dense)  # see `build.IntegerOps._readings`
    assert json.loads(file.with_suffix(".json").read_text())["calibration"]["agreement"] > 0.9
    config = Checkpoint.load(path).config
    pixels = draw_pictures([tmp_path / "pictures"], 1, config.height, config.width)
    assert all(found.largest == 0 for found in kernels(file, pixels).values())
    assert Segmenter(file).infer(pixels[0]).shape == (config.height, config.width)


@pytest.mark.parametrize("norms", [["l2"], ["mask"], ["l2", "mask"]])
def test_norms_of_the_scores_can_be_dropped(tmp_path: Path, norms: list[str]) -> None:
    _, file = quantize(tmp_path, "--drop", *norms)
    told = json.loads(file.with_suffix(".json").read_text())["network"]
    assert (told["cosine"], told["mask_norm"]) == ("l2" not in norms, "mask" not in norms)
    assert verify(file).proven


def test_an_integer_file_gives_its_float_network_back(tmp_path: Path) -> None:
    path, file = quantize(tmp_path, distilled=True)
    pixels = picture((64, 64))
    before, after = logits(Checkpoint.load(path), pixels), logits(baseline.dequantise(file), pixels)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


def test_another_size_converts(tmp_path: Path) -> None:
    _, file = quantize(tmp_path, "--size", "48x80")
    assert Segmenter(file).infer(picture((48, 80))).shape == (48, 80)


def spoil(path: Path, described: dict[str, Any], weights: original.State, change: str) -> None:
    net = described["net_kwargs"]
    match change:
        case "missing":
            del weights["encoder.blocks.0.mlp.fc1.weight"]
        case "extra":
            weights["encoder.blocks.9.mlp.fc1.weight"] = np.zeros((2, 2), np.float32)
        case "shape":
            weights["decoder.proj_patch"] = np.zeros((128, 64), np.float32)
        case "normalization":
            net["normalization"] = "clip"
        case "decoder":
            net["decoder"]["name"] = "deeplab_dec"
        case "heads":
            net["n_heads"] = 4
        case "size":
            net["image_size"] = 70
        case "key":
            del net["d_model"]
    original.write(path, described, weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "lacks 'encoder.blocks.0.mlp.fc1.weight'"),
        ("extra", "has 'encoder.blocks.9.mlp.fc1.weight', which the network does not"),
        ("shape", r"'decoder.proj_patch' of shape \(128, 64\) instead of \(128, 128\)"),
        ("normalization", "KeyError\\('clip'\\)"),
        ("decoder", "decoder 'deeplab_dec'"),
        ("heads", "4 heads of 32 channels"),
        ("size", "multiples of the patch"),
        ("key", "'d_model'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: str, says: str) -> None:
    path, described, weights = folder(tmp_path)
    spoil(path, described, weights, change)
    with pytest.raises(UserError, match=says):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--drop", "l2"], "no l2 norm to drop"),
        (["--operators", "shift"], "leave out --operators"),
        (["--size", "50x64"], "multiples of the patch"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    path, *_ = folder(tmp_path, decoder="linear")
    pictures = tiny.pictures(tmp_path / "pictures")
    command = ["quantize", str(path), "--images", str(pictures), "--pictures", "4", "-o", str(tmp_path / "o.tflite")]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "o.tflite").exists()


def test_a_folder_without_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"variant\.yml"):
        Checkpoint.load(tmp_path)
    path, *_ = folder(tmp_path)
    (path / "variant.yml").write_text("net_kwargs: [")
    with pytest.raises(UserError, match="not readable YAML"):
        Checkpoint.load(path)
    (path / "variant.yml").write_text("!!python/object/apply:os.system [exit]")
    with pytest.raises(UserError, match="not readable YAML"):
        Checkpoint.load(path)
