"""From records to batches on every replica.

Which record stands at which position of a run is a function of (seed, position) alone. So any
position can be the first, the order does not depend on how many replicas or workers share the
batches, and nothing has to be replayed to resume. `trainer.augment` changes the photos later, on
the device.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrecords import example, pipelines, reader
from tfrecords.errors import UserError
from trainer import resources
from trainer.configs import Config

Example = dict[str, tf.Tensor]

_GROUPS_AT_A_TIME = 16

pipelines.untune_devices()


@dataclass(frozen=True)
class Split:
    """The records of one split, ready to be fetched by index.

    Attributes:
        size: how many there are.
        height, width: of the photos, in pixels.
        fetch: indices int64 [n] -> `image` uint8 [n, h, w, 3], `bbox` float32 [n, 4], `label` int64
            [n] from 0.
        records: the records themselves.
    """

    size: int
    height: int
    width: int
    fetch: Callable[[tf.Tensor], Example]
    records: reader.Records


def open_split(
    records: reader.Records, height: int, width: int, cache: str = "none", downscale: int = 1
) -> Split:
    """Returns a split, ready to be fetched.

    Args:
        records: of the split.
        height, width: of its photos, in pixels.
        downscale: 1, 2, 4 or 8: decode at this fraction of the size (the decoder averages).
        cache: `none` to read and decode each time; `memory` to keep the decoded photos.

    Raises:
        UserError: they would not fit in memory.
    """
    split = _uncached(records, -(-height // downscale), -(-width // downscale), downscale)
    return _cached(records, split) if cache == "memory" else split


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch.

    The incomplete last batch is dropped; where the order is shuffled, it holds other examples each
    epoch. A batch of another size would weigh its examples differently, and XLA would compile it
    again.

    Raises:
        UserError: not even one batch is full.
    """
    if size < batch_size:
        raise UserError(
            f"the training split has {size} examples, fewer than one batch of {batch_size}."
            " Give a smaller --batch_size."
        )
    return size // batch_size


def group_size(per_epoch: int, step: int, most: int) -> int:
    """Returns how many steps from this one on are done in one call of the graph.

    Args:
        per_epoch: steps in an epoch; a group does not cross its end.
        step: the first of the group.
        most: the largest group.
    """
    return min(most, per_epoch - step % per_epoch)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns TensorFlow's error back into the `UserError` of the reader that caused it."""
    try:
        yield
    except tf.errors.UnknownError as error:
        if found := re.search(r"UserError: (.*)", error.message):
            raise UserError(found[1]) from None
        raise


def shuffled_indices(config: Config, size: int, positions: tf.Tensor) -> tf.Tensor:
    """Returns which records stand at positions of a run.

    Each epoch is a new permutation of all records (a stateless cipher, so that nothing has to be
    stored), or the stored order where the config does not shuffle.

    Args:
        config: seed, batch size, whether to shuffle.
        size: of the split.
        positions: int64 [n], from 0 over all epochs; an epoch has only full batches.

    Returns:
        int64 [n], each in [0, size).
    """
    length = steps_per_epoch(size, config.batch_size) * config.batch_size
    epoch, place = positions // length, positions % length
    if not config.shuffle:
        return place
    # The public index_shuffle pads a matrix of seeds along the wrong axis (TensorFlow 2.21).
    seed = tf.stack([tf.fill(tf.shape(epoch), np.int64(config.seed)), epoch, epoch * 0], axis=-1)
    return tf.raw_ops.RandomIndexShuffle(
        index=place, seed=seed, max_index=np.int64(size - 1), rounds=4
    )


