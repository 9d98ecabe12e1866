"""Which part of a photo is shown, and that it is shown as TensorFlow's own operations show it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import crops

PHOTO_SIZE = HEIGHT, WIDTH = 48, 64
INPUT_SIZES = [(48, 64), (96, 100), (24, 32), (17, 50), (80, 40)]  # of the photo, larger, smaller
WHOLE = np.float32([[0, 0, 1, 1]])

often = settings(deadline=None, max_examples=200)
sometimes = settings(deadline=None, max_examples=50)
sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda s: s[1] - s[0] > 0.05)
boxes = st.tuples(sides, sides).map(
    lambda xy: np.float32([[xy[0][0], xy[1][0], xy[0][1], xy[1][1]]])
)
shares = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4).map(
    lambda row: np.float32([row])
)
sizes = st.sampled_from(INPUT_SIZES)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Noise, of which no two pixels are alike."""
    return np.random.default_rng(0).uniform(0, 255, (1, HEIGHT, WIDTH, 3)).astype(np.float32)


def assert_needs_no_invented_pixel(crop, input_size=PHOTO_SIZE):
    side, shown = (np.array(size[::-1]) for size in (PHOTO_SIZE, input_size))
    half = (crop[:, 2:] - crop[:, :2]) * side / shown / 2  # a shown pixel, in pixels of the photo
    assert (crop[:, :2] * side + half >= 0.5 - 1e-3).all()
    assert (crop[:, 2:] * side - half <= side - 0.5 + 1e-3).all()


def assert_keeps_whole(bbox, crop, input_size):
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, input_size).numpy()
    assert_needs_no_invented_pixel(crop, input_size)
    back = crops.crop_to_image(crops.image_to_crop(bbox, crop), crop)
    # At most half a pixel is lost, at the border of the photo.
    np.testing.assert_allclose(back, bbox, atol=0.5 / HEIGHT)


@given(bbox=boxes, share=shares)
@often
def test_a_context_crop_keeps_the_box_whole_and_where_it_was(bbox, share):
    assert_keeps_whole(bbox, crops.random_context_crop(bbox, share), PHOTO_SIZE)


def test_a_context_crop_cuts_the_share_of_each_margin_that_it_is_told():
    bbox, share = np.float32([[0.2, 0.4, 0.5, 0.9]]), np.float32([[0.5, 0.25, 0, 1]])
    found = crops.random_context_crop(bbox, share)
    np.testing.assert_allclose(found, [[0.1, 0.1, 1, 0.9]], atol=1e-6)


@given(bbox=boxes, margin=shares)
@often
def test_an_expanded_box_shows_the_box_whole_and_the_margin_asked_for(bbox, margin):
    crop = crops.expand_box(bbox, margin).numpy()
    assert_keeps_whole(bbox, crop, PHOTO_SIZE)
    size = np.tile(np.maximum(bbox[:, 2:] - bbox[:, :2], 0.1), 2)
    shown = np.abs(crop - bbox)
    at_border = (crop < 1e-6) | (crop > 1 - 1e-6)
    small = size > np.tile(bbox[:, 2:] - bbox[:, :2], 2) + 1e-6
    exact = ~at_border & ~small
    np.testing.assert_allclose(shown[exact], (margin * size)[exact], atol=1e-5)


def test_a_negative_margin_cuts_into_the_box():
    bbox, margin = np.float32([[0.2, 0.2, 0.7, 0.6]]), np.float32([[-0.1, 0, 0.1, -0.2]])
    found = crops.expand_box(bbox, margin)
    np.testing.assert_allclose(found, [[0.25, 0.2, 0.75, 0.52]], atol=1e-6)


@given(bbox=shares, input_size=sizes)
@often
def test_whatever_is_predicted_gives_a_crop_of_the_photo_that_shows_something(bbox, input_size):
    crop = crops.expand_box(bbox, 0.15).numpy()
    assert (crop >= 0).all()
    assert (crop <= 1).all()
    assert (crop[:, 2:] - crop[:, :2] > 0.04).all()
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, input_size).numpy()
    assert_needs_no_invented_pixel(crop, input_size)


@given(bbox=boxes)
@sometimes
def test_flipping_twice_is_nothing(bbox):
    np.testing.assert_allclose(crops.flip_boxes(crops.flip_boxes(bbox)), bbox, atol=1e-6)


