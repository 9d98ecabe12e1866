"""Figures of predictions are those that scikit-learn finds: `by_scikit_learn.json` holds its own.

Keras imports scikit-learn wherever it is installed, which costs every start of the trainer 0.7 s.
So the tests do not depend on it. Where it is installed, `python -m tests.trainer.test_figures`
makes the file anew; scikit-learn 1.9.1 has made it.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer import figures
from trainer.predictions import Judged

EXPECTED = Path(__file__).with_name("by_scikit_learn.json")
CLASSES = [f"Car {number}" for number in range(8)]
PHOTOS, TOP = 300, 5


def judged() -> Judged:
    """What a model said of 300 photos of 8 classes that are not equally frequent."""
    generator = np.random.default_rng(11)
    true = generator.choice(len(CLASSES), PHOTOS, p=np.arange(1, 9) / 36)
    scores = generator.dirichlet(np.full(len(CLASSES), 0.4), PHOTOS)
    hit = generator.random(PHOTOS) < 0.5
    best = scores.argmax(axis=1)
    rows = np.arange(PHOTOS)
    # Half of the photos get their true name: the best score and the true name's change places.
    swapped = scores.copy()
    swapped[rows[hit], true[hit]] = scores[rows[hit], best[hit]]
    swapped[rows[hit], best[hit]] = scores[rows[hit], true[hit]]
    order = np.argsort(-swapped, axis=1)[:, :TOP]
    names = np.array(CLASSES, object)
    box = np.zeros((PHOTOS, 4))
    return Judged(
        photo=np.array([f"{number}.jpg" for number in rows], object),
        true_name=names[true],
        size=np.full((PHOTOS, 2), 100),
        true_box=box,
        box=box,
        names=names[order],
        probabilities=np.take_along_axis(swapped, order, axis=1),
        right=order[:, 0] == true,
        iou=generator.random(PHOTOS),
    )


def by_scikit_learn(said: Judged) -> dict:
    from sklearn import calibration, metrics

    right, sure = said.right.astype(int), said.probabilities[:, 0]
    accuracy, confidence = calibration.calibration_curve(right, sure, n_bins=figures.BINS)
    first = said.names[:, 0].astype(str)
    true = said.true_name.astype(str)
    return {
        "top1": metrics.accuracy_score(true, first),
        "by_class": metrics.recall_score(true, first, labels=CLASSES, average=None).tolist(),
        "confusion": metrics.confusion_matrix(true, first, labels=CLASSES).tolist(),
        "accuracy": accuracy.tolist(),
        "confidence": confidence.tolist(),
    }


def test_accuracies_confusions_and_calibration_are_those_of_scikit_learn():
    said, expected = judged(), json.loads(EXPECTED.read_text())
    assert figures.of_photos(said)["top1"].mean() == pytest.approx(expected["top1"], abs=1e-12)
    by_class = {row.name: row for row in figures.by_class(said)}
    found = [by_class[name].top1 for name in CLASSES]
    assert found == pytest.approx(expected["by_class"], abs=1e-12)
    matrix = np.array(expected["confusion"])
    assert [by_class[name].photos for name in CLASSES] == matrix.sum(axis=1).tolist()
    pairs = {(one.true, one.said): (one.times, one.reverse) for one in figures.confusions(said)}
    wrong = {
        (true, name): (matrix[i, j], matrix[j, i])
        for i, true in enumerate(CLASSES)
        for j, name in enumerate(CLASSES)
        if i != j and matrix[i, j]
    }
    assert pairs == wrong
    curve = figures.calibration(said.probabilities[:, 0], said.right)
    filled = curve.counts > 0  # scikit-learn leaves empty bins out
    assert curve.accuracy[filled] == pytest.approx(expected["accuracy"], abs=1e-12)
    assert curve.confidence[filled] == pytest.approx(expected["confidence"], abs=1e-12)


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(by_scikit_learn(judged()), indent=1) + "\n")
