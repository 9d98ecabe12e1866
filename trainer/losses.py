"""Losses per example, by name, and two ways to weigh them.

A loss here is float32 [batch], whatever the inputs' type; the caller divides by the global batch
size (or sums, as the notebook does for boxes).

loss = losses.box_loss("5*l1+2*giou")(true_box, predicted_box)
"""

import re
from collections.abc import Callable, Mapping

import tensorflow as tf

from tfrecords.errors import UserError
from trainer import boxes
from trainer.configs import Loss

BoxLoss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

SMOOTH_L1_BETA = 0.1
"""Where smooth L1 turns from a parabola into a line: an error of a tenth of the photo's side."""


def squared_error(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns the squared error averaged over the box's four values, as in the notebook."""
    return tf.reduce_mean(tf.square(_error(true, pred)), axis=-1)


def l1(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns the absolute error averaged over the box's four values.

    DETR's weights (Carion et al. 2020: 5 for L1, 2 for GIoU) are for its sum over the four values:
    here that is `20*l1+2*giou`.
    """
    return tf.reduce_mean(tf.abs(_error(true, pred)), axis=-1)


def smooth_l1(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns smooth L1 averaged over the box's four values.

    For an error d: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere. beta is
    `SMOOTH_L1_BETA`: with Girshick's beta of 1, made for offsets of unit variance, fractions of a
    photo would hardly ever leave the parabola.

    Source: Girshick, "Fast R-CNN", ICCV 2015 (arXiv:1504.08083), equations 2 and 3.
    """
    error = tf.abs(_error(true, pred))
    parabola = tf.square(error) / (2 * SMOOTH_L1_BETA)
    loss = tf.where(error < SMOOTH_L1_BETA, parabola, error - SMOOTH_L1_BETA / 2)
    return tf.reduce_mean(loss, axis=-1)


def iou(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns 1 - IoU, in [0, 1]. Boxes that do not touch get no gradient."""
    return 1.0 - boxes.iou(true, pred)


def giou(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns 1 - GIoU, in [0, 2]. Source: Rezatofighi et al., CVPR 2019."""
    return 1.0 - boxes.generalized_iou(true, pred)


def diou(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns 1 - DIoU, in [0, 2]. Source: Zheng et al., AAAI 2020."""
    return 1.0 - boxes.distance_iou(true, pred)


def ciou(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    """Returns 1 - CIoU, in [0, 2.5]. Source: Zheng et al., AAAI 2020."""
    return 1.0 - boxes.complete_iou(true, pred)


BOX_LOSSES: dict[str, BoxLoss] = {
    "squared_error": squared_error,
    "smooth_l1": smooth_l1,
    "l1": l1,
    "iou": iou,
    "giou": giou,
    "diou": diou,
    "ciou": ciou,
}
"""By name: (true [batch, 4], predicted [batch, 4]) -> float32 [batch]."""


def box_loss(name: str) -> BoxLoss:
    """Returns the box loss of that name, or the weighted sum of several.

    Args:
        name: one of `BOX_LOSSES`, or a sum such as `l1+giou` or `5*l1+2*giou`.

    Returns:
        (true float [batch, 4], predicted float [batch, 4]) -> float32 [batch].

    Raises:
        UserError: a name is unknown, or a weight is not a positive number.
    """
    terms = [_term(text, name) for text in name.split("+")]

    def loss(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
        return tf.add_n([weight * function(true, pred) for weight, function in terms])

    return loss


def label_loss(target: tf.Tensor, logits: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Returns the softmax cross-entropy of each example, with label smoothing.

    The target becomes (1 - smoothing) * target + smoothing / classes.

    Args:
        target: float [batch, classes], each row sums to 1: one-hot, or a mixture of labels.
        logits: float [batch, classes], before the softmax.
        smoothing: in [0, 1); 0 for none.

    Returns:
        float32 [batch].

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016
    (arXiv:1512.00567), section 7.
    """
    target = tf.cast(target, tf.float32)
    target = (1.0 - smoothing) * target + smoothing / target.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(target, tf.cast(logits, tf.float32))


def weigh(box: tf.Tensor, label: tf.Tensor, box_weight: float, label_weight: float) -> tf.Tensor:
    """Returns box_weight * box + label_weight * label: float32, shaped as the two losses are."""
    return box_weight * box + label_weight * label


def weigh_by_uncertainty(box: tf.Tensor, label: tf.Tensor, log_variances: tf.Tensor) -> tf.Tensor:
    """Returns the two losses weighed by learned uncertainties.

    With s = log sigma^2, one for each task, learned along with the model and starting at 0:

        1/2 exp(-s_box) box + 1/2 s_box  +  exp(-s_label) label + 1/2 s_label

    The total may be negative. It is least where exp(s_box) is the box loss, and exp(s_label) twice
    the label loss.

    Args:
        box, label: float32 [batch] or scalar, losses.
        log_variances: float [2], (s_box, s_label).

    Returns:
        float32, shaped as the losses are.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics", CVPR 2018 (arXiv:1705.07115), equations 7 and 10, and section 3.2
    for learning s instead of sigma.
    """
    s_box, s_label = tf.unstack(tf.cast(log_variances, tf.float32), num=2)
    return 0.5 * (tf.exp(-s_box) * box + s_box) + (tf.exp(-s_label) * label + 0.5 * s_label)


def example_losses(
    recipe: Loss,
    batch_size: int,
    true_box: tf.Tensor,
    target: tf.Tensor,
    outputs: Mapping[str, tf.Tensor],
    log_variances: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the loss of each example, and its parts for box and label before weighing.

    Args:
        recipe: which losses, and how they are weighed.
        batch_size: global. The caller takes the mean over the batch of both losses; where the
            config asks for the sum of the box losses, they count so many times more.
        true_box: float [b, 4].
        target: float32 [b, classes], each row sums to 1.
        outputs: `bbox` float [b, 4] and `logits` float [b, classes].
        log_variances: float32 [2], where the tasks' uncertainties are learned.

    Returns:
        Three float32 [b].
    """
    box = box_loss(recipe.box)(true_box, outputs["bbox"])
    label = label_loss(target, outputs["logits"], recipe.label_smoothing)
    counted = box * batch_size if recipe.box_reduction == "sum" else box
    if log_variances is not None:
        return weigh_by_uncertainty(counted, label, log_variances), box, label
    return weigh(counted, label, recipe.box_weight, recipe.label_weight), box, label


def _error(true: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    return tf.cast(pred, tf.float32) - tf.cast(true, tf.float32)


_TERM = re.compile(r"(?:(?P<weight>\d+\.?\d*|\.\d+)\*)?(?P<name>\w+)")


def _term(text: str, whole: str) -> tuple[float, BoxLoss]:
    match = _TERM.fullmatch("".join(text.split()))
    if not match or match["name"] not in BOX_LOSSES or float(match["weight"] or 1) == 0:
        raise UserError(
            f"box loss {whole!r}: {text!r} is not one of {', '.join(BOX_LOSSES)}, nor one of them"
            " with a positive weight. Name one, or a sum such as 'l1+giou' or '5*l1+2*giou'."
        )
    return float(match["weight"] or 1), BOX_LOSSES[match["name"]]
