"""The split and the shard of each photo: functions of a seed and its relative path alone."""

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_MIN_PER_SHARD = 256  # photos; below that, more shards cost more than more workers give
_USEFUL_SHARDS = 16  # enough for the workers of one machine and for a reader's parallel reads


class Draw(NamedTuple):
    """What an exact split needs to know about one class.

    Attributes:
        train, validation, test: photos of each split.
        last: the largest hash of the class that is validation; meaningless if there is none.
    """

    train: int
    validation: int
    test: int
    last: int


def hashes(paths: pa.ChunkedArray | pa.Array, seed: int) -> np.ndarray:
    """Hashes relative paths: BLAKE2b with 8 bytes, keyed by the seed in decimal.

    Args:
        paths: string [n].
        seed: any integer.

    Returns:
        uint64 [n].
    """
    key = str(seed).encode()
    digests = b"".join(
        hashlib.blake2b(path.encode(), digest_size=8, key=key).digest()
        for path in paths.to_pylist()
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def draw(train: Iterable[bytes], test: int, fraction: float) -> Draw:
    """Draws the validation photos of one class.

    Args:
        train: hashes of the class's train photos, in pieces: native uint64 as bytes.
        test: number of its test photos.
        fraction: in [0, 1); of the n train photos, fraction * n rounded are validation, those with
            the smallest hashes.
    """
    keys = np.sort(np.frombuffer(b"".join(train), np.uint64))
    taken = math.floor(len(keys) * fraction + 0.5)
    return Draw(len(keys) - taken, taken, test, int(keys[taken - 1]) if taken else 0)


def is_validation(labels: np.ndarray, keys: np.ndarray, draws: dict[int, Draw]) -> np.ndarray:
    """Returns which train photos are validation.

    Args:
        labels: int [n], the class of each photo.
        keys: uint64 [n], from `hashes`.
        draws: by class.

    Returns:
        bool [n].
    """
    limits = np.zeros(1 + max(draws, default=0), np.uint64)
    any_taken = np.zeros(len(limits), bool)
    for label, one in draws.items():
        limits[label], any_taken[label] = one.last, one.validation > 0
    return any_taken[labels] & (keys <= limits[labels])


def shard_numbers(keys: np.ndarray, num_shards: int) -> np.ndarray:
    """Assigns photos to shards, by the low half of their hashes: the high half drew the split.

    Args:
        keys: uint64 [n], from `hashes`.
        num_shards: of the split.

    Returns:
        int64 [n], each in [0, num_shards).
    """
    low = keys & np.uint64(0xFFFFFFFF)
    return (low * np.uint64(num_shards) >> np.uint64(32)).astype(np.int64)


def shard_name(split: str, number: int, num_shards: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}-{number:05d}-of-{num_shards:05d}.tfrecord"


def split_of(shard_name: str) -> str:
    """Returns the split of a shard, from its name."""
    return shard_name.split("-", 1)[0]


def num_shards(num_photos: int, photo_bytes: float, shard_bytes: float) -> int:
    """Chooses the number of shards of a split.

    Enough that none is larger than `shard_bytes`, and up to 16, as long as each has 256 photos,
    so that several workers have something to do.

    Args:
        num_photos: of the split.
        photo_bytes: of one stored photo, about; see `photo_bytes`.
        shard_bytes: wanted size of a shard.
    """
    by_size = math.ceil(num_photos * photo_bytes / shard_bytes)
    by_work = min(_USEFUL_SHARDS, num_photos // _MIN_PER_SHARD)
    return max(1, min(num_photos, max(by_size, by_work)))


def photo_bytes(height: int, width: int, quality: int) -> float:
    """Estimates the size of a stored photo, from JPEGs of cars; good to about a third.

    Args:
        height, width: in pixels.
        quality: JPEG quality, 1 to 100.
    """
    per_pixel = np.interp(quality, _QUALITIES, _BYTES_PER_PIXEL)
    return 600 + height * width * float(per_pixel)


# Measured on photos of cars at 256x320.
_QUALITIES = (1, 25, 50, 75, 90, 95, 100)
_BYTES_PER_PIXEL = (0.03, 0.08, 0.12, 0.17, 0.27, 0.37, 0.68)