@given(crop=boxes, flipped=st.booleans(), input_size=st.sampled_from([PHOTO_SIZE, (96, 100)]))
@sometimes
def test_what_is_shown_is_what_the_crop_says(crop, flipped, input_size):
    """On a photo whose brightness is its own coordinate, each pixel shown tells where it was."""
    height, width = input_size
    across, down = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    photo = np.stack([across, down, across * 0], axis=-1)[np.newaxis].astype(np.float32)
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, input_size)
    shown = crops.crop_and_resize(photo, crop, input_size, flipped=tf.constant([flipped])).numpy()
    if flipped:
        shown = shown[:, :, ::-1]
    left, top, right, bottom = crop.numpy()[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    expected = left + (right - left) * (np.arange(width) + 0.5) / width
    np.testing.assert_allclose(shown[0, height // 2, :, 0], expected, atol=1e-3)
    expected = top + (bottom - top) * (np.arange(height) + 0.5) / height
    np.testing.assert_allclose(shown[0, :, width // 2, 1], expected, atol=1e-3)


@given(crop=boxes)
@sometimes
def test_a_crop_at_the_size_of_the_photo_is_what_tensorflow_cuts(photo, crop):
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, PHOTO_SIZE)
    # That operation wants centers of the corner pixels, 0 to 1, and shows black beyond them.
    side = np.float32([WIDTH, HEIGHT] * 2)
    half = np.tile(crop[:, 2:] - crop[:, :2], 2) / 2 * [1, 1, -1, -1]
    left, top, right, bottom = np.clip((crop * side + half - 0.5) / (side - 1), 1e-6, 1 - 1e-6).T
    corners = np.stack([top, left, bottom, right], axis=1)
    expected = tf.image.crop_and_resize(photo, corners, [0], PHOTO_SIZE)
    np.testing.assert_allclose(crops.crop_and_resize(photo, crop, PHOTO_SIZE), expected, atol=0.1)


@pytest.mark.parametrize("input_size", INPUT_SIZES)
def test_a_whole_photo_of_another_size_is_what_tensorflow_resizes(photo, input_size):
    expected = tf.image.resize(photo, input_size, antialias=True)
    found = crops.crop_and_resize(photo, WHOLE, input_size)
    assert found.shape == (1, *input_size, 3)
    np.testing.assert_allclose(found, expected, atol=0.02)


@given(crop=boxes, input_size=sizes)
@sometimes
def test_a_crop_of_another_size_is_antialiased_as_tensorflow_does(photo, crop, input_size):
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, input_size)
    left, top, right, bottom = crop.numpy()[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    scale = input_size / np.array([bottom - top, right - left])
    expected = tf.raw_ops.ScaleAndTranslate(
        images=photo,
        size=input_size,
        scale=scale.astype(np.float32),
        translation=(-np.array([top, left]) * scale).astype(np.float32),
        kernel_type="triangle",
        antialias=True,
    )
    np.testing.assert_allclose(crops.crop_and_resize(photo, crop, input_size), expected, atol=0.1)


@given(crop=boxes, input_size=sizes)
@sometimes
def test_no_row_at_the_edge_of_the_photo_is_black(crop, input_size):
    assert_stays_white(crop, input_size)


@pytest.mark.parametrize("input_size", INPUT_SIZES)
def test_no_row_is_black_where_rounding_passes_the_edge(input_size):
    assert_stays_white(np.float32([[0, 0.27450596761847673, 1, 1]]), input_size)


def assert_stays_white(crop, input_size):
    photo = np.full((1, HEIGHT, WIDTH, 3), 255, np.uint8)
    crop = crops.snap_to_pixels(crop, PHOTO_SIZE, input_size)
    shown = crops.crop_and_resize(photo, crop, input_size)
    np.testing.assert_allclose(shown, 255, rtol=1e-5)


def test_each_photo_is_cropped_and_flipped_by_itself(photo):
    photos = np.concatenate([photo, photo[:, ::-1], 255 - photo])
    wanted = np.float32([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [0.5, 0, 1, 0.5]])
    flipped = np.array([True, False, True])
    together = crops.crop_and_resize(photos, wanted, (24, 40), flipped=tf.constant(flipped))
    for one, crop, turned, found in zip(photos, wanted, flipped, together, strict=True):
        alone = crops.crop_and_resize(one[None], crop[None], (24, 40))[0]
        np.testing.assert_allclose(found, alone[:, ::-1] if turned else alone, atol=0.01)
