"""Write `tests/data/tiny.tflite` and its card: `python tests/data/make_tiny.py` (needs TensorFlow).

A real integer-only model with the doors of every model of ours, small enough to keep: the brightest channel of a pixel
decides its class, dark (0), grey (1) or bright (2). The app's tests run it on the real runtime and know every answer.
"""

import json
from pathlib import Path

import tensorflow as tf

SIDE, GREY, BRIGHT = 64, 85, 170


def main() -> None:
    """Convert the two comparisons and write file and card."""

    # Two named thresholds rather than a division, so that the expected class map is one line of NumPy in a test.
    @tf.function(input_signature=[tf.TensorSpec([1, SIDE, SIDE, 3], tf.uint8)])
    def classify(pixels: tf.Tensor) -> tf.Tensor:
        brightest = tf.reduce_max(tf.cast(pixels, tf.int32), axis=-1)  # [1, SIDE, SIDE]
        grey = tf.cast(brightest >= GREY, tf.int32)
        return tf.cast(grey + tf.cast(brightest >= BRIGHT, tf.int32), tf.uint8)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()])
    target = Path(__file__).with_name("tiny.tflite")
    target.write_bytes(converter.convert())
    colors = {"background": [0, 0, 0], "grey": [255, 99, 71], "bright": [30, 144, 255]}
    card = {"name": "tiny", "classes": [{"name": name, "color": color} for name, color in colors.items()]}
    target.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
