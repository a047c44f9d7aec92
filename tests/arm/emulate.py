"""Run every shipped model on emulated Arm CPUs, and compare class maps and XNNPACK's partitions with this machine's.

  python -m tests.arm.emulate --cache ~/.cache/edge-arm
  python -m tests.arm.emulate --cache ~/.cache/edge-arm --images PICTURES --count 10

Cortex-A72 is a Raspberry Pi 4, Cortex-A76 a Raspberry Pi 5: they differ in the int8 dot product, and so in XNNPACK's
kernels. What runs there are the real wheels of PyPI: LiteRT, which must give the same class of every pixel and take the
same pieces of the graph as here, and tflite-runtime 2.14, whose kernels round differently: 98 % of the pixels must be
those of LiteRT here. 32 bits are a Cortex-A15 with Debian's NumPy and OpenCV. The exit code is 1 if something differs.

The first run fetches about 400 MB into the cache. A run that was interrupted goes on where it was. A picture takes
seconds to half a minute: emulated time says nothing about a board's.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from models import Frame, Segmenter, UserError, names, preprocess, resolve
from tests.arm import debian

PROJECT = Path(__file__).parents[2]
ALIKE = 0.98  # of the pixels, between runtimes that round differently
TAGS = ("manylinux2014", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
OLD = ("tflite-runtime==2.14.0", "numpy<2")
# Every wheel of OpenCV and LiteRT needs the C++ library, which Debian's smallest Python does not bring.
PACKAGES = {"arm64": ("libstdc++6",), "armhf": ("libstdc++6", "python3-numpy", "python3-opencv")}


@dataclass(frozen=True)
class Board:
    """What is emulated: a CPU, its architecture as Debian and as wheels spell it, and the wheels it gets."""

    cpu: str
    architecture: str
    machine: str
    wheels: tuple[str, ...]
    exact: bool  # the same class of every pixel is asked for

    @property
    def runtime(self) -> str:
        return self.wheels[0].replace("==", " ")


def boards() -> list[Board]:
    """List what is emulated, LiteRT in the version that is installed here."""
    current = (f"ai-edge-litert=={version('ai-edge-litert')}", "opencv-python-headless")
    old = (*OLD, "opencv-python-headless")
    arm64 = [
        Board(cpu, "arm64", "aarch64", wheels, wheels is current)
        for cpu in ("cortex-a72", "cortex-a76")
        for wheels in (current, old)
    ]
    return [*arm64, Board("cortex-a15", "armhf", "armv7l", OLD[:1], False)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps what is fetched and what was run")
    parser.add_argument("--model", nargs="+", default=names(), help="names or .tflite files (default: all shipped)")
    parser.add_argument("--images", type=Path, help="folder of pictures (default: frames of the bundled clip)")
    parser.add_argument("--count", type=int, default=3, help="how many of them (default 3)")
    args = parser.parse_args()
    try:
        return compare([resolve(name) for name in args.model], frames(args.images, args.count), args.cache.resolve())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def frames(folder: Path | None, count: int) -> list[Frame]:
    """Read pictures, or take them from all over the bundled clip."""
    if folder is not None:
        read = [cv2.imread(str(path)) for path in sorted(folder.glob("*"))[:count]] if folder.is_dir() else []
        found = [frame for frame in read if frame is not None]
    else:
        clip = cv2.VideoCapture(str(PROJECT / "assets/sample.mp4"))
        last, found = clip.get(cv2.CAP_PROP_FRAME_COUNT) - 1, []
        for number in range(count):
            clip.set(cv2.CAP_PROP_POS_FRAMES, int(number * last / max(count - 1, 1)))
            found.append(clip.read()[1])
    if not found:
        raise UserError("There is no picture to compare on: give --images a folder of them, and --count at least 1.")
    return found  # type: ignore[return-value]


def compare(models: list[Path], pictures: list[Frame], cache: Path) -> int:
    """Run all models everywhere, print a table, and return 1 if something differs, else 0."""
    cache.mkdir(parents=True, exist_ok=True)
    kinds = boards()
    ready = {board: (_python(board, cache), _wheels(board, cache)) for board in kinds}
    differ = False
    print(f"{'model':<14} {'CPU':<11} {'runtime':<22} {'pixels as here':<15} {'partitions':<11}")
    with tqdm(total=len(models) * len(kinds), unit="run", leave=False, disable=None) as bar:
        for model in models:
            tensors = _prepared(model, pictures, cache)
            here = _segment(model, tensors, [sys.executable], {}, cache / "here")
            for board in kinds:
                bar.set_description(f"{model.stem}, {board.cpu}, {board.runtime}")
                python, wheels = ready[board]
                environ = {"EMULATED_CPU": board.cpu, "PYTHONPATH": f"{wheels}:{PROJECT}"}
                there = _segment(model, tensors, [str(python)], environ, cache / f"{board.cpu}-{board.wheels[0]}")
                words, same = _verdict(board, here, there)
                tqdm.write(f"{model.stem:<14} {board.cpu:<11} {board.runtime:<22} {words}")
                differ |= not same
                bar.update()
    print("Something differs." if differ else "Nothing differs.")
    return int(differ)


def _python(board: Board, cache: Path) -> Path:
    return debian.python(cache, "bookworm", board.architecture, PACKAGES[board.architecture])


def _wheels(board: Board, cache: Path) -> Path:
    """Unpack the wheels of a board, fetched by this machine's pip, and return their folder."""
    folder = cache / f"wheels-{board.machine}-{board.wheels[0]}"
    if not folder.is_dir():
        print(f"Fetching {board.wheels[0]} for {board.machine} ...", flush=True)
        partial = folder.with_name(f"{folder.name}.new")
        tags = [f"--platform={tag}_{board.machine}" for tag in TAGS]
        alone = ["--no-deps"] if board.machine == "armv7l" else []  # PyPI has no NumPy for it: Debian's is there
        options = ["-q", "--upgrade", "--python-version=3.11", "--only-binary=:all:", f"--target={partial}", *alone]
        debian.run([sys.executable, "-m", "pip", "install", *options, *tags, *board.wheels])
        partial.rename(folder)
    return folder


