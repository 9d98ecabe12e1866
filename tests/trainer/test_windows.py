import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import windows

HEIGHT, WIDTH = 48, 64

sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda s: s[1] - s[0] > 0.05)
shares = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)
anywhere = st.lists(st.floats(-0.5, 1.5, width=32), min_size=4, max_size=4)


def assert_keeps_whole(bbox, window):
    window = windows.showable(window, HEIGHT, WIDTH).numpy()
    assert (window > -1e-5).all()
    assert (window < 1 + 1e-5).all()
    back = windows.to_photo(windows.to_window(bbox, window), window)
    # Half a pixel at most is lost, at the border of the photo.
    np.testing.assert_allclose(back, bbox, atol=0.5 / HEIGHT)


@given(x=sides, y=sides, share=shares)
@settings(deadline=None, max_examples=200)
def test_a_window_within_the_margins_keeps_the_box_whole_and_where_it_was(x, y, share):
    bbox = np.float32([[x[0], y[0], x[1], y[1]]])
    assert_keeps_whole(bbox, windows.within_margins(bbox, np.float32([share])))


@given(x=sides, y=sides, margin=shares)
@settings(deadline=None, max_examples=200)
def test_a_window_around_a_box_keeps_it_whole_and_shows_the_margin_asked_for(x, y, margin):
    bbox, margin = np.float32([[x[0], y[0], x[1], y[1]]]), np.float32([margin])
    window = windows.around(bbox, margin).numpy()
    assert_keeps_whole(bbox, window)
    size = np.tile(np.maximum(bbox[:, 2:] - bbox[:, :2], 0.1), 2)
    shown = np.abs(window - bbox)
    at_border = (window < 1e-6) | (window > 1 - 1e-6)
    small = size > np.tile(bbox[:, 2:] - bbox[:, :2], 2) + 1e-6
    exact = ~at_border & ~small
    np.testing.assert_allclose(shown[exact], (margin * size)[exact], atol=1e-5)


@given(bbox=anywhere)
@settings(deadline=None, max_examples=200)
def test_whatever_is_predicted_gives_a_window_in_the_photo_that_shows_something(bbox):
    window = windows.around(np.float32([bbox]), 0.15).numpy()
    assert (window >= 0).all()
    assert (window <= 1).all()
    assert (window[:, 2:] - window[:, :2] > 0.04).all()
    shown = windows.cut(
        np.full((1, HEIGHT, WIDTH, 3), 255), windows.showable(window, HEIGHT, WIDTH)
    )
    np.testing.assert_array_equal(shown, 255)


@given(x=sides, y=sides)
@settings(deadline=None, max_examples=50)
def test_mirroring_twice_is_nothing(x, y):
    bbox = tf.constant([[x[0], y[0], x[1], y[1]]], tf.float32)
    np.testing.assert_allclose(windows.mirror(windows.mirror(bbox)), bbox, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_window_inside_the_photo_invents_no_pixel(share):
    images = np.full((8, HEIGHT, WIDTH, 3), 255, np.uint8)
    boxes = np.random.default_rng(3).uniform(0.0, 0.4, (8, 4)).astype(np.float32)
    boxes = np.clip(boxes + [[-0.2, -0.2, 0.6, 0.6]], 0, 1).astype(np.float32)
    window = windows.within_margins(boxes, np.full((8, 4), share, np.float32))
    window = windows.showable(window, HEIGHT, WIDTH)
    out = windows.cut(images, window, np.arange(8) % 2 == 0).numpy()
    np.testing.assert_array_equal(out, 255)
