"""The SavedModel: JPEG and PNG bytes in, names and boxes in pixels of the photo out.

Two signatures, for TensorFlow alone and for TensorFlow Serving:

    serving_default  image_bytes string [b] -> names string [b, k], probabilities float32 [b, k],
                     boxes float32 [b, 4] (xmin, ymin, xmax, ymax) in pixels of the upright photo,
                     heights and widths int32 [b] of it, in pixels; k is 5, or fewer classes
    pixels           image uint8 [b, height, width, 3] -> bbox float32 [b, 4], fractions of the
                     image, and probabilities float32 [b, classes]
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.exports import photos

FOLDER = "saved_model"
TOP = 5

Judge = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def write(
    network: keras.Model,
    judge: Judge,
    class_names: list[str],
    image: tuple[int, int, str],
    path: str,
) -> None:
    """Writes the SavedModel.

    Args:
        network: whose variables it holds.
        judge: uint8 [b, height, width, 3] -> `bbox` and `logits`, by means of the network.
        class_names: in the order of the logits.
        image: height and width of the photos as judged, in pixels, and how they come to that size.
        path: of the folder.
    """
    height, width, resize = image
    top = min(TOP, len(class_names))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        decoded = photos.decode(image_bytes, height, width, resize)
        found = judge(decoded.image)
        best = tf.math.top_k(tf.nn.softmax(found["logits"]), top)
        return {
            "names": tf.gather(tf.constant(class_names), best.indices),
            "probabilities": best.values,
            "boxes": photos.photo_boxes(found["bbox"], decoded),
            "heights": decoded.size[:, 0],
            "widths": decoded.size[:, 1],
        }

    pixels_in = tf.TensorSpec([None, height, width, 3], tf.uint8, name="image")

    @tf.function(input_signature=[pixels_in])
    def pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = judge(image)
        return {"bbox": found["bbox"], "probabilities": tf.nn.softmax(found["logits"])}

    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    signatures = {"serving_default": serving_default, "pixels": pixels}
    tf.saved_model.save(module, path, signatures=signatures)
