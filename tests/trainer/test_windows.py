import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import windows

HEIGHT, WIDTH = 48, 64

sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda s: s[1] - s[0] > 0.05)
shares = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


def assert_needs_no_invented_pixel(window):
    side = np.array([WIDTH, HEIGHT])
    half = (window[:, 2:] - window[:, :2]) / 2  # of a pixel shown, in pixels of the photo
    assert (window[:, :2] * side + half >= 0.5 - 1e-3).all()
    assert (window[:, 2:] * side - half <= side - 0.5 + 1e-3).all()


def assert_keeps_whole(bbox, window):
    window = windows.showable(window, HEIGHT, WIDTH).numpy()
    assert_needs_no_invented_pixel(window)
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


def test_a_negative_margin_cuts_into_the_box():
    window = windows.around(np.float32([[0.2, 0.2, 0.7, 0.6]]), np.float32([[-0.1, 0, 0.1, -0.2]]))
    np.testing.assert_allclose(window, [[0.25, 0.2, 0.75, 0.52]], atol=1e-6)


@given(bbox=shares)
@settings(deadline=None, max_examples=200)
def test_whatever_is_predicted_gives_a_window_in_the_photo_that_shows_something(bbox):
    window = windows.around(np.float32([bbox]), 0.15).numpy()
    assert (window >= 0).all()
    assert (window <= 1).all()
    assert (window[:, 2:] - window[:, :2] > 0.04).all()
    assert_needs_no_invented_pixel(windows.showable(window, HEIGHT, WIDTH).numpy())


@given(x=sides, y=sides)
@settings(deadline=None, max_examples=50)
def test_mirroring_twice_is_nothing(x, y):
    bbox = tf.constant([[x[0], y[0], x[1], y[1]]], tf.float32)
    np.testing.assert_allclose(windows.mirror(windows.mirror(bbox)), bbox, atol=1e-6)


@given(x=sides, y=sides, mirrored=st.booleans())
@settings(deadline=None, max_examples=50)
def test_what_is_shown_is_what_the_window_says(x, y, mirrored):
    assert_shows_what_it_says(x, y, mirrored)


def test_a_window_that_ends_at_the_edge_of_the_photo_shows_no_black_row():
    assert_shows_what_it_says([0.0, 1.0], [0.27450596761847673, 1.0], mirrored=False)


def assert_shows_what_it_says(x, y, mirrored):
    """On a photo whose brightness is its own coordinate, each pixel shown tells where it was."""
    across, down = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    photo = np.stack([across, down, across * 0], axis=-1)[np.newaxis].astype(np.float32)
    window = windows.showable(np.float32([[x[0], y[0], x[1], y[1]]]), HEIGHT, WIDTH)
    shown = windows.cut(photo, window, np.array([mirrored])).numpy()[0]
    if mirrored:
        shown = shown[:, ::-1]
    left, top, right, bottom = window.numpy()[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    expected = left + (right - left) * (np.arange(WIDTH) + 0.5) / WIDTH
    np.testing.assert_allclose(shown[HEIGHT // 2, :, 0], expected, atol=1e-3)
    expected = top + (bottom - top) * (np.arange(HEIGHT) + 0.5) / HEIGHT
    np.testing.assert_allclose(shown[:, WIDTH // 2, 1], expected, atol=1e-3)
