"""Trains a model on a data set, evaluates it, and writes everything into a run folder.

    python -m trainer.task --strategy=mirrored [--data=data/tfrecords] [--run=runs/NAME]
        [--config=default] [--config.optimizer.ema=0.99 ...] [--epochs=N] [--batch_size=N]

Started again with the same flags, a run continues where it was stopped; with a larger --epochs, a
finished run is trained further. --data and --run may be in buckets (gs://..., s3://...): the data
set is fetched once into --data_cache, the run is trained there and copied to its bucket meanwhile.
"""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from absl import flags

from tfrecords import command, manifest, remote
from tfrecords.errors import FlagError, UserError, extra

with extra("train"):
    import tensorflow as tf
    from PIL import Image

    from trainer import (
        checkpoint,
        configs,
        evaluate,
        losses,
        mirror,
        model,
        pictures,
        platforms,
        provenance,
        run_dir,
        strategy,
        tensorboard,
        train,
        train_state,
        warm_start,
        workers,
        xla,
    )
    from trainer import input as inputs
    from trainer import report as run_page
    from trainer.history import EpochMetrics

FLAGS = flags.FlagValues()
strategy.define_flags(FLAGS)
command.DEFINE_path("data", "data/tfrecords", "data set to train on", flag_values=FLAGS)
command.DEFINE_path(
    "run",
    None,
    "folder of the run; if absent, the one that Vertex AI or SageMaker names, or runs/DATA-CONFIG",
    flag_values=FLAGS,
)
remote.define_cache_flag(FLAGS)
configs.define_flags(FLAGS)
command.DEFINE_path(
    "init_from",
    None,
    "run whose weights a new run starts with; if the classes differ, the classifier starts with new"
    " ones",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "report",
    None,
    ["test", "validation", "none"],
    "split to evaluate at the end; test if absent",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "steps_per_call",
    1,
    "steps in one call of the graph; does not change the outcome",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "cache", "none", ["none", "memory"], "memory keeps decoded photos in memory", flag_values=FLAGS
)
flags.DEFINE_integer("keep", 2, "newest checkpoints to keep", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "checkpoint_seconds",
    300.0,
    "save at least this often, in seconds",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "profile", None, "START:STOP, steps to profile, for TensorBoard", flag_values=FLAGS
)

EXIT_PREEMPTED = 75
"""Exit code after SIGTERM: all is saved, start the same command again (sysexits' EX_TEMPFAIL)."""

_EXIT_INTERRUPTED = 130
# What a worker reads of a run before the first step.
_NEEDED_TO_START = rf"{run_dir.LAST}/|config\.json$|data\.json$|metrics\.jsonl$"
_TENSORBOARD_PICTURES = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: flags, data or run folder are not usable.
        SystemExit: with `EXIT_PREEMPTED` after SIGTERM, 130 after Ctrl-C.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    info = manifest.read(remote.dataset(FLAGS.data, "data", FLAGS.data_cache))
    config = configs.from_flags(FLAGS, "sample" if info.sample else "default")
    losses.box_loss(config.loss.box)
    data = run_dir.describe_data(FLAGS.data, info)
    devices = strategy.make(FLAGS.strategy, FLAGS.replicas, allow_cpu=FLAGS.allow_cpu)
    check_batch(config, devices.num_replicas_in_sync)
    report = split_to_report(info)
    run = FLAGS.run or platforms.run_folder()
    run = run or os.path.join("runs", f"{run_dir.shortened(info.name)}-{config.name}")
    rank, _ = strategy.worker(devices)
    with mirror.opened(run, FLAGS.data_cache, chief=rank == 0) as mirrored:
        if not mirrored.is_shared:
            with workers.losing_none(devices):
                workers.copy_from_chief(devices, mirrored.folder, _NEEDED_TO_START)
        run_dir.check(mirrored.folder, config, data)
        if rank > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - only the chief prints; to the end
        print(plan(config, data, info, devices, mirrored.describe()), flush=True)
        newest = checkpoint.newest(os.path.join(mirrored.folder, run_dir.LAST))
        alike = {f"--config.{key}": value for key, value in configs.flatten(config).items()} | {
            "data": data.fingerprint,
            "checkpoint in --run": newest and os.path.basename(newest),
            # These decide where workers start and when they wait for each other.
            "--init_from": FLAGS.init_from,
            "--steps_per_call": FLAGS.steps_per_call,
            "--report": report,
        }
        with workers.losing_none(devices):
            workers.require_same(devices, alike)
        train_and_report(config, data, info, devices, mirrored, report)


