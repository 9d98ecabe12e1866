"""Runs the trainer's commands as whole processes, and reads what they leave."""

import os
import subprocess
import sys

import numpy as np

from trainer import checkpoint

# Small, and the same weights to float tolerance on one device, two replicas and two workers:
# no dropout, and BatchNorm frozen because its statistics are of one replica's share of a batch.
SETTINGS = [
    "--config=default",
    "--weights=none",
    "--epochs=2",
    "--batch_size=4",
    "--config.model.alpha=0.35",
    "--config.model.stride=8",
    "--config.model.box_stride=8",
    "--config.model.filters=8",
    "--config.model.dropout=0",
    "--config.model.batch_norm=frozen",
    "--config.optimizer.ema=0.9",
    "--config.optimizer.warmup_epochs=0.5",
]


def start(module: str, *flags: str, **environment: str) -> subprocess.Popen:
    return start_program([sys.executable, "-m", module, *flags], **environment)


def start_program(
    command: list[str], folder: str | os.PathLike | None = None, **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def run(module: str, *flags: str, **environment: str) -> str:
    """Runs a command that must succeed, and returns what it printed."""
    process = start(module, *flags, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out


def saved(folder: str, name: str = "last") -> dict[str, np.ndarray]:
    """Returns the newest checkpoint's values by name, such as `params/backbone/Conv1/kernel`."""
    return checkpoint.read(checkpoint.newest(os.path.join(folder, name)))
