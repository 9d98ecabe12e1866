"""What TensorBoard shows of a run: `tensorboard --logdir runs`.

Three runs share the tags `loss`, `top1`, `mean_iou` …: `train`, `validation` and the split that is
reported at the end, so that their curves lie in one chart and overfitting shows. `train` also has
`learning_rate`, `speed/…` and the config as text.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer import configs, platforms
from trainer.configs import Config
from trainer.history import EpochMetrics

_SPEED = {
    "seconds": "time that the epoch's steps took, in seconds; without evaluation and saving",
    "images_per_second": "training photos a second, once the step is compiled",
    "wait": "share of the time in which the step waited for data, 0 to 1; near 0 is good",
}


def folder(run: str) -> str:
    """Returns the folder that TensorBoard reads: in the run's folder, or where Vertex AI looks."""
    return platforms.tensorboard_folder() or os.path.join(run, "tensorboard")


def write_config(run: str, config: Config) -> None:
    """Writes the config as a table, as text of the run `train`."""
    rows = [f"| {key} | {value} |" for key, value in configs.flatten(config).items()]
    with _writing(run, "train"):
        tf.summary.text("config", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)


def write_epoch(
    run: str,
    record: EpochMetrics,
    timing: Mapping[str, float],
    pictures: Sequence[Image.Image],
) -> None:
    """Writes an epoch's losses, metrics, speed and pictures, by step.

    Args:
        run: the run's folder.
        record: of `trainer.history`; `val_…` is what validation found.
        timing: see `_SPEED`.
        pictures: with boxes.
    """
    step = int(record["step"])
    values: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
    for name, value in record.items():
        if name not in ("epoch", "step") and not name.endswith("num_examples"):
            split = "validation" if name.startswith("val_") else "train"
            values[split][name.removeprefix("val_")] = value
    for split, found in values.items():
        if found:
            _write_scalars(run, split, found, step)
    with _writing(run, "train"):
        for name, value in timing.items():
            tf.summary.scalar(f"speed/{name}", value, step, description=_SPEED[name])
        for number, picture in enumerate(pictures):
            tf.summary.image(f"photo {number}", np.asarray(picture)[np.newaxis], step)


def write_result(run: str, split: str, found: Mapping[str, Any], step: int) -> None:
    """Writes the final metrics of a split at the step that was evaluated."""
    scalars = {name: value for name, value in found.items() if isinstance(value, float)}
    _write_scalars(run, split, scalars, step)


def _write_scalars(run: str, split: str, values: Mapping[str, float], step: int) -> None:
    with _writing(run, split):
        for name, value in values.items():
            tf.summary.scalar(name, value, step)


@contextlib.contextmanager
def _writing(run: str, split: str) -> Iterator[None]:
    writer = _writer(run, split)
    with writer.as_default():
        yield
    writer.flush()


@functools.cache
def _writer(run: str, split: str) -> tf.summary.SummaryWriter:
    return tf.summary.create_file_writer(os.path.join(folder(run), split))
