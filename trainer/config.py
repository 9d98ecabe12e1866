"""Every hyper-parameter, as a documented dataclass field, and the named configs.

config = apply_settings(named("default"), {"epochs": "15", "model.head": "pooled"})
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfrecords.errors import UserError


@dataclass(frozen=True)
class Model:
    """The network: MobileNetV2 and two heads; see `trainer.model`.

    Attributes:
        alpha: width of MobileNetV2; ImageNet weights exist for 1.0 (and others of Keras).
        stride: pixels of the photo to a cell of the feature map: 32 for the whole backbone, 16 to
            end it where its last stage begins.
        box_stride: pixels to a cell of the map that the box is read from, at most `stride`: 16 is
            where the backbone's last stage begins. Not of `pooled`, which has one map for both.
        head: `pooled`: box and name are read from pooled features, as in the notebook. `spatial`:
            the box from the feature map, whose cells know where they are, and the name from the
            backbone's own pooled features. `soft_argmax`: as `spatial`, but each edge of the box
            is the mean of the cells' places, weighted by how likely it runs there.
        filters: of the 1x1 convolution before the box (`pooled`: before box and name).
        dropout: rate before the name (`pooled`: before name and box), 0 to 1.
        batch_norm: `local` (statistics of the batch of one replica), `synchronized` (of the
            global batch; not with XLA), or `frozen` (the statistics that the weights came with).
        batch_norm_momentum: of the moving statistics that evaluation uses. None for what Keras has:
            0.99, and in MobileNetV2 0.999, which after a few hundred steps still leaves ImageNet's.
        shared_words: classes whose names share a word share a part of their weights; see
            `trainer.names`.
    """

    alpha: float = 1.0
    stride: int = 32
    box_stride: int = 16
    head: str = "soft_argmax"
    filters: int = 256
    dropout: float = 0.0
    batch_norm: str = "local"
    batch_norm_momentum: float | None = 0.9
    shared_words: bool = True


@dataclass(frozen=True)
class Augment:
    """Random changes of training photos, each a function of (seed, position) only.

    Attributes:
        flip: mirror half of the photos, box included.
        crop: of half of the sides of photos not shown from near, cut away up to this share of the
            margin outside the box, 0 to 1.
        zoom: this share of the photos, 0 to 1, is shown from near: the box and a random margin.
            Without it, a model cannot look again (`predict.looks`).
        jitter: how much that margin varies, up and down from `looks.MARGIN`, as a share of the
            box's side, 0 to 0.4. What is more than `looks.MARGIN` also cuts into the object.
        colour: strength of brightness, contrast and saturation changes, 0 to 1.
        mixup: alpha of the Beta distribution by which two photos of a batch are mixed, names
            only (Zhang et al. 2018, arXiv:1710.09412); 0 for none.
    """

    flip: bool = True
    crop: float = 0.4
    zoom: float = 0.75
    jitter: float = 0.15
    colour: float = 0.3
    mixup: float = 0.0


@dataclass(frozen=True)
class Loss:
    """What is minimised; see `trainer.losses`.

    Attributes:
        box: a loss of `trainer.losses`, or a weighted sum such as `l1+giou`.
        box_reduction: over the batch: `mean`, or `sum` as the notebook has it.
        box_weight, label_weight: of the two tasks, where they are fixed.
        weighting: `fixed`, or `uncertainty` (learned; Kendall et al. 2018).
        label_smoothing: 0 to 1.
    """

    box: str = "5*l1+2*giou"
    box_reduction: str = "mean"
    box_weight: float = 1.0
    label_weight: float = 1.0
    weighting: str = "fixed"
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Adam where `weight_decay` is 0) and its schedule; see `trainer.optimizer`.

    Attributes:
        learning_rate: at its peak.
        backbone_rate: the backbone's learning rate as a share of the heads'.
        schedule: `constant`, `cosine` (to 0 at the end), or `plateau` (a tenth each time the
            validation loss has not improved for `plateau_epochs`).
        plateau_epochs: see there.
        warmup_epochs: linear from 0; may be a fraction.
        weight_decay: decoupled (Loshchilov & Hutter 2019), on kernels only.
        clip_norm: largest global norm of the gradients; 0 for no clipping.
        ema: decay of the moving average of weights that is evaluated; 0 for none.
        freeze_epochs: so many epochs only the heads learn; may be a fraction.
        accumulate: a batch is worked through in so many parts, whose gradients are summed.
    """

    learning_rate: float = 1e-3
    backbone_rate: float = 1.0
    schedule: str = "cosine"
    plateau_epochs: int = 3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    ema: float = 0.0
    freeze_epochs: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class Predict:
    """How a photo is judged; see `trainer.looks`.

    Weights do not depend on it; which epoch is best, early stopping and the plateau schedule do.

    Attributes:
        looks: the first is at the whole photo, each of the others at the box found and a margin
            around it; the last judges.
        flip: the last look is at the mirrored photo too, and the mean is taken.
    """

    looks: int = 3
    flip: bool = True


