"""Metrics against plain numpy, over uneven, masked and divided batches."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords.errors import UserError
from trainer import metrics


def examples(seed, count, classes):
    """Random examples: some boxes good, some scores high for the true class, many ties."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 0.5, [count, 2])
    true = np.concatenate([corner, corner + random.uniform(0.1, 0.5, [count, 2])], 1)
    noise = random.choice([0.0, 0.01, 0.05, 0.3], [count, 1])
    predicted = true + noise * random.normal(size=[count, 4])
    scores = random.integers(0, 6, [count, classes]) / 2
    labels = random.integers(0, classes, count)
    scores[np.arange(count), labels] += random.choice([0, 2], count)
    return [
        true.astype(np.float32),
        labels,
        predicted.astype(np.float32),
        scores.astype(np.float32),
        random.random(count) < 0.8,
    ]


def numpy_sums(true, labels, predicted, scores, mask):
    """One example after the other, with a stable sort for the ranks."""
    sums = dict.fromkeys(metrics.NAMES, 0.0)
    for a, label, b, row, counts in zip(true, labels, predicted, scores, mask, strict=True):
        if not counts:
            continue
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        common = np.prod(np.clip(sides, 0, None))
        areas = [np.prod(np.clip(box[2:] - box[:2], 0, None)) for box in (a, b)]
        iou = common / (sum(areas) - common)
        best = np.argsort(-row, kind="stable")
        sums["count"] += 1
        sums["iou"] += iou
        for percent in (50, 70, 90):
            sums[f"iou_{percent}"] += iou >= percent / 100
        sums["top1"] += label == best[0]
        sums["top5"] += label in best[:5]
        sums["top1_iou_50"] += label == best[0] and iou >= 0.5
    return sums


def add(*parts):
    return {name: sum(float(part[name]) for part in parts) for name in metrics.NAMES}


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 40), classes=st.sampled_from([1, 3, 5, 6, 196])
)
def test_sums_are_those_of_numpy(seed, count, classes):
    data = examples(seed, count, classes)
    sums = metrics.batch_sums(*data)
    expected = numpy_sums(*data)
    assert tuple(sums) == metrics.NAMES
    for name in metrics.NAMES:
        assert sums[name].dtype == tf.float64
        assert sums[name].shape == ()
        assert float(sums[name]) == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("cut", [1, 20, 36])
def test_an_uneven_padded_batch_on_two_replicas_sums_up_as_whole(cut):
    data = examples(7, 37, 12)
    halves = [[part[:cut] for part in data], [part[cut:] for part in data]]
    size = max(cut, 37 - cut)
    padded = [
        [np.pad(p, [(0, size - len(p))] + [(0, 0)] * (p.ndim - 1)) for p in half] for half in halves
    ]
    whole = numpy_sums(*data)
    parts = add(*[metrics.batch_sums(*half) for half in padded])
    assert parts == pytest.approx(whole, abs=1e-5)
    assert metrics.means(parts) == pytest.approx(metrics.means(whole), abs=1e-6)


def test_rows_masked_out_count_nothing_whatever_they_hold():
    data = examples(3, 8, 6)
    data[4] = np.array([1, 0, 1, 0, 1, 0, 1, 1], np.float32)
    clean = add(metrics.batch_sums(*data))
    for junk in (np.nan, np.inf):
        dirty = [part.copy() for part in data]
        for i in (0, 2, 3):
            dirty[i][data[4] == 0] = junk
        dirty[1][data[4] == 0] = -7
        assert add(metrics.batch_sums(*dirty)) == clean
    data[4][:] = 0
    assert add(metrics.batch_sums(*data)) == dict.fromkeys(metrics.NAMES, 0)


def sums_of(labels, scores, iou=1.0):
    """The sums for full masks, true boxes (0, 0, 1, 1) and predicted boxes of a given IoU."""
    count = len(labels)
    true = np.tile(np.float32([0, 0, 1, 1]), [count, 1])
    predicted = np.tile(np.float32([0, 0, 1, iou]), [count, 1])
    sums = metrics.batch_sums(true, np.array(labels), predicted, np.float32(scores), np.ones(count))
    return {name: float(value) for name, value in sums.items()}


