"""Random changes of training photos, a whole batch at a time, on the device that trains on it.

The host only reads and decodes; arithmetic on pixels happens on the device. Each change follows
from the seed and the example's position in the run, so it does not depend on how replicas or
workers share a batch, nor on where a run was interrupted.
"""

import functools

import tensorflow as tf

from trainer import crops
from trainer.configs import Config
from trainer.xla import compiled

Batch = dict[str, tf.Tensor]
"""`image` uint8 [b, H, W, 3], `bbox` float32 [b, 4], `label` int64 [b] from 0, `mask` bool [b],
`position` int64 [b] in the run."""


def augment(batch: Batch, config: Config, input_size: tuple[int, int]) -> Batch:
    """Changes the photos and boxes of one replica's share of a global batch.

    Args:
        batch: `image` uint8 [b, H, W, 3], `bbox` float32 [b, 4], `position` int64 [b], and more.
        config: `seed`, `batch_size`, `augment`, and whether XLA may compile (`jit`).
        input_size: height h and width w of the photos that the network takes.

    Returns:
        The same, with `image` float32 [b, h, w, 3], values in [0, 255].
    """
    image, bbox, recipe = batch["image"], batch["bbox"], config.augment
    photo_size = (image.shape[1], image.shape[2])
    draws = _draws(batch["position"], config)
    show = compiled(functools.partial(crops.crop_and_resize, input_size=input_size), config)
    if recipe.context_crop > 0 or recipe.object_crop > 0 or recipe.flip:
        # A side of a photo that is not cropped to the object is cut with probability 1/2 only. If
        # all were cut, boxes would be larger than in the first pass of inference, and the model
        # would predict them too large.
        share = recipe.context_crop * tf.maximum(2 * draws[:, :4] - 1, 0)
        margin = recipe.object_crop_margin + recipe.object_crop_jitter * (2 * draws[:, :4] - 1)
        crop = tf.where(
            draws[:, 8:] < recipe.object_crop,
            crops.expand_box(bbox, margin),
            crops.random_context_crop(bbox, share),
        )
        crop = crops.snap_to_pixels(crop, photo_size, input_size)
        flipped = (draws[:, 4] < 0.5) & recipe.flip
        image = show(image, crop, flipped=flipped)
        bbox = crops.image_to_crop(bbox, crop)
        bbox = tf.where(flipped[:, tf.newaxis], crops.flip_boxes(bbox), bbox)
    elif photo_size != input_size:
        whole = tf.tile([[0.0, 0.0, 1.0, 1.0]], [tf.shape(image)[0], 1])
        image = show(image, whole)
    image = tf.cast(image, tf.float32)
    if recipe.color_jitter > 0:
        strength = recipe.color_jitter * (2 * draws[:, 5:8] - 1)
        image = compiled(jitter_color, config)(image, strength)
    return batch | {"image": image, "bbox": bbox}


def jitter_color(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
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
    # All three are linear, so a pixel is a mixture of itself, its gray and a constant.
    factor = 1 + contrast
    gray = tf.reduce_sum(image * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    rest = 128 * (brightness - contrast) - factor * saturation * gray
    return tf.clip_by_value(image * factor * (1 + saturation) + rest, 0, 255)


def _draws(positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns float32 [b, 9] in [0, 1): these positions' rows of the global batch's draws."""
    size = config.batch_size
    seed = tf.stack([tf.constant(config.seed, tf.int64), positions[0] // size])
    return tf.gather(tf.random.stateless_uniform([size, 9], seed), positions % size)
