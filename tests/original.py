"""The original Segmenter in plain NumPy float64, written from its source and from nothing of ours, and its files.

rstrudel/segmenter, segm/model: vit.py, blocks.py, decoder.py, segmenter.py; names and shapes are those of its
`state_dict()`. `write` makes a folder as its training does, without torch.
"""

import io
import pickle
import zipfile
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import yaml

State = dict[str, np.ndarray]
EPSILON = 1e-5  # nn.LayerNorm's own
_erf = np.vectorize(erf)


def variant(size: tuple[int, int] = (64, 64), distilled: bool = False, decoder: str = "mask_transformer",
            classes: int = 5, patch: int = 16, width: int = 128, layers: int = 1) -> dict[str, Any]:  # fmt: skip
    """What train.py dumps into variant.yml, as far as it describes the network."""
    blocks = {"drop_path_rate": 0.0, "dropout": 0.1, "n_layers": 2} if decoder == "mask_transformer" else {}
    net = {
        "backbone": "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_384",
        "image_size": size, "patch_size": patch, "d_model": width, "n_heads": width // 64, "n_layers": layers,
        "normalization": "deit" if distilled else "vit", "distilled": distilled, "dropout": 0.0, "drop_path_rate": 0.1,
        "n_cls": classes, "decoder": {"name": decoder, "n_cls": classes, **blocks},
    }  # fmt: skip
    return {"net_kwargs": net, "dataset_kwargs": {"dataset": "ade20k", "image_size": size[0]}, "amp": False}


