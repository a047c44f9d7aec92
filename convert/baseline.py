"""Export a network the usual ways, to compare with: float32, dynamic-range int8, or TensorFlow's own full int8.

  python -m convert baseline person.npz --kind float32 -o person-float32.tflite
  python -m convert baseline models/person.tflite --kind dynamic -o person-dynamic.tflite
  python -m convert baseline person.npz --kind stock-int8 --images DIR -o person-stock.tflite
  python -m convert baseline person.npz --kind openvino-int8 --images DIR -o person-openvino.xml

One of our integer files will do in place of the checkpoint: its weights are taken back to float.

The doors are those of our files - uint8 frame in, uint8 class ids out, upsampled by nearest neighbour - so that times
and scores compare like with like. --activation gelu gives a ReLU network the GELU of the original Segmenter, for the
time that one takes (its scores then mean nothing).
"""

import argparse
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer, onnx_file, openvino_file
from convert.checkpoint import Checkpoint, Config
from convert.files import add_size, check_place, draw_pictures, write_whole
from convert.fold import Folded, Matrix, unfold
from convert.graph import Tensor
from models import UserError, card

KINDS = ("float32", "dynamic", "stock-int8", "onnx", "openvino-int8")
CALIBRATED = ("stock-int8", "openvino-int8")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", type=Path, help="a checkpoint, or an integer file of ours with its card, .tflite")
    parser.add_argument("--kind", choices=KINDS, required=True, help="how to export")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .tflite, .onnx or .xml file to write")
    parser.add_argument("--images", type=Path, nargs="+", help="pictures to calibrate stock-int8 or openvino-int8 with")
    parser.add_argument("--pictures", type=int, default=16, help="how many of them (default 16)")
    add_size(parser)
    parser.add_argument("--activation", choices=("gelu", "relu"), help="instead of the checkpoint's own")


def main(args: argparse.Namespace) -> int:
    """Export a checkpoint with TensorFlow's converter."""
    if args.source.suffix == ".tflite" and args.size:
        raise UserError(f"{args.source} has its size for good: leave out --size, or give the checkpoint it came from.")
    integer = args.source.suffix == ".tflite"
    checkpoint = dequantise(args.source) if integer else Checkpoint.load(args.source, args.size)
    if args.activation:
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, activation=args.activation))
    if args.kind in CALIBRATED and not args.images:
        raise UserError(f"{args.kind} needs pictures to calibrate with: add --images DIR.")
    check_place(args.output)
    if args.kind == "openvino-int8":
        openvino_file.check(args.output)
    elif args.output.suffix != (ending := ".onnx" if args.kind == "onnx" else ".tflite"):
        raise UserError(f"{args.output} must end in {ending}: that is what will be written.")
    config = checkpoint.config
    pictures = draw_pictures(args.images, args.pictures, config.height, config.width) if args.images else []
    if args.kind == "openvino-int8":
        description, weights = openvino_file.quantise(export(checkpoint, "float32", []), pictures)
        files = {args.output: description, args.output.with_suffix(".bin"): weights}
    else:
        files = {args.output: export(checkpoint, args.kind, pictures)}
    write_whole(files)
    print(f"{args.output}: {args.kind}, {sum(map(len, files.values())) / 1e6:.1f} MB")
    return 0


def dequantise(path: Path) -> Checkpoint:
    """Take the float network back out of an integer file of ours, its weights as int8 left them.

    Raises:
        UserError: no such file, or not one that `convert quantize` wrote.
    """
    arrays, config = folded(path)
    try:
        network = unfold(arrays, config)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not of our making ({error!r}): give the checkpoint it came from.") from None
    return replace(network, classes=card(path).classes)


def folded(path: Path) -> tuple[Folded, Config]:
    """Read the re-parameterised network out of an integer file of ours: its weights in float, still rotated."""
    described = card(path)
    try:
        config = Config(**described.details["network"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not of our making ({error!r}): give the checkpoint it came from.") from None
    tensors = flatbuffer.unpack(described.file.read_bytes()).tensors()
    arrays = {tensor.name: _real(tensor) for tensor in tensors if _is_weight(tensor)}
    if "patches/kernel" not in arrays:
        raise UserError(f"{path} does not hold its weights as a network of ours does: give its checkpoint.")
    survey = described.details["calibration"].get("survey", {})
    return arrays | {name: np.array(value) for name, value in survey.items()}, config


def _is_weight(tensor: Tensor) -> bool:
    parts = ("kernel", "bias", "position", "prefix", "classes", "normed", "gain")
    return tensor.data is not None and tensor.name.rpartition("/")[2] in parts


def _real(tensor: Tensor) -> Matrix:
    """Return a constant's real values; kernels, stored [out, in], as [in, out]."""
    assert tensor.data is not None
    # One scale for each row of a kernel and each value of a bias, or one for all of an embedding
    values: Matrix = (tensor.data.astype(np.float64).T * np.asarray(tensor.scale)).T
    return values.T if tensor.name.endswith("kernel") else np.squeeze(values)


def export(checkpoint: Checkpoint, kind: str, pictures: list[NDArray[np.uint8]]) -> bytes:
    """Return the file of the float network that `tf.lite.TFLiteConverter` makes of it.

    Args:
        checkpoint: the trained network.
        kind: "float32", "dynamic" (int8 weights, float activations), "stock-int8" (calibrated; leaves float islands) or
            "onnx" (float32, for ONNX Runtime, by tf2onnx).
        pictures: 1xHxWx3 uint8 RGB, to calibrate stock-int8 with.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on GPUs that are not there
    logging.getLogger("absl").setLevel(logging.ERROR)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError("Baselines are exported by TensorFlow: run the command with KERAS_BACKEND=tensorflow.")
    import tensorflow as tf

    from convert import network

    model = network.build(checkpoint.config)
    network.assign(model, checkpoint.arrays)
    # The stock quantiser sets the type of the input itself, from float.
    function = _function(model, checkpoint.config, tf.float32 if kind == "stock-int8" else tf.uint8)
    if kind == "onnx":
        return onnx_file.export(function)
    # Without a trackable object, which the converter warns of: with one, weights stay variables instead of constants.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "stock-int8":

        def representative() -> Iterator[list[Any]]:
            for picture in pictures:
                yield [picture.astype(np.float32)]

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # they come from the pictures
        return bytes(converter.convert())


def _function(model: Any, config: Config, pixels: Any) -> Any:
    """Trace frame -> class map; `pixels` is the type of the input."""
    import tensorflow as tf

    def segment(frame: Any) -> Any:
        logits = model(tf.cast(frame, tf.float32))
        ids = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.uint8)
        # Nearest neighbour by a whole factor as in our own files: the cheapest there is for uint8
        rows, columns, stride = config.height // config.stride, config.width // config.stride, config.stride
        ids = tf.reshape(tf.concat([tf.reshape(ids, (-1, 1))] * stride, axis=1), (rows, 1, columns * stride))
        return tf.reshape(tf.concat([ids] * stride, axis=1), (1, config.height, config.width))

    signature = tf.TensorSpec((1, config.height, config.width, 3), pixels)
    return tf.function(segment, input_signature=[signature])
