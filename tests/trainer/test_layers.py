"""The layers that Keras does not have, or has slower."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.layers import (
    FusedBatchNormalization,
    WordSharedClassifier,
    shared_words,
    soft_argmax,
)

CARS = ["Audi TTS Coupe 2012", "Audi TT RS Coupe 2012", "Ram C/V Van 2012", "BMW X3 SUV 2012"]
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


def test_words_in_several_names_but_not_in_all_are_shared():
    np.testing.assert_array_equal(
        shared_words(CARS),
        # audi, coupe; 2012 is in all, tts, tt, rs, ram, c, v, van, bmw, x3, suv in one each
        [[1, 1], [1, 1], [0, 0], [0, 0]],
    )


def test_case_is_no_obstacle_and_repetition_counts_once():
    table = shared_words(["CITROËN 2cv 2cv", "Citroën DS", "Peugeot 2CV"])
    np.testing.assert_array_equal(table, [[1, 1], [0, 1], [1, 0]])


@pytest.mark.parametrize("class_names", [["", ""], ["a", "b", "c"], ["same words", "words same"]])
def test_names_that_share_nothing_make_a_dense_layer(class_names):
    layer = WordSharedClassifier(class_names)
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    logits = layer(features)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
    expected = features @ layer.kernel.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_a_class_is_judged_by_its_own_weights_and_those_of_its_words():
    layer = WordSharedClassifier(CARS)
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    layer(features)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(size=weight.shape) for weight in layer.weights])
    kernel, shared, bias = layer.get_weights()
    for number, words in enumerate(shared_words(CARS)):
        whole = kernel[:, number] + sum(
            shared[:, word] for word in range(len(words)) if words[word]
        )
        expected = features @ whole + bias[number]
        np.testing.assert_allclose(layer(features)[:, number], expected, rtol=1e-4)


def test_each_edge_runs_where_its_scores_say():
    maps = np.zeros((1, 3, 5, 4), np.float32)
    for edge, (row, column) in enumerate([(2, 1), (0, 3), (2, 3), (1, 0)]):
        maps[0, row, column, edge] = 1000
    np.testing.assert_allclose(soft_argmax(maps), [[0.25, 0.0, 0.75, 0.5]], atol=1e-6)


def test_without_scores_every_edge_runs_through_the_middle():
    np.testing.assert_allclose(soft_argmax(np.zeros((1, 3, 5, 4), np.float32)), [[0.5] * 4])
