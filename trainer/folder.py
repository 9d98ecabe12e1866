"""The folder of a run: what it was made with, so that it is never continued as something else."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import config as configs

_CONFIG, _DATA, _LOCK = "config.json", "data.json", ".lock"
# All that may be there when a run was killed before its config, which is written last.
_BEGUN = frozenset({_DATA, f"{_DATA}.new", f"{_CONFIG}.new", _LOCK})
_LONGEST = 100


@dataclass(frozen=True)
class Data:
    """The data set of a run: with the config, all that is needed to judge any photo.

    Attributes:
        path: where it was; absolute, but in runs of version 0.1.
        name, fingerprint: of the data set; that of its source and shards.
        height, width: of its photos, in pixels.
        class_names: label = index + 1.
        resize: how photos came to that size; see `manifest.Image`. None in runs of version 0.1.
    """

    path: str
    name: str
    fingerprint: str
    height: int
    width: int
    class_names: list[str]
    resize: str | None = None


def describe_data(path: str, info: manifest.Manifest) -> Data:
    """Returns what a run needs to know of its data set."""
    shards = sorted(
        (name, shard.sha256) for name, split in info.splits.items() for shard in split.shards
    )
    text = json.dumps([info.source_fingerprint, shards])
    digest = hashlib.sha256(text.encode()).hexdigest()
    image = info.image
    where = path if "://" in path else os.path.abspath(path)
    return Data(where, info.name, digest, image.height, image.width, info.class_names, image.resize)


def check(folder: str, config: configs.Config, data: Data) -> None:
    """Makes sure that a run may be made there, or is of the same config and data.

    Raises:
        UserError: it is of another config or another data set, and says what differs; or the
            folder holds other things.
    """
    if os.path.exists(os.path.join(folder, _CONFIG)):
        old_config, old_data = read(folder)
        differences = _differences(configs.flatten(old_config), configs.flatten(config))
        # The path may change: a data set that was moved is still the same.
        same: dict[str, Any] = {"path": "", "class_names": []}
        if old_data.resize is None:
            same["resize"] = None
        differences += _differences(vars(old_data) | same, vars(data) | same)
        if differences:
            raise UserError(
                f"the run {folder} was made with something else: {'; '.join(differences)}."
                " Use the same settings to continue it, or another --run to start anew."
            )
    elif os.path.isdir(folder) and not _BEGUN.issuperset(os.listdir(folder)):
        raise UserError(
            f"--run={folder} is a folder with other things in it. Name one that does not exist yet."
        )


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Makes the folder of a run, and keeps other trainings off it as long as this process lives.

    Raises:
        UserError: another training is at work there, or nothing can be written there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        # A file of its own: folders cannot be locked on NFS, and the other files are replaced.
        descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise UserError(
                f"another training is at work in {folder}. Wait for it, or name another --run."
            ) from None
        # Any other error: a file system without locks.
    try:
        yield
    finally:
        os.close(descriptor)


def create(folder: str, config: configs.Config, data: Data) -> None:
    """Creates the folder of a run and writes down what it is made of.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        _write(os.path.join(folder, _DATA), json.dumps(vars(data), indent=1) + "\n")
        _write(os.path.join(folder, _CONFIG), configs.to_json(config))
    except OSError as error:
        raise _not_writable(folder, error) from None


def read(folder: str) -> tuple[configs.Config, Data]:
    """Returns the config and the data of a run.

    Raises:
        UserError: there is no run, or its files are damaged.
    """
    try:
        with open(os.path.join(folder, _CONFIG)) as file:
            config = configs.from_json(file.read())
        with open(os.path.join(folder, _DATA)) as file:
            return config, Data(**json.load(file))
    except OSError:
        raise UserError(
            f"--run={folder}: there is no run there. `python -m trainer.task --run={folder}`"
            " makes one."
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{os.path.join(folder, _DATA)} is damaged: {error}.") from None


def write_json(folder: str, name: str, values: Any) -> str:
    """Writes values as JSON into the folder and returns the path."""
    path = os.path.join(folder, name)
    _write(path, json.dumps(values, indent=1) + "\n")
    return path


def shortened(name: str) -> str:
    """Returns a user's name so short that a file's name can be made of it and of something more."""
    return name.encode()[:_LONGEST].decode(errors="ignore")


def _not_writable(folder: str, error: OSError) -> UserError:
    return UserError(f"--run={folder}: the run cannot be written there: {error.strerror}.")


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
