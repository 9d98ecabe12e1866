"""The training loop: steps, epochs, validation, checkpoints.

Nothing in the loop decides the outcome. What does is in the `State`, which is saved, and in the
history of finished epochs, which is a file; the input follows from the step. So a run that is
killed anywhere and started again ends as if nothing had happened.
"""

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
from tfrecords.progress import Progress
from trainer import checkpoint, metrics
from trainer import input as inputs
from trainer.config import Config
from trainer.history import History, Record
from trainer.optimizer import learning_rate
from trainer.state import LOSSES, SUMS, State
from trainer.step import make_evaluation_step, make_train_step

EXIT_PREEMPTED = 75
"""Exit code after SIGTERM: all is saved, start the same command again (sysexits' EX_TEMPFAIL)."""

LAST, BEST = "last", "best"


class PreemptedError(Exception):
    """SIGTERM came; the state is saved."""


@dataclass(frozen=True)
class Options:
    """What does not change the outcome of a run.

    Attributes:
        steps_per_call: steps done in one call of the graph.
        keep: newest checkpoints to keep.
        checkpoint_seconds: save at least this often, beside the end of each epoch.
        chief: whether this process writes.
        on_steps: called with the step before and after each call of the graph.
        on_epoch: called with the job, and each epoch's record and timing.
    """

    steps_per_call: int = 1
    keep: int = 2
    checkpoint_seconds: float = 300.0
    chief: bool = True
    on_steps: Callable[[int, int], None] = lambda before, after: None
    on_epoch: "Callable[[Job, Record, Record], None]" = lambda job, record, timing: None


@dataclass(frozen=True)
class Job:
    """All that a run is made of.

    Attributes:
        strategy: on which devices.
        model: the network.
        state: its values, and where the run stands.
        config: the recipe.
        training, validation: where examples come from. Without validation, the training loss says
            which epoch is best.
        folder: of the run; `last/` and `best/` hold its checkpoints, `metrics.jsonl` its history.
        options: what does not change the outcome.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    state: State
    config: Config
    training: inputs.Source
    validation: inputs.Source | None
    folder: str
    options: Options

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return inputs.steps_per_epoch(self.training.size, self.config.batch_size)


def train(job: Job) -> list[Record]:
    """Trains, or goes on where the run folder stands.

    Returns:
        One record for each epoch.

    Raises:
        PreemptedError: SIGTERM came; calling again goes on.
        UserError: the loss became infinite or not a number, or all checkpoints are damaged.
    """
    step = checkpoint.restore_newest(job.state, os.path.join(job.folder, LAST))
    if step:
        print(f"resuming at step {step} of {job.config.epochs * job.steps_per_epoch}", flush=True)
    history = History(job.folder, step // job.steps_per_epoch, writes=job.options.chief)
    run_steps = make_run_steps(job)
    evaluate = make_evaluate(job, job.validation) if job.validation else None
    batches = inputs.training_batches(
        job.strategy,
        job.training,
        job.config,
        start=step,
        stop=job.config.epochs * job.steps_per_epoch,
        steps_per_call=job.options.steps_per_call,
    )
    with _Sigterm(job.strategy) as sigterm:
        timing: Record = {}
        while True:
            epochs_done = step // job.steps_per_epoch
            if len(history) < epochs_done:
                _finish_epoch(job, history, evaluate, timing)
            if epochs_done == job.config.epochs or history.stagnates(job.config):
                return history.records
            step, timing = _train_epoch(job, step, batches, run_steps, sigterm)


def make_run_steps(job: Job) -> Callable[[inputs.Example, int, bool], None]:
    """Returns the function that trains on a group of batches: (group, its size, frozen) -> None."""
    jit = uses_jit(job.config)
    replica_steps = {
        frozen: make_train_step(job.model, job.state, job.config, job.steps_per_epoch, jit, frozen)
        for frozen in (False, True)
    }

    @tf.function(reduce_retracing=True)
    def run_steps(group: inputs.Example, count: tf.Tensor, frozen: bool) -> None:
        replica_step = replica_steps[frozen]
        for i in tf.range(count):
            job.strategy.run(
                lambda batch, i: replica_step({k: v[i] for k, v in batch.items()}), (group, i)
            )

    return lambda group, count, frozen: run_steps(group, tf.constant(count), frozen)


def make_evaluate(job: Job, source: inputs.Source) -> Callable[[], Record]:
    """Returns the function that evaluates a split: every example once, whatever the replicas."""
    batches = inputs.evaluation_batches(job.strategy, source, job.config.batch_size)
    replica_step = make_evaluation_step(job.model, job.state, job.config, uses_jit(job.config))

    @tf.function(reduce_retracing=True)
    def batch_sums(group: inputs.Example) -> tf.Tensor:
        sums = job.strategy.run(
            lambda batch: replica_step({k: v[0] for k, v in batch.items()}), (group,)
        )
        return job.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    def evaluate() -> Record:
        sums = np.zeros(len(SUMS))
        with inputs.reading():
            for group in batches:
                sums += batch_sums(group).numpy()
        return _means(sums)

    return evaluate


def uses_jit(config: Config) -> bool:
    """Whether XLA compiles the steps: on a GPU where the config leaves it open."""
    if config.model.batch_norm == "synchronized" or config.jit == "off":
        return False
    return config.jit == "on" or bool(tf.config.get_visible_devices("GPU"))


def add_up(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the sum of all workers' values; each waits here for all others."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    return float(_add_up(strategy, tf.constant(value)))


@tf.function
def _add_up(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    return strategy.reduce(
        tf.distribute.ReduceOp.SUM, strategy.run(lambda mine: mine, (value,)), axis=None
    )


def _train_epoch(
    job: Job,
    step: int,
    batches: Iterator[inputs.Example],
    run_steps: Callable[[inputs.Example, int, bool], None],
    sigterm: "_Sigterm",
) -> tuple[int, Record]:
    """Trains to the end of the epoch that the step is in; returns the step there, and timing."""
    config, per_epoch = job.config, job.steps_per_epoch
    epoch = step // per_epoch
    frozen_steps = inputs.frozen_steps(config, per_epoch)
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
            count = inputs.group_size(config, per_epoch, step, job.options.steps_per_call)
            run_steps(group, count, step < frozen_steps)
            job.options.on_steps(step, step + count)
            step += count
            progress.update(count * config.batch_size, lambda: _check_loss(job))
            if sigterm.came():
                _save(job, LAST, job.options.keep)
                raise PreemptedError
            if time.monotonic() - saved > job.options.checkpoint_seconds:
                _save(job, LAST, job.options.keep)
                saved = time.monotonic()
    seconds = time.monotonic() - started
    return step, {"seconds": seconds, "images_per_second": progress.rate, "wait": waited / seconds}


def _finish_epoch(
    job: Job, history: History, evaluate: Callable[[], Record] | None, timing: Record
) -> None:
    """Validates, writes the epoch's record, and saves; doing it again gives the same."""
    _check_loss(job)
    state, optimizer = job.state, job.config.optimizer
    total = job.config.epochs * job.steps_per_epoch
    rate = learning_rate(
        optimizer, state.step - 1, job.steps_per_epoch, total, tf.convert_to_tensor(state.plateau)
    )
    record: Record = {"epoch": len(history) + 1, "step": int(state.step.numpy())}
    record |= {"learning_rate": float(rate)} | _means(state.sums.numpy())
    if evaluate:
        record |= {f"val_{name}": value for name, value in evaluate().items()}
    history.append(record)
    if optimizer.schedule == "plateau":
        state.plateau.assign(0.1 ** history.plateaus(optimizer.plateau_epochs))
    state.sums.assign(tf.zeros_like(state.sums))
    if history.best() is record:
        _save(job, BEST, keep=1)
    _save(job, LAST, job.options.keep)
    if job.options.chief:
        print(_summary(record), flush=True)
        job.options.on_epoch(job, record, timing)