@dataclass(frozen=True)
class Config:
    """All that decides the outcome of a run, beside its data.

    Attributes:
        name: of the named config this one started from.
        weights: `imagenet`, `none`, or the path of a Keras weights file of the backbone.
        image_height, image_width: what the records must have; None for whatever they have.
        downscale: decode photos at 1/2, 1/4 or 1/8 of the records' size: for quick tries.
        epochs: passes over the training split.
        batch_size: global: over all replicas and workers.
        seed: of everything random.
        shuffle: a new order each epoch; otherwise the stored order.
        early_stopping_epochs: stop when the validation loss has not improved for so many
            epochs; 0 for never.
        jit: XLA: `on`, `off`, or `auto` (on where there is a GPU).
        precision: `float32`, `mixed_bfloat16` or `mixed_float16`.
        deterministic: only operations that give the same bits each time.
    """

    name: str = "default"
    weights: str = "imagenet"
    image_height: int | None = None
    image_width: int | None = None
    downscale: int = 1
    epochs: int = 30
    batch_size: int = 32
    seed: int = 42
    shuffle: bool = True
    early_stopping_epochs: int = 0
    jit: str = "auto"
    precision: str = "float32"
    deterministic: bool = True
    model: Model = field(default_factory=Model)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    predict: Predict = field(default_factory=Predict)


_CHOICES: dict[str, tuple[Any, ...]] = {
    "downscale": (1, 2, 4, 8),
    "jit": ("auto", "on", "off"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "model.stride": (16, 32),
    "model.box_stride": (16, 32),
    "model.head": ("pooled", "spatial", "soft_argmax"),
    "model.batch_norm": ("local", "synchronized", "frozen"),
    "loss.box_reduction": ("mean", "sum"),
    "loss.weighting": ("fixed", "uncertainty"),
    "optimizer.schedule": ("constant", "cosine", "plateau"),
}

# Inclusive limits; what is not named may have any value of its type.
_LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1e6),
    "batch_size": (1, 1e6),
    "seed": (0, 2**32 - 1),
    "early_stopping_epochs": (0, 1e6),
    "model.alpha": (0.05, 4),
    "model.filters": (1, 1e5),
    "model.dropout": (0, 0.99),
    "model.batch_norm_momentum": (0, 1),
    "augment.crop": (0, 1),
    "augment.zoom": (0, 1),
    "augment.jitter": (0, 0.4),
    "augment.colour": (0, 1),
    "augment.mixup": (0, 100),
    "loss.box_weight": (0, 1e6),
    "loss.label_weight": (0, 1e6),
    "loss.label_smoothing": (0, 0.99),
    "optimizer.learning_rate": (0, 1e3),
    "optimizer.backbone_rate": (0, 1e3),
    "optimizer.plateau_epochs": (1, 1e6),
    "optimizer.warmup_epochs": (0, 1e6),
    "optimizer.weight_decay": (0, 1e3),
    "optimizer.clip_norm": (0, 1e9),
    "optimizer.ema": (0, 0.999999),
    "optimizer.freeze_epochs": (0, 1e6),
    "optimizer.accumulate": (1, 1024),
    "predict.looks": (1, 9),
}


def baseline() -> Config:
    """The notebook's model and recipe exactly, as a mark to beat.

    On Stanford Cars at 256x320 the notebook reports 14.1 % top-1 and 0.7713 mean IoU after 5
    epochs, 68.4 % and 0.8542 after 100.
    """
    return Config(
        name="baseline",
        epochs=5,
        batch_size=64,
        shuffle=False,
        model=Model(head="pooled", dropout=0.5, batch_norm_momentum=None, shared_words=False),
        augment=Augment(flip=False, crop=0.0, zoom=0.0, colour=0.0),
        loss=Loss(box="squared_error", box_reduction="sum", label_smoothing=0.0),
        optimizer=Optimizer(
            learning_rate=1e-4, schedule="constant", warmup_epochs=0, weight_decay=0
        ),
        predict=Predict(looks=1, flip=False),
    )


