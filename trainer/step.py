"""One step of training, as one replica does it.

A step augments its photos, and then has three parts: gradients (a pure function), one all-reduce
for each type of tensor, update (a pure function). Only then are variables assigned.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import losses, metrics, optimizer
from trainer.augment import Batch, augment
from trainer.configs import Config
from trainer.metrics import SUMS
from trainer.train_state import (
    BACKBONE,
    LOG_VARIANCES,
    Packing,
    Tensors,
    TrainState,
    make_apply,
    packing,
)
from trainer.xla import compiled

# Loss scaling as in "Mixed Precision Training" (Micikevicius et al. 2018): halved when gradients
# overflow, doubled after this many steps without an overflow.
_STEPS_TO_DOUBLE = 2000


def make_train_step(
    model: keras.Model, state: TrainState, config: Config, steps_per_epoch: int, *, frozen: bool
) -> Callable[[Batch], None]:
    """Returns the training step of one replica, to be run by `strategy.run`.

    Args:
        model: the network; its values are in `state`.
        state: read and assigned.
        config: the recipe.
        steps_per_epoch: for the learning rate.
        frozen: whether only the heads are trained: then the backbone's parameters get neither
            gradient nor update. Freezing happens nowhere else.
    """
    learning = packing(
        {
            path: variable
            for path, variable in state.params.items()
            if not (frozen and path.startswith(BACKBONE))
        }
    )
    # As vectors, all parameters are updated in one pass, and carried in one message.
    layouts = dict.fromkeys(("params", "m", "v"), learning)
    layouts["batch_stats"] = packing(state.batch_stats)
    if config.optimizer.ema > 0:
        layouts |= {f"ema_{name}": layouts[name] for name in ("params", "batch_stats")}
    gradients = compiled(_make_gradients(model, config, learning), config, convolutions=True)
    update = compiled(_make_update(config, steps_per_epoch, learning), config)

    def step(batch: Batch) -> None:
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        values = state.values()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        seed = tf.stack([tf.constant(config.seed, tf.int64), values["step"] * replicas + replica])
        batch = augment(batch, config, (model.input.shape[1], model.input.shape[2]))
        if config.augment.mixup > 0:
            # XLA has no gamma distribution.
            batch |= {"share": _mixup_shares(tf.shape(batch["label"]), config, seed)}
        gradient, batch_stats, sums = gradients(
            values["params"], values["batch_stats"], values["loss_scale"], batch, seed, replicas
        )
        local = gradient, layouts["batch_stats"].pack(batch_stats), sums
        packed = values | {name: layout.pack(values[name]) for name, layout in layouts.items()}
        new = update(packed, *_all_reduce_sum(context, *local))
        state.assign(
            new | {name: layouts[name].unpack(new[name]) for name in layouts if name in new}
        )

    return step


def _all_reduce_sum(
    context: tf.distribute.ReplicaContext,
    gradient: tf.Tensor,
    batch_stats: tf.Tensor,
    sums: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the sums of vectors over all replicas: one message for each type."""
    if context.num_replicas_in_sync == 1:
        return gradient, batch_stats, sums
    add = tf.distribute.ReduceOp.SUM
    gradient, batch_stats = context.all_reduce(add, [gradient, batch_stats])
    return gradient, batch_stats, context.all_reduce(add, sums)


def _make_gradients(
    model: keras.Model, config: Config, learning: Packing
) -> Callable[..., tuple[tf.Tensor, Tensors, tf.Tensor]]:
    apply = make_apply(model)
    parts, classes = config.optimizer.accumulation_steps, model.output["logits"].shape[-1]

    def gradients(
        params: Tensors,
        batch_stats: Tensors,
        loss_scale: tf.Tensor,
        batch: Batch,
        seed: tf.Tensor,
        replicas: int,
    ) -> tuple[tf.Tensor, Tensors, tf.Tensor]:
        """Returns the packed gradient, batch statistics and sums, to be summed over replicas."""
        variable = {path: params[path] for path in learning.shapes}
        gradient = tf.zeros([sum(learning.sizes)])
        sums = tf.zeros(len(SUMS), tf.float64)
        for part in range(parts):
            piece = {name: tf.split(value, parts)[part] for name, value in batch.items()}
            piece, target = _mixup(piece, classes)
            with tf.GradientTape() as tape:
                tape.watch(variable)
                outputs, batch_stats = apply(
                    params, batch_stats, piece["image"], True, seed + [0, part << 32]
                )
                found = losses.example_losses(
                    config.loss,
                    config.batch_size,
                    piece["bbox"],
                    target,
                    outputs,
                    params.get(LOG_VARIANCES),
                )
                loss = tf.reduce_sum(found[0]) / config.batch_size * loss_scale
            gradient += learning.pack(tape.gradient(loss, variable, unconnected_gradients="zero"))
            sums += metrics.epoch_sums(found, piece, outputs)
        shares = {path: value / replicas for path, value in batch_stats.items()}
        return gradient / loss_scale, shares, sums

    return gradients


