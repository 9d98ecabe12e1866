"""The limits that `benchmarks.gpu` compares with, against figures known from elsewhere."""

import pytest

from benchmarks import gpu
from trainer import configs, model


def build(side: int, **settings):
    config = configs.replace(configs.load("default"), {"weights": "none", **settings})
    return model.build(config, side, side, ["a", "b"])


def test_the_arithmetic_limit_is_that_of_the_paper():
    network = build(224, **{"model.head": "pooled", "model.filters": 1, "model.last_stride": 2})
    # Table 4 of Sandler et al. 2018: 300 million multiply-adds with the 1000-way classifier.
    images, _ = gpu.limits(network, "mixed_bfloat16", 3 * 2 * 300e6, 1.0)
    assert images == pytest.approx(1, rel=0.02)


def test_full_precision_has_half_of_both():
    network = build(64, **{"model.alpha": 0.35})
    half, full = (gpu.limits(network, name, 1e12, 1e12) for name in ("mixed_bfloat16", "float32"))
    assert half == pytest.approx([2 * limit for limit in full])
