"""The ONNX file: pixels in, all passes inside, standard operators only.

It takes `image`, uint8 [b, height, width, 3], RGB, and gives `bbox`, float32 [b, 4], fractions of
the image, and `probabilities`, float32 [b, classes]. What belongs to it stands in its metadata.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfrecords.errors import extra
from trainer.exports import plain

FILE = "model.onnx"
OPSET = 18

Judge = Callable[[plain.Network, tf.Tensor], dict[str, tf.Tensor]]


def write(
    network: keras.Model, judge: Judge, size: tuple[int, int], facts: dict[str, str], path: str
) -> None:
    """Writes the file.

    Args:
        network: from `plain.network`.
        judge: a network and uint8 [b, height, width, 3] -> `bbox` and `logits`.
        size: height and width of the photos as judged, in pixels.
        facts: for its metadata.
        path: of the file.

    Raises:
        UserError: a package of the extra `onnx` is not installed.
    """
    with extra("onnx"):
        import onnx
        import tf2onnx
    freeze = plain.freezer(network)
    signature = [tf.TensorSpec([None, *size, 3], tf.uint8, name="image")]

    @tf.function(input_signature=signature)
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = judge(freeze(), image)
        return {"bbox": found["bbox"], "probabilities": tf.nn.softmax(found["logits"])}

    model, _ = tf2onnx.convert.from_function(serve, input_signature=signature, opset=OPSET)
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