def train_and_report(
    config: configs.Config,
    data: run_dir.DatasetInfo,
    info: manifest.Manifest,
    devices: tf.distribute.Strategy,
    mirrored: mirror.Mirror,
    report: str | None,
) -> None:
    """Trains a run to its end, or until a signal stops it, and evaluates it.

    Args:
        config, data, info: the recipe and the data set.
        devices: to train on.
        mirrored: where the run is.
        report: split to evaluate at the end, if any.

    Raises:
        UserError: something about the run is not usable.
        SystemExit: see `main`.
    """
    run = mirrored.folder
    rank, _ = strategy.worker(devices)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    split, validation = (
        evaluate.open_split(data, name, config, FLAGS.cache) if name in info.splits else None
        for name in ("train", "validation")
    )
    if split is None:
        raise UserError(f"the data set at {FLAGS.data!r} has no train split to learn from.")
    steps = config.epochs * inputs.steps_per_epoch(split.size, config.batch_size)
    profiled = parse_profile(FLAGS.profile, steps)
    # A run that continues has its weights in its checkpoint; the initial ones may be gone.
    fresh = checkpoint.newest(os.path.join(run, run_dir.LAST)) is None
    network = model.build(
        config,
        split.height,
        split.width,
        data.class_names,
        fresh=fresh and not FLAGS.init_from,
    )
    if fresh and FLAGS.init_from:
        initial = remote.model(FLAGS.init_from, "init_from", FLAGS.data_cache)
        print(warm_start.load(network, initial, data.class_names), flush=True)
    with contextlib.ExitStack() as held:
        if rank == 0:
            # Only now: a folder made before a mistake is found would refuse the corrected command.
            held.enter_context(run_dir.locked(run))
            held.enter_context(mirrored.kept_up())
            run_dir.create(run, config, data)
            provenance.add_start(run, devices)
        with workers.losing_none(devices):
            # The chief has just written this file, and no two starts write the same.
            if mirrored.is_shared:
                workers.require_shared(devices, os.path.join(run, provenance.FILE_NAME))
        setup = train.Setup(
            strategy=devices,
            network=network,
            state=train_state.create(devices, network, config),
            config=config,
            train=split,
            validation=validation,
            run=run,
            options=train.Options(
                steps_per_call=FLAGS.steps_per_call,
                keep=FLAGS.keep,
                checkpoint_seconds=FLAGS.checkpoint_seconds,
                chief=rank == 0,
            ),
        )
        hooks = train.Hooks()
        if rank == 0:
            hooks = make_hooks(setup, data, profiled, mirrored)
        try:
            with workers.losing_none(devices):
                records = train.train_and_evaluate(setup, hooks)
        except train.InterruptedRunError as error:
            step = int(setup.state.step.numpy())
            print(f"{error.signal.name}: saved at step {step} in {run}. To continue, run again:")
            print(f"    {shlex.join(sys.orig_argv)}", flush=True)
            sys.exit(EXIT_PREEMPTED if error.signal == signal.SIGTERM else _EXIT_INTERRUPTED)
        with workers.losing_none(devices):
            if not mirrored.is_shared:
                workers.copy_from_chief(devices, run, f"{run_dir.BEST}/")
            finish(setup, data, records, report)
    with workers.losing_none(devices):
        # A chief that fails to write the rest is started again, and needs the others for that.
        strategy.sum_over_workers(devices, 0.0)


def check_batch(config: configs.Config, replicas: int) -> None:
    """Checks that a batch can be shared evenly.

    Raises:
        UserError: it cannot.
    """
    parts = replicas * config.optimizer.accumulation_steps
    if config.batch_size % parts:
        nearest = max(parts, round(config.batch_size / parts) * parts)
        raise UserError(
            f"the global batch size {config.batch_size} cannot be shared evenly by {replicas}"
            f" replicas in {config.optimizer.accumulation_steps} parts each. Try"
            f" --batch_size={nearest}."
        )


def split_to_report(info: manifest.Manifest) -> str | None:
    """Returns the split to evaluate at the end, or None.

    Raises:
        UserError: the requested split does not exist.
    """
    if FLAGS.report in (None, "none"):
        there = [name for name in ("test", "validation") if name in info.splits]
        return there[0] if there and FLAGS.report is None else None
    if FLAGS.report not in info.splits:
        raise UserError(
            f"--report={FLAGS.report}: the data set at {FLAGS.data!r} has no such split."
        )
    return FLAGS.report


