"""The network does what its papers say, on every backend, and its checkpoints come back as they were written."""

import os
import subprocess
import sys
from dataclasses import replace
from math import erf, prod
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert import network
from convert.checkpoint import PRESETS, Checkpoint, Config, preset
from models import ClassInfo, UserError

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"
VIT_TINY = WEIGHTS / "vit_tiny_patch16_224_augreg_in21k_ft_in1k.npz"
CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("person", (255, 99, 71)), ClassInfo("cat", (0, 0, 255)))

# At two classes and 256x256, counted by hand for the first two
PARAMETERS = {"tiny": 80_864, "vit-ti": 6_672_000, "vit-s": 25_804_032, "vit-b": 101_448_192, "vit-l": 330_721_280}


def tiny(**overrides: object) -> Config:
    """A rectangular network of two blocks whose height and width cannot be mixed up unseen."""
    return preset("tiny", 3, **{"height": 32, "width": 48, **overrides})


def noisy(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights with nothing at 0 or 1, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in network.fresh(config, seed).items()}


def pictures(config: Config, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.uniform(0, 255, (count, config.height, config.width, 3)).astype(np.float32)


def reference(config: Config, a: dict[str, np.ndarray], picture: np.ndarray) -> np.ndarray:
    """The same network for one picture in float64 and loops, written from the papers."""
    a = {name: array.astype(np.float64) for name, array in a.items()}

    def norm(name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
        return (x - x.mean(axis=-1, keepdims=True)) / deviation * a[f"{name}/gain"] + a[f"{name}/bias"]

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ a[f"{name}/kernel"] + a[f"{name}/bias"]

    def attention(name: str, x: np.ndarray) -> np.ndarray:
        qkv, dim, joined = dense(f"{name}/qkv", x), config.dim, []
        for head in range(config.heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            q, k, v = (qkv[:, start:][:, part] for start in (0, dim, 2 * dim))
            scores = np.exp(q @ k.T / np.sqrt(config.head_dim))
            joined.append(scores / scores.sum(axis=1, keepdims=True) @ v)
        return dense(f"{name}/proj", np.concatenate(joined, axis=1))

    def active(x: np.ndarray) -> np.ndarray:
        smooth = {"gelu": lambda v: (1 + erf(v / np.sqrt(2))) / 2, "silu": lambda v: 1 / (1 + np.exp(-v))}
        return x * np.vectorize(smooth.get(config.activation, lambda v: float(v > 0)))(x)

    def block(name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
        x = x + attention(name, norm(f"{name}/norm1", x, epsilon))
        return x + dense(f"{name}/fc2", active(dense(f"{name}/fc1", norm(f"{name}/norm2", x, epsilon))))

    p, pixels = config.patch, (picture.astype(np.float64) - config.mean) / config.std
    rows, columns = config.grid
    cells = [pixels[r * p : r * p + p, c * p : c * p + p].ravel() for r in range(rows) for c in range(columns)]
    x = np.array(cells) @ a["patch/kernel"].reshape(-1, config.dim) + a["patch/bias"] + a["position"]
    for index in range(config.depth):
        x = block(f"encoder/{index}", x, config.encoder_epsilon)
    x = dense("decoder/input", norm("encoder/norm", x, config.encoder_epsilon))
    x = np.concatenate([x, a["decoder/classes"]])
    for index in range(config.decoder_depth):
        x = block(f"decoder/{index}", x, config.decoder_epsilon)
    x = norm("decoder/norm", x, config.decoder_epsilon)
    return reference_head(config, a, x)


def reference_head(config: Config, a: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Each sub-token of each patch, put into its place by hand."""
    columns = config.grid[1]
    masks = x[config.tokens :] @ a["head/classes/kernel"]
    logits = np.zeros((config.height // config.stride, config.width // config.stride, config.classes))
    for token in range(config.tokens):
        for sub, part in enumerate((x[token] @ a["head/patch/kernel"]).reshape(-1, config.mask_dim)):
            row, column = (
                token // columns * config.sub + sub // config.sub,
                token % columns * config.sub + sub % config.sub,
            )
            logits[row, column] = masks @ part / np.sqrt(config.mask_dim)
    return logits


@pytest.mark.parametrize(
    "overrides",
    [
        {"activation": "gelu"},
        {"activation": "relu"},
        {"activation": "silu"},
        {"height": 48, "width": 32},  # upright
        {"stride": 16},  # one logit a patch
        {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)},  # ImageNet's, a value for each colour
        {"encoder_epsilon": 0.5},  # large, so that the two cannot be mixed up
        {"decoder_epsilon": 0.5},
    ],
    ids=str,
)
def test_logits_equal_an_independent_reference(overrides: dict[str, object]) -> None:
    config = tiny(**overrides)
    model, weights, frames = network.build(config), noisy(config), pictures(config)
    network.assign(model, weights)
    logits = model.predict_on_batch(frames)
    assert logits.shape == (2, config.height // config.stride, config.width // config.stride, 3)
    expected = np.stack([reference(config, weights, frame) for frame in frames])
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


def test_every_preset_is_tested() -> None:
    assert set(PARAMETERS) == set(PRESETS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_their_number_of_parameters(name: str) -> None:
    config = preset(name, 2, height=256, width=256)
    assert sum(prod(shape) for shape in config.shapes().values()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"height": 100}, "multiples of the patch"),
        ({"stride": 5}, "multiple of stride"),
        ({"heads": 5}, "multiple of heads"),
        ({"activation": "tanh"}, "tanh"),
        ({"dimension": 3}, "dimension"),  # no such field
        ({"height": "256"}, "cannot be built"),  # text
        ({"stride": 0}, "cannot be built"),
        ({"height": 0}, "positive"),
    ],
)
def test_impossible_networks_are_refused_in_a_sentence(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        preset("tiny", 2, **wrong)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_backends_give_the_same_logits(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed here")
    config = tiny()
    checkpoint = Checkpoint(noisy(config), config, CLASSES)
    checkpoint.save(tmp_path / "tiny.npz")
    model = network.build(config)
    network.assign(model, checkpoint.arrays)
    np.save(tmp_path / "pixels.npy", pictures(config))
    script = (
        "import numpy as np; from convert import network; from convert.checkpoint import Checkpoint\n"
        "kept = Checkpoint.load('tiny.npz'); model = network.build(kept.config); network.assign(model, kept.arrays)\n"
        "np.save('logits.npy', model.predict_on_batch(np.load('pixels.npy')))"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment, capture_output=True)
    ours = model.predict_on_batch(pictures(config))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ours, atol=1e-4 * np.abs(ours).max())


def test_drop_path_acts_in_training_only() -> None:
    config = tiny()
    frames, plain, dropping = pictures(config), network.build(config), network.build(config, drop_path=0.9)
    network.assign(plain, noisy(config))
    network.assign(dropping, noisy(config))
    np.testing.assert_array_equal(plain.predict_on_batch(frames), dropping.predict_on_batch(frames))
    assert not np.allclose(np.asarray(dropping(frames, training=True)), np.asarray(plain(frames, training=True)))


def test_fresh_weights_follow_the_seed() -> None:
    one, same, other = (network.fresh(tiny(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["patch/kernel"], same["patch/kernel"])
    assert not np.array_equal(one["patch/kernel"], other["patch/kernel"])
    assert 0.015 < one["patch/kernel"].std() < 0.02 and np.abs(one["patch/kernel"]).max() <= 0.04  # cut off at 2 sigma


def test_assign_is_the_inverse_of_arrays_and_refuses_others() -> None:
    config = tiny()
    model, weights = network.build(config), noisy(config)
    network.assign(model, weights)
    for name, array in network.arrays(model).items():
        np.testing.assert_array_equal(array, weights[name])
    with pytest.raises(UserError, match="lacks 'position'"):
        network.assign(model, {name: array for name, array in weights.items() if name != "position"})


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = Checkpoint(noisy(tiny()), tiny(activation="relu"), CLASSES, {"seed": 3, "scores": {"miou": 0.5}})
    saved.save(tmp_path / "new" / "tiny.npz")
    loaded = Checkpoint.load(tmp_path / "new" / "tiny.npz")
    assert (loaded.config, loaded.classes, loaded.training) == (saved.config, saved.classes, saved.training)
    assert list(loaded.arrays) == list(saved.arrays)
    for name, array in saved.arrays.items():
        assert loaded.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert os.listdir(tmp_path / "new") == ["tiny.npz"]  # nothing temporary left


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda arrays: arrays.pop("encoder/1/fc2/bias"), "lacks 'encoder/1/fc2/bias'"),
        (lambda arrays: arrays.update({"head/bias": np.zeros(3)}), "has 'head/bias', which"),
        (lambda arrays: arrays.update({"position": np.zeros((7, 32))}), r"'position' of shape \(7, 32\)"),
        (lambda arrays: arrays.pop("meta"), "not a checkpoint"),
        (lambda arrays: arrays.update({"meta": np.array("{}")}), "not a checkpoint"),
        (lambda arrays: arrays.update({"meta": np.array("no JSON")}), "not a checkpoint"),
    ],
)
def test_an_odd_checkpoint_is_refused_by_the_name_of_the_array(spoil, word: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    Checkpoint(noisy(tiny()), tiny(), CLASSES).save(path)
    arrays = dict(np.load(path))
    spoil(arrays)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=word):
        Checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"just text", b"PK\x03\x04 cut off", None], ids=str)
def test_a_file_that_is_no_checkpoint_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable .npz|No file"):
        Checkpoint.load(path)


def test_half_a_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "half.npz"
    Checkpoint(noisy(tiny()), tiny(), CLASSES).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not a readable"):
        Checkpoint.load(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.npz"
    saved = Checkpoint(noisy(tiny()), tiny(), CLASSES)
    saved.save(path)
    before = path.read_bytes()

    def full_disk(*names: str) -> None:
        raise OSError(28, "No space left on device", names[0])

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space"):
        replace(saved, training={"seed": 1}).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["tiny.npz"]


# Initial weights and other sizes


def timm_file(path: Path, config: Config, side: int = 3, **spoilt: np.ndarray) -> dict[str, np.ndarray]:
    """Write a ViT classifier of random weights under timm's names."""
    rng, dim, hidden = np.random.default_rng(5), config.dim, config.dim * config.mlp_ratio
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + side * side, dim), "patch_embed.proj.bias": (dim,)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, 16, 16), "norm.weight": (dim,), "norm.bias": (dim,)}
    shapes |= {"head.weight": (10, dim), "head.bias": (10,)}
    block = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    for index in range(config.depth):
        for name, shape in {**block, "norm1": (dim,), "norm2": (dim,)}.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
    arrays = {name: rng.normal(0, 0.3, shape).astype(np.float16) for name, shape in shapes.items()} | spoilt
    np.savez(path, **arrays)
    return arrays


def test_a_classifier_gives_its_encoder(tmp_path: Path) -> None:
    config = tiny(height=48, width=48)
    timm = timm_file(tmp_path / "vit.npz", config)
    ours = network.initial(config, tmp_path / "vit.npz", seed=1)
    assert {name: array.shape for name, array in ours.items()} == config.shapes()
    assert all(array.dtype == np.float32 for array in ours.values())
    np.testing.assert_array_equal(ours["encoder/1/fc1/kernel"], timm["blocks.1.mlp.fc1.weight"].T)
    np.testing.assert_array_equal(ours["encoder/norm/gain"], timm["norm.weight"])
    np.testing.assert_array_equal(ours["position"], timm["pos_embed"][0, 1:])  # same grid: its very rows
    np.testing.assert_array_equal(ours["patch/kernel"][2, 5, 1], timm["patch_embed.proj.weight"][:, 1, 2, 5])
    np.testing.assert_array_equal(ours["decoder/input/kernel"], network.fresh(config, 1)["decoder/input/kernel"])


@pytest.mark.parametrize(
    ("spoilt", "word"),
    [
        ({"blocks.1.mlp.fc2.bias": np.zeros(3)}, "'blocks.1.mlp.fc2.bias' of shape"),
        ({"dist_token": np.zeros((1, 1, 32))}, "'dist_token', which"),
        ({"pos_embed": np.zeros((1, 12, 32))}, "square grid"),
    ],
)
def test_another_classifier_is_refused_by_name(spoilt: dict[str, np.ndarray], word: str, tmp_path: Path) -> None:
    timm_file(tmp_path / "vit.npz", tiny(), **spoilt)
    with pytest.raises(UserError, match=word):
        network.initial(tiny(), tmp_path / "vit.npz")


def test_a_checkpoint_of_other_classes_gives_all_but_its_class_embeddings(tmp_path: Path) -> None:
    saved = Checkpoint(noisy(tiny()), tiny(), CLASSES)
    saved.save(tmp_path / "three.npz")
    same = network.initial(tiny(), tmp_path / "three.npz")
    np.testing.assert_array_equal(same["decoder/classes"], saved.arrays["decoder/classes"])
    config = replace(tiny(), classes=5)
    ours = network.initial(config, tmp_path / "three.npz")
    np.testing.assert_array_equal(ours["head/classes/kernel"], saved.arrays["head/classes/kernel"])
    np.testing.assert_array_equal(ours["decoder/classes"], network.fresh(config)["decoder/classes"])


def test_positions_are_resized_as_a_picture() -> None:
    config, larger = tiny(), tiny(height=64, width=96)
    weights = noisy(config)
    rows, columns = np.mgrid[0:2, 0:3]
    weights["position"][:, 0], weights["position"][:, 1], weights["position"][:, 2] = 5, rows.ravel(), columns.ravel()
    grown = Checkpoint(weights, config, CLASSES).resized(64, 96).arrays
    assert {name: array.shape for name, array in grown.items()} == larger.shapes()
    grid = grown["position"].reshape(4, 6, -1)
    np.testing.assert_allclose(grid[..., 0], 5, rtol=1e-6)  # what is constant stays so
    assert (np.diff(grid[..., 1], axis=0) > 0).all() and np.allclose(np.diff(grid[..., 1], axis=1), 0, atol=1e-6)
    assert (np.diff(grid[..., 2], axis=1) > 0).all() and np.allclose(np.diff(grid[..., 2], axis=0), 0, atol=1e-6)
    model = network.build(larger)
    network.assign(model, grown)
    assert model.predict_on_batch(pictures(larger)).shape == (2, 16, 24, 3)


def test_larger_patches_do_with_a_picture_what_smaller_ones_do_with_it_resized() -> None:
    config, larger = tiny(), tiny(height=40, width=60, patch=20, stride=5)
    weights = noisy(config)
    models = [network.build(each) for each in (config, larger)]
    network.assign(models[0], weights)
    network.assign(models[1], Checkpoint(weights, config, CLASSES).resized(40, 60, 20, 5).arrays)
    large = pictures(larger)
    small = np.stack([cv2.resize(picture, (48, 32), interpolation=cv2.INTER_AREA) for picture in large])
    ours, theirs = models[1].predict_on_batch(large), models[0].predict_on_batch(small)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_a_network_with_gelu_starts_one_with_silu(tmp_path: Path) -> None:
    gelu, silu = tiny(activation="gelu"), tiny(activation="silu")
    Checkpoint(noisy(gelu), gelu, CLASSES).save(tmp_path / "gelu.npz")
    models = [network.build(config) for config in (gelu, silu, silu)]
    network.assign(models[0], noisy(gelu))
    network.assign(models[1], network.initial(silu, tmp_path / "gelu.npz"))
    network.assign(models[2], noisy(gelu))
    truth, ours, plain = (model.predict_on_batch(pictures(gelu)) for model in models)
    error, without = (np.sqrt(np.square(logits - truth).mean()) for logits in (ours, plain))
    assert error < 0.1 * without and error < 0.05 * truth.std()

    timm_file(tmp_path / "vit.npz", gelu)
    first, second = (network.initial(config, tmp_path / "vit.npz") for config in (gelu, silu))
    for name, factor in (("fc1/kernel", 1.702), ("fc1/bias", 1.702), ("fc2/kernel", 1 / 1.702), ("fc2/bias", 1)):
        name = f"encoder/1/{name}"
        np.testing.assert_allclose(second[name], factor * first[name], rtol=1e-6)


def test_a_classifier_serves_other_patches(tmp_path: Path) -> None:
    config = tiny(height=60, width=60, patch=20)
    timm = timm_file(tmp_path / "vit.npz", config)
    ours = network.initial(config, tmp_path / "vit.npz")
    sums = timm["patch_embed.proj.weight"].sum(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(ours["patch/kernel"].sum(axis=(0, 1)), sums.T, rtol=1e-3, atol=1e-2)


@pytest.mark.skipif(not VIT_TINY.is_file(), reason="the shared ViT-Tiny weights are not here")
def test_the_vit_tiny_weights_fit() -> None:
    config = preset("vit-ti", 2, height=224, width=224)
    with np.load(VIT_TINY) as timm:
        assert len(timm.files) == 152
        position = timm["pos_embed"][0, 1:].astype(np.float32)
    ours = network.initial(config, VIT_TINY)
    assert {name: array.shape for name, array in ours.items()} == config.shapes()
    np.testing.assert_array_equal(ours["position"], position)
    wide = preset("vit-ti", 2, height=224, width=320)
    assert network.initial(wide, VIT_TINY)["position"].shape == (14 * 20, 192)
