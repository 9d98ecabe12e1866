"""How fast records become batches, beside the limit that nothing can beat.

    python -m benchmarks.input [--data=data/tfrecords] [--rounds=5] [--steps_per_call=1]
        [--config=default] [--config.batch_size=N ...]

The limit is `tf.io.decode_jpeg` of the very same bytes, in memory, as one `tf.data` graph on all
cores, and nothing else. Augmentation is part of the training step and happens on its device; where
that is the same CPU, it takes what the last row says.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import rounds
from tfrecords import command, example, manifest, pipelines, reader
from tfrecords.errors import UserError
from trainer import augment, configs
from trainer import input as inputs

FLAGS = flags.FlagValues()
command.DEFINE_path("data", "data/tfrecords", "data set to read", flag_values=FLAGS)
configs.define_flags(FLAGS)
flags.DEFINE_integer("rounds", 5, "of measuring", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps_per_call", 1, "batches handed out at once", 1, flag_values=FLAGS)
flags.DEFINE_integer("images", 4096, "in each measurement, at most", 1, flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: there is no data set, or it is too small.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    config = configs.from_flags(FLAGS, "default")
    image = manifest.read(FLAGS.data).image
    records = reader.Records(FLAGS.data, "train")
    count = min(FLAGS.images, len(records)) // config.batch_size * config.batch_size
    if count <= config.batch_size * FLAGS.steps_per_call:
        raise UserError(
            f"the first {FLAGS.steps_per_call} of the {count // config.batch_size} batches warm up,"
            " and none is left to measure: give a smaller --batch_size or --steps_per_call."
        )
    one = tf.distribute.OneDeviceStrategy("/cpu:0")

    @tf.function
    def augmented(group: inputs.Example) -> list[inputs.Example]:
        return [
            augment.augment({k: v[i] for k, v in group.items()}, config, input_size)
            for i in range(group["label"].shape[0])
        ]

    def batches(cache: str, use: Callable[[inputs.Example], object]) -> float:
        split = splits[cache]
        steps = count // config.batch_size
        iterator = inputs.training_batches(one, split, config, 0, steps, FLAGS.steps_per_call)
        use(next(iterator))
        images, started = 0, time.perf_counter()
        for group in iterator:
            use(group)
            images += tf.size(group["label"]).numpy()
        return images / (time.perf_counter() - started)

    splits = {
        cache: inputs.open_split(records, image.height, image.width, cache, config.downscale)
        for cache in ("none", "memory")
    }
    whole = splits["none"].height, splits["none"].width
    input_size = config.model.input_height or whole[0], config.model.input_width or whole[1]
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
        FLAGS.rounds,
    )
    print(
        f"{count} photos of {image.height}x{image.width}, config {config.name},"
        f" {FLAGS.steps_per_call} steps a call"
    )
    print(rounds.table(found, "limit: decode only", "images/s"))


if __name__ == "__main__":
    command.run(main)