def parse_profile(text: str | None, steps: int) -> tuple[int, int] | None:
    """Returns the first step to profile and the one after the last, if any.

    Args:
        text: `START:STOP`.
        steps: of the run.

    Raises:
        FlagError: the text is no such pair.
        UserError: these are not steps of the run after the first, or fewer than are done in a call.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise FlagError(f"--profile={text} is not START:STOP, two steps, the first smaller")
    start, stop = int(first), int(last)
    if stop > steps:
        raise UserError(
            f"--profile={start}:{stop}: the run has {steps} steps. Give a STOP of {steps} at most."
        )
    least = max(start, 1) + FLAGS.steps_per_call
    if stop < least:
        raise UserError(
            f"--profile={start}:{stop}: {FLAGS.steps_per_call} steps are done in one call, and the"
            f" first call is not profiled. Give a STOP of at least {least}."
        )
    return start, stop


def plan(
    config: configs.Config,
    data: run_dir.DatasetInfo,
    info: manifest.Manifest,
    devices: tf.distribute.Strategy,
    run: str,
) -> str:
    """Returns a summary of what will be done, for the user."""
    splits = [name for name in manifest.SPLITS if name in info.splits]
    sizes = ", ".join(f"{name} {info.splits[name].num_examples}" for name in splits)
    jit = "with XLA" if xla.uses_xla(config) else "without XLA"
    return "\n".join(
        (
            f"data:     {data.path} ({data.name}): {sizes}; {len(data.class_names)} classes,"
            f" {data.height}x{data.width} pixels",
            f"config:   {config.name}, weights {config.weights}, {config.epochs} epochs,"
            f" global batch size {config.batch_size}",
            f"strategy: {strategy.describe(devices)}, {config.precision}, {jit}",
            f"run:      {run}",
            *platforms.describe(run_is_given=FLAGS.run is not None),
        )
    )


def make_hooks(
    setup: train.Setup,
    data: run_dir.DatasetInfo,
    profiled: tuple[int, int] | None,
    mirrored: mirror.Mirror,
) -> train.Hooks:
    """Returns what is called while the chief trains: TensorBoard, the profiler, the bucket."""
    tensorboard.write_config(setup.run, setup.config)
    shown = setup.validation or setup.train

    def on_epoch(record: EpochMetrics, timing: EpochMetrics) -> None:
        provenance.add_epoch(setup.run, int(record["epoch"]), timing)
        drawn: dict[str, Image.Image] = {}
        # Ten times in a run: drawing takes as long as many steps of a small model.
        if record["epoch"] % max(1, setup.config.epochs // 10) == 0:
            drawn = evaluate.draw(
                setup.network, setup.state, setup.config, shown, data, _TENSORBOARD_PICTURES
            )
        tensorboard.write_epoch(setup.run, record, timing, list(drawn.values()))

    profiling = False

    def on_steps(_: int, after: int) -> None:
        nonlocal profiling
        mirrored.check()
        start, stop = profiled or (0, 0)
        if not profiling and start <= after < stop:
            tf.profiler.experimental.start(tensorboard.folder(setup.run))
            profiling = True
        elif profiling and stop <= after:
            tf.profiler.experimental.stop()
            profiling = False

    return train.Hooks(on_steps, on_epoch)


def finish(
    setup: train.Setup,
    data: run_dir.DatasetInfo,
    records: list[EpochMetrics],
    report: str | None,
) -> None:
    """Evaluates the best epoch on a split, if any, draws, and prints where the files are."""
    # All wait here: the chief may still be writing the checkpoint that all evaluate.
    strategy.sum_over_workers(setup.strategy, 0.0)
    checkpoint.restore(setup.state, run_dir.best_checkpoint(setup.run))
    chief = setup.options.chief
    if report:
        split = evaluate.open_split(data, report, setup.config)
        found, predicted = evaluate.make_evaluate(
            setup.strategy, setup.network, setup.state, setup.config, split, report
        )()
        if chief:
            evaluate.report(
                setup.network,
                setup.state,
                setup.config,
                split,
                data,
                report,
                found,
                predicted,
                setup.run,
            )
            tensorboard.write_result(setup.run, report, found, int(setup.state.step.numpy()))
    if chief:
        curves = os.path.join(setup.run, "curves.png")
        pictures.curves(records, curves)
        print(f"curves: {curves}\nreport: {run_page.write(setup.run)}\nrun: {setup.run}{os.sep}")


if __name__ == "__main__":
    command.run(main)
