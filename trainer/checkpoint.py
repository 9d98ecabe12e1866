"""Saves a run's state and brings it back, whatever was killed when.

A checkpoint is written under a new name, and only then becomes the newest: TensorFlow renames its
index into place last. Every array carries a checksum, so one that is torn or damaged is noticed
when it is read, and the one before it is used.
"""

import glob
import os
import re
import shutil

import tensorflow as tf

from tfrecords.errors import UserError
from trainer.state import State


def save(state: State, directory: str, keep: int) -> str:
    """Saves the state as the newest of a directory.

    Args:
        state: what to save.
        directory: of checkpoints of the same run.
        keep: how many of the newest to keep, at least 1.

    Returns:
        The path that `restore` takes.
    """
    step = int(state.step.numpy())
    path = _checkpoint(state).write(os.path.join(directory, f"step-{step}"))
    for old in _newest_first(directory)[keep:]:
        _remove(old)
    return path


def restore_newest(state: State, directory: str) -> int:
    """Gives the state the values of the newest whole checkpoint.

    A damaged one is set aside as `*.damaged`, with a message, and the one before it is used.

    Args:
        state: what to restore.
        directory: of checkpoints; may be absent.

    Returns:
        The step restored, or 0 when there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    for leftover in glob.glob(os.path.join(glob.escape(directory), "step-*_temp")):
        shutil.rmtree(leftover, ignore_errors=True)
    paths = _newest_first(directory)
    for path in paths:
        try:
            restore(state, path)
        except UserError as error:
            print(f"{error} Trying the one before it.")
            _set_aside(path)
        else:
            return int(state.step.numpy())
    if paths:
        raise UserError(
            f"all checkpoints in {directory} are damaged. Start over under another --run name."
        )
    return 0


def restore(state: State, path: str) -> None:
    """Gives the state the values of one checkpoint.

    Raises:
        UserError: it is damaged, or of another model.
    """
    try:
        _checkpoint(state).read(path).assert_existing_objects_matched()
    except (tf.errors.OpError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"the checkpoint {path} is damaged ({reason}).") from None


def newest(directory: str) -> str | None:
    """Returns the path of the newest checkpoint of a directory, or None."""
    return next(iter(_newest_first(directory)), None)


def _checkpoint(state: State) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(**state.variables())


def _newest_first(directory: str) -> list[str]:
    found = []
    for index in glob.glob(os.path.join(glob.escape(directory), "step-*.index")):
        if match := re.search(r"step-(\d+)\.index$", index):
            found.append((int(match[1]), index.removesuffix(".index")))
    return [path for _, path in sorted(found, reverse=True)]


def _remove(path: str) -> None:
    # The index goes first: without it there is no checkpoint, with it there is a whole one.
    for file in sorted(glob.glob(glob.escape(path) + ".*"), key=lambda f: not f.endswith("index")):
        os.remove(file)


def _set_aside(path: str) -> None:
    for file in glob.glob(glob.escape(path) + ".*"):
        os.replace(file, file + ".damaged")
