"""The float network quantised to int8 by NNCF, for OpenVINO: what people use on x86 in place of LiteRT."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import UserError


def check(output: Path) -> None:
    """Refuse an output that is no `.xml`, or a machine without OpenVINO and NNCF, before minutes of exporting."""
    if output.suffix != ".xml":
        raise UserError(f"OpenVINO writes an .xml file with a .bin beside it: end {output} in .xml.")
    for package in ("openvino", "nncf"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"An int8 OpenVINO file needs {package}: `pip install openvino nncf`, or take another kind."
            )


def quantise(model: bytes, pictures: list[NDArray[np.uint8]]) -> tuple[bytes, bytes]:
    """Return the `.xml` and the `.bin` file of a network after NNCF's post-training quantisation for transformers.

    Args:
        model: the float32 `.tflite` file.
        pictures: 1xHxWx3 uint8 RGB, to calibrate with.
    """
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(model)
        network = openvino.Core().read_model(path)
        quantised = nncf.quantize(
            network, nncf.Dataset(pictures), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures)
        )
        openvino.save_model(quantised, path.with_suffix(".xml"))
        return path.with_suffix(".xml").read_bytes(), path.with_suffix(".bin").read_bytes()
