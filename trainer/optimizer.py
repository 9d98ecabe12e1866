"""AdamW and its learning rate, as pure functions of tensors.

Keras's optimizers update variable by variable through a merge call, which neither XLA nor a loop
of several steps in one graph can fuse, and their `stateless_apply` raises on TensorFlow. A test
holds this against Keras's own.
"""

import math

import tensorflow as tf

from trainer.configs import Optimizer


def adamw(
    params: tf.Tensor,
    gradient: tf.Tensor,
    m: tf.Tensor,
    v: tf.Tensor,
    *,
    step: tf.Tensor,
    learning_rate: tf.Tensor,
    decay: tf.Tensor | float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One step of AdamW as Keras computes it (beta 0.9 and 0.999, epsilon 1e-7).

    Sources: Kingma & Ba 2015 (arXiv:1412.6980), Loshchilov & Hutter 2019 (arXiv:1711.05101).

    Args:
        params, gradient: float32 [n].
        m, v: float32 [n], running means of gradients and of squared gradients.
        step: int64 scalar, steps done before this one.
        learning_rate: float32 scalar or [n].
        decay: float32 scalar or [n], decoupled weight decay, times the learning rate.

    Returns:
        The new parameters and moments.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-7
    power = tf.cast(step + 1, tf.float32)
    rate = learning_rate * tf.sqrt(1 - tf.pow(beta2, power)) / (1 - tf.pow(beta1, power))
    m = m + (gradient - m) * (1 - beta1)
    v = v + (tf.square(gradient) - v) * (1 - beta2)
    params = params - params * decay * learning_rate
    return params - rate * m / (tf.sqrt(v) + epsilon), m, v


def ema_decay(decay: float, step: tf.Tensor) -> tf.Tensor:
    """Returns the decay of the moving average at a step: float32 scalar, at most `decay`.

    The average starts as a plain mean, which short runs need, as in
    `tf.train.ExponentialMovingAverage(num_updates=step)`.
    """
    count = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1 + count) / (10 + count))


def learning_rate(
    config: Optimizer, step: tf.Tensor, steps_per_epoch: int, total_steps: int, lr_scale: tf.Tensor
) -> tf.Tensor:
    """Returns the learning rate of a step.

    Linear warm-up from 0 (Goyal et al. 2017, arXiv:1706.02677), then constant or half a cosine
    down to 0 at the end (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        config: peak, schedule and length of the warm-up.
        step: int64 scalar, from 0.
        steps_per_epoch, total_steps: of the run.
        lr_scale: float32 scalar by which `plateau` has lowered it; 1 otherwise.

    Returns:
        float32 scalar.
    """
    position = tf.cast(step, tf.float32)
    warmup = min(config.warmup_epochs * steps_per_epoch, total_steps)
    rate = config.learning_rate * lr_scale
    if config.schedule == "cosine":
        progress = (position - warmup) / max(total_steps - warmup, 1)
        rate *= 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
    if warmup > 0:
        peak = config.learning_rate * lr_scale
        # Where the warm-up ends within a step, the ramp would pass the peak.
        ramp = tf.minimum(peak * (position + 1) / warmup, peak)
        rate = tf.where(position < warmup, ramp, rate)
    return rate