def test_a_constant_score_is_right_for_the_first_classes_only():
    sums = sums_of(range(8), np.zeros([8, 8]))
    assert (sums["top1"], sums["top5"]) == (1, 5)
    assert np.argmax(np.zeros(8)) == 0  # the same class that argmax names


def test_top5_of_three_classes_is_all_of_them():
    sums = sums_of([0, 1, 2], [[3, 2, 1]] * 3)
    assert (sums["top1"], sums["top5"]) == (1, 3)


def test_scores_that_are_not_numbers_are_never_right():
    sums = sums_of([0, 1, 2], [[np.nan] * 3, [np.nan, 5, 1], [0, 0, np.nan]])
    assert (sums["top1"], sums["top5"]) == (0, 1)


@pytest.mark.parametrize(
    ("iou", "expected"), [(0.5, (1, 0, 0, 1)), (0.49, (0, 0, 0, 0)), (0.95, (1, 1, 1, 1))]
)
def test_thresholds_include_their_value(iou, expected):
    sums = sums_of([1], [[0, 1]], iou)
    assert tuple(sums[n] for n in ("iou_50", "iou_70", "iou_90", "top1_iou_50")) == expected
    assert sums_of([0], [[0, 1]], iou)["top1_iou_50"] == 0  # the wrong name


def test_sums_stay_exact_over_ten_million_examples():
    true = tf.tile([[0.0, 0.0, 1.0, 1.0]], [100_000, 1])
    predicted = tf.tile([[0.0, 0.0, 1.0, 0.7]], [100_000, 1])
    label = tf.zeros([100_000], tf.int32)
    sums = metrics.batch_sums(true, label, predicted, tf.zeros([100_000, 2]), label == 0)
    total = {name: tf.add_n([value] * 100) for name, value in sums.items()}
    result = metrics.means(total)
    assert result["num_examples"] == 10_000_000
    assert result["mean_iou"] == pytest.approx(float(np.float32(0.7)), rel=1e-12)
    assert result["top1"] == 1


def test_means_name_their_keys_and_refuse_nothing_counted():
    result = metrics.means(metrics.batch_sums(*examples(1, 20, 6)))
    assert list(result) == [
        "num_examples", "mean_iou", "iou_50", "iou_70", "iou_90", "top1", "top5", "top1_iou_50",
    ]  # fmt: skip
    assert isinstance(result["num_examples"], int)
    assert all(0 < result[name] <= 1 for name in list(result)[1:])
    with pytest.raises(UserError, match="no examples"):
        metrics.means(dict.fromkeys(metrics.NAMES, 0.0))


def test_an_epoch_is_the_mean_of_its_examples_however_they_come():
    true, labels, predicted, scores, mask = examples(11, 37, 6)
    parts = np.random.default_rng(2).uniform(0, 3, (3, 37)).astype(np.float32)  # the losses
    parts[:, ~mask] = np.nan  # padding may hold anything
    sums = np.zeros(len(metrics.SUMS))
    for rows in np.split(np.arange(37), [5, 20]):
        batch = {"bbox": true[rows], "label": labels[rows], "mask": mask[rows]}
        outputs = {"bbox": predicted[rows], "logits": scores[rows]}
        sums += metrics.epoch_sums(tuple(parts[:, rows]), batch, outputs).numpy()
    found = metrics.epoch_means(sums)
    assert list(found)[:3] == list(metrics.LOSSES)
    assert list(found.values())[:3] == pytest.approx(parts[:, mask].mean(axis=1).tolist())
    whole = metrics.means(metrics.batch_sums(true, labels, predicted, scores, mask))
    assert {name: found[name] for name in whole} == pytest.approx(whole)


def test_xla_and_low_precision_agree_with_eager():
    data = [tf.constant(part) for part in examples(5, 64, 9)]
    eager = add(metrics.batch_sums(*data))
    xla = add(tf.function(metrics.batch_sums, jit_compile=True)(*data))
    assert xla == pytest.approx(eager, abs=1e-5)
    data[3] = tf.cast(data[3], tf.bfloat16)  # halves: exact in bfloat16
    assert add(metrics.batch_sums(*data)) == eager
