"""How fast records become batches, beside the limit that nothing can beat.

    python -m benchmarks.input [--data=data/tfrecords] [--config=default] [--rounds=5]
        [--steps_per_call=1]

The limit is `tf.io.decode_jpeg` of the very same bytes, in memory, as one `tf.data` graph on all
cores, and nothing else. Augmentation is part of the training step and happens on its device; where
that is the same CPU, it takes what the last row says.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks import rounds
from tfrecords import example, manifest, pipelines, reader
from tfrecords.errors import run_command
from trainer import augment
from trainer import config as configs
from trainer import input as inputs


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", allow_abbrev=False)
    parser.add_argument("--data", default="data/tfrecords")
    parser.add_argument("--config", default="default", choices=configs.NAMES)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps_per_call", type=int, default=1, help="batches handed out at once")
    parser.add_argument("--images", type=int, default=4096, help="in each measurement")
    flags = parser.parse_args(argv)
    config = configs.apply_settings(configs.named(flags.config), configs.parse_settings(flags.set))
    image = manifest.read(flags.data).image
    records = reader.Records(flags.data, "train")
    count = min(flags.images, len(records)) // config.batch_size * config.batch_size
    one = tf.distribute.OneDeviceStrategy("/cpu:0")

    @tf.function
    def augmented(group: inputs.Example) -> list[inputs.Example]:
        return [
            augment.augment({name: value[i] for name, value in group.items()}, config)
            for i in range(group["label"].shape[0])
        ]

    def batches(cache: str, use: Callable[[inputs.Example], object]) -> float:
        source = sources[cache]
        steps = count // config.batch_size
        iterator = inputs.training_batches(one, source, config, 0, steps, flags.steps_per_call)
        use(next(iterator))
        images, started = 0, time.perf_counter()
        for group in iterator:
            use(group)
            images += tf.size(group["label"]).numpy()
        return images / (time.perf_counter() - started)

    sources = {
        cache: inputs.open_source(records, image.height, image.width, cache, config.downscale)
        for cache in ("none", "memory")
    }
    encoded = example.parse(tf.constant(records.read(np.arange(count))))["encoded"]
    decoded = tf.data.Dataset.from_tensor_slices(encoded).batch(config.batch_size)
    decoded = decoded.map(
        lambda photos: tf.map_fn(
            lambda photo: tf.io.decode_jpeg(photo, channels=3, ratio=config.downscale),
            photos,
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
        ),
        num_parallel_calls=pipelines.CORES,
    ).with_options(pipelines.untuned())

    def limit() -> float:
        iterator = iter(decoded.prefetch(2))
        next(iterator)  # as there: the first batch starts the pipeline
        started = time.perf_counter()
        for _ in iterator:
            pass
        return (count - config.batch_size) / (time.perf_counter() - started)

    found = rounds.measure(
        {
            "limit: decode only": limit,
            "records to batches": lambda: batches("none", lambda group: None),
            "the same with --cache=memory": lambda: batches("memory", lambda group: None),
            "records to augmented batches": lambda: batches("none", augmented),
        },
        flags.rounds,
    )
    print(
        f"{count} photos of {image.height}x{image.width}, config {config.name},"
        f" {flags.steps_per_call} steps a call"
    )
    print(rounds.table(found, "limit: decode only", "images/s"))


if __name__ == "__main__":
    run_command(main)
