import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.data.ops import multi_device_iterator_ops

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import input as inputs
from trainer.configs import Config

CONFIG = Config(batch_size=4, seed=7)


def one_device() -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def two_replicas() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def batches(strategy, split, config, start, stop, steps_per_call=1) -> list[dict]:
    """Returns the global batches, replicas joined, one dict a step."""
    found = []
    for group in inputs.training_batches(strategy, split, config, start, stop, steps_per_call):
        parts = {
            k: [p.numpy() for p in strategy.experimental_local_results(v)] for k, v in group.items()
        }
        joined = {k: np.concatenate(v, axis=1) for k, v in parts.items()}
        found += [{k: v[i] for k, v in joined.items()} for i in range(len(joined["label"]))]
    return found


def test_no_iterator_of_a_device_tunes_itself(open_split, monkeypatch):
    # They may take up to a minute to be let go; the name is TensorFlow's own and may change.
    created = []
    create = multi_device_iterator_ops._create_device_dataset

    def watch(*args):
        created.append(create(*args))
        return created[-1]

    monkeypatch.setattr(multi_device_iterator_ops, "_create_device_dataset", watch)
    next(inputs.training_batches(two_replicas(), open_split("train"), CONFIG, 0, 1, 1))
    assert [dataset.options().autotune.enabled for dataset in created] == [False, False]


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_each_epoch_is_another_permutation():
    config = Config(batch_size=5, seed=3)
    positions = tf.range(4 * 20, dtype=tf.int64)
    epochs = inputs.shuffled_indices(config, 20, positions).numpy().reshape(4, 20)
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(size=st.integers(1, 400), batch=st.integers(1, 50), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_no_example_comes_twice_in_an_epoch_however_uneven(size, batch, seed):
    batch = min(batch, size)
    length = size // batch * batch
    config = Config(batch_size=batch, seed=seed)
    found = inputs.shuffled_indices(
        config, size, tf.range(length, 2 * length, dtype=tf.int64)
    ).numpy()
    assert len(set(found)) == length
    assert found.min() >= 0
    assert found.max() < size


def test_without_shuffle_the_stored_order_comes_again_each_epoch():
    config = Config(batch_size=3, shuffle=False)
    found = inputs.shuffled_indices(config, 7, tf.range(12, dtype=tf.int64)).numpy()
    assert list(found) == [0, 1, 2, 3, 4, 5] * 2


def test_another_seed_gives_another_order():
    positions = tf.range(20, dtype=tf.int64)
    first = inputs.shuffled_indices(Config(batch_size=5, seed=1), 20, positions)
    second = inputs.shuffled_indices(Config(batch_size=5, seed=2), 20, positions)
    assert list(first.numpy()) != list(second.numpy())


def test_any_step_can_be_the_first(open_split):
    everything = batches(one_device(), open_split("train"), CONFIG, 0, 13)
    assert_same(everything[6:], batches(one_device(), open_split("train"), CONFIG, 6, 13))


def test_two_replicas_share_the_batches_that_one_device_has(open_split):
    one = batches(one_device(), open_split("train"), CONFIG, 0, 6)
    assert_same(one, batches(two_replicas(), open_split("train"), CONFIG, 0, 6))


def test_groups_hold_the_same_batches_and_end_with_the_epoch(open_split):
    one = batches(one_device(), open_split("train"), CONFIG, 2, 12)
    assert_same(one, batches(one_device(), open_split("train"), CONFIG, 2, 12, steps_per_call=3))
    groups = inputs.training_batches(one_device(), open_split("train"), CONFIG, 2, 12, 3)
    # 22 examples in batches of 4 are 5 steps an epoch.
    assert [int(group["label"].shape[0]) for group in groups] == [3, 3, 2, 2]


def test_a_photo_is_where_its_path_says(open_split):
    expected = [datasets.record(seed).filename for seed in (3, 0, 21)]
    assert inputs.paths(open_split("train"), np.array([3, 0, 21])) == expected


def test_photos_kept_in_memory_are_the_same(open_split):
    read = batches(one_device(), open_split("train"), CONFIG, 0, 5)
    assert_same(read, batches(one_device(), open_split("train", "memory"), CONFIG, 0, 5))


def test_photos_that_do_not_fit_into_memory_are_refused():
    class Huge:
        def __len__(self) -> int:
            return 10**9

    with pytest.raises(UserError, match="--cache=none"):
        inputs.open_split(Huge(), 256, 320, "memory")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "batch_size"), [(one_device, 4), (two_replicas, 4), (two_replicas, 3)]
)
def test_evaluation_sees_each_example_once_and_masks_the_rest(open_split, make, batch_size):
    strategy = make()
    masks, labels = [], []
    for group in inputs.evaluation_batches(strategy, open_split("test"), batch_size):
        for name, found in (("mask", masks), ("label", labels)):
            parts = strategy.experimental_local_results(group[name])
            found += [value for part in parts for value in part.numpy().ravel()]
    expected = [record.label - 1 for record in datasets.records(40, 7)]
    assert [label for label, mask in zip(labels, masks, strict=True) if mask] == expected
    assert len(labels) == 8


def test_fewer_examples_than_a_batch_is_an_error_for_people():
    with pytest.raises(UserError, match="--batch_size"):
        inputs.steps_per_epoch(5, 8)
