"""Photos that look the same: a 64-bit hash of what a photo looks like, and who is near whom.

The hash is dHash: a photo is reduced to 9 x 8 gray pixels, and each bit says whether one is
brighter than its left neighbor. It survives another size, quality or brightness, not another crop.
Plain pictures share their hash with many others, so colors are compared, too.
Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

NEAR = 4  # bits in which two photos may differ; on photos of cars from 5 on others come in
_TINT = 24  # how far apart the colors of the same photo are at most, of 255
_BLOCK = 1 << 22  # comparisons at a time


class Pair(NamedTuple):
    """A photo, the one in an earlier split that it looks like, and the bits that differ."""

    photo: int
    earlier: int
    bits: int


def look(photo: np.ndarray) -> int:
    """Returns the hash of a photo: uint8 [height, width, 3], RGB; 0 if it is all of one gray."""
    gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return int(np.packbits(small[:, 1:] > small[:, :-1]).view(">u8")[0])


def tint(photo: np.ndarray) -> np.ndarray:
    """Returns the colors of a photo: uint8 [4, 4, 3] of uint8 [height, width, 3], any size."""
    return cv2.resize(photo, (4, 4), interpolation=cv2.INTER_AREA)


def same_tint(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two photos have nearly the same colors in the same places."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean()) <= _TINT


def pairs(looks: np.ndarray, splits: np.ndarray, within: int = NEAR) -> list[Pair]:
    """Returns the photos that look like one of an earlier split, each once, the nearest first.

    Args:
        looks: uint64 [n]; photos whose hash is 0 look like none.
        splits: uint8 [n], number of each photo's split; what comes first is earlier.
        within: bits in which two may differ, at most.
    """
    values, members = np.unique(looks, return_inverse=True)
    count = int(splits.max(initial=0)) + 1
    first = np.full((len(values), count), -1, np.int64)  # photo by hash and split
    np.put(first, (members * count + splits)[::-1], np.arange(len(looks))[::-1])
    best = np.full((len(values), count), within + 1, np.int64)  # bits, by hash and split
    partner = np.full((len(values), count), -1, np.int64)
    for one, other, bits in _near(values, within):
        for a, b in ((one, other), (other, one)):
            for split in range(1, count):
                earlier = first[b, :split]
                if first[a, split] >= 0 and (earlier >= 0).any() and bits < best[a, split]:
                    best[a, split] = bits
                    partner[a, split] = earlier[earlier >= 0][0]
    found = np.flatnonzero((partner[members, splits] >= 0) & (looks != 0))
    result = [
        Pair(int(i), int(partner[members[i], splits[i]]), int(best[members[i], splits[i]]))
        for i in found
    ]
    return sorted(result, key=lambda pair: (pair.bits, pair.photo))


def _near(values: np.ndarray, within: int) -> Iterator[tuple[int, int, int]]:
    """Yields positions and distance of hashes that differ in few bits, some more than once.

    Of five pieces of a hash at least one is the same where at most four bits differ, so only hashes
    that share a piece are compared.

    Args:
        values: uint64 [n], each once.
        within: bits in which two may differ, at most.
    """
    for i in range(len(values)):
        if values[i]:
            yield i, i, 0
    if not within or not len(values):
        return
    edges = np.linspace(0, 64, within + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        piece = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        starts = np.flatnonzero(np.diff(piece[order], prepend=-1.0))
        for group in np.split(order, starts[1:]):
            rows = max(1, _BLOCK // len(group))
            for start in range(0, len(group) if len(group) > 1 else 0, rows):
                some = group[start : start + rows]
                bits = np.bitwise_count(values[some, None] ^ values[None, group])
                for a, b in np.argwhere((bits <= within) & (some[:, None] < group[None, :])):
                    if values[some[a]]:
                        yield int(some[a]), int(group[b]), int(bits[a, b])
