"""The folder of a run: what it was made with, so that it is never continued as something else."""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import config as configs

_CONFIG, _DATA = "config.json", "data.json"
# All that may be there when a run was killed before its config, which is written last.
_BEGUN = frozenset({_DATA, f"{_DATA}.new", f"{_CONFIG}.new"})


@dataclass(frozen=True)
class Data:
    """The data set of a run.

    Attributes:
        path: where it was.
        name, fingerprint: of the data set; that of its source and shards.
        height, width: of its photos, in pixels.
        class_names: label = index + 1.
    """

    path: str
    name: str
    fingerprint: str
    height: int
    width: int
    class_names: list[str]


def describe_data(path: str, info: manifest.Manifest) -> Data:
    """Returns what a run needs to know of its data set."""
    shards = sorted(
        (name, shard.sha256) for name, split in info.splits.items() for shard in split.shards
    )
    text = json.dumps([info.source_fingerprint, shards])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Data(path, info.name, digest, info.image.height, info.image.width, info.class_names)


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
        same = {"path": "", "class_names": []}
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
        raise UserError(
            f"--run={folder}: the run cannot be written there: {error.strerror}."
        ) from None


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
