"""The split and the shards follow from seed and path alone."""

import hashlib

import numpy as np
import pyarrow as pa

from preprocess import split


def paths(count: int) -> pa.LargeStringArray:
    return pa.array([f"train/class {i % 7}/{i:05d}.jpg" for i in range(count)], pa.large_string())


def test_a_hash_can_be_had_with_the_standard_library():
    expected = hashlib.blake2b(b"train/class 0/00000.jpg", digest_size=8, key=b"42").digest()
    assert split.hashes(paths(1), 42)[0] == int.from_bytes(expected, "big")


def test_hashes_do_not_depend_on_chunks(monkeypatch):
    whole = split.hashes(paths(100), 1)
    monkeypatch.setattr(split, "_CHUNK", 7)
    np.testing.assert_array_equal(whole, split.hashes(paths(100), 1))
    assert len(set(whole.tolist())) == 100


def test_every_class_gives_the_same_fraction():
    labels = np.repeat([5, 2, 9, 1], [100, 33, 2, 1])
    keys = split.hashes(paths(len(labels)), 42)
    chosen = split.is_validation(labels, keys, 0.2)
    counts = {int(label): int(chosen[labels == label].sum()) for label in set(labels)}
    assert counts == {5: 20, 2: 7, 9: 0, 1: 0}
    # Those with the smallest keys of their class.
    assert (
        keys[labels == 5][chosen[labels == 5]].max() < keys[labels == 5][~chosen[labels == 5]].min()
    )


def test_a_photo_keeps_its_split_when_rows_are_shuffled_and_others_stay():
    labels = np.arange(700) % 7
    keys = split.hashes(paths(700), 42)
    chosen = split.is_validation(labels, keys, 0.3)
    order = np.random.default_rng(0).permutation(700)
    np.testing.assert_array_equal(
        chosen[order], split.is_validation(labels[order], keys[order], 0.3)
    )


def test_another_seed_gives_another_split():
    labels = np.zeros(200, int)
    one, other = (split.is_validation(labels, split.hashes(paths(200), s), 0.5) for s in (1, 2))
    assert 60 < (one == other).sum() < 140


def test_no_validation_at_fraction_zero():
    assert not split.is_validation(np.zeros(9, int), split.hashes(paths(9), 1), 0.0).any()


def test_shards_are_nearly_equal_and_in_order_of_the_keys():
    keys = split.hashes(paths(103), 42)
    shards = split.cut(keys, 10)
    assert {len(shard) for shard in shards} == {10, 11}
    together = np.concatenate(shards)
    assert sorted(together.tolist()) == list(range(103))
    assert (np.diff(keys[together].astype(object)) > 0).all()


def test_number_of_shards():
    assert split.num_shards(10, 30e3, 100e6) == 1
    assert split.num_shards(1000, 30e3, 100e6) == 3  # several workers, 256 photos each
    assert split.num_shards(100_000, 30e3, 100e6) == 30  # by size
    assert split.num_shards(10, 30e3, 1) == 10  # never more shards than photos


def test_the_estimate_of_a_photo_grows_with_size_and_quality():
    sizes = [split.photo_bytes(256, 320, quality) for quality in (1, 50, 75, 95, 100)]
    assert sizes == sorted(sizes)
    assert 15e3 < sizes[3] < 45e3
