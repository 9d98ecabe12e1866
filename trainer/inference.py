"""How the network is applied to a photo: zoom-in refinement and test-time augmentation.

The first pass takes the whole photo and finds where to zoom in. Each zoom pass gives the same
network a crop, the box found so far and a margin, in which the object is large and always of about
the same size: details that distinguish names are visible, and the box becomes more precise. The
last pass gives the result. With test-time augmentation it takes two crops, one of them wider and
flipped left to right, and the mean of what they give is used.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import crops
from trainer.configs import Config, Inference
from trainer.train_state import Tensors, make_apply
from trainer.xla import compiled

Outputs = dict[str, tf.Tensor]
"""`bbox` float32 [b, 4], fractions of the photo; `logits` float32 [b, classes]."""


def judge(
    network: Callable[[tf.Tensor], Outputs],
    images: tf.Tensor,
    inference: Inference,
    input_size: tuple[int, int],
    passes: list[Outputs] | None = None,
) -> Outputs:
    """Finds box and name of each photo; nothing else implements zoom passes and flip averaging.

    Args:
        network: float32 [b, h, w, 3], values in [0, 255] -> `bbox` and `logits`.
        images: [b, H, W, 3], values in [0, 255], the photos at the size of the records.
        inference: how many zoom passes, their margin, and the second crop of the last one.
        input_size: h and w.
        passes: where given, what each pass found is added to it: `bbox`, `logits`, and `crop`, the
            part of the photo that it was shown, float32 [b, 4] (of two crops, the first). The last
            is the result.

    Returns:
        `bbox` as fractions of the whole photo, and `logits`.
    """
    images = tf.cast(images, tf.float32)
    photo_size = (images.shape[1], images.shape[2])
    whole = tf.tile([[0.0, 0.0, 1.0, 1.0]], [tf.shape(images)[0], 1])

    def look(crop: tf.Tensor, flipped: bool = False) -> Outputs:
        shown = images
        if crop is not whole or photo_size != tuple(input_size):
            shown = crops.crop_and_resize(images, crop, input_size)
        found = network(tf.reverse(shown, [2]) if flipped else shown)
        bbox = crops.flip_boxes(found["bbox"]) if flipped else found["bbox"]
        return found | {"bbox": crops.crop_to_image(bbox, crop)}

    def around(bbox: tf.Tensor, margin: float) -> tf.Tensor:
        return crops.snap_to_pixels(crops.expand_box(bbox, margin), photo_size, input_size)

    crop = wider = whole
    for remaining in reversed(range(inference.zoom_passes)):
        found = look(crop)
        if passes is not None:
            passes.append(found | {"crop": crop})
        # Nothing can be cropped to a NaN; the last pass reports it.
        bbox = tf.where(tf.math.is_finite(found["bbox"]), found["bbox"], 0.5)
        spread = 0.0 if remaining else inference.margin_tta
        crop = around(bbox, inference.zoom_margin - spread)
        wider = around(bbox, inference.zoom_margin + spread) if spread else crop
    found = look(crop)
    if inference.flip_tta or wider is not crop:
        second = look(wider, flipped=inference.flip_tta)
        found = {name: (found[name] + second[name]) / 2 for name in ("bbox", "logits")}
    if passes is not None:
        passes.append(found | {"crop": crop})
    return found


def make_predict(model: keras.Model, config: Config) -> Callable[..., Outputs]:
    """Returns `judge` as a function of a model's values.

    It takes (params, batch_stats, images) and, if wanted, `passes`; see there.

    Args:
        model: the network; its values are arguments of the result.
        config: inference settings, and whether XLA compiles the network.
    """
    apply = make_apply(model)
    input_size = (model.input.shape[1], model.input.shape[2])

    def network(params: Tensors, batch_stats: Tensors, images: tf.Tensor) -> Outputs:
        return apply(params, batch_stats, images, False, tf.zeros(2, tf.int64))[0]

    network = compiled(network, config, convolutions=True)

    def predict(
        params: Tensors,
        batch_stats: Tensors,
        images: tf.Tensor,
        passes: list[Outputs] | None = None,
    ) -> Outputs:
        def forward(shown: tf.Tensor) -> Outputs:
            return network(params, batch_stats, shown)

        return judge(forward, images, config.inference, input_size, passes)

    return predict
