"""Every hyper-parameter, once: its type, default, range or choices, and what it is for.

`trainer.configs.settings` checks values by it, and `trainer.configs.flags` makes a flag of each.
"""

from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    within: tuple[float, float] | None = None,
    choices: tuple[Any, ...] = (),
    before: Any = None,
) -> Any:
    """Returns a dataclass field.

    Args:
        default: the value where a config does not choose another.
        help: what the setting is for, with its unit, in one line.
        within: smallest and largest value that is allowed.
        choices: the values that are allowed.
        before: what runs did that were made before the setting existed, so that they stay usable.
    """
    about = {"help": help, "within": within, "choices": choices, "before": before}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Model:
    """The network: MobileNetV2 and two heads; see `trainer.model`."""

    alpha: float = setting(
        1.0,
        "width of MobileNetV2; ImageNet weights exist for 0.35, 0.5, 0.75, 1, 1.3 and 1.4",
        within=(0.05, 4),
    )
    input_height: int | None = setting(
        None,
        "height of the network's input, in pixels; none for the height of the decoded records",
        within=(32, 16384),
    )
    input_width: int | None = setting(
        None, "width of the network's input, in pixels; set both or neither", within=(32, 16384)
    )
    stride: int = setting(
        32,
        "pixels of the photo to a cell of the last feature map: 32 for the whole backbone, 16 or 8"
        " to end it inside the block that would halve the map next",
        choices=(8, 16, 32),
    )
    last_stride: int = setting(
        1,
        "stride of the last block that would halve the map, 2 in MobileNetV2: with 1 the map keeps"
        " its rows and columns to the end, and model.stride=32 leaves 16 pixels to a cell (Luo et"
        ' al. 2019, arXiv:1903.07071, "Last Stride")',
        choices=(1, 2),
        before=2,
    )
    box_stride: int = setting(
        16,
        "pixels of the photo to a cell of the map that the box is read from, at most"
        " model.stride; the pooled head ignores it, because it reads box and name from one map",
        choices=(8, 16, 32),
    )
    head: str = setting(
        "soft_argmax",
        "pooled: box and name from pooled features, as in the notebook; spatial: the box from the"
        " flattened feature map, which keeps positions; soft_argmax: each edge of the box is the"
        " mean of the cells' positions, weighted by the probability that the edge is there",
        choices=("pooled", "spatial", "soft_argmax"),
    )
    filters: int = setting(
        256,
        "filters of the 1x1 convolution before the box (pooled: before box and name)",
        within=(1, 100_000),
    )
    dropout: float = setting(
        0.0, "dropout rate before the name (pooled: before name and box)", within=(0, 0.99)
    )
    batch_norm: str = setting(
        "local",
        "statistics of one replica's share of a batch (local), of the global batch (synchronized;"
        " not with XLA), or those that the weights came with (frozen)",
        choices=("local", "synchronized", "frozen"),
    )
    batch_norm_momentum: float | None = setting(
        0.9,
        "momentum of the moving statistics that evaluation uses; none for Keras's own: 0.99, and in"
        " MobileNetV2 0.999, with which ImageNet's still dominate after a few hundred steps",
        within=(0, 1),
    )
    word_shared_classifier: bool = setting(
        True, "classes whose names share a word share a part of their weights"
    )


@dataclass(frozen=True)
class Augment:
    """Random changes of training photos, each a function of (seed, position) only."""

    flip: bool = setting(True, "mirror half of the photos, box included")
    context_crop: float = setting(
        0.4,
        "photos that are not cropped to the object are cut on each side with probability 1/2, by up"
        " to this share of the margin outside the box",
        within=(0, 1),
    )
    object_crop: float = setting(
        0.75,
        "share of the photos that are cropped to the box and a random margin; inference.zoom_passes"
        " needs a model that was trained on such crops",
        within=(0, 1),
    )
    object_crop_margin: float = setting(
        0.1,
        "mean of that margin on each side, as a share of the box's side",
        within=(0, 0.5),
        before=0.1,
    )
    object_crop_jitter: float = setting(
        0.15,
        "how much that margin varies, up and down, as a share of the box's side; more than"
        " augment.object_crop_margin also cuts into the object",
        within=(0, 0.4),
    )
    color_jitter: float = setting(
        0.3, "strength of changes of brightness, contrast and saturation", within=(0, 1)
    )
    mixup: float = setting(
        0.0,
        "alpha of the Beta distribution by which two photos of a batch and their labels are mixed;"
        " the box is that of the larger part (Zhang et al. 2018, arXiv:1710.09412); 0 for none",
        within=(0, 100),
    )


