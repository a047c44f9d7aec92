"""What `doctor` looks at, gathered once; imports nothing that might not load.

`gather` asks the system; tests make a `Facts` by hand, or give a folder instead of / as `root`.
"""

import ctypes
import importlib.util
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from app import device
from app.command import Failed, python
from models import UserError, catalogue

PORTS = {"web": 7860, "phone": 8080}  # what the pages listen on
IMPORTS = ("numpy", "cv2", "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
WINDOW_LIBRARIES = ("libGL.so.1", "libgthread-2.0.so.0")  # what OpenCV's wheel with windows does not bring

# linux/videodev2.h
VIDIOC_QUERYCAP = 0x80685600
CAPABILITY = "16s32s32s3I3I"  # driver, card, bus, version, capabilities of the device, of this node, reserved
VIDEO_CAPTURE = 0x1
PI_DRIVERS = ("unicam", "rp1-cfe", "bcm2835", "pispbe")  # raw sensors, codecs and scalers: libcamera's, not OpenCV's


@dataclass(frozen=True)
class Facts:
    """The state of a machine.

    Attributes:
        system, release: "Linux" and its name, "Debian GNU/Linux 12 (bookworm)".
        architecture, bits: of the CPU; of this Python, which may be 32 on a 64-bit kernel.
        board: "Raspberry Pi 5 Model B Rev 1.0", or "".
        python: version.
        packages: installed distributions, lower-case name to version.
        broken: each of `IMPORTS` that does not load, with the reason.
        window: this OpenCV can open windows.
        missing_libraries: of `WINDOW_LIBRARIES`.
        cameras: V4L2 nodes that OpenCV could read, with their names.
        locked: V4L2 nodes that this user may not open.
        picamera: why picamera2 does not load, or "" if it does.
        picamera_outside: it is installed for the system's Python, which this environment does not see.
        display: the name of the display, or "".
        taken: those of `PORTS` that another program has.
        available_mb: memory that programs can still get, 10^6 bytes; None if not known.
        temperature_c, throttling, governor: see `app.device`.
        models: shipped models, each with what is wrong with its file or "".
        run: what went wrong when the default model ran in a process of its own, or "".
    """

    system: str
    release: str
    architecture: str
    bits: int
    board: str
    python: tuple[int, int]
    packages: dict[str, str]
    broken: dict[str, str]
    window: bool
    missing_libraries: tuple[str, ...]
    cameras: tuple[str, ...]
    locked: tuple[str, ...]
    picamera: str
    picamera_outside: bool
    display: str
    taken: tuple[int, ...]
    available_mb: float | None
    temperature_c: float | None
    throttling: str | None
    governor: str | None
    models: dict[str, str]
    run: str


def gather(root: Path = device.ROOT) -> Facts:
    """Ask this machine; files of the system are looked for under `root`."""
    broken = {name: problem for name in IMPORTS if (problem := _try(f"import {name}"))}
    picamera = root / "usr/lib/python3/dist-packages/picamera2"
    nodes = sorted((root / "dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    return Facts(
        system=platform.system(),
        release=_release(root),
        architecture=platform.machine(),
        bits=8 * struct.calcsize("P"),
        board=device.board(root),
        python=sys.version_info[:2],
        packages={(found.metadata["Name"] or "").lower(): found.version for found in distributions()},
        broken=broken,
        window="cv2" not in broken and not _try("from app.window import has_windows; assert has_windows()"),
        missing_libraries=tuple(name for name in WINDOW_LIBRARIES if not _loads(name)),
        cameras=tuple(name for node in nodes for name in _camera(node)),
        locked=tuple(str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)),
        picamera=_try("import picamera2"),
        picamera_outside=picamera.is_dir() and importlib.util.find_spec("picamera2") is None,
        display=os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or "",
        taken=tuple(port for port in PORTS.values() if not _free(port)),
        available_mb=device.available(root),
        **device.heat(root),
        governor=device.governor(root),
        models={name: _damage(name) for name in catalogue.names()},
        run=_first_light(),
    )


def _try(statement: str) -> str:
    """Run a statement in a process of its own, which a bad wheel may kill; return the last line it died with, or ""."""
    return _problem("-c", statement)


def _release(root: Path) -> str:
    try:
        lines = (root / "etc/os-release").read_text().splitlines()
    except OSError:
        return platform.release()
    named = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return named[0] if named else platform.release()


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _camera(node: Path) -> Iterator[str]:
    """Name a V4L2 node if it is a camera that OpenCV can read."""
    import fcntl  # Linux has it, and the nodes

    try:
        with node.open("rb", buffering=0) as opened:
            answer = fcntl.ioctl(opened, VIDIOC_QUERYCAP, bytes(struct.calcsize(CAPABILITY)))
    except OSError:
        return
    driver, card, _, _, _, node_capabilities, *_ = struct.unpack(CAPABILITY, answer)
    words = [field.partition(b"\0")[0].decode(errors="replace") for field in (driver, card)]
    if node_capabilities & VIDEO_CAPTURE and not words[0].startswith(PI_DRIVERS):
        yield f"{node} ({words[1]})"


def _free(port: int) -> bool:
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("", port))
        except OSError:
            return False
    return True


def _damage(name: str) -> str:
    try:
        told = catalogue.card(name)
    except UserError as error:
        return str(error)
    stated = told.details.get("sha256")
    if stated is None:
        return "it has no card"
    return "" if catalogue.sha256(told.file) == stated else "the file is not the one that its card describes"


def _first_light() -> str:
    if not catalogue.names():
        return "there is no model"
    return _problem("-m", "app.trial", str(catalogue.resolve(catalogue.names()[0])), "--threads=1", "--seconds=0")


def _problem(*words: str) -> str:
    try:
        python(*words)
    except Failed as problem:
        return str(problem)
    return ""
