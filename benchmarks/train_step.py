"""How fast the loop trains: on real records, on one batch in memory, and beside others.

    python -m benchmarks.train_step [--data=data/tfrecords] [--replicas=1] [--rounds=5] [--torch]
        [--config=default] [--config.batch_size=N ...]

All train the same network on photos of the same size with the same losses and AdamW, from random
weights. `model.fit` has one batch in memory too, so that it is the steps that are compared, and
augments it as the loop does. The network in PyTorch (`--torch`, where it is installed) does not
augment; it stands beside a row of the loop that does not either.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from absl import flags

from benchmarks import rounds
from tfrecords import command, manifest, pipelines, reader
from tfrecords.errors import UserError
from trainer import (
    augment,
    configs,
    losses,
    model,
    resources,
    strategy,
    train,
    train_state,
    xla,
)
from trainer import input as inputs

FLAGS = flags.FlagValues()
command.DEFINE_path("data", "data/tfrecords", "data set to learn from", flag_values=FLAGS)
configs.define_flags(FLAGS)
flags.DEFINE_integer("replicas", 1, "logical CPU devices", 1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "of measuring", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 5, "in each measurement", 1, flag_values=FLAGS)
flags.DEFINE_boolean("torch", False, "measure the network in PyTorch too", flag_values=FLAGS)

_BASE = "one batch in memory"
_PLAIN = {
    "augment.flip": False,
    "augment.context_crop": 0.0,
    "augment.object_crop": 0.0,
    "augment.color_jitter": 0.0,
    "augment.mixup": 0.0,
    "inference.zoom_passes": 0,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: there is no data set, or PyTorch is wanted and not there.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    if FLAGS.torch and not importlib.util.find_spec("torch"):
        raise UserError("--torch: PyTorch is not installed. `pip install torch`, or leave it out.")
    config = configs.from_flags(FLAGS, "default")
    info = manifest.read(FLAGS.data)
    devices = strategy.make("mirrored" if FLAGS.replicas > 1 else "one", FLAGS.replicas)
    split = inputs.open_split(
        reader.Records(FLAGS.data, "train"),
        info.image.height,
        info.image.width,
        downscale=config.downscale,
    )
    network = model.build(config, split.height, split.width, info.class_names, fresh=False)
    waits: list[float] = []
    things = {
        _BASE: in_memory(config, devices, split, network),
        "real records": on_records(config, devices, split, network, waits),
        "model.fit, one batch in memory": by_fit(config, devices, split, info),
    }
    if FLAGS.torch:
        plain = configs.replace(config, _PLAIN)
        things["one batch in memory, not augmented"] = in_memory(plain, devices, split, network)
        things["PyTorch, torch.compile, the same"] = by_torch(config, network)
    found = rounds.measure(things, FLAGS.rounds)
    print(
        f"{strategy.describe(devices)}, {split.height}x{split.width}, global batch"
        f" {config.batch_size}, {config.precision}, XLA {xla.uses_xla(config)}"
    )
    print(rounds.table(found, _BASE, "images/s"))
    print(f"waiting for data on real records: {sum(waits) / len(waits):.1%} of the time")


def in_memory(
    config: configs.Config,
    devices: tf.distribute.Strategy,
    split: inputs.Split,
    network: keras.Model,
) -> Callable[[], float]:
    """Returns what trains on the same batch again and again."""
    setup = make_setup(config, devices, split, network)
    run_steps = train.make_run_steps(setup)
    group = next(inputs.training_batches(devices, split, config, 0, 1, 1))

    def measure() -> float:
        started = time.perf_counter()
        for step in range(FLAGS.steps):
            run_steps(group, step, 1)
        setup.state.step.numpy()
        return FLAGS.steps * config.batch_size / (time.perf_counter() - started)

    return measure


def on_records(
    config: configs.Config,
    devices: tf.distribute.Strategy,
    split: inputs.Split,
    network: keras.Model,
    waits: list[float],
) -> Callable[[], float]:
    """Returns what trains on records, read and augmented meanwhile."""
    setup = make_setup(config, devices, split, network)
    run_steps = train.make_run_steps(setup)
    batches = inputs.training_batches(devices, split, config, 0, 10**9, 1)
    next(batches)

    def measure() -> float:
        waited, started = 0.0, time.perf_counter()
        for step in range(FLAGS.steps):
            before = time.perf_counter()
            group = next(batches)
            waited += time.perf_counter() - before
            run_steps(group, step, 1)
        setup.state.step.numpy()
        seconds = time.perf_counter() - started
        waits.append(waited / seconds)
        return FLAGS.steps * config.batch_size / seconds

    return measure


def by_fit(
    config: configs.Config,
    devices: tf.distribute.Strategy,
    split: inputs.Split,
    info: manifest.Manifest,
) -> Callable[[], float]:
    """Returns what trains the same network by `model.fit`."""
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    batch = {k: v[0] for k, v in next(inputs.training_batches(one, split, config, 0, 1, 1)).items()}
    box_loss = losses.box_loss(config.loss.box)
    with devices.scope():
        network = model.build(config, split.height, split.width, info.class_names, fresh=False)
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
    input_size = (network.input.shape[1], network.input.shape[2])

    def example_and_targets(batch: inputs.Example) -> tuple[tf.Tensor, inputs.Example]:
        changed = augment.augment(batch, config, input_size)
        target = tf.one_hot(batch["label"], len(info.class_names))
        return changed["image"], {"bbox": changed["bbox"], "logits": target}

    same = tf.data.Dataset.from_tensors(batch).repeat().map(example_and_targets).prefetch(1)
    same = same.with_options(pipelines.untuned())

    def measure() -> float:
        started = time.perf_counter()
        network.fit(same, steps_per_epoch=FLAGS.steps, epochs=1, verbose=0)
        return FLAGS.steps * config.batch_size / (time.perf_counter() - started)

    return measure


def by_torch(config: configs.Config, network: keras.Model) -> Callable[[], float]:
    """Returns what trains the same network in PyTorch, in a process of its own.

    Raises:
        UserError: the config chooses other heads than the default's.
    """
    heads = config.model.head, config.model.stride, config.model.box_stride
    if heads != ("soft_argmax", 32, 16):
        raise UserError(
            "--torch: the network in PyTorch has the heads of --config=default only. Leave"
            " model.head, model.stride and model.box_stride as they are there."
        )
    _, height, width, _ = network.input.shape
    recipe = {
        "batch_size": config.batch_size,
        "height": height,
        "width": width,
        "classes": network.output["logits"].shape[-1],
        "steps": FLAGS.steps,
        "alpha": config.model.alpha,
        "last_stride": config.model.last_stride,
        "filters": config.model.filters,
        "learning_rate": config.optimizer.learning_rate,
        "weight_decay": config.optimizer.weight_decay,
        "label_smoothing": config.loss.label_smoothing,
        "bfloat16": config.precision == "mixed_bfloat16",
        "threads": resources.cores(),
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.torch_network", json.dumps(recipe)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    ask, answers = worker.stdin, worker.stdout

    def measure() -> float:
        print(file=ask, flush=True)
        answer = answers.readline()
        if not answer:
            raise UserError("--torch: PyTorch failed (see above).")
        return float(answer)

    return measure


def make_setup(
    config: configs.Config,
    devices: tf.distribute.Strategy,
    split: inputs.Split,
    network: keras.Model,
) -> train.Setup:
    """Returns a training that writes nothing."""
    return train.Setup(
        strategy=devices,
        network=network,
        state=train_state.create(devices, network, config),
        config=config,
        train=split,
        validation=None,
        run=tempfile.gettempdir(),
        options=train.Options(),
    )


if __name__ == "__main__":
    command.run(main)
