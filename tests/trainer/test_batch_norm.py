import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.batch_norm import FusedBatchNormalization

# Gamma, beta, moving mean and variance.
VALUES = np.random.default_rng(1).uniform(0.5, 1.5, (4, 6))
MOMENTUM = 0.7


def both(**options):
    """Keras's layer and the fused one with the same values, none of them trivial."""
    layers = [
        kind(**options) for kind in (keras.layers.BatchNormalization, FusedBatchNormalization)
    ]
    for layer in layers:
        layer.build((None, None, None, 6))
        layer.set_weights(list(VALUES))
    return layers


@pytest.fixture
def photos():
    return tf.constant(np.random.default_rng(2).normal(2, 3, (16, 8, 9, 6)), tf.float32)


def test_outputs_gradients_and_statistics_are_those_of_keras(photos):
    found = []
    target = tf.random.stateless_normal(photos.shape, [1, 2])
    for layer in both(momentum=MOMENTUM):
        with tf.GradientTape() as tape:
            tape.watch(photos)
            outputs = layer(photos, training=True)
            loss = tf.reduce_mean(tf.square(outputs - target))
        gradients = tape.gradient(loss, [photos, layer.gamma.value, layer.beta.value])
        found.append([outputs, *gradients, layer.moving_mean.value])
        # The fused operation corrects the variance for the mean being estimated too.
        count = 16 * 8 * 9
        correction = count / (count - 1) if isinstance(layer, FusedBatchNormalization) else 1
        found[-1].append((layer.moving_variance.value - MOMENTUM * VALUES[3]) / correction)
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_layer_and_a_judging_one_use_what_they_have(photos, training):
    theirs, ours = both()
    theirs.trainable = ours.trainable = not training
    np.testing.assert_array_equal(
        ours(photos, training=training), theirs(photos, training=training)
    )
    np.testing.assert_array_equal(ours.get_weights(), theirs.get_weights())


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_its_type_and_full_statistics(photos, dtype):
    layer = both(dtype=dtype)[1]
    outputs = layer(photos, training=True)
    assert outputs.dtype == dtype.removeprefix("mixed_")
    assert layer.moving_mean.dtype == "float32"
    full = both()[1](photos, training=True)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), full, atol=0.05)