def _make_update(
    config: Config, steps_per_epoch: int, learning: Packing
) -> Callable[..., dict[str, tf.Tensor]]:
    recipe = config.optimizer
    # Kernels have two axes or more; gains and biases do not decay.
    decay = learning.spread(
        {
            path: recipe.weight_decay if len(shape) > 1 else 0.0
            for path, shape in learning.shapes.items()
        }
    )
    lr_scale = learning.spread(
        {
            path: recipe.backbone_lr_scale if path.startswith(BACKBONE) else 1.0
            for path in learning.shapes
        }
    )

    def update(
        old: dict[str, tf.Tensor], gradient: tf.Tensor, batch_stats: tf.Tensor, sums: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the new values of all that changes; parameters and statistics as vectors."""
        norm = tf.norm(gradient)
        loss_finite = tf.math.is_finite(sums[SUMS.index("loss")])
        finite = tf.math.is_finite(norm) & loss_finite
        if recipe.clip_norm > 0:
            gradient *= recipe.clip_norm / tf.maximum(norm, recipe.clip_norm)
        rate = optimizer.learning_rate(
            recipe, old["step"], steps_per_epoch, config.epochs * steps_per_epoch, old["lr_scale"]
        )
        params, m, v = optimizer.adamw(
            old["params"],
            gradient,
            old["m"],
            old["v"],
            step=old["step"],
            learning_rate=rate if recipe.backbone_lr_scale == 1.0 else rate * lr_scale,
            decay=decay,
        )
        new = {"params": params, "m": m, "v": v, "batch_stats": batch_stats}
        if recipe.ema > 0:
            ema_decay = optimizer.ema_decay(recipe.ema, old["step"])
            for name in ("params", "batch_stats"):
                average = old[f"ema_{name}"]
                new[f"ema_{name}"] = average + (1 - ema_decay) * (new[name] - average)
        # A step that is not finite changes nothing, so the last good values survive.
        stopped = old["first_nonfinite_step"] >= 0
        keep = finite & ~stopped
        new = {name: tf.where(keep, value, old[name]) for name, value in new.items()}
        # With loss scaling, a step may be skipped although its loss is finite; the loss counts.
        new["epoch_sums"] = tf.where(
            loss_finite & ~stopped, old["epoch_sums"] + sums, old["epoch_sums"]
        )
        return new | _count_step(config, old, finite, stopped)

    return update


def _count_step(
    config: Config, old: Tensors, finite: tf.Tensor, stopped: tf.Tensor
) -> dict[str, tf.Tensor]:
    step, first = old["step"], old["first_nonfinite_step"]
    if config.precision != "mixed_float16":
        first = tf.where(finite | stopped, first, step)
        return {"step": tf.where(first >= 0, step, step + 1), "first_nonfinite_step": first}
    # Overflowing gradients lower the scale; only at scale 1 do they mean that the run diverged.
    good = tf.where(finite, old["good_steps"] + 1, 0)
    double = good >= _STEPS_TO_DOUBLE
    scale = old["loss_scale"]
    hopeless = ~finite & (scale <= 1)
    first = tf.where(hopeless & ~stopped, step, first)
    scale = tf.where(finite, tf.where(double, scale * 2, scale), tf.maximum(scale / 2, 1.0))
    return {
        "step": tf.where(first >= 0, step, step + 1),
        "first_nonfinite_step": first,
        "loss_scale": scale,
        "good_steps": tf.where(double, tf.zeros_like(good), good),
    }


def _mixup_shares(shape: tf.Tensor, config: Config, seed: tf.Tensor) -> tf.Tensor:
    """Draws each photo's share in its mixture with another, float32 [b], from 0.5 to 1."""
    alpha = config.augment.mixup
    draws = tf.random.stateless_gamma(tf.concat([[2], shape], 0), seed + [1, 0], alpha)
    share = draws[0] / (draws[0] + draws[1])
    # The larger part decides the box, and the label that metrics count.
    return tf.maximum(share, 1 - share)


def _mixup(batch: Batch, classes: int) -> tuple[Batch, tf.Tensor]:
    """Returns the batch and its label targets, float32 [b, classes], mixed by `share`, if any."""
    target = tf.one_hot(batch["label"], classes)
    if "share" not in batch:
        return batch, target
    image, share = batch["image"], batch["share"]
    pixels = share[:, tf.newaxis, tf.newaxis, tf.newaxis]
    image = pixels * image + (1 - pixels) * image[::-1]
    target = share[:, tf.newaxis] * target + (1 - share[:, tf.newaxis]) * target[::-1]
    return batch | {"image": image}, target
