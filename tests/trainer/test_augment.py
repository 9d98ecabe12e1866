import numpy as np
import pytest
import tensorflow as tf

from trainer import augment
from trainer.configs import Augment, Config

SIZE = HEIGHT, WIDTH = 48, 64
NOTHING = {"flip": False, "context_crop": 0.0, "object_crop": 0.0, "color_jitter": 0.0}


def augmented(
    images: np.ndarray,
    boxes: np.ndarray,
    recipe: dict[str, float],
    *,
    start: int = 0,
    batch_size: int | None = None,
    seed: int = 42,
    input_size: tuple[int, int] = SIZE,
) -> augment.Batch:
    """Augments photos that stand at `start` in a run, by `NOTHING` but for the recipe."""
    batch = {
        "image": tf.constant(images),
        "bbox": tf.constant(boxes, tf.float32),
        "position": tf.range(start, start + len(images), dtype=tf.int64),
    }
    config = Config(
        batch_size=batch_size or len(images), seed=seed, augment=Augment(**(NOTHING | recipe))
    )
    return augment.augment(batch, config, input_size)


def noise(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def centered(count: int) -> np.ndarray:
    return np.tile(np.float32([0.3, 0.4, 0.6, 0.7]), (count, 1))


EVERYTHING = {"flip": True, "context_crop": 0.5, "object_crop": 0.75, "color_jitter": 0.3}


def test_a_share_of_the_batch_is_changed_as_within_the_whole():
    images, boxes = noise(8), centered(8)
    whole = augmented(images, boxes, EVERYTHING, start=24)
    share = augmented(images[4:], boxes[4:], EVERYTHING, start=28, batch_size=8)
    for name in ("image", "bbox"):
        np.testing.assert_array_equal(share[name], whole[name][4:], err_msg=name)


def test_every_photo_and_every_step_is_changed_in_its_own_way():
    images, boxes = np.tile(noise(1), (4, 1, 1, 1)), centered(4)
    found = [augmented(images, boxes, EVERYTHING, start=4 * step) for step in range(3)]
    assert len({tuple(box) for out in found for box in out["bbox"].numpy()}) == 12
    other = augmented(images, boxes, EVERYTHING, seed=7)
    assert not np.array_equal(other["bbox"], found[0]["bbox"])


def test_nothing_asked_is_nothing_done():
    out = augmented(noise(3), centered(3), NOTHING)
    assert out["image"].dtype == tf.float32
    np.testing.assert_array_equal(out["image"], noise(3))
    np.testing.assert_array_equal(out["bbox"], centered(3))


def test_half_of_the_photos_are_flipped_and_the_rest_left_as_they_are():
    images, boxes = noise(64), centered(64)
    out = augmented(images, boxes, {"flip": True})
    flipped = 0
    for image, box, found, new in zip(images, boxes, out["image"], out["bbox"], strict=True):
        turned = not np.allclose(new, box, atol=1e-4)
        expected = box if not turned else [1 - box[2], box[1], 1 - box[0], box[3]]
        np.testing.assert_allclose(new, expected, atol=1e-5)
        np.testing.assert_allclose(found, image[:, ::-1] if turned else image, atol=0.05)
        flipped += turned
    assert 16 < flipped < 48


def white_square(times: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Forty photos of a white square on black, so many times larger, and its box."""
    images = np.zeros((40, HEIGHT * times, WIDTH * times, 3), np.uint8)
    images[:, 12 * times : 30 * times, 20 * times : 45 * times] = 255
    return images, np.tile(np.float32([20 / WIDTH, 12 / HEIGHT, 45 / WIDTH, 30 / HEIGHT]), (40, 1))


def assert_frames_the_white(out: augment.Batch) -> None:
    for image, box in zip(out["image"].numpy(), out["bbox"].numpy(), strict=True):
        assert image.shape == (*SIZE, 3)
        white = np.argwhere(image[..., 0] > 191)
        (top, left), (bottom, right) = white.min(0), white.max(0) + 1
        found = [left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT]
        np.testing.assert_allclose(found, box, atol=1.5 / HEIGHT)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("context_crop", "object_crop"), [(0.3, 0.0), (1.0, 0.0), (0.3, 0.5), (0.0, 1.0)]
)
def test_boxes_still_frame_the_same_thing(context_crop, object_crop, times):
    """In photos as large as the network's input, and larger: the batch has the input's size."""
    recipe = {"flip": True, "context_crop": context_crop, "object_crop": object_crop}
    assert_frames_the_white(augmented(*white_square(times), recipe, input_size=SIZE))


def test_larger_photos_that_nothing_changes_are_resized():
    images = noise(3, 2 * HEIGHT + 5, 3 * WIDTH)
    out = augmented(images, centered(3), NOTHING, input_size=SIZE)
    assert out["image"].dtype == tf.float32
    expected = tf.image.resize(images, SIZE, antialias=True)
    np.testing.assert_allclose(out["image"], expected, atol=0.05)
    np.testing.assert_array_equal(out["bbox"], centered(3))


def test_the_share_asked_for_is_shown_from_near_with_a_margin_that_varies():
    recipe, boxes = {"object_crop": 0.3, "object_crop_margin": 0.12}, centered(200)
    recipe["object_crop_jitter"] = 0.08
    out = augmented(np.tile(noise(1), (200, 1, 1, 1)), boxes, recipe)["bbox"].numpy()
    near = np.abs(out - boxes).max(axis=1) > 0.1
    assert 40 < near.sum() < 80
    margins = out[near][:, :2] / (out[near][:, 2:] - out[near][:, :2])
    assert 0.04 - 1e-4 < margins.min() < 0.06
    assert 0.18 < margins.max() < 0.20 + 1e-4


def test_a_margin_that_cuts_into_the_object_gives_the_box_of_what_is_left():
    recipe = {"flip": True, "object_crop": 1.0, "object_crop_jitter": 0.4}
    out = augmented(*white_square(), recipe)
    boxes = out["bbox"].numpy()
    assert ((boxes == 0) | (boxes == 1)).any(axis=1).sum() > 20
    assert_frames_the_white(out)


def test_color_of_strength_nothing_is_nothing_and_no_saturation_is_gray():
    image = tf.random.stateless_uniform([2, 4, 6, 3], [1, 2], 10, 190)
    same = augment.jitter_color(image, tf.zeros([2, 3]))
    np.testing.assert_allclose(same, image, atol=1e-3)
    strength = tf.constant([[0.0, 0.0, -1.0], [0.5, 0.0, 0.0]])
    gray, brighter = augment.jitter_color(image, strength).numpy()
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], atol=1e-3)
    np.testing.assert_allclose(brighter - image[1], 64, atol=1e-3)


def test_colors_stay_in_range():
    strength = tf.constant([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]])
    out = augment.jitter_color(tf.cast(noise(3), tf.float32), strength).numpy()
    assert out.min() >= 0
    assert out.max() <= 255
