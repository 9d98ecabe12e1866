"""Box geometry on tensors: the only place that computes IoU.

A box is float [..., 4]: (xmin, ymin, xmax, ymax), fractions of the photo's width and height. Two
arguments broadcast against each other in all but the last dimension. Everything is computed in
float32, whatever the inputs are, and compiles under XLA.

A predicted box may be degenerate or inverted (xmax < xmin). It then covers nothing: widths and
heights are clamped at 0. Values and gradients stay finite for any coordinates up to 1e6 in
magnitude, because no denominator is smaller than `EPSILON`. Two limits follow:

* measures of pairs whose union is smaller than `EPSILON` tend to 0 instead of to their true value;
* a predicted box that is inverted *within* the true box gets no gradient from IoU or GIoU. Add an
  L1 term (`trainer.losses.box_loss("l1+giou")`), or predict boxes that cannot be inverted.
"""

import math

import tensorflow as tf

EPSILON = 1e-9
"""The smallest denominator: a square of 1e-9 is one pixel of a photo 31,000 pixels wide."""


def area(box: tf.Tensor) -> tf.Tensor:
    """Returns the area as a fraction of the photo: float32 [...], 0 for an inverted box."""
    width, height = _size(box)
    return width * height


def intersection(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the area that both boxes cover: float32 [...], at least 0."""
    a_xmin, a_ymin, a_xmax, a_ymax = _sides(a)
    b_xmin, b_ymin, b_xmax, b_ymax = _sides(b)
    width = tf.minimum(a_xmax, b_xmax) - tf.maximum(a_xmin, b_xmin)
    height = tf.minimum(a_ymax, b_ymax) - tf.maximum(a_ymin, b_ymin)
    return tf.maximum(width, 0.0) * tf.maximum(height, 0.0)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns intersection over union: float32 [...] in [0, 1], 1 for equal boxes.

    Source: Jaccard 1912; as a measure of detection, Everingham et al., "The PASCAL Visual Object
    Classes Challenge", IJCV 2010.
    """
    common = intersection(a, b)
    return common / tf.maximum(_union(a, b, common), EPSILON)


def generalized_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns GIoU: float32 [...] in [-1, 1], at most the IoU, falling with the boxes' distance.

    GIoU = IoU - (C - U) / C, where C is the area of the smallest box around both and U their union.

    Source: Rezatofighi et al., "Generalized Intersection over Union: A Metric and A Loss for
    Bounding Box Regression", CVPR 2019 (arXiv:1902.09630), algorithm 1.
    """
    common = intersection(a, b)
    union = _union(a, b, common)
    width, height = _hull(a, b)
    hull = width * height
    return common / tf.maximum(union, EPSILON) - (hull - union) / tf.maximum(hull, EPSILON)


def distance_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns DIoU: float32 [...] in [-1, 1], at most the IoU.

    DIoU = IoU - d^2 / c^2, where d is the distance of the two centers and c the diagonal of the
    smallest box around both.

    Source: Zheng et al., "Distance-IoU Loss: Faster and Better Learning for Bounding Box
    Regression", AAAI 2020 (arXiv:1911.08287), equations 6 and 7.
    """
    a_xmin, a_ymin, a_xmax, a_ymax = _sides(a)
    b_xmin, b_ymin, b_xmax, b_ymax = _sides(b)
    # In this order the distance of a box from itself is 0, whatever is rounded.
    across = ((a_xmin - b_xmin) + (a_xmax - b_xmax)) / 2
    down = ((a_ymin - b_ymin) + (a_ymax - b_ymax)) / 2
    width, height = _hull(a, b)
    diagonal = tf.maximum(tf.square(width) + tf.square(height), EPSILON)
    return iou(a, b) - (tf.square(across) + tf.square(down)) / diagonal


def complete_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns CIoU: float32 [...] in [-1.5, 1], at most the DIoU.

    CIoU = DIoU - alpha v, v = 4 / pi^2 (atan(w_a / h_a) - atan(w_b / h_b))^2, and
    alpha = v / ((1 - IoU) + v), treated as a constant in the gradient.

    Source: Zheng et al., AAAI 2020 (arXiv:1911.08287), equations 8 to 11. As there, the gradient of
    v leaves out the factor 1 / (w^2 + h^2), which explodes for small boxes and does not change the
    direction.
    """
    shape = 4 / math.pi**2 * tf.square(_angle(*_size(a)) - _angle(*_size(b)))
    alpha = tf.stop_gradient(shape / tf.maximum(1.0 - iou(a, b) + shape, EPSILON))
    return distance_iou(a, b) - alpha * shape


def _sides(box: tf.Tensor) -> list[tf.Tensor]:
    return tf.unstack(tf.cast(box, tf.float32), num=4, axis=-1)


def _size(box: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    xmin, ymin, xmax, ymax = _sides(box)
    return tf.maximum(xmax - xmin, 0.0), tf.maximum(ymax - ymin, 0.0)


def _union(a: tf.Tensor, b: tf.Tensor, common: tf.Tensor) -> tf.Tensor:
    # In this order rounding cannot make the union smaller than the intersection.
    return area(a) + (area(b) - common)


def _hull(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # Around all four corners, so that an inverted box lies within it and gets a gradient back.
    a_xmin, a_ymin, a_xmax, a_ymax = _sides(a)
    b_xmin, b_ymin, b_xmax, b_ymax = _sides(b)
    left = tf.minimum(tf.minimum(a_xmin, a_xmax), tf.minimum(b_xmin, b_xmax))
    right = tf.maximum(tf.maximum(a_xmax, a_xmin), tf.maximum(b_xmax, b_xmin))
    top = tf.minimum(tf.minimum(a_ymin, a_ymax), tf.minimum(b_ymin, b_ymax))
    bottom = tf.maximum(tf.maximum(a_ymax, a_ymin), tf.maximum(b_ymax, b_ymin))
    return right - left, bottom - top


@tf.custom_gradient
def _angle(width: tf.Tensor, height: tf.Tensor) -> tuple[tf.Tensor, object]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return upstream * height, -upstream * width

    # abs: a clamped size may be -0.0, and atan2(0, -0.0) is pi.
    return tf.atan2(tf.abs(width), tf.abs(height)), gradient
