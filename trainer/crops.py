"""Crops of photos, resized to the network's input, and the coordinates of boxes in them.

A crop is float32 [b, 4]: (xmin, ymin, xmax, ymax), fractions of the photo, as a box is.
"""

import math

import tensorflow as tf

_SMALLEST = 0.1
"""Smallest side of a box to crop to, as a share of the photo's: a predicted box may be a point."""


def random_context_crop(bbox: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns crops, float32 [b, 4], that cut away a share of what lies outside the boxes.

    Args:
        bbox: float32 [b, 4], fractions.
        share: float32 [b, 4] in [0, 1]: how much of the margin to cut left, above, right, below.
    """
    return tf.concat([share[:, :2] * bbox[:, :2], 1 - share[:, 2:] * (1 - bbox[:, 2:])], axis=1)


def expand_box(bbox: tf.Tensor, margin: tf.Tensor | float) -> tf.Tensor:
    """Returns crops, float32 [b, 4]: the boxes and a margin around them.

    Args:
        bbox: float32 [b, 4], fractions in [0, 1]; may be inverted (xmax < xmin).
        margin: float32 [b, 4] or one number: margins left, above, right and below, as shares of
            the box's width or height; they end where the photo ends. A negative margin cuts into
            the box.
    """
    center = (bbox[:, :2] + bbox[:, 2:]) / 2
    size = tf.maximum(bbox[:, 2:] - bbox[:, :2], _SMALLEST)
    outward = tf.concat([-size, size], axis=1)
    return tf.clip_by_value(tf.concat([center, center], 1) + outward * (0.5 + margin), 0, 1)


def snap_to_pixels(
    crop: tf.Tensor, photo_size: tuple[int, int], input_size: tuple[int, int]
) -> tf.Tensor:
    """Returns crops, float32 [b, 4], that `crop_and_resize` can interpolate inside the photo.

    An enlarged crop that reaches the photo's edge is moved in by up to half a pixel, because
    interpolation would need pixels beyond the edge.

    Args:
        crop: float32 [b, 4].
        photo_size: height and width of the photos, in pixels.
        input_size: height and width to which the crops will be resized, in pixels.
    """
    low, high = crop[:, :2], crop[:, 2:]
    side = tf.constant(photo_size[::-1], tf.float32)
    shown = tf.constant(input_size[::-1], tf.float32)
    # Half a pixel of the result, in pixels of the photo.
    half = (high - low) * (side / shown / 2)
    # Centers of the first and the last pixel of the result; interpolation needs both inside.
    first = tf.maximum(low * side + half - 0.5, 0)
    last = tf.minimum(high * side - half - 0.5, side - 1)
    scale = tf.maximum(last - first, 1) / (shown - 1) * (shown / side)
    low = (first + 0.5) / side - scale / shown / 2
    return tf.concat([low, low + scale], axis=1)


def crop_and_resize(
    image: tf.Tensor,
    crop: tf.Tensor,
    input_size: tuple[int, int],
    flipped: tf.Tensor | None = None,
) -> tf.Tensor:
    """Cuts crops out of photos and resizes them to the network's input.

    Interpolates linearly where a crop is enlarged, and averages with a triangle filter where it is
    made smaller, so that no pixel of the photo is skipped (what `tf.image.resize` does with
    `antialias=True`). It is made of gathers and arithmetic, which XLA, LiteRT and ONNX have. LiteRT
    refuses `tf.image.crop_and_resize`, and its conversion to ONNX gives wrong boxes.

    Args:
        image: [b, H, W, 3].
        crop: float32 [b, 4], best from `snap_to_pixels`.
        input_size: height h and width w of the result, in pixels.
        flipped: bool [b]: left to right.

    Returns:
        float32 [b, h, w, 3].
    """
    height, width = input_size
    xmin, ymin, xmax, ymax = tf.unstack(crop, axis=1)
    if flipped is not None:
        xmin, xmax = tf.where(flipped, xmax, xmin), tf.where(flipped, xmin, xmax)
    shown = _resample(tf.cast(image, tf.float32), ymin, ymax, height)
    # Columns are gathered as rows of the transposed photo: rows are copied faster than pixels.
    shown = _resample(tf.transpose(shown, [0, 2, 1, 3]), xmin, xmax, width)
    return tf.transpose(shown, [0, 2, 1, 3])


def flip_boxes(bbox: tf.Tensor) -> tf.Tensor:
    """Returns boxes, float32 [b, 4], as they are in photos flipped left to right."""
    xmin, ymin, xmax, ymax = tf.unstack(bbox, axis=1)
    return tf.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)


def image_to_crop(bbox: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
    """Returns boxes of photos, float32 [b, 4], as fractions of crops, clipped to them."""
    low, size = _corner_and_size(crop)
    return tf.clip_by_value((bbox - low) / size, 0, 1)


def crop_to_image(bbox: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
    """Returns boxes in crops, float32 [b, 4], as fractions of their photos."""
    low, size = _corner_and_size(crop)
    return bbox * size + low


def _corner_and_size(crop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    low, size = crop[:, :2], crop[:, 2:] - crop[:, :2]
    return tf.concat([low, low], axis=1), tf.concat([size, size], axis=1)


def _resample(image: tf.Tensor, start: tf.Tensor, end: tf.Tensor, shown: int) -> tf.Tensor:
    """Resamples the first side of photos: [b, pixels, n, 3] -> float32 [b, shown, n, 3].

    Args:
        image: float32.
        start, end: float32 [b], of the crop on this side, as fractions; mirrored where end < start.
        shown: pixels of the result.
    """
    pixels = image.shape[1]
    step = (end - start) * (pixels / shown)
    offsets = tf.range(shown, dtype=tf.float32) + 0.5
    centers = (start * pixels - 0.5)[:, tf.newaxis] + offsets * step[:, tf.newaxis]
    # Beyond the photo's edge, its last pixel is repeated.
    centers = tf.clip_by_value(centers, 0, pixels - 1)
    reach = tf.maximum(tf.abs(step), 1)[:, tf.newaxis]
    first = tf.floor(centers - reach) + 1
    weights = []
    for tap in range(math.ceil(2 * max(pixels / shown, 1))):
        place = first + tap
        inside = tf.cast((place >= 0) & (place < pixels), tf.float32)
        weights.append(inside * tf.nn.relu(1 - tf.abs(place - centers) / reach))
    total = tf.add_n(weights)
    parts = []
    for tap, weight in enumerate(weights):
        place = tf.clip_by_value(tf.cast(first, tf.int32) + tap, 0, pixels - 1)
        part = tf.gather(image, place, axis=1, batch_dims=1)
        parts.append(part * (weight / total)[:, :, tf.newaxis, tf.newaxis])
    return tf.add_n(parts)
