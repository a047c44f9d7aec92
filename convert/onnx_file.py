"""The float network as an ONNX file, for ONNX Runtime; tf2onnx does it, but for one operator."""

from typing import Any

import numpy as np

from models import UserError

OPSET = 17


def export(function: Any) -> bytes:
    """Return the `.onnx` file of a `tf.function` with an input signature.

    Raises:
        UserError: tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError:
        raise UserError("An ONNX file needs tf2onnx: `pip install tf2onnx`, or choose another kind.") from None
    model, _ = tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=OPSET,
        custom_op_handlers={"Erfc": (_complement, [])},
    )
    return bytes(model.SerializeToString())


def _complement(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Write erfc(x), the one operator of Keras' GELU that ONNX lacks, as 1 - erf(x)."""
    node.type = "Erf"
    error = node.output[0]
    readers = graph.find_output_consumers(error)
    one = graph.make_const(f"{name}/one", np.array(1.0, np.float32))
    complement = graph.make_node("Sub", [one.output[0], error])
    graph.replace_all_inputs(error, complement.output[0], ops=readers)
