"""The training loop: steps, epochs, validation, checkpoints.

Everything that decides the outcome of a run is in the `TrainState`, which is saved, and in the
history of finished epochs, which is a file; the input follows from the step. So a run that is
killed anywhere and started again ends like an undisturbed one.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import keras
import numpy as np
import tensorflow as tf

from tfrecords.errors import UserError
from tfrecords.progress import Progress, waiting
from trainer import checkpoint, evaluate, metrics
from trainer import input as inputs
from trainer.configs import Config
from trainer.history import EpochMetrics, History
from trainer.optimizer import learning_rate
from trainer.predictions import Predictions
from trainer.run_dir import BEST, LAST
from trainer.step import make_train_step
from trainer.strategy import sum_over_workers
from trainer.train_state import TrainState


class InterruptedRunError(Exception):
    """SIGTERM or Ctrl-C came; the state is saved."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = signal.Signals(number)


@dataclass(frozen=True)
class Options:
    """What does not change the outcome of a run.

    Attributes:
        steps_per_call: steps done in one call of the graph.
        keep: newest checkpoints to keep.
        checkpoint_seconds: save at least this often, and at the end of each epoch.
        chief: whether this process writes files.
    """

    steps_per_call: int = 1
    keep: int = 2
    checkpoint_seconds: float = 300.0
    chief: bool = True


@dataclass(frozen=True)
class Hooks:
    """What the loop calls.

    Attributes:
        on_steps: with the step before and after each call of the graph.
        on_epoch: on the chief, with each epoch's record and timing.
    """

    on_steps: Callable[[int, int], None] = lambda before, after: None
    on_epoch: Callable[[EpochMetrics, EpochMetrics], None] = lambda record, timing: None


@dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
        strategy: the devices.
        network: the network; its values are in `state`.
        state: the values, and the step that the run has reached.
        config: the recipe.
        train, validation: splits. Without validation, the training loss says which epoch is best.
        run: the run's folder.
        options: what does not change the outcome.
    """

    strategy: tf.distribute.Strategy
    network: keras.Model
    state: TrainState
    config: Config
    train: inputs.Split
    validation: inputs.Split | None
    run: str
    options: Options

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return inputs.steps_per_epoch(self.train.size, self.config.batch_size)


def train_and_evaluate(setup: Setup, hooks: Hooks = Hooks()) -> list[EpochMetrics]:
    """Trains, from the run folder's newest checkpoint if any; evaluates after each epoch.

    Returns:
        One record for each epoch.

    Raises:
        InterruptedRunError: SIGTERM or Ctrl-C came; calling it again continues the run.
        UserError: the loss became infinite or NaN, or all checkpoints are damaged.
    """
    config, per_epoch = setup.config, setup.steps_per_epoch
    step = checkpoint.restore_newest(setup.state, os.path.join(setup.run, LAST))
    if step:
        print(f"resuming at step {step} of {config.epochs * per_epoch}", flush=True)
    # Saved at an epoch's last step, but not yet finished: its sums are still there.
    unfinished = step % per_epoch == 0 and bool(np.any(setup.state.epoch_sums.numpy()))
    history = History(setup.run, step // per_epoch - unfinished, writes=setup.options.chief)
    run_steps = make_run_steps(setup)
    validate = None
    if setup.validation:
        validate = evaluate.make_evaluate(
            setup.strategy, setup.network, setup.state, config, setup.validation, "validation"
        )
    batches = inputs.training_batches(
        setup.strategy,
        setup.train,
        config,
        start=step,
        stop=config.epochs * per_epoch,
        steps_per_call=setup.options.steps_per_call,
    )
    with _Stop(setup.strategy) as stop:
        timing: EpochMetrics = {}
        while True:
            epochs_done = step // per_epoch
            if len(history) < epochs_done:
                _finish_epoch(setup, hooks, history, validate, timing)
                stop.check(lambda: None)  # all is saved
            if epochs_done == config.epochs or history.stagnates(config):
                return history.records
            step, timing = _train_epoch(setup, hooks, step, batches, run_steps, stop)


def make_run_steps(setup: Setup) -> Callable[[inputs.Example, int, int], None]:
    """Returns the function that trains on a group of batches: (group, first step, count) -> None.

    The first call traces and compiles the step, and says so.
    """

    def replica_step(*, frozen: bool) -> Callable[[inputs.Example, tf.Tensor], None]:
        step = make_train_step(
            setup.network, setup.state, setup.config, setup.steps_per_epoch, frozen=frozen
        )
        # AutoGraph would spend seconds on code that has no loops or conditions on tensors.
        return tf.autograph.experimental.do_not_convert(
            lambda group, i: step({name: value[i] for name, value in group.items()})
        )

    steps = {frozen: replica_step(frozen=frozen) for frozen in (False, True)}
    frozen_steps = int(setup.config.optimizer.freeze_epochs * setup.steps_per_epoch)

    @tf.function(reduce_retracing=True)
    def graph(group: inputs.Example, begin: tf.Tensor, end: tf.Tensor, frozen: bool) -> None:
        for i in tf.range(begin, end):
            setup.strategy.run(steps[frozen], (group, i))

    compiled: set[bool] = set()

    def run_steps(group: inputs.Example, first: int, count: int) -> None:
        held = min(max(frozen_steps - first, 0), count)
        for frozen, begin, end in ((True, 0, held), (False, held, count)):
            if begin == end:
                continue
            news: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if frozen not in compiled:
                news = waiting("compiling the training step, about half a minute")
            with news:
                graph(group, tf.constant(begin), tf.constant(end), frozen)
            compiled.add(frozen)

    return run_steps


def _train_epoch(
    setup: Setup,
    hooks: Hooks,
    step: int,
    batches: Iterator[inputs.Example],
    run_steps: Callable[[inputs.Example, int, int], None],
    stop: "_Stop",
) -> tuple[int, EpochMetrics]:
    """Trains to the end of the epoch that the step is in; returns the step there, and timing."""
    config, per_epoch = setup.config, setup.steps_per_epoch
    epoch = step // per_epoch
    started = saved = time.monotonic()
    waited = 0.0
    with Progress(
        f"epoch {epoch + 1}/{config.epochs}",
        total=per_epoch * config.batch_size,
        unit="images",
        done=step % per_epoch * config.batch_size,
    ) as progress:
        while step < (epoch + 1) * per_epoch:
            before = time.monotonic()
            with inputs.reading():
                group = next(batches)
            waited += time.monotonic() - before
            count = inputs.group_size(per_epoch, step, setup.options.steps_per_call)
            run_steps(group, step, count)
            hooks.on_steps(step, step + count)
            step += count
            progress.update(count * config.batch_size, lambda: _check_loss(setup))
            stop.check(lambda: _save(setup, LAST, setup.options.keep))
            if time.monotonic() - saved > setup.options.checkpoint_seconds:
                _save(setup, LAST, setup.options.keep)
                saved = time.monotonic()
    seconds = time.monotonic() - started
    return step, {"seconds": seconds, "images_per_second": progress.rate, "wait": waited / seconds}


def _finish_epoch(
    setup: Setup,
    hooks: Hooks,
    history: History,
    evaluate: Callable[[], tuple[EpochMetrics, Predictions]] | None,
    timing: EpochMetrics,
) -> None:
    """Validates, writes the epoch's record, and saves; repeating it changes nothing."""
    _check_loss(setup)
    state, optimizer = setup.state, setup.config.optimizer
    total = setup.config.epochs * setup.steps_per_epoch
    rate = learning_rate(
        optimizer,
        state.step - 1,
        setup.steps_per_epoch,
        total,
        tf.convert_to_tensor(state.lr_scale),
    )
    record: EpochMetrics = {"epoch": len(history) + 1, "step": int(state.step.numpy())}
    record |= {"learning_rate": float(rate)} | metrics.epoch_means(state.epoch_sums.numpy())
    if evaluate:
        record |= {f"val_{name}": value for name, value in evaluate()[0].items()}
    history.append(record)
    if optimizer.schedule == "plateau":
        state.lr_scale.assign(0.1 ** history.plateaus(optimizer.plateau_epochs))
    state.epoch_sums.assign(tf.zeros_like(state.epoch_sums))
    if history.best() is record:
        _save(setup, BEST, keep=1)
    _save(setup, LAST, setup.options.keep)
    if setup.options.chief:
        print(_summary(record), flush=True)
        hooks.on_epoch(record, timing)


