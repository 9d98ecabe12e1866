"""Configs: every hyper-parameter of a run, and the files that choose their values.

    config = configs.load("default")                 # or baseline, sample, FILE.py
    configs.define_flags(FLAGS)                      # --config=NAME --config.optimizer.ema=0.99
    config = configs.from_flags(FLAGS, "default")    # after the flags are parsed

A config file of your own defines `get_config()` as `default.py` does. Nothing here needs
TensorFlow.
"""

from trainer.configs.files import NAMES, from_json, load, to_json
from trainer.configs.flags import apply, define_flags, from_flags
from trainer.configs.schema import Augment, Config, Inference, Loss, Model, Optimizer
from trainer.configs.settings import SETTINGS, check, flatten, replace

__all__ = [
    "NAMES",
    "SETTINGS",
    "Augment",
    "Config",
    "Inference",
    "Loss",
    "Model",
    "Optimizer",
    "apply",
    "check",
    "define_flags",
    "flatten",
    "from_flags",
    "from_json",
    "load",
    "replace",
    "to_json",
]
