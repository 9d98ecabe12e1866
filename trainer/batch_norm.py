"""Batch normalization in one operation."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("carbox")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, but for training on the statistics of the batch TensorFlow's fused operation.

    Keras 3 composes that case from a dozen operations, each a pass over all activations, forward
    and again backward; without XLA they are a large part of a step. Fused, it is one. The moving
    variance becomes the unbiased one, as in Keras 2.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalizes [b, h, w, c] for each channel, and in training moves the statistics."""
        if not (training and self.trainable) or self.synchronized or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return outputs
