"""Shards to examples: in stored order as a stream, or in any order by position.

dataset = reader.stream("data/tfrecords", "test")          # tf.data of decoded examples
records = reader.Records("data/tfrecords", "train")        # random access for training
"""

import mmap
import os
import struct

import numpy as np
import tensorflow as tf

from tfrecords import example, manifest, pipelines, remote
from tfrecords.errors import UserError


def decode(serialized: tf.Tensor, height: int, width: int) -> dict[str, tf.Tensor]:
    """Parses one record and decodes its photo.

    Args:
        serialized: string scalar.
        height, width: of the stored photo, from the manifest, in pixels.

    Returns:
        What `example.parse` returns, with `encoded` replaced by `image`: uint8
        [height, width, 3], RGB.
    """
    fields = example.parse(serialized)
    image = tf.io.decode_jpeg(fields.pop("encoded"), channels=3)
    return fields | {"image": tf.ensure_shape(image, [height, width, 3])}


def stream(directory: str, split: str, *, limit: int = -1) -> tf.data.Dataset:
    """Streams decoded examples in stored order, each time the same.

    Args:
        directory: of the data set; a remote one is fetched first (`tfrecords.remote`).
        split: its name.
        limit: at most so many examples; -1 for all.

    Raises:
        UserError: there is no such data set or split.
    """
    directory = remote.local(directory)
    info = manifest.read(directory)
    files = [os.path.join(directory, shard.file) for shard in shards(info, directory, split)]
    # One file after another: parallel reads would interleave the shards, and decoding is what takes
    # the time.
    serialized = tf.data.TFRecordDataset(files, buffer_size=8 << 20).take(limit)
    return (
        serialized.map(
            lambda record: decode(record, info.image.height, info.image.width),
            num_parallel_calls=pipelines.CORES,
            deterministic=True,
        )
        .prefetch(pipelines.CORES)
        .with_options(pipelines.untuned())
    )


def shards(info: manifest.Manifest, directory: str, split: str) -> list[manifest.Shard]:
    """Returns the shards of a split.

    Raises:
        UserError: the data set has no such split.
    """
    if split not in info.splits:
        raise UserError(
            f"the data set at {directory!r} has no split {split!r}, only {sorted(info.splits)}."
        )
    return info.splits[split].shards


class Records:
    """The serialized records of one split, by position.

    Shards are memory-mapped: the operating system keeps what fits in memory, and a data set
    larger than memory costs only disk reads. Every record's checksum is checked when it is read.
    """

    def __init__(self, directory: str, split: str):
        """Opens a split and finds where each record begins; a remote data set is fetched first.

        Raises:
            UserError: no such data set or split, or a shard is missing, of another size than the
                manifest says, or not made of whole records.
        """
        directory = remote.local(directory)
        self._paths: list[str] = []
        self._maps: list[mmap.mmap | bytes] = []
        shard_numbers, offsets, lengths = [], [], []
        for number, shard in enumerate(shards(manifest.read(directory), directory, split)):
            path = os.path.join(directory, shard.file)
            mapped = _map_file(path, shard.bytes)
            starts, sizes = _index(mapped, path)
            if len(starts) != shard.num_examples:
                raise UserError(
                    f"{path} holds {len(starts)} records, {manifest.FILE_NAME} says"
                    f" {shard.num_examples}. Run `python -m preprocess.run` again."
                )
            self._paths.append(path)
            self._maps.append(mapped)
            shard_numbers.append(np.full(len(starts), number, np.int32))
            offsets.append(starts)
            lengths.append(sizes)
        self._shard = np.concatenate(shard_numbers)
        self._offset = np.concatenate(offsets)
        self._length = np.concatenate(lengths)

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Reads records.

        Args:
            positions: int [n], each in [0, len(self)).

        Returns:
            object [n] of bytes: the serialized records.

        Raises:
            UserError: a record's checksum is not that of its bytes.
        """
        out = np.empty(len(positions), object)
        for i, position in enumerate(positions):
            shard, offset = self._shard[position], int(self._offset[position])
            end = offset + int(self._length[position])
            payload = self._maps[shard][offset:end]
            if not example.check_payload(payload, self._maps[shard][end : end + 4]):
                raise UserError(
                    f"{self._paths[shard]} is damaged: the record at byte {offset} fails its"
                    " checksum. Copy the file again, or run `python -m preprocess.run` again."
                )
            out[i] = payload
        return out


def _map_file(path: str, expected_bytes: int) -> mmap.mmap | bytes:
    try:
        size = os.path.getsize(path)
        if size != expected_bytes:
            raise UserError(
                f"{path} has {size} bytes, {manifest.FILE_NAME} says {expected_bytes}:"
                " the file is cut off or was replaced. Copy it again, or run"
                " `python -m preprocess.run` again."
            )
        if not size:
            return b""  # an empty file cannot be mapped
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"{path} is named in {manifest.FILE_NAME} but cannot be read: {error.strerror}."
        ) from None


def _index(mapped: mmap.mmap | bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    starts, sizes = [], []
    position, end = 0, len(mapped)
    while position < end:
        length = struct.unpack_from("<Q", mapped, position)[0] if position + 16 <= end else end
        if position + 16 + length > end:
            raise UserError(f"{path} is damaged: the record at byte {position} is cut off.")
        starts.append(position + 12)
        sizes.append(length)
        position += 16 + length
    return np.array(starts, np.int64), np.array(sizes, np.int64)
