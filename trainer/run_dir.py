"""The folder of a run: its settings, its checkpoints and its results.

runs/NAME/config.json, data.json    settings and data; a run continues only with the same
          last/, best/              checkpoints
          metrics.jsonl             a line for each epoch
          run.json                  commands, versions, hardware, speed
          evaluation-SPLIT.json, predictions-SPLIT.csv, zoom-SPLIT.json, pictures-SPLIT/
          report.html, results.json what the evaluation says, for people and for programs
          curves.png, tensorboard/
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from tfrecords import manifest, remote
from tfrecords.errors import UserError
from trainer import checkpoint, configs, model, train_state

LAST, BEST = "last", "best"
"""Folders of checkpoints: the newest of the run, and that of its best epoch."""

_CONFIG, _DATA, _LOCK = "config.json", "data.json", ".lock"
# What a run leaves that was killed before its config was written, which comes last.
_BEGUN = frozenset({_DATA, f"{_DATA}.new", f"{_CONFIG}.new", _LOCK})
_LONGEST = 100


@dataclass(frozen=True)
class DatasetInfo:
    """The data set of a run: with the config, all that is needed to predict on any photo.

    Attributes:
        path: where it was; absolute.
        name: of the data set.
        fingerprint: of its source and shards.
        height, width: of the records' photos, in pixels.
        class_names: label = index + 1.
        resize, quality: how photos were brought to that size, and encoded; see `manifest.Image`.
            None where records of version 0.1 do not say.
    """

    path: str
    name: str
    fingerprint: str
    height: int
    width: int
    class_names: list[str]
    resize: str | None = None
    quality: int | None = None


@dataclass(frozen=True)
class Trained:
    """A trained run, ready to be used.

    Attributes:
        network: holds the values of the best epoch, averaged ones where the run has them.
        config: the run's settings, those of inference included.
        data: what it was trained on.
        step: of the best epoch's end.
    """

    network: keras.Model
    config: configs.Config
    data: DatasetInfo
    step: int


def describe_data(path: str, info: manifest.Manifest) -> DatasetInfo:
    """Returns what a run needs to know about its data set."""
    shards = sorted(
        (name, shard.sha256) for name, split in info.splits.items() for shard in split.shards
    )
    text = json.dumps([info.source_fingerprint, shards])
    digest = hashlib.sha256(text.encode()).hexdigest()
    image = info.image
    where = path if remote.is_remote(path) else os.path.abspath(path)
    return DatasetInfo(
        path=where,
        name=info.name,
        fingerprint=digest,
        height=image.height,
        width=image.width,
        class_names=info.class_names,
        resize=image.resize,
        quality=image.quality,
    )


def check(run: str, config: configs.Config, data: DatasetInfo) -> None:
    """Checks that a run can start in a folder, or continue there with the same config and data.

    A larger number of epochs is allowed: the run continues.

    Raises:
        UserError: the run has another config or data set (the message says what differs), or the
            folder holds other files.
    """
    if os.path.exists(os.path.join(run, _CONFIG)):
        old_config, old_data = read(run)
        before, now = configs.flatten(old_config), configs.flatten(config)
        if before["epochs"] < now["epochs"]:
            before["epochs"] = now["epochs"]
        differences = _differences(before, now)
        # The path may change: a data set that was moved is still the same.
        same: dict[str, Any] = {"path": "", "class_names": []}
        for name in ("resize", "quality"):
            if getattr(old_data, name) is None:
                same[name] = None
        differences += _differences(vars(old_data) | same, vars(data) | same)
        if differences:
            raise UserError(
                f"the run {run} was made with other settings or data: {'; '.join(differences)}."
                " Use the same settings to continue it, or another --run to start anew."
            )
    elif os.path.isdir(run) and not _BEGUN.issuperset(os.listdir(run)):
        raise UserError(
            f"--run={run} is a folder with other things in it. Name one that does not exist yet."
        )


@contextlib.contextmanager
def locked(run: str) -> Iterator[None]:
    """Makes the folder of a run, and locks it against other trainings while the block runs.

    Raises:
        UserError: another training is running there, or nothing can be written there.
    """
    try:
        os.makedirs(run, exist_ok=True)
        # A file of its own: folders cannot be locked on NFS, and the other files are replaced.
        descriptor = os.open(os.path.join(run, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _not_writable(run, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise UserError(
                f"another training is at work in {run}. Wait for it, or name another --run."
            ) from None
        # Any other error: a file system without locks.
    try:
        yield
    finally:
        os.close(descriptor)


def create(run: str, config: configs.Config, data: DatasetInfo) -> None:
    """Creates the folder of a run and writes its config and its data.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        os.makedirs(run, exist_ok=True)
        _write(os.path.join(run, _DATA), json.dumps(vars(data), indent=1) + "\n")
        _write(os.path.join(run, _CONFIG), configs.to_json(config))
    except OSError as error:
        raise _not_writable(run, error) from None


def read(run: str) -> tuple[configs.Config, DatasetInfo]:
    """Returns the config and the data of a run.

    Raises:
        UserError: there is no run, it was made by a version whose settings had other names, or its
            files are damaged.
    """
    try:
        with open(os.path.join(run, _CONFIG)) as file:
            config = configs.from_json(file.read())
        with open(os.path.join(run, _DATA)) as file:
            return config, DatasetInfo(**json.load(file))
    except OSError:
        raise UserError(
            f"{run}: there is no run there. `python -m trainer.task --run={run}` makes one."
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{os.path.join(run, _DATA)} is damaged: {error}.") from None


def best_checkpoint(run: str) -> str:
    """Returns the path of a run's best checkpoint.

    Raises:
        UserError: it has none yet.
    """
    path = checkpoint.newest(os.path.join(run, BEST))
    if path is None:
        raise UserError(f"the run {run} has not finished its first epoch: nothing to use yet.")
    return path


def load_trained(run: str) -> Trained:
    """Returns the model of a run's best epoch.

    Raises:
        UserError: there is no run, its first epoch is not finished, or its files are damaged.
    """
    config, data = read(run)
    path = best_checkpoint(run)
    height, width = (-(-side // config.downscale) for side in (data.height, data.width))
    network = model.build(config, height, width, data.class_names, fresh=False)
    values = checkpoint.read(path)
    try:
        train_state.load_into(network, train_state.eval_values_of(values))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the checkpoint {path} is of another model ({error}). Use the version that made it."
        ) from None
    return Trained(network, config, data, int(values["step"]))


def write_json(run: str, name: str, values: Any) -> str:
    """Writes values as JSON into the folder and returns the path."""
    path = os.path.join(run, name)
    _write(path, json.dumps(values, indent=1) + "\n")
    return path


def shortened(name: str) -> str:
    """Returns a name cut to 100 bytes, so that a file name with more parts stays short enough."""
    return name.encode()[:_LONGEST].decode(errors="ignore")


def _not_writable(run: str, error: OSError) -> UserError:
    return UserError(f"--run={run}: the run cannot be written there: {error.strerror}.")


def _write(path: str, text: str) -> None:
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{key} is {new.get(key)!r} now and was {old.get(key)!r}"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
