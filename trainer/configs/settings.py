"""The settings of a config by dotted name: what each takes, all values, a config with others."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tfrecords.errors import UserError
from trainer.configs.schema import Config


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        kind: bool, int, float or str.
        optional: whether None is a value too.
        help, within, choices, before: see `schema.setting`.
    """

    kind: type
    optional: bool
    help: str
    within: tuple[float, float] | None
    choices: tuple[Any, ...]
    before: Any

    def takes(self, value: Any) -> bool:
        """Whether a value is of the right type and among the choices or inside the range."""
        if value is None:
            return self.optional
        kinds = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in kinds:  # a bool is an int to isinstance
            return False
        if self.choices:
            return value in self.choices
        return self.within is None or self.within[0] <= value <= self.within[1]

    def wanted(self) -> str:
        """Returns which values are allowed, for messages."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        names = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
        between = f" between {self.within[0]:.10g} and {self.within[1]:.10g}" if self.within else ""
        return f"{names[self.kind]}{between}{' or None' * self.optional}"


def _settings(kind: Any, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    hints = typing.get_type_hints(kind)
    for part in dataclasses.fields(kind):
        hint = hints[part.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings(hint, f"{part.name}.")
        elif part.metadata:
            kinds = typing.get_args(hint) or (hint,)
            yield prefix + part.name, Setting(kinds[0], types.NoneType in kinds, **part.metadata)


SETTINGS: dict[str, Setting] = dict(_settings(Config))
"""By dotted name, such as `optimizer.ema`, in the order of the fields."""


def check(config: Config) -> None:
    """Checks every value, and the combinations that must not occur.

    Raises:
        UserError: a value is not of its type, not among its choices or outside its range, or
            values contradict each other.
    """
    values = flatten(config)
    for key, about in SETTINGS.items():
        if key not in values or not about.takes(values[key]):
            raise UserError(f"config.{key} is {values.get(key)!r}: it must be {about.wanted()}.")
    if config.batch_size % config.optimizer.accumulation_steps:
        raise UserError(
            f"--config.batch_size={config.batch_size} cannot be divided into"
            f" --config.optimizer.accumulation_steps={config.optimizer.accumulation_steps} equal"
            " parts."
        )
    if (config.model.input_height is None) != (config.model.input_width is None):
        raise UserError(
            "one of --config.model.input_height and --config.model.input_width is not set: give"
            " both, or neither."
        )
    if config.model.box_stride > config.model.stride:
        raise UserError(
            f"config.model.box_stride is {config.model.box_stride}, but the backbone ends at"
            f" --config.model.stride={config.model.stride}: set"
            f" --config.model.box_stride={config.model.stride}."
        )
    if config.inference.zoom_passes and not config.augment.object_crop:
        raise UserError(
            f"config.inference.zoom_passes is {config.inference.zoom_passes}, but with"
            " augment.object_crop 0 the model never sees crops of the object, on which zoom passes"
            " depend: set --config.inference.zoom_passes=0, or train with"
            " --config.augment.object_crop above 0."
        )
    if config.inference.zoom_passes and config.inference.margin_tta > config.inference.zoom_margin:
        raise UserError(
            f"config.inference.margin_tta is {config.inference.margin_tta:g}, more than"
            f" --config.inference.zoom_margin={config.inference.zoom_margin:g}: the smaller crop"
            " would cut into the box. Set --config.inference.margin_tta to at most that, or to 0"
            " for one crop."
        )
    if config.model.batch_norm == "synchronized" and config.jit == "on":
        raise UserError(
            "--config.model.batch_norm=synchronized does not work with --config.jit=on: set"
            " --config.jit=off."
        )


def flatten(config: Config) -> dict[str, Any]:
    """Returns the name and all settings by dotted name."""
    return flat(dataclasses.asdict(config))


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Flattens a nested dict: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            rows |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            rows[key] = value
    return rows


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a checked config with other values.

    Args:
        config: where to start.
        values: by dotted name, such as `{"model.head": "pooled"}`.

    Raises:
        UserError: there is no such setting, or the config would not pass `check`.
    """
    for key, value in values.items():
        if key not in SETTINGS:
            raise UserError(f"config.{key}: there is no such setting.")
        section, _, name = key.rpartition(".")
        changed = {name: value}
        if section:
            changed = {section: dataclasses.replace(getattr(config, section), **changed)}
        config = dataclasses.replace(config, **changed)
    check(config)
    return config
