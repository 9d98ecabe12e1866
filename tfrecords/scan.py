"""Every record of a data set, one after the other, without TensorFlow."""

import os
from collections.abc import Iterator

from tfrecords import example, manifest
from tfrecords.errors import UserError


def records(info: manifest.Manifest, directory: str) -> Iterator[tuple[str, example.Record]]:
    """Yields (split, record) in stored order; photos are not decoded.

    Raises:
        UserError: a record cannot be read.
    """
    for split in filter(info.splits.get, manifest.SPLITS):
        for shard in info.splits[split].shards:
            try:
                with manifest.open_file(os.path.join(directory, shard.file)) as file:
                    for payload, problem in example.read_frames(file):
                        if problem:
                            raise ValueError(problem)
                        yield split, example.decode(payload)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the {split} split of {directory!r} cannot be read: {shard.file}: {error}."
                    f" `python -m tfrecords.inspect {directory} --verify` names every fault."
                ) from None