def spread(size: int, count: int) -> np.ndarray:
    """Returns the indices of `count` examples, or of all, spread evenly over a split: int64."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def paths(split: Split, indices: np.ndarray) -> list[str]:
    """Returns where photos of a split came from, as paths in its data set."""
    found = example.parse(tf.constant(split.records.read(indices)))["filename"]
    return [path.decode() for path in found.numpy()]


def training_batches(
    strategy: tf.distribute.Strategy,
    split: Split,
    config: Config,
    start: int,
    stop: int,
    steps_per_call: int,
) -> Iterator[Example]:
    """Yields groups of training batches, distributed over the replicas.

    Args:
        strategy: whose replicas share each global batch.
        split: the training split.
        config: batch size and order.
        start, stop: steps, the first and the one after the last.
        steps_per_call: batches in a group; fewer where `group_size` says so.

    Returns:
        An iterator over dicts of per-replica `image` uint8 [k, b, h, w, 3], `bbox` float32
        [k, b, 4], `label` int64 [k, b] from 0, `mask` bool [k, b], all true,
        `position` int64 [k, b] in the run.
    """
    per_epoch = steps_per_epoch(split.size, config.batch_size)

    def groups() -> Iterator[tuple[int, int]]:
        step = start
        while step < stop:
            count = min(group_size(per_epoch, step, steps_per_call), stop - step)
            yield step, count
            step += count

    def pick(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return shuffled_indices(config, split.size, positions), tf.ones_like(positions, tf.bool)

    return iter(_distribute(strategy, split, groups, pick, config.batch_size))


def evaluation_batches(
    strategy: tf.distribute.Strategy, split: Split, batch_size: int
) -> Iterable[Example]:
    """Gives each example once, in stored order, distributed over the replicas.

    The last batch is filled up with copies whose `mask` is false, so that every replica and every
    batch has the same shape.

    Args:
        strategy: whose replicas share each global batch.
        split: to go through.
        batch_size: global; taken larger where the replicas could not share it evenly.

    Returns:
        An iterable that can be used any number of times, of dicts as in `training_batches`, k = 1.
    """
    replicas = strategy.num_replicas_in_sync
    batch_size = -(-batch_size // replicas) * replicas

    def groups() -> Iterator[tuple[int, int]]:
        return ((step, 1) for step in range(-(-split.size // batch_size)))

    def pick(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.minimum(positions, split.size - 1), positions < split.size

    return _distribute(strategy, split, groups, pick, batch_size)


def _uncached(records: reader.Records, height: int, width: int, downscale: int) -> Split:
    def fetch(wanted: tf.Tensor) -> Example:
        serialized = tf.numpy_function(records.read, [wanted], tf.string, stateful=False)
        parsed = example.parse(tf.ensure_shape(serialized, [None]))
        image = tf.map_fn(
            lambda encoded: tf.io.decode_jpeg(encoded, channels=3, ratio=downscale),
            parsed["encoded"],
            fn_output_signature=tf.TensorSpec([height, width, 3], tf.uint8),
        )
        return {"image": image, "bbox": parsed["bbox"], "label": parsed["label"] - 1}

    return Split(len(records), height, width, fetch, records)


def _cached(records: reader.Records, split: Split) -> Split:
    size, height, width = len(records), split.height, split.width
    _check_memory(size * height * width * 3)
    images = np.empty((size, height, width, 3), np.uint8)
    boxes, labels = np.empty((size, 4), np.float32), np.empty(size, np.int64)
    decoded = tf.data.Dataset.range(size).batch(64).map(split.fetch, resources.cores())
    decoded = decoded.with_options(pipelines.untuned())
    with reading():
        for number, batch in enumerate(decoded.as_numpy_iterator()):
            part = slice(64 * number, 64 * number + len(batch["label"]))
            images[part], boxes[part], labels[part] = batch["image"], batch["bbox"], batch["label"]

    def fetch(wanted: tf.Tensor) -> Example:
        # Not as tensors: the photos would be in memory twice.
        image, bbox, label = tf.numpy_function(
            lambda rows: (images[rows], boxes[rows], labels[rows]),
            [wanted],
            (tf.uint8, tf.float32, tf.int64),
            stateful=False,
        )
        return {
            "image": tf.ensure_shape(image, [None, height, width, 3]),
            "bbox": tf.ensure_shape(bbox, [None, 4]),
            "label": tf.ensure_shape(label, [None]),
        }

    return Split(size, height, width, fetch, records)


def _check_memory(needed: int) -> None:
    available = resources.free_memory()
    print(f"cache: {needed / 1e9:.2f} GB of decoded photos, {available / 1e9:.2f} GB free")
    if needed > 0.8 * available:
        raise UserError(
            f"--cache=memory needs {needed / 1e9:.2f} GB, and {available / 1e9:.2f} GB are free"
            " (a fifth is left to training). Use --cache=none."
        )


def _distribute(
    strategy: tf.distribute.Strategy,
    split: Split,
    groups: Callable[[], Iterator[tuple[int, int]]],
    pick: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    batch_size: int,
) -> Iterable[Example]:
    """Reads, decodes and hands out groups of batches; each worker does only its own share."""
    per_replica = batch_size // strategy.num_replicas_in_sync

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = strategy.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * replicas

        def positions(step: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
            steps = (step + tf.range(count))[tf.newaxis, :, tf.newaxis]
            replica = (first + tf.range(replicas, dtype=tf.int64))[:, tf.newaxis, tf.newaxis]
            row = tf.range(per_replica, dtype=tf.int64)
            places = steps * batch_size + replica * per_replica + row
            return tf.data.Dataset.from_tensor_slices(places)

        def batch(places: tf.Tensor) -> Example:
            flat = tf.reshape(places, [-1])
            wanted, mask = pick(flat)
            examples = split.fetch(wanted) | {"mask": mask, "position": flat}
            lead = [tf.shape(places)[0], per_replica]
            return {
                name: tf.ensure_shape(
                    tf.reshape(value, tf.concat([lead, tf.shape(value)[1:]], 0)),
                    [None, per_replica, *value.shape[1:]],
                )
                for name, value in examples.items()
            }

        pair = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64))
        dataset = tf.data.Dataset.from_generator(groups, output_signature=pair)
        dataset = dataset.flat_map(positions)
        # Each call holds a whole group of batches.
        calls = min(resources.cores(), _GROUPS_AT_A_TIME)
        dataset = dataset.map(batch, num_parallel_calls=calls, deterministic=True)
        return dataset.prefetch(2).with_options(pipelines.untuned())

    return strategy.distribute_datasets_from_function(share)
