"""Trains, evaluates and reports: the whole road from records to a run folder.

    python -m trainer.task --strategy=mirrored [--data=data/tfrecords] [--run=runs/NAME]
        [--config=default] [--set key value ...] [--epochs=N] [--batch_size=N]

Started again with the same flags, it goes on where the run stands. The logic lives in the modules
beside this one; this file only joins them.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from tfrecords import manifest
from tfrecords.errors import UserError, extra, run_command

with extra("train"):
    import tensorflow as tf
    from PIL import Image

    from trainer import (
        checkpoint,
        evaluate,
        folder,
        loop,
        losses,
        model,
        pictures,
        state,
        strategy,
        tensorboard,
    )
    from trainer import config as configs
    from trainer import input as inputs
    from trainer.history import Record

_TENSORBOARD_PICTURES = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: flags, data or run folder are not usable.
        SystemExit: with `loop.EXIT_PREEMPTED` after SIGTERM.
    """
    flags = parse_flags(argv)
    info = manifest.read(flags.data)
    config = make_config(flags, info)
    data = folder.describe_data(flags.data, info)
    devices = strategy.make(flags.strategy, flags.replicas, allow_cpu=flags.allow_cpu)
    rank, _ = strategy.worker(devices)
    check_batch(config, devices.num_replicas_in_sync)
    report = split_to_report(flags, info)
    run = flags.run or os.path.join("runs", f"{folder.shortened(info.name)}-{config.name}")
    folder.check(run, config, data)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one voice, the chief's, until the end
    print(plan(config, data, info, devices, run), flush=True)

    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    training, validation = (
        evaluate.open_split(data, split, config, flags.cache) if split in info.splits else None
        for split in ("train", "validation")
    )
    if training is None:
        raise UserError(f"the data set at {flags.data!r} has no train split to learn from.")
    check_profile(flags, config.epochs * inputs.steps_per_epoch(training.size, config.batch_size))
    losses.box_loss(config.loss.box)
    # A run that goes on has its weights: those it began with may be gone by now.
    fresh = checkpoint.newest(os.path.join(run, loop.LAST)) is None
    network = model.build(config, training.height, training.width, data.class_names, fresh=fresh)
    with contextlib.ExitStack() as held:
        if rank == 0:
            # Only now: a folder made before a mistake was found would hold the user to the mistake.
            held.enter_context(folder.locked(run))
            folder.create(run, config, data)
        job = loop.Job(
            strategy=devices,
            model=network,
            state=state.create(devices, network, config),
            config=config,
            training=training,
            validation=validation,
            folder=run,
            options=make_options(flags, data, info, run, chief=rank == 0),
        )
        try:
            records = loop.train(job)
        except loop.PreemptedError:
            print(f"SIGTERM: saved in {run}. Start the same command again to go on.", flush=True)
            sys.exit(loop.EXIT_PREEMPTED)
        finish(job, records, report)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags; a wrong one ends the program with 2 and one line about it."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.task", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--strategy", default="auto", choices=strategy.NAMES, help="default: auto")
    add("--replicas", type=int, help="logical CPU devices, to try a strategy without GPUs")
    add("--allow_cpu", action="store_true", help=strategy.ALLOW_CPU)
    path = os.path.expanduser
    add("--data", type=path, default="data/tfrecords", help="data set (default: data/tfrecords)")
    add("--run", type=path, help="folder of the run (default: runs/DATA-CONFIG)")
    add("--config", choices=configs.NAMES, help="default: sample for the drawn sample, or default")
    add("--set", nargs="+", action="append", default=[], metavar="KEY VALUE", help="any setting")
    add("--weights", help="imagenet, none, or a Keras weights file of MobileNetV2 without top")
    add("--epochs", help="passes over the training split")
    add("--batch_size", help="global: over all replicas")
    add("--jit", help="XLA: auto (on where there is a GPU), on, off")
    add("--precision", help="float32, mixed_bfloat16, mixed_float16")
    add("--steps_per_call", type=int, default=1, help="steps in one call of the graph")
    add("--cache", choices=("none", "memory"), default="none", help="keep decoded photos")
    add("--keep", type=int, default=2, help="newest checkpoints to keep")
    add("--checkpoint_seconds", type=float, default=300.0, help="save at least this often")
    add(
        "--report",
        choices=("test", "validation", "none"),
        help="split to judge at the end (default: test)",
    )
    add("--profile", type=_profile, metavar="START:STOP", help="steps to profile, for TensorBoard")
    flags = parser.parse_args(argv)
    for name in ("steps_per_call", "keep"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name}={getattr(flags, name)}: it must be at least 1")
    return flags


def make_config(flags: argparse.Namespace, info: manifest.Manifest) -> configs.Config:
    """Returns the config that flags and data ask for.

    Raises:
        UserError: a setting is unknown or out of range, or the photos have another size.
    """
    config = configs.named(flags.config or ("sample" if info.sample else "default"))
    settings = configs.parse_settings([word for words in flags.set for word in words])
    for name in ("weights", "epochs", "batch_size", "jit", "precision"):
        if getattr(flags, name) is not None:
            settings[name] = getattr(flags, name)
    if "weights" in settings:
        settings["weights"] = os.path.expanduser(settings["weights"])
    config = configs.apply_settings(config, settings)
    for side in ("height", "width"):
        wanted, there = getattr(config, f"image_{side}"), getattr(info.image, side)
        if wanted not in (None, there):
            raise UserError(
                f"image_{side} is {wanted} in the config, and the photos of {flags.data} have"
                f" {there}. Run `python -m preprocess.run --image_{side}={wanted}` or leave the"
                " setting out."
            )
    return config


