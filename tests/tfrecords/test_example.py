import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

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


_int64 = st.integers(-(2**63), 2**63 - 1)
_text = st.text(st.characters(exclude_categories=["Cs"]))
_records = st.builds(
    example.Record,
    encoded=st.binary(),
    height=_int64,
    width=_int64,
    original_height=_int64,
    original_width=_int64,
    filename=_text,
    sha256=_text,
    bbox=st.tuples(*[st.floats(width=32, allow_nan=False)] * 4),
    label=_int64,
    text=_text,
)


@settings(deadline=None)
@given(_records)
def test_the_bytes_are_those_of_tensorflow(record):
    payload = example.encode(record)
    theirs = tf.train.Example.FromString(payload)
    assert theirs.SerializeToString(deterministic=True) == payload

    rebuilt = tf.train.Example()
    feature = rebuilt.features.feature
    for name in reversed(list(theirs.features.feature)):  # the order of setting does not show
        feature[name].CopyFrom(theirs.features.feature[name])
    assert rebuilt.SerializeToString(deterministic=True) == payload


@settings(deadline=None)
@given(_records)
def test_a_record_is_decoded_as_it_was_encoded(record):
    assert example.decode(example.encode(record)) == record


def test_what_tensorflow_writes_is_decoded():
    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    record = datasets.record(2)
    sides = zip(("xmin", "ymin", "xmax", "ymax"), record.bbox, strict=True)
    values = {
        "image/encoded": record.encoded,
        "image/format": b"jpeg",
        "image/height": record.height,
        "image/width": record.width,
        "image/original_height": record.original_height,
        "image/original_width": record.original_width,
        "image/filename": record.filename.encode(),
        "image/source_id": record.filename.encode(),
        "image/key/sha256": record.sha256.encode(),
        **{f"image/object/bbox/{side}": value for side, value in sides},
        "image/object/class/label": record.label,
        "image/object/class/text": record.text.encode(),
    }
    features = tf.train.Features(feature={key: feature(value) for key, value in values.items()})
    payload = tf.train.Example(features=features).SerializeToString(deterministic=True)
    assert payload == example.encode(record)
    assert example.decode(payload) == record


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
    with pytest.raises(ValueError, match="image/object/bbox/ymax is absent"):
        example.decode(broken.SerializeToString())


def _height_twice(feature):
    feature["image/height"].int64_list.value.append(1)


def _height_as_text(feature):
    feature["image/height"].bytes_list.value.append(b"32")


def _height_unset(feature):
    feature["image/height"].Clear()


def _text_in_latin_1(feature):
    feature["image/object/class/text"].bytes_list.value[0] = "Citroën".encode("latin-1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_height_twice, "image/height holds 2 values, expected 1"),
        (_height_as_text, "image/height is bytes_list, expected int64_list"),
        (_height_unset, "image/height is empty, expected int64_list"),
        (_text_in_latin_1, "image/object/class/text is not UTF-8"),
    ],
)
def test_a_field_that_is_wrong_is_named(change, said):
    broken = tf.train.Example.FromString(example.encode(datasets.record(0)))
    change(broken.features.feature)
    with pytest.raises(ValueError, match=said):
        example.decode(broken.SerializeToString())


@pytest.mark.parametrize("module", ["command", "errors", "example", "image", "inspect", "manifest",
                                    "progress", "quiet"])  # fmt: skip
def test_no_tensorflow_and_neither_half_is_imported(module):
    code = (
        f"import sys, tfrecords.{module};"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'tensorflow', 'keras', 'apache_beam', 'preprocess', 'trainer'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_bytes_that_are_no_record_are_refused():
    with pytest.raises(ValueError, match="Could not parse"):
        example.decode(b"text")


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
