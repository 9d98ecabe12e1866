"""How fast the loop trains: on real records, on one batch in memory, and beside `model.fit`.

    python -m benchmarks.train_step [--data=data/tfrecords] [--replicas=1] [--rounds=5]

All train the same network on photos of the same size with the same augmentation, losses and AdamW.
`model.fit` has one batch in memory too, so that it is the steps that are compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import keras
import tensorflow as tf

from benchmarks import rounds
from tfrecords import manifest, pipelines, reader
from tfrecords.errors import run_command
from trainer import augment, loop, losses, model, state, strategy
from trainer import config as configs
from trainer import input as inputs


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", allow_abbrev=False)
    parser.add_argument("--data", default="data/tfrecords")
    parser.add_argument("--config", default="default", choices=configs.NAMES)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="in each measurement")
    flags = parser.parse_args(argv)
    settings = {"weights": "none"} | configs.parse_settings(flags.set)
    config = configs.apply_settings(configs.named(flags.config), settings)
    info = manifest.read(flags.data)
    devices = strategy.make("mirrored" if flags.replicas > 1 else "one", flags.replicas)
    source = inputs.open_source(
        reader.Records(flags.data, "train"),
        info.image.height,
        info.image.width,
        downscale=config.downscale,
    )
    network = model.build(config, source.height, source.width, info.class_names)
    waits: list[float] = []
    found = rounds.measure(
        {
            "one batch in memory": in_memory(flags, config, devices, source, network),
            "real records": on_records(flags, config, devices, source, network, waits),
            "model.fit, one batch in memory": by_fit(flags, config, devices, source, info),
        },
        flags.rounds,
    )
    print(
        f"{strategy.describe(devices)}, {source.height}x{source.width}, global batch"
        f" {config.batch_size}, {config.precision}, XLA {loop.uses_jit(config)}"
    )
    print(rounds.table(found, "one batch in memory", "images/s"))
    print(f"waiting for data on real records: {sum(waits) / len(waits):.1%} of the time")


def in_memory(
    flags: argparse.Namespace,
    config: configs.Config,
    devices: tf.distribute.Strategy,
    source: inputs.Source,
    network: keras.Model,
) -> Callable[[], float]:
    """Returns what trains on the same batch again and again."""
    job = make_job(config, devices, source, network)
    run_steps = loop.make_run_steps(job)
    group = next(inputs.training_batches(devices, source, config, 0, 1, 1))

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(flags.steps):
            run_steps(group, 1, False)
        job.state.step.numpy()
        return flags.steps * config.batch_size / (time.perf_counter() - started)

    return measure


def on_records(
    flags: argparse.Namespace,
    config: configs.Config,
    devices: tf.distribute.Strategy,
    source: inputs.Source,
    network: keras.Model,
    waits: list[float],
) -> Callable[[], float]:
    """Returns what trains on records, read and augmented meanwhile."""
    job = make_job(config, devices, source, network)
    run_steps = loop.make_run_steps(job)
    batches = inputs.training_batches(devices, source, config, 0, 10**9, 1)
    next(batches)

    def measure() -> float:
        waited, started = 0.0, time.perf_counter()
        for _ in range(flags.steps):
            before = time.perf_counter()
            group = next(batches)
            waited += time.perf_counter() - before
            run_steps(group, 1, False)
        job.state.step.numpy()
        seconds = time.perf_counter() - started
        waits.append(waited / seconds)
        return flags.steps * config.batch_size / seconds

    return measure


def by_fit(
    flags: argparse.Namespace,
    config: configs.Config,
    devices: tf.distribute.Strategy,
    source: inputs.Source,
    info: manifest.Manifest,
) -> Callable[[], float]:
    """Returns what trains the same network by `model.fit`."""
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    batch = {
        k: v[0] for k, v in next(inputs.training_batches(one, source, config, 0, 1, 1)).items()
    }

    def example_and_targets(batch: inputs.Example) -> tuple[tf.Tensor, inputs.Example]:
        changed = augment.augment(batch, config)
        target = tf.one_hot(batch["label"], len(info.class_names))
        return changed["image"], {"bbox": changed["bbox"], "logits": target}

    same = tf.data.Dataset.from_tensors(batch).repeat().map(example_and_targets).prefetch(1)
    same = same.with_options(pipelines.untuned())
    box_loss = losses.box_loss(config.loss.box)
    with devices.scope():
        network = model.build(config, source.height, source.width, info.class_names)
        network.compile(
            keras.optimizers.AdamW(1e-3, weight_decay=config.optimizer.weight_decay),
            loss={
                "bbox": lambda true, pred: tf.reduce_mean(box_loss(true, pred)),
                "logits": keras.losses.CategoricalCrossentropy(
                    from_logits=True, label_smoothing=config.loss.label_smoothing
                ),
            },
            jit_compile=False,
        )

    def measure() -> float:
        started = time.perf_counter()
        network.fit(same, steps_per_epoch=flags.steps, epochs=1, verbose=0)
        return flags.steps * config.batch_size / (time.perf_counter() - started)

    return measure


def make_job(
    config: configs.Config,
    devices: tf.distribute.Strategy,
    source: inputs.Source,
    network: keras.Model,
) -> loop.Job:
    """Returns a job that writes nothing."""
    values = state.create(devices, network, config)
    folder = tempfile.gettempdir()
    return loop.Job(devices, network, values, config, source, None, folder, loop.Options())


if __name__ == "__main__":
    run_command(main)