def check_batch(config: configs.Config, replicas: int) -> None:
    """Checks that a batch can be shared evenly.

    Raises:
        UserError: it cannot.
    """
    parts = replicas * config.optimizer.accumulate
    if config.batch_size % parts:
        nearest = max(parts, round(config.batch_size / parts) * parts)
        raise UserError(
            f"the global batch size {config.batch_size} cannot be shared evenly by {replicas}"
            f" replicas in {config.optimizer.accumulate} parts each. Try --batch_size={nearest}."
        )


def split_to_report(flags: argparse.Namespace, info: manifest.Manifest) -> str | None:
    """Returns the split to judge at the end, or None.

    Raises:
        UserError: the one asked for is not there.
    """
    if flags.report in (None, "none"):
        there = [name for name in ("test", "validation") if name in info.splits]
        return there[0] if there and flags.report is None else None
    if flags.report not in info.splits:
        raise UserError(
            f"--report={flags.report}: the data set at {flags.data!r} has no such split."
        )
    return flags.report


def check_profile(flags: argparse.Namespace, steps: int) -> None:
    """Checks that the steps to profile are steps of the run, after the first.

    Raises:
        UserError: they are not, or fewer than are done in one call.
    """
    if not flags.profile:
        return
    start, stop = flags.profile
    if stop > steps:
        raise UserError(
            f"--profile={start}:{stop}: the run has {steps} steps. Give a STOP of {steps} at most."
        )
    least = max(start, 1) + flags.steps_per_call
    if stop < least:
        raise UserError(
            f"--profile={start}:{stop}: {flags.steps_per_call} steps are done in one call, and the"
            f" first call is not profiled. Give a STOP of at least {least}."
        )


def plan(
    config: configs.Config,
    data: folder.Data,
    info: manifest.Manifest,
    devices: tf.distribute.Strategy,
    run: str,
) -> str:
    """Returns what will be done, for people."""
    splits = [name for name in manifest.SPLITS if name in info.splits]
    sizes = ", ".join(f"{name} {info.splits[name].num_examples}" for name in splits)
    jit = "with XLA" if loop.uses_jit(config) else "without XLA"
    return "\n".join(
        (
            f"data:     {data.path} ({data.name}): {sizes}; {len(data.class_names)} classes,"
            f" {data.height}x{data.width} pixels",
            f"config:   {config.name}, weights {config.weights}, {config.epochs} epochs,"
            f" global batch size {config.batch_size}",
            f"strategy: {strategy.describe(devices)}, {config.precision}, {jit}",
            f"run:      {run}",
        )
    )


def make_options(
    flags: argparse.Namespace, data: folder.Data, info: manifest.Manifest, run: str, *, chief: bool
) -> loop.Options:
    """Returns what does not change the outcome."""
    board = tensorboard.writer(run) if chief else None
    split = "validation" if "validation" in info.splits else "train"

    def on_epoch(job: loop.Job, record: Record, timing: Record) -> None:
        if board:
            drawn: dict[str, Image.Image] = {}
            # Ten times in a run: drawing takes as long as many steps of a small model.
            if record["epoch"] % max(1, job.config.epochs // 10) == 0:
                drawn = evaluate.draw(job, data, split, _TENSORBOARD_PICTURES)
            tensorboard.write_epoch(board, record, timing, list(drawn.values()))

    profiling = False

    def on_steps(before: int, after: int) -> None:
        nonlocal profiling
        start, stop = flags.profile or (0, 0)
        if not profiling and start <= after < stop:
            tf.profiler.experimental.start(os.path.join(run, "tensorboard"))
            profiling = True
        elif profiling and stop <= after:
            tf.profiler.experimental.stop()
            profiling = False

    return loop.Options(
        steps_per_call=flags.steps_per_call,
        keep=flags.keep,
        checkpoint_seconds=flags.checkpoint_seconds,
        chief=chief,
        on_steps=on_steps if flags.profile and chief else lambda before, after: None,
        on_epoch=on_epoch,
    )


def finish(job: loop.Job, records: list[Record], split: str | None) -> None:
    """Judges the best epoch on a split, if any, draws, and says where everything is."""
    # The chief may still be writing the checkpoint that all judge.
    loop.add_up(job.strategy, 0.0)
    checkpoint.restore(job.state, evaluate.best_checkpoint(job.folder))
    if job.options.chief:
        pictures.curves(records, os.path.join(job.folder, "curves.png"))
    if split:
        evaluate.report(job, folder.read(job.folder)[1], split)
    print(f"curves: {os.path.join(job.folder, 'curves.png')}\nrun: {job.folder}{os.sep}")


def _profile(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text} is not START:STOP, two steps, the first smaller")
    return int(start), int(stop)


if __name__ == "__main__":
    run_command(main)
