"""Geometry against exact fractions, against counted cells, and by its properties."""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trainer import boxes

MEASURES = {
    "iou": boxes.iou,
    "giou": boxes.generalized_iou,
    "diou": boxes.distance_iou,
    "ciou": boxes.complete_iou,
}
LOWEST = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ciou": -1.5}
measures = pytest.mark.parametrize("name", MEASURES)

often = settings(deadline=None, max_examples=80)
sides = st.floats(0, 1, width=32)
wild_boxes = st.tuples(*[st.floats(-2, 3, width=32)] * 4)


@st.composite
def proper_boxes(draw, smallest=0.02):
    """Boxes in the photo, each side at least `smallest`: (xmin, ymin, xmax, ymax)."""
    width, height = draw(st.floats(smallest, 1)), draw(st.floats(smallest, 1))
    xmin, ymin = draw(st.floats(0, 1)) * (1 - width), draw(st.floats(0, 1)) * (1 - height)
    box = np.array([xmin, ymin, xmin + width, ymin + height], np.float32)
    return tuple(box.tolist())


@functools.cache
def graph(function):
    """Value, and gradients by both boxes, as one graph: a call of it is fast."""

    @tf.function
    def run(a, b):
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            value = function(a, b)
        return value, tape.gradient(value, [a, b])

    return run


def measure(name, a, b):
    value, _ = graph(MEASURES[name])(tf.constant(a), tf.constant(b))
    assert value.dtype == tf.float32
    return value.numpy()


def gradient(function, a, b):
    _, slopes = graph(function)(tf.constant(a), tf.constant(b))
    return [slope.numpy() for slope in slopes]


