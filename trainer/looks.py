"""How a photo is judged: at a glance, then again from near.

Each look is a pass through the same network. The first says where to look; the next ones show the
box found and a margin around it, so that the object is large and always of about the same size:
names are told apart by details, and the box is drawn to finer steps. The last look judges. It may
be taken both ways, mirrored too.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import windows
from trainer.config import Config
from trainer.state import predictor

MARGIN = 0.1
"""Shown around the box after the first look, as a share of its side; in training, on average."""

Outputs = dict[str, tf.Tensor]
"""`bbox` float32 [b, 4], `logits` float32 [b, classes]."""


def make_predict(
    model: keras.Model, config: Config, jit: bool
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Outputs]:
    """Returns what judges photos: (weights [n], statistics [m], images [b, h, w, 3]) -> outputs.

    Args:
        model: gives the network, not the values.
        config: how many looks, and whether the last goes both ways.
        jit: compile the network by XLA.
    """
    stateless = predictor(model)

    def network(weights: tf.Tensor, statistics: tf.Tensor, images: tf.Tensor) -> Outputs:
        seed = tf.zeros(2, tf.int64)
        return stateless(weights, statistics, images, False, seed)[0]

    forward = tf.function(network, jit_compile=True) if jit else network

    def both_ways(weights: tf.Tensor, statistics: tf.Tensor, images: tf.Tensor) -> Outputs:
        seen = forward(weights, statistics, images)
        mirrored = forward(weights, statistics, images[:, :, ::-1])
        mirrored["bbox"] = windows.mirror(mirrored["bbox"])
        return {name: (seen[name] + mirrored[name]) / 2 for name in seen}

    last = both_ways if config.predict.flip else forward

    def predict(weights: tf.Tensor, statistics: tf.Tensor, images: tf.Tensor) -> Outputs:
        images = seen = tf.cast(images, tf.float32)
        window = tf.tile([[0.0, 0.0, 1.0, 1.0]], [tf.shape(images)[0], 1])
        for _ in range(config.predict.looks - 1):
            bbox = windows.to_photo(forward(weights, statistics, seen)["bbox"], window)
            # What is not a number is for the last look to report; no pixels can be cut by it.
            bbox = tf.where(tf.math.is_finite(bbox), bbox, 0.5)
            window = windows.showable(windows.around(bbox, MARGIN), *images.shape[1:3])
            seen = windows.cut(images, window)
        found = last(weights, statistics, seen)
        return found | {"bbox": windows.to_photo(found["bbox"], window)}

    return predict
