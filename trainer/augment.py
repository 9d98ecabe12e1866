"""Random changes of training photos, a whole batch at a time, on the device that trains on it.

The host only reads and decodes; what is arithmetic on pixels happens where pixels are cheap. Each
change follows from the seed and the example's position in the run, so it does not depend on how
replicas or workers share a batch, nor on where a run was interrupted.
"""

import tensorflow as tf

from trainer import looks, windows
from trainer.config import Config

Batch = dict[str, tf.Tensor]
"""`image` uint8 [b, h, w, 3], `bbox` float32 [b, 4], `label` int64 [b] from 0, `mask` bool [b],
`position` int64 [b] in the run."""


def augment(batch: Batch, config: Config) -> Batch:
    """Changes the photos and boxes of one replica's share of a global batch.

    Args:
        batch: `image` uint8 [b, h, w, 3], `bbox` float32 [b, 4], `position` int64 [b], and more.
        config: `seed`, `batch_size`, `augment`, and whether XLA may compile (`jit`).

    Returns:
        The same, with `image` float32, values in [0, 255].
    """
    image, bbox, recipe = batch["image"], batch["bbox"], config.augment
    draws = _draws(batch["position"], config)
    if recipe.crop > 0 or recipe.zoom > 0 or recipe.flip:
        # Of photos shown whole, each side stays in half: were all cropped, boxes would be larger
        # than at a first look at a photo to be judged, and be predicted too large there.
        share = recipe.crop * tf.maximum(2 * draws[:, :4] - 1, 0)
        margin = looks.MARGIN + recipe.jitter * (2 * draws[:, :4] - 1)
        near = windows.around(bbox, margin)
        zoomed = draws[:, 8:] < recipe.zoom
        window = tf.where(zoomed, near, windows.within_margins(bbox, share))
        window = windows.showable(window, *image.shape[1:3])
        mirrored = (draws[:, 4] < 0.5) & recipe.flip
        image = windows.cut(image, window, mirrored)
        bbox = windows.to_window(bbox, window)
        bbox = tf.where(mirrored[:, tf.newaxis], windows.mirror(bbox), bbox)
    if recipe.colour > 0:
        strength = recipe.colour * (2 * draws[:, 5:8] - 1)
        change = change_colour
        if config.jit != "off":
            # One pass over the pixels instead of a dozen; it pays on every device.
            change = tf.function(change_colour, jit_compile=True)
        image = change(tf.cast(image, tf.float32), strength)
    return batch | {"image": tf.cast(image, tf.float32), "bbox": bbox}


def _draws(positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns float32 [b, 9] in [0, 1): the rows of the global batch's that are ours."""
    size = config.batch_size
    seed = tf.stack([tf.constant(config.seed, tf.int64), positions[0] // size])
    return tf.gather(tf.random.stateless_uniform([size, 9], seed), positions % size)


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
