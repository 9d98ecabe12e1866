"""The network of a run with Keras's own layers only, in float32.

Every export is made from it: it needs no class of this project to be loaded.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer.layers import WordSharedClassifier
from trainer.run_dir import Trained

Network = Callable[[tf.Tensor], dict[str, tf.Tensor]]
"""float32 [b, h, w, 3], values in [0, 255] -> `bbox` [b, 4], fractions, and `logits`."""


def network(trained: Trained) -> keras.Model:
    """Returns the network of a run, rebuilt from plain layers, with the same values.

    BatchNormalization takes the place of FusedBatchNormalization and Dense that of the word-shared
    classifier; the soft-argmax becomes pooling, softmax and a dense layer. Dropout, which does
    nothing after training, is left out.

    Returns:
        A model from `image`, float32 [b, h, w, 3], RGB, values in [0, 255], to `bbox` and `logits`.
    """
    original = trained.network
    by_edges = trained.config.model.head == "soft_argmax"
    box = original.get_layer("edges").input if by_edges else original.output["bbox"]
    part = keras.Model(original.input, [box, original.output["logits"]])
    pairs: list[tuple[keras.Layer, keras.Layer]] = []

    def rebuild(layer: keras.Layer) -> keras.Layer:
        new = _plain_layer(layer)
        pairs.append((layer, new))
        return new

    rebuilt = keras.models.clone_model(part, clone_function=rebuild, recursive=True)
    for layer, new in pairs:
        new.set_weights(_values(layer))
    box, logits = rebuilt.output
    if by_edges:
        kernel = original.get_layer("edges").get_weights()[0]
        box = _soft_argmax(box, kernel)
    return keras.Model(rebuilt.input, {"bbox": box, "logits": logits}, name="carbox")


def freezer(model: keras.Model) -> Callable[[], Network]:
    """Returns a function that makes, inside a graph, the model with its values as constants.

    LiteRT's converter keeps variables as variables, and then loses their values. Called once a
    graph: all passes then share the constants.
    """
    trainable = [np.asarray(variable.value) for variable in model.trainable_variables]
    others = [np.asarray(variable.value) for variable in model.non_trainable_variables]

    def freeze() -> Network:
        constants = [tf.constant(v) for v in trainable], [tf.constant(v) for v in others]
        return lambda images: model.stateless_call(*constants, images, training=False)[0]

    return freeze


def _plain_layer(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config() | {"dtype": "float32"}
    if isinstance(layer, keras.layers.BatchNormalization):
        config |= {"synchronized": False}
        return keras.layers.BatchNormalization.from_config(config)
    if isinstance(layer, WordSharedClassifier):
        return keras.layers.Dense(layer.bias.shape[0], name=layer.name)
    if isinstance(layer, keras.layers.Dropout):
        return keras.layers.Identity(name=layer.name)
    return type(layer).from_config(config)


def _values(layer: keras.Layer) -> list[np.ndarray]:
    if isinstance(layer, WordSharedClassifier):
        return [np.asarray(layer.combined_kernel()), np.asarray(layer.bias.value)]
    return [] if isinstance(layer, keras.layers.Dropout) else layer.get_weights()


def _soft_argmax(features: keras.KerasTensor, kernel: np.ndarray) -> keras.KerasTensor:
    """Returns the box, as `trainer.layers.soft_argmax` does of a convolution with this kernel.

    Args:
        features: float32 [b, h, w, n].
        kernel: [1, 1, n, 4], of the scores of xmin, ymin, xmax and ymax.

    Returns:
        float32 [b, 4].
    """
    x = _positions(features, kernel[..., 0::2], "x")
    y = _positions(features, kernel[..., 1::2], "y")
    corners = keras.layers.Concatenate(name="corners")([x, y])
    return keras.layers.Reshape((4,), name="bbox")(corners)


def _positions(features: keras.KerasTensor, kernel: np.ndarray, axis: str) -> keras.KerasTensor:
    """Returns where two edges run along one axis: float32 [b, 2, 1]."""
    height, width = features.shape[1:3]
    across, cells = ((height, 1), width) if axis == "x" else ((1, width), height)
    layers = keras.layers
    convolution = layers.Conv2D(2, 1, use_bias=False, name=f"edges_{axis}")
    scores = layers.AveragePooling2D(across, name=f"mean_{axis}")(convolution(features))
    scores = layers.Reshape((cells, 2), name=f"cells_{axis}")(scores)
    scores = layers.Permute((2, 1), name=f"edges_first_{axis}")(scores)
    probabilities = layers.Softmax(name=f"probabilities_{axis}")(scores)
    mean = layers.Dense(1, use_bias=False, name=f"position_{axis}")
    position = mean(probabilities)
    convolution.set_weights([kernel])
    mean.set_weights([np.linspace(0, 1, cells, dtype=np.float32)[:, np.newaxis]])
    return position
