"""Losses against scalar arithmetic and hand-worked values."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfrecords.errors import UserError
from trainer import losses
from trainer.configs import Loss

TRUE = np.array([[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.6, 0.9]], np.float32)
PRED = np.array([[0.1, 0.15, 0.9, 0.5], [0.25, 0.3, 0.6, 0.7]], np.float32)
batches = arrays.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))


def scalar_loss(name, true, pred):
    """The losses of one pair of boxes, value by value."""
    errors = [abs(p - t) for t, p in zip(true, pred, strict=True)]
    if name == "squared_error":
        return sum(e * e for e in errors) / 4
    if name == "l1":
        return sum(errors) / 4
    return sum(e * e / 0.2 if e < 0.1 else e - 0.05 for e in errors) / 4


@pytest.mark.parametrize("name", ["squared_error", "l1", "smooth_l1"])
@settings(deadline=None, max_examples=60)
@given(true=batches, pred=batches)
def test_coordinate_losses_are_those_of_scalar_arithmetic(name, true, pred):
    expected = [scalar_loss(name, t.tolist(), p.tolist()) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(losses.BOX_LOSSES[name](true, pred), expected, atol=1e-6)


def test_overlap_losses_are_one_minus_the_measure():
    # The first pair: 0.4 x 0.4 and 0.8 x 0.35, 0.4 x 0.35 in common, hull 0.8 x 0.4.
    iou = 0.14 / (0.16 + 0.28 - 0.14)
    giou = iou - (0.32 - 0.30) / 0.32
    diou = iou - (0.2**2 + 0.025**2) / (0.8**2 + 0.4**2)
    shape = 4 / math.pi**2 * (math.atan(1) - math.atan(0.8 / 0.35)) ** 2
    ciou = diou - shape**2 / (1 - iou + shape)
    for name, value in {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}.items():
        assert losses.BOX_LOSSES[name](TRUE, PRED)[0].numpy() == pytest.approx(1 - value, abs=1e-5)


@pytest.mark.parametrize("name", losses.BOX_LOSSES)
def test_box_losses_are_float32_per_example_and_zero_for_the_true_box(name):
    for dtype in (tf.float32, tf.bfloat16):
        loss = losses.BOX_LOSSES[name](tf.constant(TRUE), tf.cast(PRED, dtype))
        assert loss.dtype == tf.float32
        assert loss.shape == (2,)
        assert (loss.numpy() > 0).all()
    np.testing.assert_allclose(losses.BOX_LOSSES[name](TRUE, TRUE), 0, atol=1e-6)


@pytest.mark.parametrize("name", losses.BOX_LOSSES)
def test_walking_down_the_loss_finds_the_true_box(name):
    box = tf.Variable([[0.3, 0.2, 0.9, 0.6]])
    true = tf.constant([[0.2, 0.3, 0.7, 0.8]])
    loss = losses.box_loss(name)

    @tf.function
    def walk():
        for step in tf.range(400.0):
            with tf.GradientTape() as tape:
                value = loss(true, box)
            slope = tape.gradient(value, box)
            box.assign_sub(0.01 * (1 - step / 400) * slope / (tf.norm(slope) + 1e-3))

    walk()
    np.testing.assert_allclose(box, true, atol=0.01)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("giou", {"giou": 1}),
        ("l1+giou", {"l1": 1, "giou": 1}),
        ("5*l1 + 2*giou", {"l1": 5, "giou": 2}),
        ("0.5*smooth_l1+.25*ciou+iou", {"smooth_l1": 0.5, "ciou": 0.25, "iou": 1}),
    ],
)
def test_a_sum_is_named_by_its_terms(name, weights):
    expected = sum(w * losses.BOX_LOSSES[term](TRUE, PRED).numpy() for term, w in weights.items())
    np.testing.assert_allclose(losses.box_loss(name)(TRUE, PRED), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["", "l2", "l1+", "l1+gious", "x*l1", "0*l1", "-1*l1", "l1*2"])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(UserError) as caught:
        losses.box_loss(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in losses.BOX_LOSSES)


def cross_entropy(target, logits, smoothing):
    highest = max(logits)
    log_sum = highest + math.log(sum(math.exp(x - highest) for x in logits))
    smoothed = [(1 - smoothing) * t + smoothing / len(target) for t in target]
    return sum(t * (log_sum - x) for t, x in zip(smoothed, logits, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_loss_is_cross_entropy_of_one_hot_and_mixed_targets(smoothing):
    target = np.array([[0, 1, 0], [0.3, 0, 0.7]], np.float32)
    logits = np.array([[2, -1, 0.5], [100, -50, 90]], np.float32)  # exp(100) overflows float32
    loss = losses.label_loss(tf.constant(target), tf.constant(logits), smoothing)
    expected = [
        cross_entropy(t, x, smoothing)
        for t, x in zip(target.tolist(), logits.tolist(), strict=True)
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    low = losses.label_loss(tf.constant(target), tf.cast(logits, tf.bfloat16), smoothing)
    assert low.dtype == tf.float32
    np.testing.assert_allclose(low, loss, rtol=1e-2)


def test_smoothing_moves_the_best_logits_to_the_smoothed_target():
    target = tf.one_hot([2], 4)
    smoothed = np.array([[0.05, 0.05, 0.85, 0.05]])
    logits = tf.constant(np.log(smoothed), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.label_loss(target, logits, 0.2)
    np.testing.assert_allclose(tape.gradient(loss, logits), 0, atol=1e-6)


def test_fixed_weights_scale_and_add():
    total = losses.weigh(tf.constant([0.5, 2.0]), tf.constant([3.0, 1.0]), 10.0, 0.5)
    np.testing.assert_allclose(total, [6.5, 20.5])


def test_learned_weights_by_hand():
    box, label = tf.constant([0.04, 0.08]), tf.constant([2.0, 4.0])
    start = losses.weigh_by_uncertainty(box, label, tf.zeros(2))
    np.testing.assert_allclose(start, [0.5 * 0.04 + 2, 0.5 * 0.08 + 4], rtol=1e-6)
    total = losses.weigh_by_uncertainty(box, label, tf.math.log([0.25, 4.0]))
    extra = 0.5 * math.log(0.25) + 0.5 * math.log(4)
    np.testing.assert_allclose(total, [2 * 0.04 + 0.5 + extra, 2 * 0.08 + 1 + extra], rtol=1e-5)


def test_learned_weights_settle_where_the_formula_says():
    box, label = tf.constant([0.04]), tf.constant([2.0])
    log_variances = tf.Variable(tf.math.log([0.04, 4.0]))
    with tf.GradientTape() as tape:
        total = losses.weigh_by_uncertainty(box, label, log_variances)
    np.testing.assert_allclose(tape.gradient(total, log_variances), [0, 0], atol=1e-6)
    log_variances.assign([0.0, 0.0])
    with tf.GradientTape() as tape:
        total = losses.weigh_by_uncertainty(box, label, log_variances)
    np.testing.assert_allclose(
        tape.gradient(total, log_variances), [0.5 - 0.5 * 0.04, 0.5 - 2], rtol=1e-6
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("uncertain", [None, [0.3, -0.2]])
def test_a_recipe_gives_the_weighed_loss_and_its_parts(reduction, uncertain):
    recipe = Loss(
        box="l1+giou",
        box_reduction=reduction,
        box_weight=2.0,
        label_weight=0.5,
        label_smoothing=0.1,
    )
    target, logits = tf.one_hot([1, 0], 3), tf.constant([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    learned = None if uncertain is None else tf.constant(uncertain)
    outputs = {"bbox": PRED, "logits": logits}
    total, box, label = losses.example_losses(recipe, 16, TRUE, target, outputs, learned)
    np.testing.assert_allclose(box, losses.box_loss("l1+giou")(TRUE, PRED))
    np.testing.assert_allclose(label, losses.label_loss(target, logits, 0.1))
    # Summed over the batch, each box counts as often as the mean divides by.
    counted = box * 16 if reduction == "sum" else box
    expected = 2.0 * counted + 0.5 * label
    if learned is not None:
        expected = losses.weigh_by_uncertainty(counted, label, learned)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_xla_agrees_with_eager():
    def total(true, pred, target, logits, log_variances):
        box = losses.box_loss("squared_error+smooth_l1+l1+iou+giou+diou+ciou")(true, pred)
        label = losses.label_loss(target, logits, 0.1)
        fixed = losses.weigh(box, label, 2.0, 0.5)
        return fixed, losses.weigh_by_uncertainty(box, label, log_variances)

    logits = tf.random.stateless_normal([2, 7], [3, 4])
    inputs = (tf.constant(TRUE), tf.constant(PRED), tf.one_hot([1, 6], 7), logits, tf.ones(2))
    for eager, xla in zip(
        total(*inputs), tf.function(total, jit_compile=True)(*inputs), strict=True
    ):
        np.testing.assert_allclose(eager, xla, rtol=1e-5)
