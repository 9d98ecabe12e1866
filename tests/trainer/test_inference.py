"""How photos are judged: at a glance, flipped, and from near; of the network's size and larger."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from trainer import crops, inference, model, train_state
from trainer.configs import Config, Inference, Model

HEIGHT, WIDTH = 48, 64
# Untrained, the default head draws boxes of nearly no size, and looks at hardly a pixel.
CONFIG = Config(weights="none", model=Model(alpha=0.35, head="spatial", filters=8))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth, so that parts of them differ too."""
    return smooth(HEIGHT, WIDTH)


def smooth(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    return tf.cast(tf.image.resize(coarse, [height, width]), tf.uint8).numpy()


@pytest.fixture(scope="module")
def network(images) -> tuple[keras.Model, train_state.Tensors, train_state.Tensors]:
    """Random weights, and statistics of these photos: with any others all outputs were the same."""
    settings = dataclasses.replace(CONFIG.model, batch_norm_momentum=0.0)
    config = dataclasses.replace(CONFIG, model=settings)
    built = model.build(config, HEIGHT, WIDTH, datasets.CLASS_NAMES)
    built(tf.cast(images, tf.float32), training=True)
    return built, *values_of(built)


def values_of(built: keras.Model) -> tuple[train_state.Tensors, train_state.Tensors]:
    state = train_state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), built, CONFIG)
    values = state.values()
    return values["params"], values["batch_stats"]


def predict(network, images, jit="auto", **settings):
    built, params, batch_stats = network
    config = dataclasses.replace(CONFIG, inference=Inference(**settings), jit=jit)
    return inference.make_predict(built, config)(params, batch_stats, tf.constant(images))


def test_photos_are_told_apart_and_flipped_ones_too(network, images):
    found = predict(network, images, zoom_passes=0, flip_tta=False)
    flipped = predict(network, images[:, :, ::-1], zoom_passes=0, flip_tta=False)
    for name in found:
        assert np.ptp(found[name], axis=0).max() > 0.05
        assert np.abs(found[name] - flipped[name]).max() > 0.05


def test_without_zoom_passes_the_network_says_it_all(network, images):
    found = predict(network, images, zoom_passes=0, flip_tta=False)
    expected = network[0](tf.cast(images, tf.float32))
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_flipped_photos_get_flipped_boxes_and_the_same_names(network, images):
    found = predict(network, images, zoom_passes=0, flip_tta=True)
    flipped = predict(network, images[:, :, ::-1], zoom_passes=0, flip_tta=True)
    turned = flipped["bbox"].numpy()[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(turned, found["bbox"], atol=1e-4)
    np.testing.assert_allclose(flipped["logits"], found["logits"], atol=1e-3)


def test_xla_sees_the_same(network, images):
    found, compiled = (
        predict(network, images, jit, zoom_passes=1, flip_tta=True) for jit in ("off", "on")
    )
    for name in found:
        np.testing.assert_allclose(compiled[name], found[name], atol=5e-3)


def test_a_box_that_is_nan_is_reported_and_stops_nothing(network, images):
    built, params, batch_stats = network
    broken = {path: value * np.nan for path, value in params.items()}
    found = predict((built, broken, batch_stats), images, zoom_passes=2, flip_tta=True)
    assert np.isnan(found["bbox"]).all()


def test_a_photo_larger_than_the_input_is_resized_for_the_first_pass(network):
    photos = tf.cast(smooth(2 * HEIGHT + 11, 3 * WIDTH), tf.float32)
    photos += tf.random.stateless_uniform(photos.shape, [1, 2], -20, 20)  # to be averaged
    small = tf.image.resize(photos, [HEIGHT, WIDTH], antialias=True)
    for flip in (False, True):
        found = predict(network, photos, zoom_passes=0, flip_tta=flip)
        expected = predict(network, small, zoom_passes=0, flip_tta=flip)
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_the_last_pass_takes_the_mean_of_a_smaller_and_a_larger_crop(images, flip):
    """As two judgements with these margins; the larger crop is the mirrored one."""

    def network(shown):
        # A tenth to the left of the center at first sight, so that left and right differ.
        left, *others = tf.unstack(tf.reduce_mean(shown, [1, 3]) / 255, axis=1)
        bbox = tf.stack([left / 9 + 0.2, 0.3 + 0 * left, left / 9 + 0.6, others[-1] / 9 + 0.7], 1)
        return {"bbox": bbox, "logits": tf.reduce_mean(shown[:, :, ::7], [1])[:, :, 0]}

    def last(margin: float, mirrored: bool) -> inference.Outputs:
        first = network(tf.cast(images, tf.float32))
        crop = crops.expand_box(first["bbox"], margin)
        crop = crops.snap_to_pixels(crop, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
        shown = crops.crop_and_resize(images, crop, (HEIGHT, WIDTH))
        found = network(shown[:, :, ::-1] if mirrored else shown)
        bbox = crops.flip_boxes(found["bbox"]) if mirrored else found["bbox"]
        return found | {"bbox": crops.crop_to_image(bbox, crop)}

    settings = Inference(zoom_passes=1, zoom_margin=0.1, margin_tta=0.06, flip_tta=flip)
    found = inference.judge(network, images, settings, (HEIGHT, WIDTH))
    smaller, larger = last(0.04, False), last(0.16, flip)
    for name, value in found.items():
        np.testing.assert_allclose(value, (smaller[name] + larger[name]) / 2, rtol=1e-5)
        assert np.abs(smaller[name] - larger[name]).max() > 0.01


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


@pytest.mark.parametrize("times", [1, 2])
def test_a_zoom_pass_draws_the_box_to_finer_steps(times):
    """Photos are as large as the network's input, or so many times larger."""
    image = keras.Input((HEIGHT, WIDTH, 3), name="image")
    bbox = Measure()(image)
    logits = keras.layers.Dense(2)(keras.layers.BatchNormalization()(bbox))
    measuring = keras.Model(image, {"bbox": bbox, "logits": logits})
    network = measuring, *values_of(measuring)
    random = np.random.default_rng(0)
    low = random.integers(4 * times, 24 * times, (40, 2))
    high = low + random.integers(6 * times, 20 * times, (40, 2))
    images = np.zeros((40, HEIGHT * times, WIDTH * times, 3), np.uint8)
    for photo, (left, top), (right, bottom) in zip(images, low, high, strict=True):
        photo[top:bottom, left:right] = 255
    true = np.concatenate([low, high], axis=1) / (np.array([WIDTH, HEIGHT] * 2) * times)
    glance, once, twice = (
        np.abs(predict(network, images, zoom_passes=n, flip_tta=n == 2)["bbox"] - true).mean()
        for n in (0, 1, 2)
    )
    assert 1 / 100 < glance < 1 / 32
    assert once < glance * 0.6
    assert twice <= once
