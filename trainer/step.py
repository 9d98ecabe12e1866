"""One step of training, and one of evaluation, as one replica does it.

A training step augments its photos, and then has three parts: gradients (pure, compiled by XLA when
asked), one all-reduce, update (pure, compiled). Only then are variables assigned.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import looks, losses, metrics, optimizer
from trainer.augment import Batch, augment
from trainer.config import Config
from trainer.state import LOSSES, SUMS, State, judged, layouts, predictor

# Loss scaling as in "Mixed Precision Training" (Micikevicius et al. 2018): halved when gradients
# overflow, doubled after so many steps without.
_STEPS_TO_DOUBLE = 2000


def make_train_step(
    model: keras.Model,
    state: State,
    config: Config,
    steps_per_epoch: int,
    jit: bool,
    frozen: bool,
) -> Callable[[Batch], None]:
    """Returns the training step of one replica, to be run by `strategy.run`.

    Args:
        model: gives the network, not the values.
        state: read and assigned.
        config: the recipe.
        steps_per_epoch: for the learning rate.
        jit: compile the gradients by XLA. The update pays on every device, and is compiled
            unless the config says `off`.
        frozen: only the heads learn.
    """
    gradients = _gradients(model, config, frozen)
    update = _update(model, config, steps_per_epoch, frozen)
    if jit:
        gradients = tf.function(gradients, jit_compile=True)
    if config.jit != "off":
        update = tf.function(update, jit_compile=True)

    def step(batch: Batch) -> None:
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        values = {name: tf.convert_to_tensor(v) for name, v in state.variables().items()}
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        seed = tf.stack([tf.constant(config.seed, tf.int64), values["step"] * replicas + replica])
        batch = augment(batch, config)
        if config.augment.mixup > 0:
            # XLA has no gamma distribution.
            batch |= {"share": _shares(tf.shape(batch["label"]), config, seed)}
        local = gradients(
            values["weights"], values["statistics"], values["loss_scale"], batch, seed, replicas
        )
        if replicas > 1:
            # One call for each type: a call packs its tensors into one message.
            gradient, statistics, sums = local
            add = tf.distribute.ReduceOp.SUM
            gradient, statistics = context.all_reduce(add, [gradient, statistics])
            local = gradient, statistics, context.all_reduce(add, sums)
        for name, value in update(values, *local).items():
            getattr(state, name).assign(value)

    return step


def make_evaluation_step(
    model: keras.Model, state: State, config: Config, jit: bool
) -> Callable[[Batch], tf.Tensor]:
    """Returns the evaluation step of one replica: batch -> float64 [len(SUMS)] of its sums."""
    predict = looks.make_predict(model, config, jit)
    weights, statistics = judged(state)

    def sums(batch: Batch) -> tf.Tensor:
        values = tf.convert_to_tensor(weights)
        outputs = predict(values, tf.convert_to_tensor(statistics), batch["image"])
        target = tf.one_hot(batch["label"], outputs["logits"].shape[-1])
        box, label = _task_losses(config, batch["bbox"], target, outputs)
        total = _weigh(config, values[-2:], box, label)
        return _sums((total, box, label), batch, outputs)

    return sums


def _gradients(model: keras.Model, config: Config, frozen: bool) -> Callable:
    plan, predict = layouts(model), predictor(model)
    parts, classes = config.optimizer.accumulate, model.output["logits"].shape[-1]

    def gradients(
        weights: tf.Tensor,
        statistics: tf.Tensor,
        scale: tf.Tensor,
        batch: Batch,
        seed: tf.Tensor,
        replicas: int,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns gradients [n], statistics [m] and sums, each to be summed over replicas."""
        gradient = tf.zeros_like(weights)
        sums = tf.zeros(len(SUMS), tf.float64)
        for part in range(parts):
            piece = {name: tf.split(value, parts)[part] for name, value in batch.items()}
            piece, target = _mix(piece, classes)
            with tf.GradientTape() as tape:
                tape.watch(weights)
                values = plan.weights.unpack(weights)
                if frozen:
                    values = [
                        tf.stop_gradient(value) if held else value
                        for value, held in zip(values, plan.in_backbone, strict=True)
                    ]
                outputs, statistics = predict(
                    values, statistics, piece["image"], True, seed + [0, part << 32]
                )
                box, label = _task_losses(config, piece["bbox"], target, outputs)
                total = _weigh(config, values[-1], box, label)
                loss = tf.reduce_sum(total) / config.batch_size * scale
            gradient += tape.gradient(loss, weights)
            sums += _sums((total, box, label), piece, outputs)
        return gradient / scale, statistics / replicas, sums

    return gradients


