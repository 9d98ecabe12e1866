"""Which photo goes to which split and shard, from nothing but a seed and its relative path."""

import hashlib
import math

import numpy as np
import pyarrow as pa

_CHUNK = 1 << 16
_MIN_PER_SHARD = 256  # photos; below that, more shards cost more than more workers give
_USEFUL_SHARDS = 16  # enough for the workers of one machine and for a reader's parallel reads


def hashes(paths: pa.LargeStringArray, seed: int) -> np.ndarray:
    """Hashes relative paths: BLAKE2b with 8 bytes, keyed by the seed in decimal.

    Args:
        paths: large_string [n].
        seed: any integer.

    Returns:
        uint64 [n].
    """
    key = str(seed).encode()
    parts = []
    for start in range(0, len(paths), _CHUNK):
        digests = b"".join(
            hashlib.blake2b(path.encode(), digest_size=8, key=key).digest()
            for path in paths.slice(start, _CHUNK).to_pylist()
        )
        parts.append(np.frombuffer(digests, ">u8").astype(np.uint64))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def is_validation(labels: np.ndarray, keys: np.ndarray, fraction: float) -> np.ndarray:
    """Draws the validation split, the same fraction of every class.

    Args:
        labels: int [n], the class of each photo.
        keys: uint64 [n], from `hashes`.
        fraction: in [0, 1); of the n photos of a class, fraction * n rounded are taken, those
            with the smallest keys.

    Returns:
        bool [n].
    """
    order = np.lexsort((keys, labels))
    _, starts, inverse, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(labels)) - starts[inverse]
    taken = np.floor(counts * fraction + 0.5).astype(np.int64)
    result = np.empty(len(labels), bool)
    result[order] = rank < taken[inverse]
    return result


def cut(keys: np.ndarray, num_shards: int) -> list[np.ndarray]:
    """Cuts a split into shards of nearly equal size, in the order of the keys.

    Args:
        keys: uint64 [n], from `hashes`.
        num_shards: at least 1.

    Returns:
        For each shard the positions of its photos, in the order in which they are stored.
    """
    return np.array_split(np.argsort(keys, kind="stable"), num_shards)


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
