import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import Optimizer
from trainer.optimizer import adamw, learning_rate


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_takes_the_same_steps_as_keras(decay):
    random = np.random.default_rng(0)
    start = random.normal(size=7).astype("float32")
    gradients = random.normal(size=(20, 7)).astype("float32")
    theirs = tf.Variable(start)
    keras_optimizer = keras.optimizers.AdamW(0.01, weight_decay=decay)
    ours, first, second = tf.constant(start), tf.zeros(7), tf.zeros(7)
    for count, gradient in enumerate(gradients):
        keras_optimizer.apply_gradients([(tf.constant(gradient), theirs)])
        ours, first, second = adamw(
            ours,
            tf.constant(gradient),
            first,
            second,
            tf.constant(count, tf.int64),
            tf.constant(0.01),
            decay,
        )
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def rates(config: Optimizer, steps: int, factor: float = 1.0) -> list[float]:
    return [
        float(learning_rate(config, tf.constant(step, tf.int64), 10, steps, tf.constant(factor)))
        for step in range(steps)
    ]


def test_warm_up_rises_in_equal_steps_to_the_peak():
    found = rates(Optimizer(learning_rate=0.5, schedule="constant", warmup_epochs=1), 30)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) * 0.05, rtol=1e-6)
    np.testing.assert_allclose(found[10:], 0.5, rtol=1e-6)


def test_a_warm_up_that_ends_within_a_step_does_not_pass_the_peak():
    found = rates(Optimizer(learning_rate=0.5, schedule="constant", warmup_epochs=0.25), 10)
    np.testing.assert_allclose(found[:3], [0.2, 0.4, 0.5], rtol=1e-6)
    assert max(found) == pytest.approx(0.5)


def test_cosine_falls_from_the_peak_to_almost_nothing():
    found = rates(Optimizer(learning_rate=0.5, schedule="cosine", warmup_epochs=0), 100)
    assert found[0] == pytest.approx(0.5)
    assert found[50] == pytest.approx(0.25)
    assert 0 < found[-1] < 0.001
    assert all(np.diff(found) < 0)


def test_plateau_multiplies_the_rate():
    config = Optimizer(learning_rate=0.5, schedule="plateau", warmup_epochs=0)
    np.testing.assert_allclose(rates(config, 3, factor=0.1), 0.05, rtol=1e-6)
