import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.configs import Optimizer
from trainer.optimizer import adamw, ema_decay, learning_rate


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_takes_the_same_steps_as_keras(decay):
    random = np.random.default_rng(0)
    start = random.normal(size=7).astype("float32")
    gradients = random.normal(size=(20, 7)).astype("float32")
    theirs = tf.Variable(start)
    keras_optimizer = keras.optimizers.AdamW(0.01, weight_decay=decay)
    ours, m, v = tf.constant(start), tf.zeros(7), tf.zeros(7)
    for count, gradient in enumerate(gradients):
        keras_optimizer.apply_gradients([(tf.constant(gradient), theirs)])
        ours, m, v = adamw(
            ours,
            tf.constant(gradient),
            m,
            v,
            step=tf.constant(count, tf.int64),
            learning_rate=tf.constant(0.01),
            decay=decay,
        )
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_the_moving_average_is_that_of_tensorflow():
    values = np.random.default_rng(0).normal(size=30).astype("float32")
    step, value, average = tf.Variable(0, dtype=tf.int64), tf.Variable(0.0), 0.0
    theirs = tf.train.ExponentialMovingAverage(0.7, num_updates=step)
    theirs.apply([value])
    for count, new in enumerate(values):
        step.assign(count)
        value.assign(new)
        theirs.apply([value])
        average += (1 - float(ema_decay(0.7, step))) * (new - average)
        assert theirs.average(value).numpy() == pytest.approx(average, rel=1e-4, abs=1e-5)
    assert float(ema_decay(0.7, step)) == pytest.approx(0.7)


def rates(config: Optimizer, steps: int, lr_scale: float = 1.0) -> list[float]:
    return [
        float(learning_rate(config, tf.constant(step, tf.int64), 10, steps, tf.constant(lr_scale)))
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
    np.testing.assert_allclose(rates(config, 3, lr_scale=0.1), 0.05, rtol=1e-6)