def _save(setup: Setup, name: str, keep: int) -> None:
    _check_loss(setup)
    if setup.options.chief:
        checkpoint.save(setup.state, os.path.join(setup.run, name), keep)


def _check_loss(setup: Setup) -> str:
    """Returns the epoch's mean loss so far for the progress line; stops when it is not finite."""
    bad_step = int(setup.state.first_nonfinite_step.numpy())
    if bad_step >= 0:
        size = setup.config.batch_size
        positions = tf.range(bad_step * size, (bad_step + 1) * size, dtype=tf.int64)
        indices = inputs.shuffled_indices(setup.config, setup.train.size, positions)
        names = inputs.paths(setup.train, indices.numpy())
        raise UserError(
            f"the loss is not finite at step {bad_step}. The last good checkpoint is kept."
            " Try a lower --config.optimizer.learning_rate, or --config.optimizer.clip_norm=1. The"
            " photos of the batch: " + ", ".join(names)
        )
    sums = dict(zip(metrics.SUMS, setup.state.epoch_sums.numpy(), strict=True))
    return f"loss {sums['loss'] / max(sums['count'], 1):.4f}"


def _summary(record: EpochMetrics) -> str:
    names = ("loss", "top1", "mean_iou", "val_loss", "val_top1", "val_mean_iou")
    shown = [f"{name} {record[name]:.4f}" for name in names if name in record]
    return f"epoch {record['epoch']}: " + ", ".join(shown)


class _Stop:
    """Catches SIGTERM and Ctrl-C while training, so that all workers stop after the same step."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._came = 0

    def __enter__(self) -> "_Stop":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._came:
                raise KeyboardInterrupt
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        self._came = number

    def check(self, save: Callable[[], None]) -> None:
        """Saves and stops on all workers, after the same step, if a signal came to any of them.

        Raises:
            InterruptedRunError: a signal came, and the state is saved.
        """
        if sum_over_workers(self._strategy, float(self._came > 0)) > 0:
            save()
            raise InterruptedRunError(self._came or signal.SIGTERM)
