"""Flags of a config: `--config=NAME|FILE.py --config.optimizer.ema=0.99 --epochs=5`."""

from collections.abc import Collection
from typing import Any

from absl import flags

from tfrecords import command
from tfrecords.errors import FlagError
from trainer.configs import files, settings
from trainer.configs.schema import Config
from trainer.configs.settings import SETTINGS, Setting

_SHORT = ("weights", "epochs", "batch_size", "jit", "precision")  # also without `config.`
_NONE = "none"


def define_flags(flag_values: flags.FlagValues, *, sections: Collection[str] | None = None) -> None:
    """Defines a flag for each setting, such as `--config.optimizer.ema`; its default is None.

    Args:
        flag_values: the command's flags.
        sections: whose settings get flags, such as `["inference"]`, in a command that has a config
            already. If absent, all settings get flags, and `--config` and the short flags
            (`--epochs`) are defined too.
    """
    if sections is not None:
        for key in SETTINGS:
            if key.partition(".")[0] in sections:
                _define(f"config.{key}", key, "the run's own if absent", flag_values)
        return
    flags.DEFINE_string(
        "config",
        None,
        f"{', '.join(files.NAMES)}, or a FILE.py that defines get_config(); if absent, sample for"
        " the drawn sample and default for other data. Each of its settings has a flag too, such as"
        " --config.optimizer.ema=0.99: --helpfull lists them",
        flag_values=flag_values,
    )
    values = {name: settings.flatten(files.load(name)) for name in files.NAMES}
    for key in SETTINGS:
        default = _shown(values["default"][key])
        others = {name: _shown(values[name][key]) for name in files.NAMES}
        differing = [f"; {name} {value}" for name, value in others.items() if value != default]
        for name in _names(key):
            _define(name, key, f"default: {default}{''.join(differing)}", flag_values)


def from_flags(flag_values: flags.FlagValues, default_name: str) -> Config:
    """Returns the config that the command line asks for.

    Args:
        flag_values: parsed; see `define_flags`.
        default_name: of the config where `--config` is not given.

    Raises:
        UserError: there is no such config, or values contradict each other.
    """
    name = flag_values["config"].value
    return apply(flag_values, files.load(default_name if name is None else name))


def apply(flag_values: flags.FlagValues, config: Config) -> Config:
    """Returns a config with the values that the command line gives.

    Raises:
        UserError: values contradict each other.
    """
    given: dict[str, Any] = {}
    for key, about in SETTINGS.items():
        values = {}
        for name in _names(key):
            if name in flag_values and flag_values[name].value is not None:
                value = values[name] = flag_values[name].value
                is_none = about.optional and value == _NONE
                given[key] = None if is_none else about.kind(value)
        if len(set(values.values())) > 1:
            both = " and ".join(f"--{name}={value}" for name, value in values.items())
            raise FlagError(f"{both} contradict each other: give one of them.")
    return settings.replace(config, given)


def _names(key: str) -> list[str]:
    return [*(name for name in _SHORT if name == key), f"config.{key}"]


def _define(name: str, key: str, default: str, flag_values: flags.FlagValues) -> None:
    about = SETTINGS[key]
    text = f"{about.help} ({default})"
    if key == "weights":
        command.DEFINE_path(name, None, text, flag_values)
    elif about.choices:
        flags.DEFINE_enum(name, None, [str(choice) for choice in about.choices], text, flag_values)
    elif about.kind is bool:
        flags.DEFINE_boolean(name, None, text, flag_values)
    elif about.within:
        flags.DEFINE(_parser(about, *about.within), name, None, text, flag_values)
    else:
        flags.DEFINE_string(name, None, text, flag_values)


class _OrNone(flags.ArgumentParser[Any]):
    """Takes `none` and what another parser takes.

    It returns `none` as text: None is the value of a flag that is not given.
    """

    def __init__(self, parser: flags.ArgumentParser[Any]) -> None:
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help}, or {_NONE}"

    def parse(self, argument: str) -> Any:
        """Returns the value, or `none`."""
        return _NONE if argument.lower() == _NONE else self._parser.parse(argument)


def _parser(about: Setting, low: float, high: float) -> flags.ArgumentParser[Any]:
    parser: flags.ArgumentParser[Any] = flags.FloatParser(low, high)
    if about.kind is int:
        parser = flags.IntegerParser(int(low), int(high))
    return _OrNone(parser) if about.optional else parser


def _shown(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
