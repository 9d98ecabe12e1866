"""The limits that `benchmarks.gpu` compares with, against figures known from elsewhere."""

import pytest

from benchmarks import gpu
from trainer import model
from trainer.config import Config, Model


def test_the_arithmetic_limit_is_that_of_the_paper():
    config = Config(weights="none", model=Model(head="pooled", filters=1))
    network = model.build(config, 224, 224, ["a", "b"])
    # Table 4 of Sandler et al. 2018: 300 million multiply-adds with the 1000-way classifier.
    images, _ = gpu.limits(network, "mixed_bfloat16", 3 * 2 * 300e6, 1.0)
    assert images == pytest.approx(1, rel=0.02)


def test_full_precision_has_half_of_both():
    network = model.build(Config(weights="none", model=Model(alpha=0.35)), 64, 64, ["a", "b"])
    half, full = (gpu.limits(network, name, 1e12, 1e12) for name in ("mixed_bfloat16", "float32"))
    assert half == pytest.approx([2 * limit for limit in full])
