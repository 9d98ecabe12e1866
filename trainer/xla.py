"""What XLA compiles: one rule for the whole trainer."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.configs import Config


def compiled(
    function: Callable[..., Any], config: Config, *, convolutions: bool = False
) -> Callable[..., Any]:
    """Returns the function, compiled by XLA where the config and the device ask for it.

    Elementwise arithmetic gains on every device: it becomes one pass over memory. Convolutions gain
    on GPUs only; on CPUs XLA's are many times slower than oneDNN's.

    Args:
        function: from tensors to tensors.
        config: `jit`: `on`, `off`, or `auto`.
        convolutions: whether the function runs the network.
    """
    wanted = uses_xla(config) if convolutions else config.jit != "off"
    return tf.function(function, autograph=False, jit_compile=True) if wanted else function


def uses_xla(config: Config) -> bool:
    """Whether XLA compiles the network: `jit` is `on`, or `auto` and there is a GPU."""
    if config.model.batch_norm == "synchronized" or config.jit == "off":
        return False
    return config.jit == "on" or bool(tf.config.get_visible_devices("GPU"))
