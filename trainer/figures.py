"""What the predictions of a split amount to: figures and their intervals, calibration, classes.

Everything is computed from the rows of `predictions-SPLIT.csv`, so a finished run can be looked at
from every side without its model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.predictions import Judged

RESAMPLES = 1000
"""Bootstrap samples of an interval."""

BINS = 15
"""Bins of the reliability diagram, as in Guo et al."""

_SEED = 0

Interval = tuple[float, float]


def of_photos(judged: Judged) -> dict[str, np.ndarray]:
    """Returns each photo's share in every figure: float64 [n] by name; a figure is its mean.

    The names are those of `metrics.means`.
    """
    # A wrong name is never the true one, even where two classes have the same name.
    top5 = judged.right | (judged.names[:, 1:] == judged.true_name[:, np.newaxis]).any(axis=1)
    values = {
        "top1": judged.right,
        "top5": top5,
        "mean_iou": judged.iou,
        "iou_50": judged.iou >= 0.5,
        "iou_70": judged.iou >= 0.7,
        "iou_90": judged.iou >= 0.9,
        "top1_iou_50": judged.right & (judged.iou >= 0.5),
    }
    return {name: value.astype(np.float64) for name, value in values.items()}


def intervals(values: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Returns the 95 % bootstrap interval of each mean; always the same for the same values.

    Photos are drawn with replacement; all figures are computed on the same draws. Differences of
    two models on the same photos give the paired interval of the difference.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile interval.

    Args:
        values: float [n] by name, a number for each photo; all of one length, at least 1.
    """
    columns = np.stack(list(values.values()), axis=1)
    count = len(columns)
    generator = np.random.default_rng(_SEED)
    means = np.empty((RESAMPLES, columns.shape[1]))
    for sample in range(RESAMPLES):
        times = np.bincount(generator.integers(0, count, count), minlength=count)
        means[sample] = times @ columns / count
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(values)}


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be believed.

    Attributes:
        counts: int [bins], photos whose first name has a probability in the bin.
        confidence, accuracy: float [bins], their mean probability and the share that is right; NaN
            in an empty bin.
        error: expected calibration error, the mean distance of the two over all photos.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Returns the calibration of the first names, in bins of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599).

    Args:
        probability: float [n] in [0, 1].
        right: bool [n].
        bins: how many.
    """
    number = np.minimum((np.nan_to_num(probability) * bins).astype(int), bins - 1)
    counts = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(number, np.nan_to_num(probability), minlength=bins) / counts
        accuracy = np.bincount(number, right, minlength=bins) / counts
    distance = np.nan_to_num(np.abs(confidence - accuracy))
    return Calibration(counts, confidence, accuracy, float(distance @ counts / counts.sum()))


@dataclass(frozen=True)
class ClassFigures:
    """A class of the split: its photos, their figures, and the wrong name most often given."""

    name: str
    photos: int
    top1: float
    mean_iou: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class Confusion:
    """Photos of the class `true` that were taken for `said`, and those the other way around."""

    true: str
    said: str
    times: int
    reverse: int


def by_class(judged: Judged) -> list[ClassFigures]:
    """Returns a row for each class that has photos, the least accurate first."""
    names, number = np.unique(judged.true_name, return_inverse=True)
    photos = np.bincount(number)
    top1 = np.bincount(number, judged.right) / photos
    iou = np.bincount(number, judged.iou) / photos
    worst: dict[str, Confusion] = {}
    for pair in confusions(judged):
        worst.setdefault(pair.true, pair)
    rows = []
    for i, name in enumerate(names.tolist()):
        pair = worst.get(name, Confusion(name, "", 0, 0))
        rows.append(
            ClassFigures(name, int(photos[i]), float(top1[i]), float(iou[i]), pair.said, pair.times)
        )
    return sorted(rows, key=lambda row: (row.top1, row.mean_iou, row.name))


def confusions(judged: Judged) -> list[Confusion]:
    """Returns every pair of true and wrong name that occurs, the most frequent first."""
    wrong = ~judged.right
    said = judged.names[wrong, 0].tolist()
    pairs: dict[tuple[str, str], int] = {}
    for pair in zip(judged.true_name[wrong].tolist(), said, strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    found = [
        Confusion(true, name, times, pairs.get((name, true), 0))
        for (true, name), times in pairs.items()
    ]
    return sorted(found, key=lambda one: (-one.times, -one.reverse, one.true, one.said))


def score(judged: Judged) -> np.ndarray:
    """Returns how good each prediction is, float [n]; a wrong and certain one is the worst.

    A right name is better than any wrong one; then the IoU counts, and for wrong names how sure the
    model was of it.
    """
    sure = np.nan_to_num(judged.probabilities[:, 0])
    return np.where(judged.right, 1 + judged.iou + sure, judged.iou - sure)


def differences(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns `other - one` for each photo and figure; see `of_photos`."""
    return {name: other[name] - one[name] for name in one}


def histogram(values: np.ndarray, bins: int = 20) -> Sequence[int]:
    """Returns how many values lie in each of so many equal parts of [0, 1]."""
    counts, _ = np.histogram(np.nan_to_num(values), bins, (0.0, 1.0))
    return [int(count) for count in counts]
