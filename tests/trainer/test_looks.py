"""Looks at photos, once, mirrored, and from near."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from trainer import looks, model, state
from trainer.config import Config, Model, Predict

HEIGHT, WIDTH = 48, 64
# Untrained, the default head draws boxes of nearly no size, and looks at hardly a pixel.
CONFIG = Config(weights="none", model=Model(alpha=0.35, head="spatial", filters=8))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth, so that parts of them differ too."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    return tf.cast(tf.image.resize(coarse, [HEIGHT, WIDTH]), tf.uint8).numpy()


@pytest.fixture(scope="module")
def network(images) -> tuple[keras.Model, tf.Tensor, tf.Tensor]:
    """Random weights, and statistics of these photos: with any others all outputs were the same."""
    settings = dataclasses.replace(CONFIG.model, batch_norm_momentum=0.0)
    config = dataclasses.replace(CONFIG, model=settings)
    built = model.build(config, HEIGHT, WIDTH, datasets.CLASS_NAMES)
    values = state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), built, config)
    weights, statistics = (tf.convert_to_tensor(value) for value in state.judged(values))
    seed = tf.zeros(2, tf.int64)
    _, statistics = state.predictor(built)(
        weights, statistics, tf.cast(images, tf.float32), True, seed
    )
    return built, weights, statistics


def judge(network, images, jit=False, **predict):
    built, weights, statistics = network
    config = dataclasses.replace(CONFIG, predict=Predict(**predict))
    return looks.make_predict(built, config, jit)(weights, statistics, tf.constant(images))


def test_photos_are_told_apart_and_mirrored_ones_too(network, images):
    found = judge(network, images, looks=1, flip=False)
    mirrored = judge(network, images[:, :, ::-1], looks=1, flip=False)
    for name in found:
        assert np.ptp(found[name], axis=0).max() > 0.05
        assert np.abs(found[name] - mirrored[name]).max() > 0.05


def test_one_look_is_what_the_network_says(network, images):
    built, weights, statistics = network
    found = judge(network, images, looks=1, flip=False)
    expected, _ = state.predictor(built)(
        weights, statistics, tf.cast(images, tf.float32), False, tf.zeros(2, tf.int64)
    )
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_mirrored_photos_get_mirrored_boxes_and_the_same_names(network, images):
    found = judge(network, images, looks=1, flip=True)
    mirrored = judge(network, images[:, :, ::-1], looks=1, flip=True)
    turned = mirrored["bbox"].numpy()[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(turned, found["bbox"], atol=1e-4)
    np.testing.assert_allclose(mirrored["logits"], found["logits"], atol=1e-3)


def test_xla_sees_the_same(network, images):
    found, compiled = (judge(network, images, jit, looks=2, flip=True) for jit in (False, True))
    for name in found:
        np.testing.assert_allclose(compiled[name], found[name], atol=5e-3)


def test_a_box_that_is_no_number_is_reported_and_stops_nothing(network, images):
    built, weights, statistics = network
    found = judge((built, weights * np.nan, statistics), images, looks=3, flip=True)
    assert np.isnan(found["bbox"]).all()


class Measure(keras.layers.Layer):
    """Finds the box of what is white, to the nearest sixteenth of the photo."""

    def call(self, image):
        white = keras.ops.mean(image, axis=-1) > 191
        box = [self._ends(keras.ops.any(white, axis=axis)) for axis in (1, 2)]
        box = keras.ops.stack([box[0][0], box[1][0], box[0][1], box[1][1]], axis=-1)
        return keras.ops.round(box * 16) / 16

    @staticmethod
    def _ends(line):
        first = keras.ops.argmax(line, axis=1) / line.shape[1]
        last = 1 - keras.ops.argmax(line[:, ::-1], axis=1) / line.shape[1]
        return keras.ops.cast(first, "float32"), keras.ops.cast(last, "float32")


def test_another_look_draws_the_box_to_finer_steps():
    image = keras.Input((HEIGHT, WIDTH, 3), name="image")
    bbox = Measure(name="backbone")(image)
    logits = keras.layers.Dense(2)(keras.layers.BatchNormalization()(bbox))
    measuring = keras.Model(image, {"bbox": bbox, "logits": logits})
    values = state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), measuring, CONFIG)
    network = measuring, *(tf.convert_to_tensor(value) for value in state.judged(values))
    random = np.random.default_rng(0)
    low = random.integers(4, 24, (40, 2))
    high = low + random.integers(6, 20, (40, 2))
    images = np.zeros((40, HEIGHT, WIDTH, 3), np.uint8)
    for photo, (left, top), (right, bottom) in zip(images, low, high, strict=True):
        photo[top:bottom, left:right] = 255
    true = np.concatenate([low, high], axis=1) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    once, twice, thrice = (
        np.abs(judge(network, images, looks=count, flip=count == 3)["bbox"] - true).mean()
        for count in (1, 2, 3)
    )
    assert 1 / 100 < once < 1 / 32
    assert twice < once * 0.6
    assert thrice <= twice