def _save(job: Job, name: str, keep: int) -> None:
    _check_loss(job)
    if job.options.chief:
        checkpoint.save(job.state, os.path.join(job.folder, name), keep)


def _check_loss(job: Job) -> str:
    """Returns the epoch's mean loss so far for the progress line; stops when it is not finite."""
    bad_step = int(job.state.bad_step.numpy())
    if bad_step >= 0:
        size = job.config.batch_size
        positions = tf.range(bad_step * size, (bad_step + 1) * size, dtype=tf.int64)
        names = job.training.names(inputs.numbers(job.config, job.training.size, positions))
        raise UserError(
            f"the loss is not finite at step {bad_step}. The last good checkpoint is kept."
            " Try a lower optimizer.learning_rate, or optimizer.clip_norm=1. The photos of the"
            " batch: " + ", ".join(names)
        )
    sums = dict(zip(SUMS, job.state.sums.numpy(), strict=True))
    return f"loss {sums['loss'] / max(sums['count'], 1):.4f}"


def _means(sums: np.ndarray) -> Record:
    by_name = dict(zip(SUMS, sums, strict=True))
    means = metrics.means(by_name)
    return {name: float(by_name[name] / means["num_examples"]) for name in LOSSES} | means


def _summary(record: Record) -> str:
    names = ("loss", "top1", "mean_iou", "val_loss", "val_top1", "val_mean_iou")
    shown = [f"{name} {record[name]:.4f}" for name in names if name in record]
    return f"epoch {record['epoch']}: " + ", ".join(shown)


class _Sigterm:
    """Notices SIGTERM while training, and makes all workers agree that it came."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._here = False

    def __enter__(self) -> "_Sigterm":
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._old)

    def _notice(self, _: int, __: FrameType | None) -> None:
        self._here = True

    def came(self) -> bool:
        """Whether SIGTERM came to any worker; all get the same answer after the same step."""
        return add_up(self._strategy, float(self._here)) > 0
