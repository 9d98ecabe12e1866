"""What a run knows between two steps: a handful of variables, saved and restored as one.

All weights are one vector, and so are all moving statistics. The step is then a pure function
from tensors to tensors: XLA sees all of it, replicas agree in one all-reduce, and a checkpoint is
a few arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from trainer import metrics
from trainer.config import Config

LOSSES = ("loss", "box_loss", "label_loss")
SUMS = (*LOSSES, *metrics.NAMES)
"""What is summed over an epoch: losses over examples, then the metrics."""


@dataclass(frozen=True)
class Layout:
    """How a list of arrays lies in one vector."""

    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """How many values each array has."""
        return [int(np.prod(shape)) for shape in self.shapes]

    def pack(self, arrays: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the arrays as one vector."""
        return tf.concat([tf.reshape(array, [-1]) for array in arrays], 0)

    def unpack(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Returns the vector as arrays."""
        parts = tf.split(vector, self.sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def spread(self, flags: Sequence[bool]) -> np.ndarray:
        """Returns one flag an array as one number a value: float32, 0 or 1."""
        return np.repeat(np.array(flags, np.float32), self.sizes)


@dataclass(frozen=True)
class Layouts:
    """Where a model's variables lie in the vectors of a `State`.

    Attributes:
        weights: of `model.trainable_variables`, followed by the two learned log-variances.
        statistics: of the floating `model.non_trainable_variables`.
        in_backbone: which arrays of `weights` belong to the backbone.
        is_kernel: which have two axes or more, and so decay.
    """

    weights: Layout
    statistics: Layout
    in_backbone: tuple[bool, ...]
    is_kernel: tuple[bool, ...]


def layouts(model: keras.Model) -> Layouts:
    """Returns the layouts of a model."""
    backbone = {id(v) for v in model.get_layer("backbone").trainable_variables}
    weights = Layout((*(tuple(v.shape) for v in model.trainable_variables), (2,)))
    statistics = Layout(tuple(tuple(v.shape) for v in _statistics(model)))
    return Layouts(
        weights,
        statistics,
        in_backbone=(*(id(v) in backbone for v in model.trainable_variables), False),
        is_kernel=tuple(len(shape) > 1 for shape in weights.shapes),
    )


@dataclass(frozen=True)
class State:
    """The variables of a run; on every replica the same values.

    Attributes:
        step: int64, steps done.
        weights, first, second: float32 [n], weights and AdamW's moments.
        statistics: float32 [m], BatchNorm's moving means and variances.
        ema_weights, ema_statistics: their moving averages, or None without EMA.
        plateau: float32, factor of the learning rate.
        loss_scale, good_steps: of mixed_float16; see `trainer.step`.
        bad_step: int64, the first step whose loss was not finite, or -1.
        sums: float64 [len(SUMS)], over the training steps of this epoch.
    """

    step: tf.Variable
    weights: tf.Variable
    first: tf.Variable
    second: tf.Variable
    statistics: tf.Variable
    ema_weights: tf.Variable | None
    ema_statistics: tf.Variable | None
    plateau: tf.Variable
    loss_scale: tf.Variable
    good_steps: tf.Variable
    bad_step: tf.Variable
    sums: tf.Variable

    def variables(self) -> dict[str, tf.Variable]:
        """Returns the variables by name."""
        return {name: v for name, v in vars(self).items() if v is not None}


def create(strategy: tf.distribute.Strategy, model: keras.Model, config: Config) -> State:
    """Returns the state at step 0, from the model's own values."""
    plan = layouts(model)
    weights = plan.weights.pack([*(v.value for v in model.trainable_variables), tf.zeros(2)])
    statistics = plan.statistics.pack([v.value for v in _statistics(model)])
    ema = config.optimizer.ema > 0
    scaled = config.precision == "mixed_float16"
    with strategy.scope():
        return State(
            step=_variable(np.int64(0)),
            weights=_variable(weights),
            first=_variable(tf.zeros_like(weights)),
            second=_variable(tf.zeros_like(weights)),
            statistics=_variable(statistics),
            ema_weights=_variable(weights) if ema else None,
            ema_statistics=_variable(statistics) if ema else None,
            plateau=_variable(np.float32(1)),
            loss_scale=_variable(np.float32(2**15 if scaled else 1)),
            good_steps=_variable(np.int64(0)),
            bad_step=_variable(np.int64(-1)),
            sums=_variable(np.zeros(len(SUMS), np.float64)),
        )


def predictor(model: keras.Model) -> Callable[..., tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """Returns the model as a pure function of its values.

    Returns:
        (weights [n], statistics [m], images, training, seed int64 [2]) -> (outputs, new
        statistics [m]). `weights` may be a vector or the list that `Layout.unpack` makes of it.
    """
    plan = layouts(model)
    floating = [v.dtype.startswith("float") for v in model.non_trainable_variables]

    def predict(weights, statistics, images, training, seed):  # type: ignore[no-untyped-def]
        parts = plan.weights.unpack(weights)[:-1] if tf.is_tensor(weights) else weights[:-1]
        values = iter(plan.statistics.unpack(statistics))
        # What is not floating is the seed of dropout: given, so that it follows from the step.
        others = [next(values) if is_float else seed for is_float in floating]
        outputs, others = model.stateless_call(parts, others, images, training=training)
        kept = [value for value, is_float in zip(others, floating, strict=True) if is_float]
        return outputs, plan.statistics.pack(kept)

    return predict


def judged(state: State) -> tuple[tf.Variable, tf.Variable]:
    """Returns weights and statistics to evaluate: the averaged ones where they exist."""
    if state.ema_weights is not None and state.ema_statistics is not None:
        return state.ema_weights, state.ema_statistics
    return state.weights, state.statistics


def _statistics(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.non_trainable_variables if v.dtype.startswith("float")]


def _variable(value: tf.Tensor) -> tf.Variable:
    # Each replica has its own and assigns it without asking the others: they all compute the same.
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