def state(described: dict[str, Any], seed: int = 0) -> State:
    """Draw a network that looks at its picture: no bias 0, no gain 1, tokens and classes that differ."""
    net, rng = described["net_kwargs"], np.random.default_rng(seed)
    dim, patch, classes = net["d_model"], net["patch_size"], net["n_cls"]
    tokens = ["cls_token", "dist_token"][: 1 + net["distilled"]]
    count = net["image_size"][0] // patch * (net["image_size"][1] // patch)
    shapes: dict[str, tuple[int, ...]] = {f"encoder.{token}": (1, 1, dim) for token in tokens}
    shapes["encoder.pos_embed"] = (1, len(tokens) + count, dim)
    shapes["encoder.patch_embed.proj.weight"] = (dim, 3, patch, patch)
    shapes["encoder.patch_embed.proj.bias"] = (dim,)
    for i in range(net["n_layers"]):
        shapes |= _block_shapes(f"encoder.blocks.{i}", dim)
    shapes |= _affine("encoder.norm", dim) | _affine("encoder.head", 1000, dim)
    if net["distilled"]:
        shapes |= _affine("encoder.head_dist", 1000, dim)
    if net["decoder"]["name"] == "linear":
        shapes |= _affine("decoder.head", classes, dim)
    else:
        shapes["decoder.cls_emb"] = (1, classes, dim)
        shapes["decoder.proj_patch"] = shapes["decoder.proj_classes"] = (dim, dim)
        for i in range(net["decoder"]["n_layers"]):
            shapes |= _block_shapes(f"decoder.blocks.{i}", dim)
        shapes |= _affine("decoder.proj_dec", dim, dim) | _affine("decoder.decoder_norm", dim)
        shapes |= _affine("decoder.mask_norm", classes)
    return {name: _draw(name, shape, rng) for name, shape in shapes.items()}


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _block_shapes(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return (
        _affine(f"{name}.norm1", dim) | _affine(f"{name}.norm2", dim)
        | _affine(f"{name}.attn.qkv", 3 * dim, dim) | _affine(f"{name}.attn.proj", dim, dim)
        | _affine(f"{name}.mlp.fc1", 4 * dim, dim) | _affine(f"{name}.mlp.fc2", dim, 4 * dim)
    )  # fmt: skip


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.normal(size=shape).astype(np.float32)
    if "norm" in name:
        return 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
    if name.endswith("bias"):
        return 0.1 * values
    # Tokens of the size of patches; matrices whose branches add a part of what the stream already holds
    return values * np.float32(1 if len(shape) == 3 else 0.7 * np.prod(shape[1:]) ** -0.5)


def forward(weights: State, described: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """HxWx3 uint8 RGB -> h x w x classes logits before the bilinear upsampling, as `Segmenter.forward` has them."""
    net, w = described["net_kwargs"], {name: array.astype(np.float64) for name, array in weights.items()}
    mean, std = {
        "vit": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        "deit": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }[net["normalization"]]
    picture = (pixels / 255 - np.array(mean)) / np.array(std)
    patch, extra = net["patch_size"], 1 + net["distilled"]
    rows, columns = picture.shape[0] // patch, picture.shape[1] // patch
    x = np.zeros((rows * columns, net["d_model"]))
    for row in range(rows):
        for column in range(columns):
            tile = picture[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            x[row * columns + column] = np.einsum("hwc,dchw->d", tile, w["encoder.patch_embed.proj.weight"])
    x += w["encoder.patch_embed.proj.bias"]
    tokens = [w[f"encoder.{token}"][0] for token in ("cls_token", "dist_token")[:extra]]
    x = np.concatenate([*tokens, x]) + w["encoder.pos_embed"][0]
    for i in range(net["n_layers"]):
        x = _block(w, f"encoder.blocks.{i}", x, net["n_heads"])
    x = _layer_norm(w, "encoder.norm", x)[extra:]
    if net["decoder"]["name"] == "linear":
        return _linear(w, "decoder.head", x).reshape(rows, columns, -1)
    x = np.concatenate([_linear(w, "decoder.proj_dec", x), w["decoder.cls_emb"][0]])
    for i in range(net["decoder"]["n_layers"]):
        x = _block(w, f"decoder.blocks.{i}", x, net["d_model"] // 64)
    x = _layer_norm(w, "decoder.decoder_norm", x)
    patches = x[: -net["n_cls"]] @ w["decoder.proj_patch"]
    classes = x[-net["n_cls"] :] @ w["decoder.proj_classes"]
    patches = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    classes = classes / np.linalg.norm(classes, axis=-1, keepdims=True)
    return _layer_norm(w, "decoder.mask_norm", patches @ classes.T).reshape(rows, columns, -1)


def _block(w: State, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    x = x + _attention(w, f"{name}.attn", _layer_norm(w, f"{name}.norm1", x), heads)
    hidden = _linear(w, f"{name}.mlp.fc1", _layer_norm(w, f"{name}.norm2", x))
    hidden = hidden * 0.5 * (1 + _erf(hidden / np.sqrt(2)))
    return x + _linear(w, f"{name}.mlp.fc2", hidden)


def _attention(w: State, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    count, dim = x.shape
    qkv = _linear(w, f"{name}.qkv", x).reshape(count, 3, heads, dim // heads)
    parts = []
    for head in range(heads):
        q, k, v = (qkv[:, part, head] for part in range(3))
        scores = np.exp(q @ k.T * (dim // heads) ** -0.5)
        parts.append(scores / scores.sum(1, keepdims=True) @ v)
    return _linear(w, f"{name}.proj", np.concatenate(parts, 1))


def _linear(w: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _layer_norm(w: State, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    return normed * w[f"{name}.weight"] + w[f"{name}.bias"]


def write(folder: Path, described: dict[str, Any], weights: State) -> Path:
    """Write `checkpoint.pth` and `variant.yml` as the original training does, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variant.yml").write_text(yaml.dump(described))
    with zipfile.ZipFile(folder / "checkpoint.pth", "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(weights))
        for key, array in enumerate(weights.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array, "<f4").tobytes())
        archive.writestr("archive/version", "3\n")
    return folder


def _pickled(weights: State) -> bytes:
    """{"model": OrderedDict of tensors, "n_cls": ..., "epoch": ...}, in the words of torch.save (pickle protocol 2)."""
    out = io.BytesIO(b"\x80\x02}(" + _plain("model") + b"ccollections\nOrderedDict\n)R(")
    out.seek(0, io.SEEK_END)
    for key, (name, array) in enumerate(weights.items()):
        strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
        storage = b"(" + _plain("storage") + b"ctorch\nFloatStorage\n" + _plain(str(key), "cpu", array.size) + b"tQ"
        view = _plain(0, array.shape, tuple(strides), False) + b"ccollections\nOrderedDict\n)R"
        out.write(_plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR")
    out.write(b"u" + _plain("n_cls", 5, "epoch", 63) + b"u.")
    return out.getvalue()


def _plain(*values: Any) -> bytes:
    """Pickle plain values one after the other, without header and end."""
    return b"".join(pickle.dumps(value, 2)[2:-1] for value in values)