def _update(model: keras.Model, config: Config, steps_per_epoch: int, frozen: bool) -> Callable:
    plan, recipe = layouts(model), config.optimizer
    decay = recipe.weight_decay * plan.weights.spread(plan.is_kernel)
    share = 0.0 if frozen else recipe.backbone_rate
    shares = 1.0 + (share - 1.0) * plan.weights.spread(plan.in_backbone) if share != 1.0 else 1.0

    def update(
        old: dict[str, tf.Tensor], gradient: tf.Tensor, statistics: tf.Tensor, sums: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the new values of all variables that change."""
        norm = tf.norm(gradient)
        loss_finite = tf.math.is_finite(sums[SUMS.index("loss")])
        finite = tf.math.is_finite(norm) & loss_finite
        if recipe.clip_norm > 0:
            gradient *= recipe.clip_norm / tf.maximum(norm, recipe.clip_norm)
        rate = optimizer.learning_rate(
            recipe, old["step"], steps_per_epoch, config.epochs * steps_per_epoch, old["plateau"]
        )
        # Gradients of what is held are 0, and so is its rate: neither it nor its moments move.
        weights, first, second = optimizer.adamw(
            old["weights"], gradient, old["first"], old["second"], old["step"], rate * shares, decay
        )
        new = {
            "weights": weights,
            "first": first,
            "second": second,
            "statistics": statistics,
        }
        if recipe.ema > 0:
            for name in ("weights", "statistics"):
                average = old[f"ema_{name}"]
                # Short runs: the average begins as a plain mean (as in Keras and TF's own EMA).
                count = tf.cast(old["step"], tf.float32)
                decay_now = tf.minimum(recipe.ema, (1 + count) / (10 + count))
                new[f"ema_{name}"] = average + (1 - decay_now) * (new[name] - average)
        # A step that is not finite changes nothing, so the last good values survive.
        stopped = old["bad_step"] >= 0
        keep = finite & ~stopped
        new = {name: tf.where(keep, value, old[name]) for name, value in new.items()}
        # With loss scaling a step may be skipped although its loss is fine, and counts.
        new["sums"] = tf.where(loss_finite & ~stopped, old["sums"] + sums, old["sums"])
        return new | _count_step(config, old, finite, stopped)

    return update


def _count_step(
    config: Config, old: dict[str, tf.Tensor], finite: tf.Tensor, stopped: tf.Tensor
) -> dict[str, tf.Tensor]:
    step = old["step"]
    if config.precision != "mixed_float16":
        bad = tf.where(finite | stopped, old["bad_step"], step)
        return {"step": tf.where(bad >= 0, step, step + 1), "bad_step": bad}
    # Gradients that overflow are how the scale is found; the loss is at fault only at scale 1.
    good = tf.where(finite, old["good_steps"] + 1, 0)
    double = good >= _STEPS_TO_DOUBLE
    scale = old["loss_scale"]
    hopeless = ~finite & (scale <= 1)
    bad = tf.where(hopeless & ~stopped, step, old["bad_step"])
    scale = tf.where(finite, tf.where(double, scale * 2, scale), tf.maximum(scale / 2, 1.0))
    return {
        "step": tf.where(bad >= 0, step, step + 1),
        "bad_step": bad,
        "loss_scale": scale,
        "good_steps": tf.where(double, tf.zeros_like(good), good),
    }


def _shares(shape: tf.Tensor, config: Config, seed: tf.Tensor) -> tf.Tensor:
    """Draws each photo's share in the mixture with another, float32 [b], from a half to 1."""
    alpha = config.augment.mixup
    draws = tf.random.stateless_gamma(tf.concat([[2], shape], 0), seed + [1, 0], alpha)
    share = draws[0] / (draws[0] + draws[1])
    # The larger part decides the box and whose photo it is.
    return tf.maximum(share, 1 - share)


def _mix(batch: Batch, classes: int) -> tuple[Batch, tf.Tensor]:
    """Returns the batch and its label targets, float32 [b, classes], mixed by `share`, if any."""
    target = tf.one_hot(batch["label"], classes)
    if "share" not in batch:
        return batch, target
    image, share = batch["image"], batch["share"]
    pixels = share[:, tf.newaxis, tf.newaxis, tf.newaxis]
    image = pixels * image + (1 - pixels) * image[::-1]
    target = share[:, tf.newaxis] * target + (1 - share[:, tf.newaxis]) * target[::-1]
    return batch | {"image": image}, target


def _task_losses(
    config: Config, true_box: tf.Tensor, target: tf.Tensor, outputs: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    box = losses.box_loss(config.loss.box)(true_box, outputs["bbox"])
    label = losses.label_loss(target, outputs["logits"], config.loss.label_smoothing)
    return box, label


def _weigh(config: Config, log_variances: tf.Tensor, box: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    # The mean over the batch is taken later, of both: a sum is that many times larger.
    if config.loss.box_reduction == "sum":
        box *= config.batch_size
    if config.loss.weighting == "uncertainty":
        return losses.weigh_by_uncertainty(box, label, log_variances)
    return losses.weigh(box, label, config.loss.box_weight, config.loss.label_weight)


def _sums(
    per_example: tuple[tf.Tensor, tf.Tensor, tf.Tensor], batch: Batch, outputs: dict[str, tf.Tensor]
) -> tf.Tensor:
    mask = batch["mask"]
    zero = tf.constant(0.0, tf.float64)
    sums = {
        name: tf.reduce_sum(tf.where(mask, tf.cast(value, tf.float64), zero))
        for name, value in zip(LOSSES, per_example, strict=True)
    }
    sums |= metrics.batch_sums(
        batch["bbox"], batch["label"], outputs["bbox"], outputs["logits"], mask
    )
    return tf.stack([sums[name] for name in SUMS])
