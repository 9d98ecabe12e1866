"""Exact metrics, as sums that add up over replicas and batches.

sums = metrics.batch_sums(true_box, true_label, predicted_box, logits, mask)
...                                       # the caller adds them up
result = metrics.means(sums)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrecords.errors import UserError
from trainer import boxes

NAMES = ("count", "iou", "iou_50", "iou_70", "iou_90", "top1", "top5", "top1_iou_50")
"""Sums of metrics. `iou_50`: boxes with IoU >= 0.5; `top1_iou_50`: those with the right name."""

LOSSES = ("loss", "box_loss", "label_loss")
SUMS = (*LOSSES, *NAMES)
"""What is summed over an epoch: losses over examples, then the metrics."""


def batch_sums(
    true_box: tf.Tensor,
    true_label: tf.Tensor,
    predicted_box: tf.Tensor,
    scores: tf.Tensor,
    mask: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Sums the metrics over one batch: a pure function of its tensors, compilable by XLA.

    A label is among the top k when fewer than k classes rank before it. Classes rank by score, and
    of equal scores the lower class number ranks first, as in `tf.argmax` and `tf.math.top_k`; so a
    model that gives all classes the same score is right for the first class only. A NaN score
    ranks before every other and is never right. With fewer than five classes, every
    label whose score is a number is among the top five.

    Args:
        true_box: float [batch, 4].
        true_label: int [batch], from 0.
        predicted_box: float [batch, 4].
        scores: float [batch, classes]: logits or probabilities.
        mask: bool or number [batch]; rows with 0 count nothing, whatever they hold.

    Returns:
        A float64 scalar for each of `NAMES`. Counts are exact up to 2^53; the sum of IoUs over 10
        million examples is exact to about 1e-9 in whatever order it is added.
    """
    mask = tf.cast(mask, tf.bool)
    overlap = boxes.iou(true_box, predicted_box)
    rank = _rank(true_label, scores)
    classes = tf.shape(scores)[-1]
    top1 = rank < 1
    rows = {
        "count": mask,
        "iou": overlap,
        "iou_50": overlap >= 0.5,
        "iou_70": overlap >= 0.7,
        "iou_90": overlap >= 0.9,
        "top1": top1,
        "top5": rank < tf.minimum(5, classes),
        "top1_iou_50": top1 & (overlap >= 0.5),
    }
    zero = tf.constant(0.0, tf.float64)
    # tf.where, not a product with the mask: a padding row may hold NaN.
    return {
        name: tf.reduce_sum(tf.where(mask, tf.cast(rows[name], tf.float64), zero)) for name in NAMES
    }


def epoch_sums(
    example_losses: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    batch: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
) -> tf.Tensor:
    """Returns what a batch adds to an epoch's sums: float64 [len(SUMS)].

    Args:
        example_losses: float32 [b] for each of `LOSSES`.
        batch: `bbox` [b, 4], `label` [b], and `mask` [b], whose false rows count nothing.
        outputs: `bbox` [b, 4] and `logits` [b, classes].
    """
    zero = tf.constant(0.0, tf.float64)
    sums = {
        name: tf.reduce_sum(tf.where(batch["mask"], tf.cast(value, tf.float64), zero))
        for name, value in zip(LOSSES, example_losses, strict=True)
    }
    sums |= batch_sums(
        batch["bbox"], batch["label"], outputs["bbox"], outputs["logits"], batch["mask"]
    )
    return tf.stack([sums[name] for name in SUMS])


def epoch_means(sums: np.ndarray) -> dict[str, float]:
    """Turns an epoch's sums, float64 [len(SUMS)], into mean losses and the metrics of `means`."""
    by_name = dict(zip(SUMS, sums, strict=True))
    found = means(by_name)
    return {name: float(by_name[name] / found["num_examples"]) for name in LOSSES} | found


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Turns sums over a whole split into its metrics.

    Args:
        sums: a number, array or tensor for each of `NAMES`.

    Returns:
        `num_examples`, `mean_iou`, and in [0, 1] the shares `iou_50`, `iou_70`, `iou_90`, `top1`,
        `top5`, `top1_iou_50`.

    Raises:
        UserError: nothing was counted.
    """
    count = int(sums["count"])
    if not count:
        raise UserError("there are no examples to evaluate: the split is empty.")
    shares = {
        "mean_iou" if name == "iou" else name: float(sums[name]) / count
        for name in NAMES
        if name != "count"
    }
    return {"num_examples": count} | shares


def _rank(true_label: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Counts the classes that rank before the true one: int32 [batch]."""
    scores = tf.cast(scores, tf.float32)
    label = tf.cast(true_label, tf.int32)[:, tf.newaxis]
    classes = tf.range(tf.shape(scores)[-1])[tf.newaxis, :]
    # Not tf.gather, which fails on a label that is out of range in a padding row.
    true_score = tf.reduce_sum(tf.where(classes == label, scores, 0.0), axis=-1, keepdims=True)
    behind = (scores < true_score) | ((scores == true_score) & (classes >= label))
    return tf.reduce_sum(tf.cast(~behind, tf.int32), axis=-1)
