"""Saves a run's state and brings it back, whatever was killed when.

A checkpoint is written under a new name, and only then becomes the newest: TensorFlow renames its
index into place last. Every array carries a checksum, so one that is torn or damaged is noticed
when it is read, and the one before it is used. Nothing else makes a checkpoint a damaged one.
"""

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfrecords.errors import UserError
from trainer.state import State


class DamagedError(UserError):
    """A checkpoint fails its own checksum, or is shorter than it says."""


def save(state: State, directory: str, keep: int) -> str:
    """Saves the state as the newest of a directory.

    Args:
        state: what to save.
        directory: of checkpoints of the same run.
        keep: how many of the newest to keep, at least 1.

    Returns:
        The path that `restore` takes.

    Raises:
        UserError: nothing can be written there; those saved before are kept.
    """
    path = os.path.join(directory, f"step-{int(state.step.numpy())}")
    try:
        _checkpoint(state).write(path)
        for old in _newest_first(directory)[keep:]:
            _remove(old)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be written ({_reason(error)}). Those saved before it are"
            " kept: make room, or give the right to write there, and start the same command again."
        ) from None
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
        UserError: there are checkpoints, but all are damaged; or one is not damaged and cannot be
            used all the same, and nothing was renamed.
    """
    for leftover in glob.glob(os.path.join(glob.escape(directory), "step-*_temp")):
        shutil.rmtree(leftover, ignore_errors=True)
    paths = _newest_first(directory)
    for path in paths:
        try:
            restore(state, path)
        except DamagedError as error:
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
    """Gives the state the values of one checkpoint: all of them, or none.

    Raises:
        DamagedError: it fails its own checksum.
        UserError: it cannot be read, or is of another model, and says what differs.
    """
    variables = state.variables()
    with _errors_for_people(path), _literal(path) as prefix:
        keys = _stored_keys(prefix)
        common = {name: v for name, v in variables.items() if name in keys}
        types = [variable.dtype for variable in common.values()]
        values = _restore(prefix, [keys[name] for name in common], types) if common else []
    differences = [f"{name} is not in the checkpoint" for name in variables if name not in keys]
    differences += [f"{name} is not in this model" for name in keys if name not in variables]
    differences += [
        f"{name} is {list(value.shape)} in the checkpoint and {list(variable.shape)} in this model"
        for (name, variable), value in zip(common.items(), values, strict=True)
        if value.shape != variable.shape
    ]
    if differences:
        raise UserError(
            f"the checkpoint {path} is of another model: {'; '.join(differences)}. Use the version"
            " and the settings that made it, or another --run to start anew."
        )
    for variable, value in zip(common.values(), values, strict=True):
        variable.assign(value)


def newest(directory: str) -> str | None:
    """Returns the path of the newest checkpoint of a directory, or None."""
    return next(iter(_newest_first(directory)), None)


def _checkpoint(state: State) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(**state.variables())


def _stored_keys(prefix: str) -> dict[str, str]:
    """Returns the name of each variable in a checkpoint, and the key of its value."""
    (serialized,) = _restore(prefix, ["_CHECKPOINTABLE_OBJECT_GRAPH"], [tf.string])
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(serialized.numpy())
    keys = [value.checkpoint_key for node in graph.nodes for value in node.attributes]
    return {key.split("/.ATTRIBUTES/")[0]: key for key in keys}


def _restore(prefix: str, keys: list[str], types: list[tf.DType]) -> list[tf.Tensor]:
    # Not tf.train.load_checkpoint: its errors do not tell damage from anything else.
    with tf.device("/cpu:0"):
        return tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), dtypes=types
        )


@contextlib.contextmanager
def _literal(path: str) -> Iterator[str]:
    """Gives a name of a checkpoint that TensorFlow, which globs it, takes for no pattern."""
    if not re.search(r"[\[\]*?\\]", path):
        yield path
        return
    folder, name = os.path.split(os.path.abspath(path))
    with tempfile.TemporaryDirectory() as links:
        os.symlink(folder, os.path.join(links, "run"))
        yield os.path.join(links, "run", name)


@contextlib.contextmanager
def _errors_for_people(path: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise DamagedError(f"the checkpoint {path} is damaged ({_reason(error)}).") from None
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({_reason(error)}). Nothing was changed. Mend"
            f" that and start the same command again; without {os.path.basename(path)}.* the"
            " checkpoint before it is used."
        ) from None


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{.*?\}\} | \[Op:\w+\]", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]


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
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            os.replace(file, file + ".damaged")
