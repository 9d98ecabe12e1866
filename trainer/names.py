"""Logits of names, in which classes whose names share a word share a part of their weights.

`Audi TT RS Coupe 2012` and `Audi TTS Coupe 2012` look more alike than either does a Jeep, and their
names say so. A class's weights are the sum of its own and of those of its words, so a photo of one
teaches something about the others. Where names share nothing this is a dense layer.
"""

import re
from collections import Counter
from collections.abc import Sequence

import keras
import numpy as np


def shared_words(class_names: Sequence[str]) -> np.ndarray:
    """Returns which words that stand in several names stand in which.

    Words are runs of letters or digits, whatever their case. Those in all names tell nothing apart
    and are left out.

    Returns:
        float32 [classes, words], 0 or 1; words in the order of the alphabet.
    """
    words = [set(re.findall(r"[^\W_]+", name.casefold())) for name in class_names]
    counts = Counter(word for name in words for word in name)
    kept = sorted(word for word, count in counts.items() if 1 < count < len(class_names))
    table = [[word in name for word in kept] for name in words]
    return np.array(table, np.float32).reshape(len(class_names), len(kept))


class NameLogits(keras.layers.Layer):
    """A dense layer from features [batch, n] to logits [batch, classes] with shared weights."""

    def __init__(self, class_names: Sequence[str], **kwargs: object):
        super().__init__(**kwargs)
        self._words = shared_words(class_names)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes the weights: each class's own, and each shared word's, which begin at 0."""
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
        kernel = self.kernel
        if self.shared is not None:
            kernel = kernel + keras.ops.matmul(self.shared, self._words.T)
        return keras.ops.matmul(inputs, kernel) + self.bias
