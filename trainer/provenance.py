"""How a run was made: its commands, versions, hardware and speed, in `run.json` of its folder.

What differs from one machine or moment to the next stands here, and in the page and `results.json`,
which repeat it. All other files of a run follow from data, config and seed.

{"starts": [{"command": ..., "time": ..., "versions": {...}, "hardware": {...}}],
 "epochs": {"1": {"seconds": ..., "images_per_second": ..., "wait": ...}}}
"""

import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import psutil
import tensorflow as tf

from trainer import resources, run_dir, strategy
from trainer.history import EpochMetrics

FILE_NAME = "run.json"

_PACKAGES = ("carbox", "tensorflow", "keras", "numpy")


def add_start(run: str, devices: tf.distribute.Strategy) -> None:
    """Adds the start, or the continuation, of a training in this process."""
    found = read(run)
    found["starts"].append(
        {
            "command": shlex.join(sys.orig_argv),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "hardware": _hardware(devices),
        }
    )
    run_dir.write_json(run, FILE_NAME, found)


def add_epoch(run: str, epoch: int, timing: EpochMetrics) -> None:
    """Adds how long an epoch took; nothing where it was trained by a process that was killed.

    Args:
        run: the run's folder.
        epoch: its number, from 1.
        timing: as `train.Hooks.on_epoch` gets it.
    """
    if timing:
        found = read(run)
        found["epochs"][str(epoch)] = timing
        run_dir.write_json(run, FILE_NAME, found)


def read(run: str) -> dict[str, Any]:
    """Returns what is known; empty lists for a run of an older version."""
    found: dict[str, Any] = {"starts": [], "epochs": {}}
    with contextlib.suppress(OSError, ValueError), open(os.path.join(run, FILE_NAME)) as file:
        found |= json.load(file)
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _hardware(devices: tf.distribute.Strategy) -> dict[str, Any]:
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "strategy": strategy.describe(devices),
        "gpus": [detail.get("device_name", "GPU") for detail in details],
        "cpu": _cpu(),
        "cores": resources.cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
    }


def _cpu() -> str:
    """Returns the processor's name."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
