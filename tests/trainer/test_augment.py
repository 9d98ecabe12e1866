import numpy as np
import pytest
import tensorflow as tf

from trainer import augment, looks
from trainer.config import Augment, Config

HEIGHT, WIDTH = 48, 64


def batch(images, boxes, start: int = 0) -> augment.Batch:
    return {
        "image": tf.constant(images),
        "bbox": tf.constant(boxes, tf.float32),
        "position": tf.range(start, start + len(images), dtype=tf.int64),
    }


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def centred(count: int) -> np.ndarray:
    return np.tile(np.float32([0.3, 0.4, 0.6, 0.7]), (count, 1))


def test_a_share_of_the_batch_is_changed_as_within_the_whole():
    config = Config(batch_size=8, augment=Augment(crop=0.5, colour=0.3))
    images, boxes = noise(8), centred(8)
    whole = augment.augment(batch(images, boxes, 24), config)
    share = augment.augment(batch(images[4:], boxes[4:], 28), config)
    for name in ("image", "bbox"):
        np.testing.assert_array_equal(share[name], whole[name][4:], err_msg=name)


def test_every_photo_and_every_step_is_changed_in_its_own_way():
    config = Config(batch_size=4, augment=Augment(crop=0.5, colour=0.3))
    images, boxes = np.tile(noise(1), (4, 1, 1, 1)), centred(4)
    found = [augment.augment(batch(images, boxes, 4 * step), config) for step in range(3)]
    boxes = {tuple(box) for out in found for box in out["bbox"].numpy()}
    assert len(boxes) == 12
    other = augment.augment(batch(images, centred(4)), Config(seed=7, batch_size=4))
    assert not np.array_equal(other["bbox"], found[0]["bbox"])


def test_nothing_asked_is_nothing_done():
    config = Config(batch_size=3, augment=Augment(flip=False, crop=0.0, zoom=0.0, colour=0.0))
    out = augment.augment(batch(noise(3), centred(3)), config)
    assert out["image"].dtype == tf.float32
    np.testing.assert_array_equal(out["image"], noise(3))
    np.testing.assert_array_equal(out["bbox"], centred(3))


def test_half_of_the_photos_are_mirrored_and_the_rest_left_as_they_are():
    config = Config(batch_size=64, augment=Augment(flip=True, crop=0.0, zoom=0.0, colour=0.0))
    images, boxes = noise(64), centred(64)
    out = augment.augment(batch(images, boxes), config)
    mirrored = 0
    for image, box, found, new in zip(images, boxes, out["image"], out["bbox"], strict=True):
        turned = not np.allclose(new, box, atol=1e-4)
        expected = box if not turned else [1 - box[2], box[1], 1 - box[0], box[3]]
        np.testing.assert_allclose(new, expected, atol=1e-5)
        np.testing.assert_allclose(found, image[:, ::-1] if turned else image, atol=0.05)
        mirrored += turned
    assert 16 < mirrored < 48


def assert_frames_the_white(image, box):
    white = np.argwhere(image[..., 0] > 191)
    (top, left), (bottom, right) = white.min(0), white.max(0) + 1
    found = [left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT]
    np.testing.assert_allclose(found, box, atol=1.5 / HEIGHT)


@pytest.mark.parametrize(("crop", "zoom"), [(0.3, 0.0), (1.0, 0.0), (0.3, 0.5), (0.0, 1.0)])
def test_boxes_still_frame_the_same_thing(crop, zoom):
    """A white square on black, whose box is known, is found again in every photo."""
    images = np.zeros((40, HEIGHT, WIDTH, 3), np.uint8)
    images[:, 12:30, 20:45] = 255
    bbox = np.tile(np.float32([20 / WIDTH, 12 / HEIGHT, 45 / WIDTH, 30 / HEIGHT]), (40, 1))
    config = Config(batch_size=40, augment=Augment(flip=True, crop=crop, zoom=zoom, colour=0.0))
    out = augment.augment(batch(images, bbox), config)
    for image, box in zip(out["image"].numpy(), out["bbox"].numpy(), strict=True):
        assert_frames_the_white(image, box)


def test_the_share_asked_for_is_shown_from_near_with_a_margin_that_varies():
    recipe = Augment(flip=False, crop=0.0, zoom=0.3, jitter=0.08, colour=0.0)
    config, boxes = Config(batch_size=200, augment=recipe), centred(200)
    out = augment.augment(batch(np.tile(noise(1), (200, 1, 1, 1)), boxes), config)["bbox"].numpy()
    near = np.abs(out - boxes).max(axis=1) > 0.1
    assert 40 < near.sum() < 80
    margins = out[near][:, :2] / (out[near][:, 2:] - out[near][:, :2])
    assert looks.MARGIN - 0.08 - 1e-4 < margins.min() < looks.MARGIN - 0.06
    assert looks.MARGIN + 0.06 < margins.max() < looks.MARGIN + 0.08 + 1e-4


def test_a_margin_that_cuts_into_the_object_gives_the_box_of_what_is_left():
    images = np.zeros((40, HEIGHT, WIDTH, 3), np.uint8)
    images[:, 12:30, 20:45] = 255
    bbox = np.tile(np.float32([20 / WIDTH, 12 / HEIGHT, 45 / WIDTH, 30 / HEIGHT]), (40, 1))
    recipe = Augment(flip=True, crop=0.0, zoom=1.0, jitter=0.4, colour=0.0)
    out = augment.augment(batch(images, bbox), Config(batch_size=40, augment=recipe))
    boxes = out["bbox"].numpy()
    assert ((boxes == 0) | (boxes == 1)).any(axis=1).sum() > 20
    for image, box in zip(out["image"].numpy(), boxes, strict=True):
        assert_frames_the_white(image, box)


def test_colour_of_strength_nothing_is_nothing_and_no_saturation_is_grey():
    image = tf.random.stateless_uniform([2, 4, 6, 3], [1, 2], 10, 190)
    same = augment.change_colour(image, tf.zeros([2, 3]))
    np.testing.assert_allclose(same, image, atol=1e-3)
    strength = tf.constant([[0.0, 0.0, -1.0], [0.5, 0.0, 0.0]])
    grey, brighter = augment.change_colour(image, strength).numpy()
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-3)
    np.testing.assert_allclose(brighter - image[1], 64, atol=1e-3)


def test_colours_stay_in_range():
    strength = tf.constant([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]])
    out = augment.change_colour(tf.cast(noise(3), tf.float32), strength).numpy()
    assert out.min() >= 0
    assert out.max() <= 255
