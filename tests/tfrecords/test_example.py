import io

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords import example


def test_a_record_comes_back_as_it_went_in():
    record = datasets.record(2, bbox=(0.0, 0.125, 0.5, 1.0))  # a class with ë in its name
    fields = {key: value.numpy() for key, value in example.parse(example.encode(record)).items()}
    np.testing.assert_array_equal(fields.pop("bbox"), np.float32(record.bbox))
    for key in ("filename", "sha256", "text"):
        assert fields.pop(key).decode() == getattr(record, key)
    for key in ("encoded", "height", "width", "original_height", "original_width", "label"):
        assert fields.pop(key) == getattr(record, key)
    assert not fields


def test_parse_works_inside_a_graph():
    payloads = [example.encode(record) for record in datasets.records(0, 3)]
    dataset = tf.data.Dataset.from_tensor_slices(payloads).map(example.parse)
    assert [int(fields["label"]) for fields in dataset] == [1, 2, 3]


def test_the_fields_are_those_of_the_object_detection_api():
    feature = tf.train.Example.FromString(example.encode(datasets.record(1))).features.feature
    kinds = {key: value.WhichOneof("kind") for key, value in feature.items()}
    strings = "encoded format filename source_id key/sha256 object/class/text"
    integers = "height width original_height original_width object/class/label"
    sides = "object/bbox/xmin object/bbox/ymin object/bbox/xmax object/bbox/ymax"
    assert kinds == {
        **{f"image/{key}": "bytes_list" for key in strings.split()},
        **{f"image/{key}": "int64_list" for key in integers.split()},
        **{f"image/{key}": "float_list" for key in sides.split()},
    }


def test_equal_records_give_equal_bytes_and_others_do_not():
    assert example.encode(datasets.record(5)) == example.encode(datasets.record(5))
    assert example.encode(datasets.record(5)) != example.encode(datasets.record(5, label=1))


def test_a_record_without_a_field_is_refused():
    broken = tf.train.Example.FromString(example.encode(datasets.record(0)))
    del broken.features.feature["image/object/bbox/ymax"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="ymax"):
        example.parse(broken.SerializeToString())


def test_tensorflow_reads_our_frames(tmp_path):
    payloads = [b"", b"one", bytes(range(256)) * 300]
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(map(example.frame, payloads)))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == payloads


def test_we_frame_as_tensorflow_does(tmp_path):
    payloads = [b"", b"one", bytes(range(256)) * 300]
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for payload in payloads:
            writer.write(payload)
    data = (tmp_path / "x.tfrecord").read_bytes()
    assert data == b"".join(map(example.frame, payloads))
    assert list(example.read_frames(io.BytesIO(data))) == [(p, "") for p in payloads]


def test_every_damaged_byte_of_a_frame_is_noticed():
    data = example.frame(b"carbox") + example.frame(b"next")
    for position in range(len(example.frame(b"carbox"))):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        found = list(example.read_frames(io.BytesIO(bytes(damaged))))
        assert "checksum" in found[0][1], position
        # The length says where the next record begins; a damaged payload does not hide it.
        assert (found[1:] == [(b"next", "")]) == (position >= 12)


@pytest.mark.parametrize("kept", range(1, 22))
def test_a_frame_that_is_cut_off_is_noticed(kept):
    data = example.frame(b"whole") + example.frame(b"carbox")[:kept]
    first, last = example.read_frames(io.BytesIO(data))
    assert first == (b"whole", "")
    assert "cut off" in last[1]
