"""Several workers that train alike: what they must agree on, and what is said when one is lost."""

import contextlib
import hashlib
import io
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfrecords import remote
from tfrecords.errors import UserError
from trainer import strategy

_MESSAGE = 8 << 20  # bytes that are sent at once

# What TensorFlow raises in a worker when another one has ended.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)

# NFS may hide a new file from other machines for a minute.
_VISIBLE_SECONDS = 90.0


def require_same(devices: tf.distribute.Strategy, values: Mapping[str, object]) -> None:
    """Compares what all workers must have alike; each waits here for all others.

    Args:
        devices: of all workers.
        values: by what they are called to the user.

    Raises:
        UserError: the workers have other values; all of them raise it.
    """
    if strategy.worker(devices)[1] == 1:
        return
    # Of another version the values may have other names, and be of another number.
    if not _all_equal(devices, {"names": sorted(values)})[0]:
        raise UserError(
            "the workers run different versions of carbox. Install the same on all machines."
        )
    same = _all_equal(devices, values)
    if different := [name for name, equal in zip(values, same, strict=True) if not equal]:
        raise UserError(
            f"the workers do not have the same {', '.join(different)}. Start the same command on"
            " all machines, with the same data and the same --run folder."
        )


def require_shared(devices: tf.distribute.Strategy, file: str) -> None:
    """Checks that all workers see a file of the run's folder; each waits here for all others.

    Without it, the others would notice only when the training is done and they need the best epoch.

    Args:
        devices: of all workers.
        file: that the chief has just written, and that differs from what it was before.

    Raises:
        UserError: some worker does not see it; all of them raise it.
    """
    rank, count = strategy.worker(devices)
    if count == 1:
        return
    wanted = _gather_rows(devices, _digest_row(_read(file) if rank == 0 else b"")).numpy()[0]
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not (sees := (_digest_row(_read(file)).numpy() == wanted).all()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if blind := count - round(strategy.sum_over_workers(devices, float(sees))):
        raise UserError(
            f"{blind} of {count} workers do not see in {os.path.dirname(file)} what the first one"
            " has written there. Name a --run folder that all machines share (NFS, for example)."
        )


def copy_from_chief(devices: tf.distribute.Strategy, folder: str, names: str) -> None:
    """Copies files of the chief's folder to the others'; each waits here for all others.

    So workers need no folder that all of them see: they already reach each other.

    Args:
        devices: of all workers.
        folder: of this worker.
        names: pattern of the relative names, from their beginning.
    """
    rank, number = strategy.worker(devices)
    if number == 1:
        return
    packed = io.BytesIO()
    if rank == 0:
        with zipfile.ZipFile(packed, "w") as archive:
            for name in sorted(remote.files(folder)):
                if re.match(names, name):
                    archive.write(os.path.join(folder, name), name)
    data = packed.getvalue()
    size = int.from_bytes(_of_chief(devices, len(data).to_bytes(8, "little")), "little")
    data = data.ljust(-(-size // _MESSAGE) * _MESSAGE, b"\0")
    parts = [
        _of_chief(devices, data[place : place + _MESSAGE]) for place in range(0, size, _MESSAGE)
    ]
    if rank > 0:
        with zipfile.ZipFile(io.BytesIO(b"".join(parts)[:size])) as archive:
            archive.extractall(folder)


@contextlib.contextmanager
def losing_none(devices: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's error about a worker that has ended into a sentence.

    Raises:
        UserError: a worker has ended, or cannot be reached.
    """
    try:
        yield
    except _LOST as error:
        if strategy.worker(devices)[1] == 1:
            raise
        lines = [line.strip() for line in str(error.message).splitlines() if line.strip()]
        # "Graph execution error:" and the place in the program come before the reason.
        lines = [line for line in lines if "Collective ops is aborted" in line] or lines
        raise UserError(
            "another worker has ended or cannot be reached, so the training stops. Start the same"
            " command on all machines again: it goes on from the last checkpoint. TensorFlow says:"
            f" {lines[0] if lines else type(error).__name__}"
        ) from None


def _all_equal(devices: tf.distribute.Strategy, values: Mapping[str, object]) -> list[bool]:
    """Returns for each value whether all workers have the same."""
    row = _digest_row(*(repr(value).encode() for value in values.values()))
    rows = _gather_rows(devices, row).numpy()
    return (rows == rows[0]).all(axis=0).tolist()


def _digest_row(*contents: bytes) -> tf.Tensor:
    digests = b"".join(hashlib.sha256(content).digest()[:8] for content in contents)
    return tf.constant(np.frombuffer(digests, np.int64)[np.newaxis])


def _read(file: str) -> bytes:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return opened.read()
    return b""


def _of_chief(devices: tf.distribute.Strategy, data: bytes) -> bytes:
    """Returns the chief's bytes, an even number; those of the others are as many."""
    # Small whole numbers in float32 survive the sum, which works wherever gradients are summed.
    numbers = np.frombuffer(data, np.uint16).astype(np.float32)
    return _of_first_replica(devices, tf.constant(numbers)).numpy().astype(np.uint16).tobytes()


@tf.function
def _of_first_replica(devices: tf.distribute.Strategy, mine: tf.Tensor) -> tf.Tensor:
    def first(value: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return tf.where(context.replica_id_in_sync_group == 0, value, tf.zeros_like(value))

    return devices.reduce(tf.distribute.ReduceOp.SUM, devices.run(first, (mine,)), axis=None)


@tf.function
def _gather_rows(devices: tf.distribute.Strategy, row: tf.Tensor) -> tf.Tensor:
    return strategy.gather(devices, devices.run(lambda mine: mine, (row,)))
