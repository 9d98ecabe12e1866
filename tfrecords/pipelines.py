"""How `tf.data` runs here: on all cores, and without tuning itself.

By default each iterator starts a thread that tunes it. In TensorFlow 2.21 that thread can miss its
cancellation (`Model::OptimizeLoop` is woken before it can see why) and sleep on, up to a minute,
while the deletion of the iterator waits for it: after each validation, and at the end of a run.
"""

import os
from typing import Any

import tensorflow as tf

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use."""


def untuned() -> tf.data.Options:
    """Returns the options of a dataset that does not tune itself.

    They stay with the dataset: AUTOTUNE has no effect on datasets built from it; give numbers.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def untune_devices() -> None:
    """Makes the iterators that a strategy adds for each device untuned too.

    They hold a fixed number of batches, so there is nothing to tune. TensorFlow gives no other
    access to their options; where a version of it has no such function, they stay as they are.
    """
    try:
        from tensorflow.python.data.ops import multi_device_iterator_ops as module

        create = module._create_device_dataset
    except (ImportError, AttributeError):
        return

    def create_untuned(*args: Any, **kwargs: Any) -> tf.data.Dataset:
        return create(*args, **kwargs).with_options(untuned())

    module._create_device_dataset = create_untuned
