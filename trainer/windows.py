"""Parts of photos, shown at the size of the whole; and boxes in them.

A window is float32 [b, 4]: (xmin, ymin, xmax, ymax), fractions of the photo, as a box is.
"""

import tensorflow as tf

_SMALLEST = 0.1
"""Of the photo's side: what is predicted may be a point, and nothing is to be seen in one."""

_ROUNDING = 1e-6
"""Of the photo's side: some times the precision of float32."""


def within_margins(bbox: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns windows, float32 [b, 4], that cut away a share of what is outside the boxes.

    Args:
        bbox: float32 [b, 4], fractions.
        share: float32 [b, 4] in [0, 1]: how much of the margin to cut left, above, right, below.
    """
    return tf.concat([share[:, :2] * bbox[:, :2], 1 - share[:, 2:] * (1 - bbox[:, 2:])], axis=1)


def around(bbox: tf.Tensor, margin: tf.Tensor | float) -> tf.Tensor:
    """Returns windows, float32 [b, 4], of the boxes and some of what is around them.

    Args:
        bbox: float32 [b, 4], fractions in [0, 1]; may be inside out.
        margin: float32 [b, 4] or one number: how much more to show left, above, right and below,
            as a share of the box's width or height; less where the photo ends. A negative one cuts
            into the box.
    """
    centre = (bbox[:, :2] + bbox[:, 2:]) / 2
    size = tf.maximum(bbox[:, 2:] - bbox[:, :2], _SMALLEST)
    outward = tf.concat([-size, size], axis=1)
    return tf.clip_by_value(tf.tile(centre, [1, 2]) + outward * (0.5 + margin), 0, 1)


def showable(window: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Returns windows, float32 [b, 4], as `cut` will show them.

    Where a border pixel would have to be invented, they end up to half a pixel inside of what was
    asked.

    Args:
        window: float32 [b, 4].
        height, width: of the photos, in pixels.
    """
    low, high = window[:, :2], window[:, 2:]
    side = tf.constant([width, height], tf.float32)
    # Centres of the first and the last pixel shown, which bilinear interpolation may not leave.
    first = tf.maximum(low * side + (high - low) / 2 - 0.5, 0)
    last = tf.minimum(high * side - (high - low) / 2 - 0.5, side - 1)
    scale = tf.maximum(last - first, 1) / (side - 1)
    low = (first + 0.5 - scale / 2) / side
    return tf.concat([low, low + scale], axis=1)


def cut(image: tf.Tensor, window: tf.Tensor, mirrored: tf.Tensor | None = None) -> tf.Tensor:
    """Shows parts of photos at the size of the whole, bilinearly.

    Args:
        image: [b, h, w, 3].
        window: float32 [b, 4] from `showable`.
        mirrored: bool [b]: left to right.

    Returns:
        float32 [b, h, w, 3].
    """
    height, width = image.shape[1:3]
    side = tf.constant([width, height] * 2, tf.float32)
    scale = tf.tile(window[:, 2:] - window[:, :2], [1, 2])
    inward = scale / 2 * tf.constant([1.0, 1.0, -1.0, -1.0])
    # The operation wants centres of the corner pixels, 0 to 1; right before left mirrors.
    centres = (window * side + inward - 0.5) / (side - 1)
    # Rounding may carry the operation past the photo's edge, where it shows black; not of a whole.
    part = tf.tile((centres[:, :2] > 0) | (centres[:, 2:] < 1), [1, 2])
    edge = tf.where(part, _ROUNDING, 0.0)
    left, top, right, bottom = tf.unstack(tf.clip_by_value(centres, edge, 1 - edge), axis=1)
    if mirrored is not None:
        left, right = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    corners = tf.stack([top, left, bottom, right], axis=1)
    return tf.image.crop_and_resize(image, corners, tf.range(tf.shape(image)[0]), [height, width])


def mirror(bbox: tf.Tensor) -> tf.Tensor:
    """Returns boxes, float32 [b, 4], as they are in mirrored photos."""
    xmin, ymin, xmax, ymax = tf.unstack(bbox, axis=1)
    return tf.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)


def to_window(bbox: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Returns boxes of photos, float32 [b, 4], as fractions of windows, clipped to them."""
    size = tf.tile(window[:, 2:] - window[:, :2], [1, 2])
    return tf.clip_by_value((bbox - tf.tile(window[:, :2], [1, 2])) / size, 0, 1)


def to_photo(bbox: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Returns boxes in windows, float32 [b, 4], as fractions of their photos."""
    size = tf.tile(window[:, 2:] - window[:, :2], [1, 2])
    return bbox * size + tf.tile(window[:, :2], [1, 2])