def exact(name, a, b):
    """The measure of two proper boxes, from the papers, in rational numbers but for the arctan."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        [Fraction(side) for side in box] for box in (a, b)
    )
    wide = min(ax1, bx1) - max(ax0, bx0)
    high = min(ay1, by1) - max(ay0, by0)
    common = wide * high if wide > 0 and high > 0 else Fraction(0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common
    iou = common / union
    hull_wide, hull_high = max(ax1, bx1) - min(ax0, bx0), max(ay1, by1) - min(ay0, by0)
    if name == "iou":
        return float(iou)
    if name == "giou":
        return float(iou - (hull_wide * hull_high - union) / (hull_wide * hull_high))
    apart = ((ax0 + ax1) / 2 - (bx0 + bx1) / 2) ** 2 + ((ay0 + ay1) / 2 - (by0 + by1) / 2) ** 2
    diou = iou - apart / (hull_wide**2 + hull_high**2)
    if name == "diou":
        return float(diou)
    a_angle, b_angle = math.atan((ax1 - ax0) / (ay1 - ay0)), math.atan((bx1 - bx0) / (by1 - by0))
    shape = 4 / math.pi**2 * (a_angle - b_angle) ** 2
    return float(diou) - (shape**2 / (float(1 - iou) + shape) if shape else 0.0)


@measures
@often
@given(a=proper_boxes(), b=proper_boxes())
def test_measure_is_that_of_exact_arithmetic(name, a, b):
    assert measure(name, a, b) == pytest.approx(exact(name, a, b), abs=2e-5)


@often
@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_area_intersection_and_iou_are_counts_of_cells(corners):
    cells = np.zeros((2, 12, 12), bool)
    pair = []
    for i in range(2):
        x0, y0, x1, y1 = corners[4 * i : 4 * i + 4]
        cells[i, y0:y1, x0:x1] = True  # nothing, for a box inside out
        pair.append(np.array([x0, y0, x1, y1], np.float32) / 12)
    common, union = (cells[0] & cells[1]).sum(), (cells[0] | cells[1]).sum()
    assert boxes.area(pair[0]).numpy() == pytest.approx(cells[0].sum() / 144, abs=1e-6)
    assert boxes.intersection(*pair).numpy() == pytest.approx(common / 144, abs=1e-6)
    assert boxes.iou(*pair).numpy() == pytest.approx(common / max(union, 1), abs=1e-5)


def test_values_worked_out_by_hand():
    # 2 x 2 and 2 x 2, one cell in common, in a hull of 3 x 3; centers (1, 1) apart.
    a, b = (0.0, 0.0, 0.2, 0.2), (0.1, 0.1, 0.3, 0.3)
    assert measure("iou", a, b) == pytest.approx(1 / 7, abs=1e-6)
    assert measure("giou", a, b) == pytest.approx(1 / 7 - 2 / 9, abs=1e-6)
    assert measure("diou", a, b) == pytest.approx(1 / 7 - 2 / 18, abs=1e-6)
    assert measure("ciou", a, b) == pytest.approx(1 / 7 - 2 / 18, abs=1e-6)  # equal shapes


@measures
@often
@given(a=wild_boxes, b=wild_boxes)
def test_any_boxes_give_a_value_in_range_and_finite_gradients(name, a, b):
    value = measure(name, a, b)
    assert LOWEST[name] - 1e-6 <= value <= 1 + 1e-6
    assert all(np.isfinite(slopes).all() for slopes in gradient(MEASURES[name], a, b))


@measures
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_degenerate_boxes_of_every_kind_have_finite_values_and_gradients(name, dtype):
    steps = (0.0, 0.25, 0.5, 0.5 + 2**-20, 1.0)
    predicted = tf.constant(list(itertools.product(steps, repeat=4)), dtype)
    true = [(0, 0, 1, 1), (0.25, 0.25, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (0.25, 0.5, 0.5, 0.5)]
    for box in true:
        box = tf.broadcast_to(tf.constant(box, dtype), predicted.shape)
        values = MEASURES[name](box, predicted).numpy()
        assert (values >= LOWEST[name] - 1e-6).all()
        assert (values <= 1).all()
        for slopes in gradient(MEASURES[name], box, predicted):
            assert np.isfinite(slopes.astype(np.float32)).all()


def test_negative_zero_is_zero():
    # Clamping may leave -0.0, for which atan2 is pi.
    for b in itertools.product((0.0, -0.0), repeat=4):
        assert boxes.complete_iou((0.0, 0.0, 0.0, 0.0), b).numpy() == 0


@often
@given(a=wild_boxes, b=wild_boxes)
def test_iou_is_the_greatest_of_the_measures(a, b):
    iou = measure("iou", a, b)
    assert 0 <= iou <= 1
    assert iou >= measure("giou", a, b) - 1e-6
    assert iou >= measure("diou", a, b) - 1e-6
    assert measure("diou", a, b) >= measure("ciou", a, b) - 1e-6


@measures
@often
@given(a=wild_boxes, b=wild_boxes)
def test_order_does_not_matter(name, a, b):
    assert measure(name, a, b) == pytest.approx(measure(name, b, a), abs=1e-5)


@measures
@often
@given(a=proper_boxes(), b=proper_boxes(), shift=st.tuples(sides, sides), scale=st.floats(0.25, 4))
def test_moving_scaling_and_mirroring_both_boxes_change_nothing(name, a, b, shift, scale):
    before = measure(name, a, b)

    def moved(box):
        return np.array(box, np.float32) * scale + np.array(shift * 2, np.float32)

    def mirrored(box):
        xmin, ymin, xmax, ymax = box
        return 1 - xmax, ymin, 1 - xmin, ymax

    assert measure(name, moved(a), moved(b)) == pytest.approx(before, abs=2e-3)
    assert measure(name, mirrored(a), mirrored(b)) == pytest.approx(before, abs=1e-3)


@measures
@often
@given(box=proper_boxes(smallest=1e-4))
@example(box=(0.0, 0.7499250173568726, 9.999999747378752e-05, 0.7500249743461609))
def test_a_box_and_itself_measure_one(name, box):
    assert measure(name, box, box) == 1


@often
@given(a=proper_boxes(), x=st.tuples(sides, sides), y=st.tuples(sides, sides))
def test_a_box_inside_out_covers_nothing(a, x, y):
    turned = (max(x), min(y), min(x), max(y))
    assert boxes.area(turned).numpy() == 0
    assert boxes.intersection(a, turned).numpy() == 0
    assert measure("iou", a, turned) == 0


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])
@often
@given(a=proper_boxes(0.1), b=proper_boxes(0.1))
def test_gradient_is_the_slope_of_exact_arithmetic(name, a, b):
    step = 2.0**-14
    # Where two sides meet there is a kink and no slope.
    assume(min(abs(a[i] - b[j]) for i in range(4) for j in (i % 2, i % 2 + 2)) > step)
    slopes = gradient(MEASURES[name], a, b)[1]
    for i in range(4):
        above, below = ((*b[:i], b[i] + offset, *b[i + 1 :]) for offset in (step, -step))
        slope = (exact(name, a, above) - exact(name, a, below)) / (2 * step)
        assert slopes[i] == pytest.approx(slope, abs=1e-3)


def test_ciou_gradient_follows_the_paper():
    a, b = np.array([0.1, 0.2, 0.9, 0.6]), np.array([0.2, 0.1, 0.5, 0.8])
    (wide_a, high_a), (wide_b, high_b) = a[2:] - a[:2], b[2:] - b[:2]
    difference = math.atan(wide_a / high_a) - math.atan(wide_b / high_b)
    shape = 4 / math.pi**2 * difference**2
    alpha = shape / (1 - exact("iou", a, b) + shape)
    # Equation 12 of the paper without its denominator w^2 + h^2; alpha is a constant.
    by_width = -8 / math.pi**2 * difference * high_b
    by_height = 8 / math.pi**2 * difference * wide_b
    penalty = alpha * np.array([-by_width, -by_height, by_width, by_height])
    a, b = a.astype(np.float32), b.astype(np.float32)
    expected = gradient(boxes.distance_iou, a, b)[1] - penalty
    np.testing.assert_allclose(gradient(boxes.complete_iou, a, b)[1], expected, atol=1e-5)
    assert np.abs(penalty).max() > 0.05


def test_a_far_box_is_drawn_nearer_by_giou_and_diou_but_not_by_iou():
    true, far = (0.1, 0.1, 0.3, 0.3), (0.7, 0.1, 0.9, 0.3)
    assert not gradient(boxes.iou, true, far)[1].any()
    for name in ("giou", "diou", "ciou"):
        assert gradient(MEASURES[name], true, far)[1][0] < 0  # xmin should shrink


def test_a_box_inside_out_around_the_true_one_is_drawn_in():
    slopes = gradient(boxes.generalized_iou, (0.4, 0.4, 0.6, 0.6), (0.8, 0.3, 0.2, 0.7))[1]
    assert slopes[0] < 0 < slopes[2]


@measures
def test_xla_agrees_with_eager(name):
    random = np.random.default_rng(0)
    a = np.sort(random.uniform(0, 1, [200, 2, 2]), axis=1).reshape(200, 4).astype(np.float32)
    b = random.uniform(0, 1, [200, 4]).astype(np.float32)  # three in four are inside out
    b[0] = a[0]
    a, b = tf.constant(a), tf.constant(b)
    xla = tf.function(graph(MEASURES[name]).python_function, jit_compile=True)
    eager_value, eager_slopes = graph(MEASURES[name]).python_function(a, b)
    value, slopes = xla(a, b)
    np.testing.assert_allclose(value, eager_value, atol=1e-5)
    np.testing.assert_allclose(slopes, eager_slopes, atol=1e-4, rtol=1e-4)
    assert np.ptp(value) > 0.5


def test_shapes_broadcast_and_low_precision_is_computed_in_float32():
    many = tf.random.stateless_uniform([5, 1, 4], [1, 2])
    few = tf.constant([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.3, 0.3]])
    assert boxes.complete_iou(many, few).shape == (5, 3)
    low = tf.constant([[0.0, 0.0, 0.333, 0.777]], tf.bfloat16)
    assert boxes.iou(low, low * tf.constant(0.9, tf.bfloat16)).dtype == tf.float32
    assert boxes.area(low).numpy() == pytest.approx(0.333 * 0.777, abs=2e-3)
