"""What TensorBoard shows of a run: curves, speed, and a few pictures with boxes."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.history import Record


def writer(folder: str) -> tf.summary.SummaryWriter:
    """Returns the writer of a run's TensorBoard folder."""
    return tf.summary.create_file_writer(os.path.join(folder, "tensorboard"))


def write_epoch(
    out: tf.summary.SummaryWriter, record: Record, timing: Record, pictures: Sequence[Image.Image]
) -> None:
    """Writes an epoch's losses, metrics, speed and pictures, by step.

    Args:
        out: where to.
        record: of `trainer.history`; `val_…` stands beside what it validates.
        timing: `seconds`, `images_per_second`, `wait` (share of time waiting for data).
        pictures: with boxes.
    """
    step = int(record["step"])
    with out.as_default():
        for name, value in record.items():
            if name in ("epoch", "step") or name.endswith("num_examples"):
                continue
            group = "validation" if name.startswith("val_") else "train"
            tf.summary.scalar(f"{group}/{name.removeprefix('val_')}", value, step)
        for name, value in timing.items():
            tf.summary.scalar(f"speed/{name}", value, step)
        for number, picture in enumerate(pictures):
            tf.summary.image(f"photo {number}", np.asarray(picture)[np.newaxis], step)
    out.flush()
