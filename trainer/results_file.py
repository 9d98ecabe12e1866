"""`results.json`: what the page of a run says, for programs.

The page is rendered from the values that are written here; none is computed twice. What each field
means stands in `results.schema.json` beside this module, a JSON Schema.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer import configs, figures, history, provenance, results, run_dir
from trainer.figures import Calibration, ClassFigures, Confusion, Interval
from trainer.history import EpochMetrics
from trainer.predictions import Judged
from trainer.results import Evaluation
from trainer.run_dir import DatasetInfo

FILE_NAME = "results.json"
SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results.schema.json")
FORMAT_VERSION = 1

HISTOGRAM_BINS = 20

_RECENT = 5  # epochs whose speed counts; the first one compiles


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over the photos; None where predictions were not written."""

    value: float
    interval_95: Interval | None


@dataclass(frozen=True)
class Difference:
    """Another run's figure on the same photos; this run's minus that one; its paired interval."""

    baseline: float
    difference: float
    interval_95: Interval


@dataclass(frozen=True)
class Baseline:
    """A run to compare with: its name, and the difference in each figure."""

    run: str
    figures: dict[str, Difference]


@dataclass(frozen=True)
class Distribution:
    """Values in [0, 1] of all photos: mean, median, and how many lie in each of 20 equal bins."""

    mean: float
    median: float
    histogram: Sequence[int]


@dataclass(frozen=True)
class Details:
    """What the predictions of each photo amount to.

    Attributes:
        iou, probability: of the boxes, and of the first names.
        calibration: of the first names.
        classes: the least accurate first.
        confusions: every pair of true and wrong name, the most frequent first.
        zoom_passes: of some photos what each pass was shown and found; see
            `evaluate.describe_passes`. Empty without zoom passes.
    """

    iou: Distribution
    probability: Distribution
    calibration: Calibration
    classes: Sequence[ClassFigures]
    confusions: Sequence[Confusion]
    zoom_passes: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation; see `results.Evaluation`. `details` is None without predictions."""

    name: str
    split: str
    data: str
    data_name: str
    fingerprint: str
    step: int
    zoom_passes: int
    zoom_margin: float
    flip_tta: bool
    margin_tta: float
    num_examples: int
    figures: dict[str, Figure]
    baseline: Baseline | None
    details: Details | None


@dataclass(frozen=True)
class Timing:
    """How long training steps took.

    Attributes:
        epochs: that were timed.
        seconds: of all of them, without evaluation and saving.
        images_per_second, wait: speed, and the share of the time in which steps waited for data;
            medians of the last five epochs.
    """

    epochs: int
    seconds: float
    images_per_second: float
    wait: float


@dataclass(frozen=True)
class RunResults:
    """What is known of a run.

    Attributes:
        run: its name.
        evaluation: None where it has not been evaluated.
        epochs: the lines of `metrics.jsonl`.
        starts: command, time, versions and hardware of each start; see `provenance`.
        timing: None where no epoch was timed.
        data: what it was trained on.
        config: all settings, by `section.field`.
        format_version: of the file.
    """

    run: str
    evaluation: Evaluated | None
    epochs: Sequence[EpochMetrics]
    starts: Sequence[dict[str, Any]]
    timing: Timing | None
    data: DatasetInfo
    config: dict[str, Any]
    format_version: int = FORMAT_VERSION


def collect(run: str, evaluation: Evaluation | None, baseline: Evaluation | None) -> RunResults:
    """Returns what is known of a run and one of its evaluations.

    Args:
        run: its folder.
        evaluation: of the run, if there is any.
        baseline: of another run on the same photos, to compare with.

    Raises:
        UserError: its files are damaged.
    """
    config, data = run_dir.read(run)
    known = provenance.read(run)
    return RunResults(
        run=run_name(run),
        evaluation=_evaluated(run, evaluation, baseline) if evaluation else None,
        epochs=history.read(run),
        starts=known["starts"],
        timing=_timing(list(known["epochs"].values())),
        data=data,
        config=configs.flatten(config),
    )


def run_name(run: str) -> str:
    """Returns the name of a run's folder."""
    return os.path.basename(os.path.abspath(run))


def write(run: str, name: str, found: RunResults) -> str:
    """Writes results into a run's folder, the whole file or nothing; returns its path.

    JSON has neither NaN nor infinity: where there is no number, it is null.
    """
    return run_dir.write_json(run, name, _plain(dataclasses.asdict(found)))


def _evaluated(run: str, evaluation: Evaluation, baseline: Evaluation | None) -> Evaluated:
    judged = evaluation.judged
    found = {name: Figure(value, None) for name, value in evaluation.figures.items()}
    count = int(found.pop("num_examples").value)
    if judged:
        of_photos = figures.of_photos(judged)
        intervals = figures.intervals(of_photos)
        found = {
            name: Figure(float(values.mean()), intervals[name])
            for name, values in of_photos.items()
        }
    return Evaluated(
        name=evaluation.name,
        split=evaluation.split,
        data=evaluation.data,
        data_name=evaluation.data_name,
        fingerprint=evaluation.fingerprint,
        step=evaluation.step,
        zoom_passes=evaluation.zoom_passes,
        zoom_margin=evaluation.zoom_margin,
        flip_tta=evaluation.flip_tta,
        margin_tta=evaluation.margin_tta,
        num_examples=count,
        figures=found,
        baseline=_baseline(judged, baseline) if judged and baseline else None,
        details=_details(run, evaluation.name, judged) if judged else None,
    )


def _baseline(judged: Judged, baseline: Evaluation) -> Baseline:
    theirs = figures.of_photos(results.judged_of(baseline))
    differs = figures.differences(theirs, figures.of_photos(judged))
    intervals = figures.intervals(differs)
    return Baseline(
        run_name(baseline.run),
        {
            name: Difference(float(theirs[name].mean()), float(values.mean()), intervals[name])
            for name, values in differs.items()
        },
    )


def _details(run: str, name: str, judged: Judged) -> Details:
    sure = judged.probabilities[:, 0]
    return Details(
        iou=_distribution(judged.iou),
        probability=_distribution(sure),
        calibration=figures.calibration(sure, judged.right),
        classes=figures.by_class(judged),
        confusions=figures.confusions(judged),
        zoom_passes=_zoom_passes(run, name),
    )


def _distribution(values: np.ndarray) -> Distribution:
    finite = np.nan_to_num(values)
    return Distribution(
        float(finite.mean()), float(np.median(finite)), figures.histogram(values, HISTOGRAM_BINS)
    )


def _zoom_passes(run: str, name: str) -> list[dict[str, Any]]:
    try:
        with open(os.path.join(run, f"zoom-{name}.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return []


def _timing(epochs: Sequence[Mapping[str, float]]) -> Timing | None:
    if not epochs:
        return None
    recent = epochs[-_RECENT:]
    return Timing(
        epochs=len(epochs),
        seconds=sum(one["seconds"] for one in epochs),
        images_per_second=float(np.median([one["images_per_second"] for one in recent])),
        wait=float(np.median([one["wait"] for one in recent])),
    )


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
