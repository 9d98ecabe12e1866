"""The network with activations of 8 bits: ranges measured on photos, and written into the graph.

LiteRT's converter makes integer operations of all that lies between fake-quantized tensors, and
weights of 8 bits for each channel. What is not marked stays in float32: the arithmetic of crops and
boxes, whose coordinates 8 bits cannot hold; the last layers, which cost next to nothing; and the
first blocks, which hold 60 kB of weights. Rounding those alone turned as many names round as
rounding all others (Stanford Cars, 300 photos: 39 names with them, 18 without).
"""

from collections.abc import Callable

import keras
import tensorflow as tf

_LAYERS = keras.layers
# The first blocks of MobileNetV2, as Keras names their layers; where they end, rounding begins.
_IN_FLOAT = ("Conv1", "bn_Conv1", "expanded_conv_", "block_1_", "block_2_")
_BORDER = "block_2_add"
# Behind these an activation is rounded. BatchNormalization counts where no ReLU follows it.
_ROUNDED = (_LAYERS.ReLU, _LAYERS.Add, _LAYERS.GlobalAveragePooling2D)


class Rounding(keras.layers.Layer):
    """Measures the range of what passes; once told so, rounds it to 256 values instead.

    The range is the mean over batches of their smallest and largest values: a single odd pixel
    then does not coarsen all others.
    """

    def __init__(self, **kwargs: object):
        super().__init__(**kwargs)
        self.batches, self.low, self.high = (
            tf.Variable(0.0, trainable=False, name=name) for name in ("batches", "low", "high")
        )
        self.bounds: tuple[float, float] | None = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the inputs, rounded if the range is fixed."""
        if self.bounds:
            low, high = self.bounds
            return tf.quantization.fake_quant_with_min_max_args(inputs, low, high)
        self.batches.assign_add(1)
        self.low.assign_add(tf.reduce_min(inputs))
        self.high.assign_add(tf.reduce_max(inputs))
        return inputs

    def fix(self) -> None:
        """Rounds from now on."""
        low, high = float(self.low / self.batches), float(self.high / self.batches)
        # Zero must be one of the values, and a range must not be empty.
        self.bounds = min(low, 0.0), max(high, 1e-6)


def network(model: keras.Model, calibrate: Callable[[keras.Model], None]) -> keras.Model:
    """Returns a network that computes as one with activations of 8 bits.

    Args:
        model: from `plain.network`.
        calibrate: shows photos to the network that it is given, as they will be judged.
    """
    roundings: list[Rounding] = []

    def call(layer: keras.Layer, *inputs: object, **options: object) -> object:
        output = layer(*inputs, **options)
        in_float = layer.name.startswith(_IN_FLOAT) and layer.name != _BORDER
        if in_float or not (isinstance(layer, _ROUNDED) or layer in linear):
            return output
        roundings.append(Rounding(name=f"{layer.name}_rounding"))
        return roundings[-1](output)

    linear = set(_linear(model))
    rounded = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call, recursive=True
    )
    calibrate(rounded)
    for rounding in roundings:
        rounding.fix()
    return rounded


def _linear(model: keras.Model) -> list[keras.Layer]:
    """Returns the BatchNormalizations that no ReLU follows, also those of models inside."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _linear(layer)
        elif isinstance(layer, _LAYERS.BatchNormalization):
            followers = [node.operation for node in layer._outbound_nodes]
            if not all(isinstance(one, _LAYERS.ReLU) for one in followers):
                found.append(layer)
    return found
