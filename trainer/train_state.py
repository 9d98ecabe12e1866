"""The state of a run between two steps, with the names that Flax uses.

Parameters, batch statistics, moments and averages are dictionaries of variables, each under its own
path in the network, such as `backbone/Conv1/kernel`. So anyone can read a checkpoint, and a network
whose layers were reordered gets its values by name and not by place.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.configs import Config
from trainer.metrics import SUMS

BACKBONE = "backbone/"
"""How the paths of MobileNetV2's variables begin."""

LOG_VARIANCES = "loss/log_variances"
"""The two learned uncertainties of the tasks, where `loss.weighting` is `uncertainty`."""

Tensors = dict[str, tf.Tensor]
"""A tensor for each path."""

Variables = dict[str, tf.Variable]
"""A variable for each path."""

Apply = Callable[[Tensors, Tensors, tf.Tensor, bool, tf.Tensor], tuple[Tensors, Tensors]]


@dataclass(frozen=True)
class TrainState:
    """The variables of a run; on every replica the same values.

    Attributes:
        step: int64, steps done.
        params: float32, the trainable variables.
        batch_stats: float32, BatchNorm's moving means and variances.
        m, v: float32, AdamW's moments of each parameter.
        ema_params, ema_batch_stats: the moving averages of `params` and `batch_stats`; empty
            without EMA.
        lr_scale: float32, by which a plateau has lowered the learning rate.
        loss_scale: float32, and good_steps: int64, of mixed_float16; see `trainer.step`.
        first_nonfinite_step: int64, the first step whose loss was not finite, or -1.
        epoch_sums: float64 [len(SUMS)], over the training steps of this epoch.
    """

    step: tf.Variable
    params: Variables
    batch_stats: Variables
    m: Variables
    v: Variables
    ema_params: Variables
    ema_batch_stats: Variables
    lr_scale: tf.Variable
    loss_scale: tf.Variable
    good_steps: tf.Variable
    first_nonfinite_step: tf.Variable
    epoch_sums: tf.Variable

    @property
    def eval_params(self) -> Variables:
        """The parameters to evaluate: the averaged ones where they exist."""
        return self.ema_params or self.params

    @property
    def eval_batch_stats(self) -> Variables:
        """The batch statistics to evaluate: the averaged ones where they exist."""
        return self.ema_batch_stats or self.batch_stats

    def eval_values(self) -> tuple[Tensors, Tensors]:
        """Returns the values of `eval_params` and `eval_batch_stats`; on a replica, its own."""
        return _values(self.eval_params), _values(self.eval_batch_stats)

    def variables(self) -> Variables:
        """Returns all variables by their names in a checkpoint: `params/backbone/Conv1/kernel`."""
        found: Variables = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                found |= {f"{name}/{path}": variable for path, variable in value.items()}
            else:
                found[name] = value
        return found

    def values(self) -> dict[str, Any]:
        """Returns the value of each variable, in the same dictionaries; on a replica, its own."""
        return {
            name: _values(value) if isinstance(value, dict) else tf.convert_to_tensor(value)
            for name, value in vars(self).items()
        }

    def assign(self, values: dict[str, Any]) -> None:
        """Gives variables new values; those that `values` does not name keep theirs."""
        for name, value in values.items():
            variables = getattr(self, name)
            if isinstance(value, dict):
                for path, one in value.items():
                    variables[path].assign(one)
            else:
                variables.assign(value)