def _prepared(model: Path, pictures: list[Frame], cache: Path) -> Path:
    """Store the network's input for all pictures: made here once, so that only the network is compared."""
    segmenter = Segmenter(model, threads=1)
    tensors = np.stack([preprocess(frame, segmenter.height, segmenter.width) for frame in pictures])
    path = cache / f"pictures-{hashlib.sha256(tensors.tobytes()).hexdigest()[:12]}.npy"
    np.save(path, tensors)
    return path


def _segment(model: Path, tensors: Path, python: list[str], environ: dict[str, str], folder: Path) -> Any:
    """Return what `segment.py` stores, kept from an earlier run of the same file and pictures; or why it failed."""
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    out = folder / f"{digest}-{tensors.stem}.npz"
    if not out.is_file():
        partial = out.with_suffix(".new.npz")
        command = [*python, "-m", "tests.arm.segment", str(model.resolve()), str(tensors), str(partial)]
        try:
            debian.run(command, {"PYTHONPATH": str(PROJECT)} | environ, PROJECT)
        except UserError as error:
            return error
        partial.rename(out)
    return np.load(out)


def _verdict(board: Board, here: Any, there: Any) -> tuple[str, bool]:
    """Word what a run on a board gave, and tell whether it is what it should be."""
    for told in (here, there):
        if isinstance(told, UserError):
            return f"died: {told}", False
    equal = float((here["classes"] == there["classes"]).mean())
    pieces = f"{len(there['partitions'])} of {len(here['partitions'])}"
    if board.exact:
        same = equal == 1 and np.array_equal(here["partitions"], there["partitions"])
        moved = "" if same or equal < 1 else ", but others"
    else:
        same, moved = equal >= ALIKE, ""
    return f"{equal:<15.3%} {pieces}{moved:<11} {'' if same else 'DIFFERENT'}".rstrip(), same


if __name__ == "__main__":
    sys.exit(main())
