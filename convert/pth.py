"""Read what `torch.save` wrote without torch, and without running anything in it.

A `.pth` file is a pickle, and a pickle is a program: it names functions, and whoever unpickles it calls them. This
reader admits the handful that put a tensor together, each replaced by one of our own, and refuses every other name.
Both formats are read: the ZIP of PyTorch 1.6 and later, and the stream of pickles and raw numbers before it.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from models import UserError

BFLOAT16 = "bfloat16"  # NumPy has none: its 16 bits are the upper half of a float32
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
BROKEN = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, KeyError, ValueError,
          TypeError, IndexError, AttributeError, NotImplementedError, RecursionError, OverflowError)  # fmt: skip


class Refused(pickle.UnpicklingError):
    """A pickle names what is no part of a tensor."""


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, read when it is asked for: optimizer states are not."""

    dtype: str
    count: int
    read: Callable[[], bytes]

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize

    def values(self) -> NDArray[Any]:
        """Return the numbers, one-dimensional."""
        if self.dtype != BFLOAT16:
            return np.frombuffer(self.read(), self.dtype, self.count)
        halves = np.frombuffer(self.read(), "<u2", self.count)
        return (halves.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Tensor:
    """A view into a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        """Return the tensor as an array of its own; ValueError if it would reach beyond its storage."""
        values = self.storage.values()
        steps = (self.offset, *self.strides, *self.shape)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min(steps) < 0 or (0 not in self.shape and last >= len(values)):
            raise ValueError(f"a tensor {self.shape} beyond its {len(values)} numbers")
        start = values[self.offset :]
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides).copy()


def read_state(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a saved network by name: those of `{"model": state_dict, ...}`, or of a bare state dict.

    Raises:
        UserError: no such file, not one that `torch.save` wrote, or one that names anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No file {path}: give the checkpoint.pth of a trained Segmenter.")
    try:
        saved = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
        state = saved.get("model", saved)
        return {str(name): tensor.array() for name, tensor in state.items()}
    except Refused as error:
        raise UserError(f"{path} is not read, it would run {error}: save its state_dict() alone.") from None
    except BROKEN as error:
        raise UserError(f"{path} is not a whole file of a saved network ({error}): fetch or save it again.") from None


class _Unpickler(pickle.Unpickler):
    """Knows the names that tensors are made of; `find` gives the bytes of a storage by its key.

    `storages` holds the size in bytes of every storage met.
    """

    def __init__(self, file: IO[bytes], find: Callable[[str], Callable[[], bytes]]) -> None:
        super().__init__(file)
        self._find = find
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get(f"{module}.{name}") or (module == "torch" and STORAGES.get(name))
        if not known:
            raise Refused(f"'{module}.{name}'")
        return known

    def persistent_load(self, key: Any) -> Storage:
        kind, dtype, name, _, count, *view = key
        if kind != "storage" or dtype not in STORAGES.values() or any(view):
            raise ValueError(f"a reference to '{kind}'")
        storage = Storage(dtype, count, self._find(name))
        self.storages[name] = count * storage.itemsize
        return storage


def _rebuild(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
}


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise ValueError("a ZIP without data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("numbers of a big-endian machine")
        data = io.BytesIO(archive.read(pickled))
    return _Unpickler(data, lambda key: partial(_member, path, f"{root}data/{key}")).load()


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _legacy(path: Path) -> Any:
    """Magic number, protocol, machine, the object; then the storages' keys, and each storage's count and numbers."""
    places: dict[str, int] = {}  # filled in below, once the object is read
    with path.open("rb") as file:
        unpickler = _Unpickler(file, lambda key: lambda: _part(path, places[key], storages[key]))
        storages = unpickler.storages
        if unpickler.load() != LEGACY_MAGIC:
            raise ValueError("neither a ZIP nor a legacy file")
        _protocol, _machine, saved, keys = (unpickler.load() for _ in range(4))
        for key in keys:
            places[key] = file.tell() + struct.calcsize("<q")  # behind the count
            file.seek(places[key] + storages[key])
    return saved


def _part(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)