@dataclass(frozen=True)
class Packing:
    """The layout of tensors in one vector, which is updated in one pass and sent in one message.

    Attributes:
        shapes: of each tensor, by path.
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> list[int]:
        """How many values each tensor has."""
        return [math.prod(shape) for shape in self.shapes.values()]

    def pack(self, tensors: Tensors) -> tf.Tensor:
        """Returns the tensors of these paths as one vector, [n]."""
        return tf.concat([tf.reshape(tensors[path], [-1]) for path in self.shapes], 0)

    def unpack(self, vector: tf.Tensor) -> Tensors:
        """Returns the vector as tensors."""
        parts = tf.split(vector, self.sizes)
        return {
            path: tf.reshape(part, shape)
            for (path, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def spread(self, values: Mapping[str, float]) -> np.ndarray:
        """Returns one value for each tensor as a vector, float32 [n]."""
        return np.repeat(np.array([values[path] for path in self.shapes], np.float32), self.sizes)


def packing(variables: Variables) -> Packing:
    """Returns how the values of variables lie in one vector."""
    return Packing({path: tuple(variable.shape) for path, variable in variables.items()})


def create(strategy: tf.distribute.Strategy, model: keras.Model, config: Config) -> TrainState:
    """Returns the state at step 0, from the model's own values."""
    params = {path: variable.value for path, variable in _trainable(model).items()}
    if config.loss.weighting == "uncertainty":
        params[LOG_VARIANCES] = tf.zeros(2)
    batch_stats = {path: variable.value for path, variable in _moving(model).items()}
    averaged = config.optimizer.ema > 0
    scaled = config.precision == "mixed_float16"
    with strategy.scope():
        return TrainState(
            step=_variable(np.int64(0)),
            params=_variables(params),
            batch_stats=_variables(batch_stats),
            m=_variables({path: tf.zeros_like(value) for path, value in params.items()}),
            v=_variables({path: tf.zeros_like(value) for path, value in params.items()}),
            ema_params=_variables(params if averaged else {}),
            ema_batch_stats=_variables(batch_stats if averaged else {}),
            lr_scale=_variable(np.float32(1)),
            loss_scale=_variable(np.float32(2**15 if scaled else 1)),
            good_steps=_variable(np.int64(0)),
            first_nonfinite_step=_variable(np.int64(-1)),
            epoch_sums=_variable(np.zeros(len(SUMS), np.float64)),
        )


def make_apply(model: keras.Model) -> Apply:
    """Returns the model as a pure function of its values.

    Returns:
        (params, batch_stats, images float32 [b, h, w, 3], training, seed int64 [2]) -> (outputs,
        new batch_stats). The seed is dropout's.
    """
    trainable, moving = list(_trainable(model)), list(_moving(model))
    is_float = [_is_float(variable) for variable in model.non_trainable_variables]

    def apply(params, batch_stats, images, training, seed):  # type: ignore[no-untyped-def]
        statistics = iter([batch_stats[path] for path in moving])
        # A variable that is not floating is the state of dropout's random generator.
        others = [next(statistics) if floats else seed for floats in is_float]
        outputs, others = model.stateless_call(
            [params[path] for path in trainable], others, images, training=training
        )
        new = [value for value, floats in zip(others, is_float, strict=True) if floats]
        return outputs, dict(zip(moving, new, strict=True))

    return apply


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns a model's parameters and batch statistics by path."""
    return _trainable(model) | _moving(model)


def load_into(model: keras.Model, values: Mapping[str, Any]) -> None:
    """Gives a model's own variables the values of their paths."""
    for path, variable in named_variables(model).items():
        variable.assign(values[path])


def eval_values_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values to use of a checkpoint, by path in the network.

    Args:
        stored: from `checkpoint.read`. Averages are taken where it has them.
    """
    averaged = "ema_" if any(name.startswith("ema_params/") for name in stored) else ""
    folders = {f"{averaged}params", f"{averaged}batch_stats"}
    split = {name: name.partition("/") for name in stored}
    return {path: stored[name] for name, (top, _, path) in split.items() if top in folders}


def _trainable(model: keras.Model) -> dict[str, keras.Variable]:
    paths = dict(_paths(model))
    return {paths[id(variable)]: variable for variable in model.trainable_variables}


def _moving(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns BatchNorm's moving statistics; and parameters that the config does not train."""
    paths = dict(_paths(model))
    return {paths[id(v)]: v for v in model.non_trainable_variables if _is_float(v)}


def _is_float(variable: keras.Variable) -> bool:
    return variable.dtype.startswith("float")


def _paths(model: keras.Model, prefix: str = "") -> Iterator[tuple[int, str]]:
    """Yields the id of each variable and its path: names of models, layer and variable."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _paths(layer, f"{prefix}{layer.name}/")
        else:
            for variable in layer.variables:
                yield id(variable), f"{prefix}{layer.name}/{variable.name}"


def _values(variables: Variables) -> Tensors:
    return {path: tf.convert_to_tensor(variable) for path, variable in variables.items()}


def _variables(values: Tensors) -> Variables:
    return {path: _variable(value) for path, value in values.items()}


def _variable(value: tf.Tensor) -> tf.Variable:
    # Each replica has its own copy and assigns it without communication: all compute the same.
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
