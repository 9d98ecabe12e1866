"""Layers of the network that Keras does not have, or whose own ones are slower."""

import re
from collections import Counter
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable("carbox")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, trained on the statistics of the batch by TensorFlow's fused operation.

    Keras 3 composes that case from a dozen operations, each a pass over all activations, forward
    and again backward; without XLA they are a large part of a step. The fused operation makes one
    pass. The moving variance becomes the unbiased one, as in Keras 2.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalizes each channel of [b, h, w, c], and in training moves the statistics."""
        if not (training and self.trainable) or self.synchronized or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return outputs


class WordSharedClassifier(keras.layers.Layer):
    """A dense layer in which classes whose names share a word share a part of their weights.

    `Audi TT RS Coupe 2012` and `Audi TTS Coupe 2012` look alike, and their names share words. A
    class's weights are the sum of its own and of those of its words, so a
    photo of one teaches something about the other. Where names share no word, this is a plain
    dense layer.

    Maps features, float [batch, n], to logits, float [batch, classes].
    """

    def __init__(self, class_names: Sequence[str], **kwargs: object):
        super().__init__(**kwargs)
        self._words = shared_words(class_names)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the weights: each class's own, and each shared word's, which start at 0."""
        features, (classes, words) = input_shape[-1], self._words.shape
        self.kernel = self.add_weight(shape=(features, classes), name="kernel")
        self.shared = None
        if words:
            self.shared = self.add_weight(
                shape=(features, words), name="shared_kernel", initializer="zeros"
            )
        self.bias = self.add_weight(shape=(classes,), name="bias", initializer="zeros")

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the logits."""
        return keras.ops.matmul(inputs, self.combined_kernel()) + self.bias

    def combined_kernel(self) -> keras.KerasTensor:
        """Returns the kernel of the dense layer that this one amounts to: [n, classes]."""
        if self.shared is None:
            return self.kernel
        return self.kernel + keras.ops.matmul(self.shared, self._words.T)


def shared_words(class_names: Sequence[str]) -> np.ndarray:
    """Returns which class names contain which of the words that several names share.

    Words are runs of letters or digits, whatever their case. Words that all names share
    distinguish nothing and are ignored.

    Returns:
        float32 [classes, words], 0 or 1; words in alphabetical order.
    """
    words = [set(re.findall(r"[^\W_]+", name.casefold())) for name in class_names]
    counts = Counter(word for name in words for word in name)
    kept = sorted(word for word, count in counts.items() if 1 < count < len(class_names))
    table = [[word in name for word in kept] for name in words]
    return np.array(table, np.float32).reshape(len(class_names), len(kept))


def soft_argmax(maps: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the positions of a box's edges, from a map of scores for each edge.

    The soft-argmax of Luvizon et al. 2017, arXiv:1710.02322, along one axis for each edge.

    Args:
        maps: float32 [batch, h, w, 4], of (xmin, ymin, xmax, ymax); h and w at least 2.

    Returns:
        float32 [batch, 4], fractions: 0 at the first cell, 1 at the last.
    """
    ops = keras.ops
    found = []
    for edge, axis in enumerate((2, 1, 2, 1)):  # xmin, ymin, xmax, ymax
        probabilities = ops.softmax(ops.mean(maps[..., edge], axis=3 - axis), axis=-1)
        positions = ops.linspace(0.0, 1.0, maps.shape[axis])
        found.append(ops.sum(probabilities * positions, axis=-1))
    return ops.stack(found, axis=-1)