def sample() -> Config:
    """Small, from random weights: learns the drawn sample in some minutes on two cores."""
    return Config(
        name="sample",
        weights="none",
        epochs=26,
        downscale=4,
        model=Model(alpha=0.35, stride=16, head="spatial", dropout=0.0, shared_words=False),
        augment=Augment(crop=0.0, zoom=0.0, colour=0.2),
        loss=Loss(label_smoothing=0.05),
        optimizer=Optimizer(learning_rate=4e-3, weight_decay=0.05, ema=0.98),
        predict=Predict(looks=1, flip=False),
    )


_NAMED = {"baseline": baseline, "default": Config, "sample": sample}
NAMES = tuple(_NAMED)


def named(name: str) -> Config:
    """Returns a named config.

    Raises:
        UserError: there is no such name.
    """
    if name not in _NAMED:
        raise UserError(f"no config is named {name!r}; there are {', '.join(NAMES)}.")
    return _NAMED[name]()


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Reads what follows `--set`: `key value` and `key=value`, any number, mixed.

    Raises:
        UserError: a key is without value.
    """
    settings = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if "=" in word:
            key, value = word.split("=", 1)
        elif rest:
            key, value = word, rest.pop(0)
        else:
            raise UserError(f"--set {word}: the value is missing. Write `--set {word} VALUE`.")
        settings[key] = value
    return settings


def apply_settings(config: Config, settings: dict[str, str]) -> Config:
    """Returns the config with fields replaced.

    Args:
        config: where to start.
        settings: text by dotted field name, e.g. `{"model.head": "pooled"}`.

    Raises:
        UserError: no such field, or a value of another type or out of range.
    """
    for key, text in settings.items():
        config = _replace(config, key.split("."), key, text)
    check(config)
    return config


def check(config: Config) -> None:
    """Checks what types cannot.

    Raises:
        UserError: a field's value is not among its choices or outside its range, or fields do not
            go together.
    """
    values = flatten(config)
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(
                f"{key} is {values[key]!r}; it must be one of {', '.join(map(str, choices))}."
            )
    for key, (low, high) in _LIMITS.items():
        if values[key] is not None and not low <= values[key] <= high:
            raise UserError(f"{key} is {values[key]}; it must be between {low:g} and {high:g}.")
    if config.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"batch_size {config.batch_size} cannot be divided into"
            f" optimizer.accumulate={config.optimizer.accumulate} equal parts."
        )
    if config.model.box_stride > config.model.stride:
        raise UserError(
            f"model.box_stride is {config.model.box_stride}, but the backbone ends at"
            f" model.stride={config.model.stride}: set model.box_stride {config.model.stride}."
        )
    if config.predict.looks > 1 and not config.augment.zoom:
        raise UserError(
            f"predict.looks is {config.predict.looks}, but with augment.zoom 0 the model never"
            " sees close-ups, and would judge them badly: set predict.looks 1, or train with"
            " augment.zoom above 0."
        )
    if config.model.batch_norm == "synchronized" and config.jit == "on":
        raise UserError("model.batch_norm=synchronized does not work with jit=on: set jit=off.")


def flatten(config: Config) -> dict[str, Any]:
    """Returns all fields by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def to_json(config: Config) -> str:
    """Returns the config as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_json(text: str) -> Config:
    """Parses what `to_json` wrote.

    Raises:
        UserError: the text is of another version of carbox, or damaged.
    """
    try:
        values = json.loads(text)
        for name, kind in typing.get_type_hints(Config).items():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                values[name] = kind(**_complete(kind, values[name]))
        return Config(**_complete(Config, values))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the run's config is not one that this version reads: {error!r}. Use the version that"
            " made the run, or start anew under another --run."
        ) from None


def _complete(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    # What an older version did not write, it did otherwise than today's default may.
    return {part.name: values[part.name] for part in dataclasses.fields(kind)} | values


def _replace(node: Any, path: list[str], key: str, text: str) -> Any:
    hints = typing.get_type_hints(type(node))
    if path[0] not in hints or (len(path) > 1) != dataclasses.is_dataclass(hints[path[0]]):
        near = difflib.get_close_matches(key, flatten(Config()), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--set {key}: there is no such setting.{hint}")
    if len(path) > 1:
        value = _replace(getattr(node, path[0]), path[1:], key, text)
    else:
        value = _parse(text, hints[path[0]], key)
    return dataclasses.replace(node, **{path[0]: value})


def _parse(text: str, kind: Any, key: str) -> Any:
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not types.NoneType)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--set {key} {text}: it must be true or false.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"--set {key} {text}: it must be of type {kind.__name__}.") from None
