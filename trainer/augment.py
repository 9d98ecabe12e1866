"""Random changes of training photos, a whole batch at a time, on the device that trains on it.

The host only reads and decodes; what is arithmetic on pixels happens where pixels are cheap. Each
change follows from the seed and the example's position in the run, so it does not depend on how
replicas or workers share a batch, nor on where a run was interrupted.
"""

import tensorflow as tf

from trainer.config import Config

Batch = dict[str, tf.Tensor]
"""`image` uint8 [b, h, w, 3], `bbox` float32 [b, 4], `label` int64 [b] from 0, `mask` bool [b],
`position` int64 [b] in the run."""


def augment(batch: Batch, config: Config) -> Batch:
    """Changes the photos and boxes of one replica's share of a global batch.

    Args:
        batch: `image` uint8 [b, h, w, 3], `bbox` float32 [b, 4], `position` int64 [b], and more.
        config: `seed`, `batch_size` and `augment`.

    Returns:
        The same, with `image` float32, values in [0, 255].
    """
    image, bbox, recipe = batch["image"], batch["bbox"], config.augment
    draws = _draws(batch["position"], config)
    if recipe.crop > 0 or recipe.flip:
        # Each side stays in half of the photos: were all cropped, boxes would be larger than in the
        # photos to be judged, and be predicted too large there.
        share = recipe.crop * tf.maximum(2 * draws[:, :4] - 1, 0)
        window = crop_window(bbox, share, *image.shape[1:3])
        mirrored = (draws[:, 4] < 0.5) & recipe.flip
        image = cut(image, window, mirrored)
        bbox = box_in_window(bbox, window, mirrored)
    if recipe.colour > 0:
        image = change_colour(tf.cast(image, tf.float32), recipe.colour * (2 * draws[:, 5:] - 1))
    return batch | {"image": tf.cast(image, tf.float32), "bbox": bbox}


def _draws(positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns float32 [b, 8] in [0, 1): the rows of the global batch's that are ours."""
    size = config.batch_size
    seed = tf.stack([tf.constant(config.seed, tf.int64), positions[0] // size])
    return tf.gather(tf.random.stateless_uniform([size, 8], seed), positions % size)


def crop_window(bbox: tf.Tensor, share: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Chooses parts of photos that keep the boxes whole.

    Args:
        bbox: float32 [b, 4], fractions.
        share: float32 [b, 4] in [0, 1]: how much of the margin to cut left, above, right, below.
        height, width: of the photos, in pixels.

    Returns:
        float32 [b, 4], (xmin, ymin, xmax, ymax) as fractions: what `cut` will show. Where a border
        pixel would have to be invented, it ends up to half a pixel inside of what was asked.
    """
    low, high = share[:, :2] * bbox[:, :2], 1 - share[:, 2:] * (1 - bbox[:, 2:])
    side = tf.constant([width, height], tf.float32)
    # Centres of the first and the last pixel shown, which bilinear interpolation may not leave.
    first = tf.maximum(low * side + (high - low) / 2 - 0.5, 0)
    last = tf.minimum(high * side - (high - low) / 2 - 0.5, side - 1)
    scale = tf.maximum(last - first, 1) / (side - 1)
    low = (first + 0.5 - scale / 2) / side
    return tf.concat([low, low + scale], axis=1)


def cut(image: tf.Tensor, window: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Shows parts of photos at the size of the whole, bilinearly.

    Args:
        image: [b, h, w, 3].
        window: float32 [b, 4] from `crop_window`.
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
    left, top, right, bottom = tf.unstack(tf.clip_by_value(centres, 0, 1), axis=1)
    left, right = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    corners = tf.stack([top, left, bottom, right], axis=1)
    return tf.image.crop_and_resize(image, corners, tf.range(tf.shape(image)[0]), [height, width])


def box_in_window(bbox: tf.Tensor, window: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Returns boxes, float32 [b, 4], as fractions of windows [b, 4] of their photos."""
    low, high = window[:, :2], window[:, 2:]
    inside = tf.concat([bbox[:, :2] - low, bbox[:, 2:] - low], axis=1)
    inside = tf.clip_by_value(inside / tf.tile(high - low, [1, 2]), 0, 1)
    xmin, ymin, xmax, ymax = tf.unstack(inside, axis=1)
    turned = tf.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)
    return tf.where(mirrored[:, tf.newaxis], turned, inside)


def change_colour(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation.

    Args:
        image: float32 [b, h, w, 3], values 0 to 255.
        strength: float32 [b, 3], each in [-1, 1]: brightness (times 128), contrast and saturation
            (factor 1 + strength).

    Returns:
        float32 [b, h, w, 3], values 0 to 255.
    """
    brightness, contrast, saturation = (
        tf.reshape(value, [-1, 1, 1, 1]) for value in tf.unstack(strength, axis=1)
    )
    # All three are linear, so a pixel is a mixture of itself, its grey and a constant.
    factor = 1 + contrast
    grey = tf.reduce_sum(image * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    rest = 128 * (brightness - contrast) - factor * saturation * grey
    return tf.clip_by_value(image * factor * (1 + saturation) + rest, 0, 255)