@dataclass(frozen=True)
class Loss:
    """What is minimized; see `trainer.losses`."""

    box: str = setting(
        "5*l1+2*giou", "box loss: a name of trainer.losses, or a weighted sum such as l1+giou"
    )
    box_reduction: str = setting(
        "mean",
        "how the box loss is reduced over the batch; the notebook takes the sum",
        choices=("mean", "sum"),
    )
    box_weight: float = setting(
        1.0, "weight of the box loss with loss.weighting=fixed", within=(0, 1_000_000)
    )
    label_weight: float = setting(
        1.0, "weight of the label loss with loss.weighting=fixed", within=(0, 1_000_000)
    )
    weighting: str = setting(
        "fixed",
        "weights of the two losses: fixed, or learned (uncertainty; Kendall et al. 2018)",
        choices=("fixed", "uncertainty"),
    )
    label_smoothing: float = setting(
        0.1, "share of the target that is spread over all classes", within=(0, 0.99)
    )


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Adam where `weight_decay` is 0) and its schedule; see `trainer.optimizer`."""

    learning_rate: float = setting(1e-3, "the heads' learning rate at its peak", within=(0, 1000))
    backbone_lr_scale: float = setting(
        1.0, "the backbone's learning rate as a share of the heads'", within=(0, 1000)
    )
    schedule: str = setting(
        "cosine",
        "schedule of the learning rate: constant, cosine (to 0 at the end), or plateau (a tenth"
        " each time the validation loss has not improved for optimizer.plateau_epochs)",
        choices=("constant", "cosine", "plateau"),
    )
    plateau_epochs: int = setting(
        3, "patience of optimizer.schedule=plateau, in epochs", within=(1, 1_000_000)
    )
    warmup_epochs: float = setting(
        1.0,
        "epochs, or a fraction, in which the learning rate rises from 0, linearly",
        within=(0, 1_000_000),
    )
    weight_decay: float = setting(
        0.5, "decoupled weight decay (Loshchilov & Hutter 2019), of kernels only", within=(0, 1000)
    )
    clip_norm: float = setting(
        0.0, "largest global norm of the gradients; 0 for no clipping", within=(0, 1_000_000_000)
    )
    ema: float = setting(
        0.0,
        "decay of the moving average of the weights, which is evaluated; 0 for none",
        within=(0, 0.999999),
    )
    freeze_epochs: float = setting(
        0.0, "epochs, or a fraction, in which only the heads are trained", within=(0, 1_000_000)
    )
    accumulation_steps: int = setting(
        1,
        "parts into which a batch is split; their gradients are summed",
        within=(1, 1024),
    )


@dataclass(frozen=True)
class Inference:
    """How the network is applied to a photo; see `trainer.inference`.

    It does not change the weights of a step. It does change validation, and so which epoch is best,
    early stopping and the plateau schedule.
    """

    zoom_passes: int = setting(
        2,
        "passes after the first, each on the photo cropped to the box that was found before",
        within=(0, 8),
    )
    zoom_margin: float = setting(
        0.05,
        "margin around that box on each side, as a share of the box's side; above 0, because the"
        " box is not exact",
        within=(0, 0.5),
        before=0.1,
    )
    flip_tta: bool = setting(
        True, "test-time augmentation: the last pass takes a mirrored crop too; the mean is used"
    )
    margin_tta: float = setting(
        0.03,
        "test-time augmentation: the last zoom pass takes two crops, whose margins are smaller and"
        " larger than inference.zoom_margin by this (mirrored is the larger); the mean is used;"
        " 0 for one margin",
        within=(0, 0.5),
        before=0.0,
    )


@dataclass(frozen=True)
class Config:
    """All that decides the outcome of a run, besides its data.

    Attributes:
        name: of the file that the config came from, without `.py`; no setting.
    """

    name: str = "default"
    weights: str = setting(
        "imagenet",
        "weights that the backbone starts with: imagenet, none (random), or the path of a Keras"
        " weights file of MobileNetV2 without top",
    )
    downscale: int = setting(
        1, "decode photos at 1/2, 1/4 or 1/8 of the records' size", choices=(1, 2, 4, 8)
    )
    epochs: int = setting(30, "passes over the training split", within=(1, 1_000_000))
    batch_size: int = setting(
        32, "photos in a step, over all replicas and workers", within=(1, 1_000_000)
    )
    seed: int = setting(42, "seed of everything random", within=(0, 2**32 - 1))
    shuffle: bool = setting(True, "a new order each epoch; otherwise the stored order")
    early_stopping_epochs: int = setting(
        0,
        "stop when the validation loss has not improved for this many epochs; 0 for never",
        within=(0, 1_000_000),
    )
    jit: str = setting(
        "auto", "XLA: auto (on where there is a GPU), on, off", choices=("auto", "on", "off")
    )
    precision: str = setting(
        "float32",
        "precision of the network's arithmetic",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    deterministic: bool = setting(True, "only operations that give the same bits each time")
    model: Model = field(default_factory=Model)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    inference: Inference = field(default_factory=Inference)
