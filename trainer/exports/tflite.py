"""The LiteRT files: pixels in, all passes inside, builtin operations only.

Each takes `image`, uint8 [1, height, width, 3], RGB, and gives `bbox`, float32 [1, 4], fractions of
the image, and `probabilities`, float32 [1, classes].
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfrecords.quiet import quiet_imports
from trainer.exports import plain

Judge = Callable[[plain.Network, tf.Tensor], dict[str, tf.Tensor]]

KINDS = ("float32", "float16", "int8")


def file(kind: str) -> str:
    """Returns the name of the file of a kind."""
    return f"model-{kind}.tflite"


def write(network: keras.Model, judge: Judge, size: tuple[int, int], kind: str, path: str) -> None:
    """Writes one file.

    Args:
        network: from `plain.network`; for int8 from `quantized.network`.
        judge: a network and uint8 [1, height, width, 3] -> `bbox` and `logits`.
        size: height and width of the photos as judged, in pixels.
        kind: one of `KINDS`.
        path: of the file.
    """
    freeze = plain.freezer(network)

    @tf.function(input_signature=[tf.TensorSpec([1, *size, 3], tf.uint8, name="image")])
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = judge(freeze(), image)
        return {"bbox": found["bbox"], "probabilities": tf.nn.softmax(found["logits"])}

    graph = serve.get_concrete_function()
    with quiet_imports():  # the converter writes to standard error past Python
        converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], tf.Module())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    with open(path, "wb") as out:
        out.write(content)
