"""The one loader: a `.tflite` file in, a `Segmenter` out, on whichever TFLite runtime this machine has."""

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import catalogue, frames
from models.errors import UserError
from models.frames import ClassMap, Frame

# Best first. LiteRT is the maintained successor; tflite-runtime still has 32-bit Arm wheels; TensorFlow has its own.
RUNTIMES = (
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter"),
    ("tensorflow", "tensorflow.lite.python.interpreter"),
)


def cores() -> int:
    """Return the cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def default_threads() -> int:
    """Return the cores this process may use, at most 4: small boards have 4, and more gains nothing here."""
    return min(4, cores())


def runtime() -> tuple[str, Any]:
    """Return the name with version of the best TFLite runtime installed here, and its interpreter module."""
    for package, module in RUNTIMES:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        try:
            return f"{package} {version(package)}", found
        except PackageNotFoundError:  # built from source, or tensorflow under another name (tensorflow-cpu)
            return package, found
    raise UserError("No TFLite runtime is installed: run `pip install ai-edge-litert`.")


def interpreter(path: str | Path, threads: int = 1, **options: Any) -> Any:
    """Open a `.tflite` file and allocate it; a file that is no model, or too new for the runtime, is a `UserError`.

    `threads` is always passed on: the Python interpreter reads "not given" as one thread.
    """
    name, module = runtime()
    path = Path(path)
    if threads < 1:
        raise UserError(f"{threads} threads are too few: give at least 1.")
    try:
        if path.read_bytes()[4:8] != b"TFL3":
            raise UserError(f"{path} is not a TFLite model: give a .tflite file, for instance one of models/.")
        opened = module.Interpreter(model_path=str(path), num_threads=threads, **options)
        opened.allocate_tensors()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file that can.") from None
    except (ValueError, RuntimeError, SystemError) as error:
        reason = " ".join(str(error).split())[:200]
        old = name.startswith("tflite-runtime") and np.__version__ >= "2"
        cure = "run `pip install 'numpy<2'`" if old else "get the file again, or a newer ai-edge-litert"
        raise UserError(f"{name} cannot load {path} ({reason}): {cure}.") from error
    return opened


class Segmenter:
    """Segment frames: `Segmenter("person").segment(frame)` gives a class map of the frame's own size.

    Args:
        model: a shipped model's name (`models.names()`) or the path of an integer-only `.tflite` file.
        threads: CPU threads, by default the cores of this machine, at most 4.

    Attributes:
        card: name, classes with colours, and the rest of the model's card.
        height, width: input size of the network in pixels.
        runtime: name and version of the TFLite runtime in use.

    Raises:
        UserError: no such model, not a model, or not one with uint8 pixels in and uint8 class ids out.

    The stages are public, so that the live loop can time them: `prepare`, `infer`, `restore`.
    """

    def __init__(self, model: str | Path = catalogue.DEFAULT, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        path = catalogue.resolve(model)
        self._interpreter = interpreter(path, self.threads)
        source, sink = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        _check_doors(path, source, sink)
        self.card = catalogue.card(path)
        self.runtime = runtime()[0]
        self.height, self.width = (int(side) for side in source["shape"][1:3])
        self._source, self._sink = int(source["index"]), int(sink["index"])

    def segment(self, frame: Frame) -> ClassMap:
        """Give the class of every pixel.

        Args:
            frame: HxWx3 uint8 BGR, 0..255, any size.

        Returns:
            HxW uint8 class ids, indices into `card.classes`.
        """
        return self.restore(self.infer(self.prepare(frame)), frame.shape[0], frame.shape[1])

    def prepare(self, frame: Frame) -> NDArray[np.uint8]:
        """Turn an HxWx3 uint8 BGR frame into the 1 x height x width x 3 uint8 RGB tensor `infer` takes."""
        return frames.preprocess(frame, self.height, self.width)

    def infer(self, pixels: NDArray[np.uint8]) -> ClassMap:
        """Run the network on a prepared tensor and return its own class map, hxw uint8 ids, as a copy."""
        self._interpreter.set_tensor(self._source, pixels)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._sink)[0]  # type: ignore[no-any-return]

    def restore(self, classes: ClassMap, height: int, width: int) -> ClassMap:
        """Bring the network's class map to height x width by nearest neighbour."""
        return frames.restore(classes, height, width)


def _check_doors(path: Path, source: dict[str, Any], sink: dict[str, Any]) -> None:
    pixels = source["dtype"] == np.uint8 and len(source["shape"]) == 4 and source["shape"][3] == 3
    if not (pixels and sink["dtype"] == np.uint8 and len(sink["shape"]) == 3):
        kinds = f"{np.dtype(source['dtype'])} in, {np.dtype(sink['dtype'])} out"
        raise UserError(
            f"{path} has other doors ({kinds}) than uint8 pixels in and uint8 class ids out: "
            "write an integer-only file with `python -m convert quantize`."
        )
