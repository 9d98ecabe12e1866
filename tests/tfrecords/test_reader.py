import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.tfrecords import datasets
from tfrecords import example, reader
from tfrecords.errors import UserError


@pytest.fixture
def directory(tmp_path):
    datasets.write_default(str(tmp_path))
    return str(tmp_path)


def test_the_stream_yields_decoded_examples_in_stored_order(directory):
    examples = list(reader.stream(directory, "train").as_numpy_iterator())
    expected = datasets.records(0, 7)
    assert [e["filename"].decode() for e in examples] == [r.filename for r in expected]
    for found, record in zip(examples, expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(record.encoded)), np.int16)
        assert found["image"].shape == (datasets.HEIGHT, datasets.WIDTH, 3)
        # Two JPEG decoders smooth colors differently; another photo would be far away.
        assert np.abs(found["image"] - pixels).mean() < 3
        assert found["label"] == record.label
        assert "encoded" not in found


def test_the_stream_is_the_same_each_time_and_stops_at_the_limit(directory):
    def names(**options):
        stream = reader.stream(directory, "train", **options)
        return [e["filename"] for e in stream.as_numpy_iterator()]

    assert names() == names()
    assert names(limit=5) == names()[:5]
    assert len(names(limit=0)) == 0


def test_the_stream_can_be_let_go_at_once(directory):
    # What tunes itself may hold its iterator back for a minute, but only now and then.
    assert reader.stream(directory, "train").options().autotune.enabled is False


def test_random_access_equals_the_stream(directory):
    records = reader.Records(directory, "train")
    assert len(records) == 7
    positions = np.array([6, 0, 3, 3, 5, 1, 2, 4])
    streamed = list(reader.stream(directory, "train").as_numpy_iterator())
    for position, payload in zip(positions, records.read(positions), strict=True):
        found = reader.decode(tf.constant(payload), datasets.HEIGHT, datasets.WIDTH)
        for key, value in streamed[position].items():
            np.testing.assert_array_equal(found[key], value)


def test_random_access_gives_the_bytes_that_were_written(directory):
    expected = [example.encode(record) for record in datasets.records(20, 4)]
    assert reader.Records(directory, "test").read(np.arange(4)).tolist() == expected


def test_a_shard_may_be_empty(tmp_path):
    datasets.write(str(tmp_path), {"train": [datasets.records(0, 2), []]})
    assert len(reader.Records(str(tmp_path), "train")) == 2
    assert len(list(reader.stream(str(tmp_path), "train"))) == 2


def test_a_photo_of_another_size_is_refused(tmp_path):
    small = datasets.record(0, encoded=datasets.jpeg(0, 8, 8))
    datasets.write(str(tmp_path), {"train": [[small]]})
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(reader.stream(str(tmp_path), "train"))


@pytest.mark.parametrize("open_split", [reader.stream, reader.Records])
def test_a_split_that_is_not_there_is_named(directory, open_split):
    with pytest.raises(UserError, match=r"'val'.*test.*train.*validation"):
        open_split(directory, "val")


def test_a_shard_of_another_size_is_named(directory, tmp_path):
    shard = tmp_path / "train-00001-of-00002.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.tfrecord.*cut off"):
        reader.Records(directory, "train")


def test_a_missing_shard_is_named(directory, tmp_path):
    (tmp_path / "train-00001-of-00002.tfrecord").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002\.tfrecord.*No such file"):
        reader.Records(directory, "train")


def test_a_damaged_record_is_named_when_it_is_read_and_no_other_is(directory, tmp_path):
    shard = tmp_path / "test-00000-of-00001.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    records = reader.Records(directory, "test")
    failed = []
    for position in range(4):
        try:
            records.read(np.array([position]))
        except UserError as error:
            failed.append(position)
            assert "test-00000-of-00001.tfrecord is damaged" in str(error)  # noqa: PT017
    assert len(failed) == 1


def test_a_damaged_length_is_noticed(directory, tmp_path):
    shard = tmp_path / "test-00000-of-00001.tfrecord"
    data = bytearray(shard.read_bytes())
    data[3] ^= 0x7F  # the first record now claims gigabytes
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"test-00000-of-00001\.tfrecord is damaged.*byte 0"):
        reader.Records(directory, "test")
