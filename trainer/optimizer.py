"""AdamW and its learning rate, as pure functions of tensors.

Keras's optimizers update variable by variable through a merge call, which neither XLA nor a loop
of several steps in one graph can fuse, and their `stateless_apply` refuses to work on TensorFlow.
Here all weights are one vector (see `trainer.state`). A test holds this against Keras's own.
"""

import math

import tensorflow as tf

from trainer.config import Optimizer


def adamw(
    weights: tf.Tensor,
    gradients: tf.Tensor,
    first: tf.Tensor,
    second: tf.Tensor,
    count: tf.Tensor,
    learning_rate: tf.Tensor,
    decay: tf.Tensor | float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One step of AdamW as Keras computes it (beta 0.9 and 0.999, epsilon 1e-7).

    Sources: Kingma & Ba 2015 (arXiv:1412.6980), Loshchilov & Hutter 2019 (arXiv:1711.05101).

    Args:
        weights, gradients: float32 [n].
        first, second: float32 [n], running means of gradients and of squared gradients.
        count: int64 scalar, steps done before this one.
        learning_rate: float32 scalar or [n].
        decay: float32 scalar or [n], decoupled weight decay, times the learning rate.

    Returns:
        The new weights, first and second moments.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-7
    power = tf.cast(count + 1, tf.float32)
    rate = learning_rate * tf.sqrt(1 - tf.pow(beta2, power)) / (1 - tf.pow(beta1, power))
    first = first + (gradients - first) * (1 - beta1)
    second = second + (tf.square(gradients) - second) * (1 - beta2)
    weights = weights - weights * decay * learning_rate
    return weights - rate * first / (tf.sqrt(second) + epsilon), first, second


def learning_rate(
    config: Optimizer, step: tf.Tensor, steps_per_epoch: int, total_steps: int, factor: tf.Tensor
) -> tf.Tensor:
    """The learning rate of a step.

    Linear warm-up from 0 (Goyal et al. 2017, arXiv:1706.02677), then constant or half a cosine
    down to 0 at the end (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        config: peak, schedule and length of the warm-up.
        step: int64 scalar, from 0.
        steps_per_epoch, total_steps: of the run.
        factor: float32 scalar by which `plateau` has lowered it; 1 otherwise.

    Returns:
        float32 scalar.
    """
    position = tf.cast(step, tf.float32)
    warmup = min(config.warmup_epochs * steps_per_epoch, total_steps)
    rate = config.learning_rate * factor
    if config.schedule == "cosine":
        progress = (position - warmup) / max(total_steps - warmup, 1)
        rate *= 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
    if warmup > 0:
        peak = config.learning_rate * factor
        # Where the warm-up ends within a step, the ramp would pass the peak.
        ramp = tf.minimum(peak * (position + 1) / warmup, peak)
        rate = tf.where(position < warmup, ramp, rate)
    return rate
