"""Saves and restores the state of a run, whenever a process may be killed.

`tf.train.CheckpointManager` names the checkpoints and keeps the newest. A checkpoint is written
under a new name, and only then becomes the newest: TensorFlow renames its index into place last.
Every array carries a checksum, so a torn or damaged checkpoint is noticed when it is read, and the
one before it is used. Other errors do not mark a checkpoint as damaged.
"""

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfrecords.errors import UserError
from trainer.train_state import TrainState

_NAME = "step"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class DamagedError(UserError):
    """A checkpoint fails its own checksum, or is shorter than it says."""


def save(state: TrainState, directory: str, keep: int) -> str:
    """Saves the state as the newest of a directory.

    Args:
        state: what to save.
        directory: of checkpoints of the same run.
        keep: how many of the newest to keep, at least 1.

    Returns:
        The path that `restore` takes.

    Raises:
        UserError: nothing can be written there; the checkpoints saved before are kept.
    """
    step = int(state.step.numpy())
    path = os.path.join(directory, f"{_NAME}-{step}")
    try:
        os.makedirs(directory, exist_ok=True)
        with _literal(directory) as folder:
            _list_whole_ones(folder)
            manager = tf.train.CheckpointManager(
                _checkpoint(state), folder, max_to_keep=keep, checkpoint_name=_NAME
            )
            manager.save(checkpoint_number=step)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be written ({_reason(error)}). Those saved before it are"
            " kept: free some space or allow writing there, and start the same command again."
        ) from None
    return path


def restore_newest(state: TrainState, directory: str) -> int:
    """Gives the state the values of the newest whole checkpoint.

    A damaged one is set aside as `*.damaged`, with a message, and the one before it is used.

    Args:
        state: what to restore.
        directory: of checkpoints; may be absent.

    Returns:
        The step restored, or 0 when there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but all are damaged; or one cannot be used for another
            reason, and nothing was renamed.
    """
    paths = _newest_first(directory)
    _remove_unfinished(directory, paths)
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


def restore(state: TrainState, path: str) -> None:
    """Gives the state the values of one checkpoint: all of them, or none.

    Raises:
        DamagedError: it fails its own checksum.
        UserError: it cannot be read, or is of another model, and says what differs.
    """
    variables = state.variables()
    stored = read(path)
    differences = [f"{name} is not in the checkpoint" for name in variables if name not in stored]
    differences += [f"{name} is not in this model" for name in stored if name not in variables]
    differences += [
        f"{name} is {_kind(stored[name])} in the checkpoint and {_kind(variable)} in this model"
        for name, variable in variables.items()
        if name in stored and _kind(stored[name]) != _kind(variable)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"the checkpoint {path} is of another model: {'; '.join(differences[:5])}{more}. Use"
            " the version and the settings that made it, or another --run to start anew."
        )
    for name, variable in variables.items():
        variable.assign(stored[name])


def read(path: str) -> dict[str, np.ndarray]:
    """Returns all values of a checkpoint by their names, such as `params/label/kernel`.

    Raises:
        DamagedError: it fails its own checksum.
        UserError: it cannot be read.
    """
    with _errors_for_people(path), _literal(os.path.dirname(path)) as folder:
        prefix = os.path.join(folder, os.path.basename(path))
        (serialized,) = _restore(prefix, {_OBJECT_GRAPH: tf.string})
        types = tf.train.load_checkpoint(prefix).get_variable_to_dtype_map()
        graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(serialized.numpy())
        keys = [value.checkpoint_key for node in graph.nodes for value in node.attributes]
        keys = [key for key in keys if not key.startswith("save_counter/")]  # the manager's own
        values = _restore(prefix, {key: types[key] for key in keys})
        return {
            key.split("/.ATTRIBUTES/")[0]: value.numpy()
            for key, value in zip(keys, values, strict=True)
        }


def newest(directory: str) -> str | None:
    """Returns the path of the newest checkpoint of a directory, or None."""
    return next(iter(_newest_first(directory)), None)


def _kind(values: np.ndarray | tf.Variable) -> str:
    return f"{tf.as_dtype(values.dtype).name} {list(values.shape)}"


def _checkpoint(state: TrainState) -> tf.train.Checkpoint:
    """Returns the state as a tree, so that its names are the paths of the variables."""
    tree: dict[str, Any] = {}
    for name, variable in state.variables().items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = variable
    return tf.train.Checkpoint(**tree)


def _restore(prefix: str, types: dict[str, tf.DType]) -> list[tf.Tensor]:
    # Not tf.train.load_checkpoint: its errors do not distinguish damage from other causes.
    with tf.device("/cpu:0"):
        return tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=list(types),
            shape_and_slices=[""] * len(types),
            dtypes=list(types.values()),
        )


@contextlib.contextmanager
def _literal(folder: str) -> Iterator[str]:
    """Gives a path to a folder that TensorFlow, which globs paths, does not take for a pattern."""
    if not re.search(r"[\[\]*?\\]", folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        os.symlink(os.path.abspath(folder), os.path.join(links, "run"))
        yield os.path.join(links, "run")


@contextlib.contextmanager
def _errors_for_people(path: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise DamagedError(f"the checkpoint {path} is damaged ({_reason(error)}).") from None
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({_reason(error)}). Nothing was changed. Fix"
            f" that and start the same command again; without {os.path.basename(path)}.* the"
            " checkpoint before it is used."
        ) from None


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{.*?\}\} | \[Op:\w+\]", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]


def _newest_first(directory: str) -> list[str]:
    found = []
    for index in glob.glob(os.path.join(glob.escape(directory), f"{_NAME}-*.index")):
        if match := re.search(rf"{_NAME}-(\d+)\.index$", index):
            found.append((int(match[1]), index.removesuffix(".index")))
    return [path for _, path in sorted(found, reverse=True)]


def _list_whole_ones(folder: str) -> None:
    """Writes the list of checkpoints that the manager reads: after a kill it may be incomplete."""
    paths = _newest_first(folder)[::-1]
    if not paths:
        return
    listed = tf.compat.v1.train.generate_checkpoint_state_proto(
        folder,
        os.path.basename(paths[-1]),
        [os.path.basename(path) for path in paths],
        all_model_checkpoint_timestamps=[os.path.getmtime(f"{path}.index") for path in paths],
    )
    with open(os.path.join(folder, "checkpoint.new"), "w") as file:
        file.write(text_format.MessageToString(listed))
    os.replace(file.name, os.path.join(folder, "checkpoint"))


def _remove_unfinished(directory: str, whole: list[str]) -> None:
    """Removes what is left of checkpoints that were killed while being written."""
    # TensorFlow writes into such a folder first; it takes it again only for the same step.
    for folder in glob.glob(os.path.join(glob.escape(directory), f"{_NAME}-*_temp")):
        shutil.rmtree(folder, ignore_errors=True)
    for file in glob.glob(os.path.join(glob.escape(directory), f"{_NAME}-*.data-*")):
        if file.rpartition(".data-")[0] not in whole:
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                os.remove(file)


def _set_aside(path: str) -> None:
    for file in glob.glob(glob.escape(path) + ".*"):
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            os.replace(file, file + ".damaged")
