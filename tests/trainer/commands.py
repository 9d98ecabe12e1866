"""Runs the trainer's commands as whole processes, and reads what they leave."""

import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from trainer import checkpoint

# Small, and the same weights to float tolerance on one device, two replicas and two workers:
# no dropout, and BatchNorm frozen because its statistics are of one replica's share of a batch.
_SETTINGS = """
    --config=default --weights=none --epochs=2 --batch_size=4 --set model.alpha 0.35 model.stride 16
    model.filters 8 model.dropout 0 model.batch_norm frozen optimizer.ema 0.9
    optimizer.warmup_epochs 0.5
"""
SETTINGS = _SETTINGS.split()


def start(module: str, *flags: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
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
    """Returns the newest checkpoint's values."""
    with tempfile.TemporaryDirectory() as plain:  # TensorFlow globs the path that it reads
        shutil.copytree(os.path.join(folder, name), plain, dirs_exist_ok=True)
        reader = tf.train.load_checkpoint(checkpoint.newest(plain))
        keys = [key for key in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in key]
        return {key.split("/")[0]: reader.get_tensor(key) for key in keys}
