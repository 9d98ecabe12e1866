"""Configs in files: those that people write in Python, and the JSON that a run keeps."""

import dataclasses
import difflib
import importlib
import json
import os
import runpy
import traceback

from tfrecords.errors import UserError
from trainer.configs import settings
from trainer.configs.schema import Config

NAMES = ("baseline", "default", "sample")
"""The files of this folder that define a config."""


def load(name: str) -> Config:
    """Returns the config that a file defines by a function `get_config`.

    Args:
        name: one of `NAMES`, or the path of another file, `FILE.py`. The config is named
            after the file.

    Raises:
        UserError: there is no such config, it cannot be loaded, or a value is not allowed.
    """
    path = os.path.expanduser(name)
    if name in NAMES:
        config = importlib.import_module(f"trainer.configs.{name}").get_config()
    elif path.endswith(".py"):
        config = _from_file(path)
    else:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise UserError(
            f"--config={name}: there is no such config."
            f" {f'Did you mean {near[0]}? ' if near else ''}"
            f"There are {', '.join(NAMES)}, or a file of your own, whose name ends in .py."
        )
    settings.check(config)
    return dataclasses.replace(
        config,
        name=os.path.basename(path).removesuffix(".py"),
        weights=os.path.expanduser(config.weights),
    )


def _from_file(path: str) -> Config:
    if not os.path.isfile(path):
        raise UserError(f"--config={path}: there is no such file.")
    try:
        defined = runpy.run_path(path)
        config = defined["get_config"]() if "get_config" in defined else None
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        raise UserError(
            f"--config={path}{''.join(lines[-1:])}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Config):
        raise UserError(
            f"--config={path}: it must define get_config(), which returns a"
            " trainer.configs.Config, as trainer/configs/default.py does."
        )
    return config


def to_json(config: Config) -> str:
    """Returns the config as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_json(text: str) -> Config:
    """Parses what `to_json` wrote, also before the newest settings existed.

    Raises:
        UserError: the text is of another version of carbox, or damaged.
    """
    try:
        values = settings.flat(json.loads(text))
    except (ValueError, AttributeError):
        raise UserError("the run's config.json is damaged: it is not a JSON object.") from None
    before = {key: about.before for key, about in settings.SETTINGS.items()}
    values = {key: value for key, value in before.items() if value is not None} | values
    other = sorted(values.keys() ^ settings.flatten(Config()).keys())
    if other:
        raise UserError(
            "the run was made by another version of carbox, whose settings have other names"
            f" ({', '.join(other[:3])}{', ...' * (len(other) > 3)}): use that version, or train"
            " anew under another --run."
        )
    name = values.pop("name")
    return dataclasses.replace(settings.replace(Config(), values), name=name)
