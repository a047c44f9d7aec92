"""Files of torch.save are read without torch, and nothing in them is executed."""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import pth
from models import UserError
from tests import original


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """A pickled {"model": {"a": view of six floats}}."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x06tQ"
    view = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, shape, strides, False))
    return (
        b"\x80\x02}Vmodel\n}Va\nctorch._utils\n_rebuild_tensor_v2\n("
        + storage + view + b"ccollections\nOrderedDict\n)RtRss."
    )  # fmt: skip


def test_a_view_is_read_as_it_was_saved(tmp_path: Path) -> None:
    read = pth.read_state(archive(tmp_path / "a.pth", tensor((2, 2), (1, 3), 1)))
    np.testing.assert_array_equal(read["a"], [[1, 4], [2, 5]])  # a transposed part of 0..5


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (b"cposix\nsystem\n(Vtouch %s\ntR.", "would run 'posix.system'"),
        (b"cbuiltins\neval\n(V1\ntR.", "would run 'builtins.eval'"),
        (b"}Vmodel\ncnumpy\nndarray\ns.", "would run 'numpy.ndarray'"),
        (b"ctorch\nload\n.", "would run 'torch.load'"),
        (tensor((4, 4), (4, 1)), "beyond its 6 numbers"),
        (tensor((2,), (-1,), 1), "beyond its 6 numbers"),
        (b"}Vmodel\n}Va\nI1\nss.", "not a whole file"),
        (b"\x80\x02", "not a whole file"),
    ],
)
def test_anything_but_tensors_is_refused_and_not_executed(tmp_path: Path, pickled: bytes, says: str) -> None:
    trap = tmp_path / "trap"
    if b"%s" in pickled:
        pickled = pickled % str(trap).encode()
    with pytest.raises(UserError, match=says):
        pth.read_state(archive(tmp_path / "bad.pth", pickled))
    (tmp_path / "legacy.pth").write_bytes(pickled)
    with pytest.raises(UserError, match=r"would run|not a whole file"):
        pth.read_state(tmp_path / "legacy.pth")
    assert not trap.exists()


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    for name in ("none.pth", "text.pth"):
        with pytest.raises(UserError, match=name):
            pth.read_state(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_writes_is_read(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = collections.OrderedDict(layer.state_dict())
    state |= {"half": torch.randn(3).half(), "brain": torch.randn(3).bfloat16(), "count": torch.tensor(7)}
    state |= {"turned": torch.arange(24).reshape(2, 3, 4).transpose(0, 2)[1:], "tied": state["weight"][1]}
    saved = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 63}
    torch.save(saved, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    read = pth.read_state(tmp_path / "checkpoint.pth")
    assert list(read) == list(state)
    for name, values in state.items():
        np.testing.assert_array_equal(read[name], (values.float() if name == "brain" else values).numpy())


def test_torch_reads_what_the_tests_write(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    described = original.variant(layers=1)
    weights = original.state(described)
    folder = original.write(tmp_path, described, weights)
    read = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    assert list(read) == list(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(read[name].numpy(), values)
