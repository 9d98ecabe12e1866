"""The split and the shards follow from seed and path alone."""

import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import split


def hashes(count: int, seed: int = 42) -> np.ndarray:
    return split.hashes(pa.array([f"train/a class/{i:06d}.jpg" for i in range(count)]), seed)


def drawn(labels: np.ndarray, keys: np.ndarray, fraction: float) -> np.ndarray:
    """Draws class by class, and asks of each photo whether it is validation."""
    draws = {
        int(label): split.draw([keys[labels == label].tobytes()], 0, fraction)
        for label in np.unique(labels)
    }
    return split.is_validation(labels, keys, draws)


@pytest.mark.parametrize("seed", [42, 0, -7, 1 << 62])
@pytest.mark.parametrize("path", ["train/class 0/00000.jpg", "test/Citroën C4/日本.jpg"])
def test_a_hash_can_be_had_with_the_standard_library(seed, path):
    digest = hashlib.blake2b(path.encode(), digest_size=8, key=str(seed).encode()).digest()
    assert split.hashes(pa.array([path]), seed).tolist() == [int.from_bytes(digest, "big")]


def test_hashes_do_not_depend_on_chunks_or_their_number():
    paths = [f"train/c/{i}.jpg" for i in range(100)]
    whole = split.hashes(pa.array(paths), 1)
    assert whole.dtype == np.uint64
    assert len(set(whole.tolist())) == 100
    chunked = pa.chunked_array([paths[:7], paths[7:7], paths[7:]], pa.string())
    np.testing.assert_array_equal(whole, split.hashes(chunked, 1))
    assert split.hashes(pa.array([], pa.string()), 1).tolist() == []


def test_every_class_gives_the_same_fraction():
    labels = np.repeat([5, 2, 9, 1], [100, 33, 2, 1])
    keys = hashes(len(labels))
    chosen = drawn(labels, keys, 0.2)
    counts = {int(label): int(chosen[labels == label].sum()) for label in set(labels)}
    assert counts == {5: 20, 2: 7, 9: 0, 1: 0}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60), st.floats(0, 0.999999))
def test_the_smallest_hashes_of_a_class_are_validation(values, fraction):
    keys = np.array(values, np.uint64)
    labels = np.full(len(keys), 3)
    taken = math.floor(len(keys) * fraction + 0.5)
    chosen = drawn(labels, keys, fraction)
    assert sorted(keys[chosen].tolist()) == sorted(values)[:taken]
    one = split.draw([keys.tobytes()], 11, fraction)
    assert (one.train, one.validation, one.test) == (len(keys) - taken, taken, 11)


def test_the_draw_does_not_depend_on_the_pieces_or_their_order():
    keys = hashes(500)
    whole = split.draw([keys.tobytes()], 0, 0.3)
    shuffled = np.random.default_rng(0).permutation(keys)
    pieces = [piece.tobytes() for piece in np.array_split(shuffled, 13)]
    assert split.draw(pieces, 0, 0.3) == whole
    assert split.draw([b"", *reversed(pieces), b""], 0, 0.3) == whole
    assert split.draw(iter(pieces), 0, 0.3) == whole


def test_a_photo_keeps_its_split_when_rows_are_shuffled():
    labels = np.arange(700) % 7
    keys = hashes(700)
    chosen = drawn(labels, keys, 0.3)
    order = np.random.default_rng(0).permutation(700)
    np.testing.assert_array_equal(chosen[order], drawn(labels[order], keys[order], 0.3))


def test_a_class_without_train_photos_has_no_validation():
    assert split.draw([b"", b""], 5, 0.5)[:3] == (0, 0, 5)
    none = {1: split.draw([], 5, 0.5), 2: split.draw([hashes(4).tobytes()], 0, 0.5)}
    chosen = split.is_validation(np.array([1, 1]), np.array([0, 2**64 - 1], np.uint64), none)
    assert not chosen.any()


def test_no_validation_at_fraction_zero():
    # Not even of the smallest hash there is.
    keys = np.array([0, 1, 2**64 - 1], np.uint64)
    assert not drawn(np.zeros(3, int), keys, 0.0).any()


def test_another_seed_gives_another_split():
    labels = np.zeros(200, int)
    one, other = (drawn(labels, hashes(200, seed), 0.5) for seed in (1, 2))
    assert 60 < (one == other).sum() < 140


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(1, 99_999))
def test_shard_numbers_are_within_range(values, num_shards):
    keys = np.array([*values, 0, 2**32 - 1, 2**32, 2**64 - 1], np.uint64)
    numbers = split.shard_numbers(keys, num_shards)
    assert numbers.dtype == np.int64
    assert numbers.min() == 0
    assert numbers.max() == num_shards - 1
    assert numbers.tolist() == [(key & 0xFFFFFFFF) * num_shards >> 32 for key in map(int, keys)]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.9])
def test_the_shards_of_every_split_are_even_whatever_the_fraction(fraction):
    """The split takes the smallest hashes; were shards cut by the same bits, some were empty."""
    keys = hashes(40_000)
    chosen = drawn(np.zeros(len(keys), int), keys, fraction)
    for mine in (keys[chosen], keys[~chosen]):
        counts = np.bincount(split.shard_numbers(mine, 10), minlength=10)
        expected = len(mine) / 10
        assert len(counts) == 10
        assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_a_shard_says_its_split_number_and_count_by_its_name():
    assert split.shard_name("train", 3, 10) == "train-00003-of-00010.tfrecord"
    for name in ("train", "validation", "test"):
        assert split.split_of(split.shard_name(name, 0, 99_999)) == name
    names = [split.shard_name("test", i, 12_345) for i in range(12_345)]
    assert names == sorted(names)


def test_number_of_shards():
    assert split.num_shards(10, 30e3, 100e6) == 1
    assert split.num_shards(1000, 30e3, 100e6) == 3  # several workers, 256 photos each
    assert split.num_shards(100_000, 30e3, 100e6) == 30  # by size
    assert split.num_shards(10, 30e3, 1) == 10  # never more shards than photos


def test_the_estimate_of_a_photo_grows_with_size_and_quality():
    sizes = [split.photo_bytes(256, 320, quality) for quality in (1, 50, 75, 95, 100)]
    assert sizes == sorted(sizes)
    assert 15e3 < sizes[3] < 45e3
    assert split.photo_bytes(512, 640, 95) > 3 * sizes[3]
