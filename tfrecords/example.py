"""One record: its fields, how it is encoded, framed, decoded and parsed.

The field names are those of the TensorFlow Object Detection API, so other tools read the shards.
This is the only place that knows them. Nothing here but `parse` needs TensorFlow.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Record:
    """One photo with its box and class, ready to be written.

    Attributes:
        encoded: JPEG bytes, RGB, exactly `height` x `width` pixels.
        height, width: of `encoded`, in pixels.
        original_height, original_width: of the photo as decoded, after EXIF orientation.
        filename: path relative to the data set, e.g. `train/Audi TTS Coupe 2012/00001.jpg`.
        sha256: hex digest of the photo's own bytes.
        bbox: (xmin, ymin, xmax, ymax) as fractions of width and height, in [0, 1].
        label: class number, from 1.
        text: class name.
    """

    encoded: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    filename: str
    sha256: str
    bbox: tuple[float, float, float, float]
    label: int
    text: str


class Field(NamedTuple):
    """One field of a record; it holds one value.

    Attributes:
        kind: the list of `tf.train.Feature` that holds the value.
        about: what it is.
    """

    kind: str
    about: str


FIELDS = {
    "image/encoded": Field("bytes_list", "the stored photo, a JPEG"),
    "image/format": Field("bytes_list", "jpeg"),
    "image/height": Field("int64_list", "height of the stored photo in pixels"),
    "image/width": Field("int64_list", "width of the stored photo in pixels"),
    "image/original_height": Field("int64_list", "height of the upright original photo in pixels"),
    "image/original_width": Field("int64_list", "width of the upright original photo in pixels"),
    "image/filename": Field("bytes_list", "path of the original photo within its data set"),
    "image/source_id": Field("bytes_list", "the same as image/filename"),
    "image/key/sha256": Field("bytes_list", "hex sha256 of the original photo's bytes"),
    "image/object/bbox/xmin": Field("float_list", "left side, as a fraction of the stored photo"),
    "image/object/bbox/ymin": Field("float_list", "upper side, as a fraction of the stored photo"),
    "image/object/bbox/xmax": Field("float_list", "right side, as a fraction of the stored photo"),
    "image/object/bbox/ymax": Field("float_list", "lower side, as a fraction of the stored photo"),
    "image/object/class/label": Field("int64_list", "class number, from 1"),
    "image/object/class/text": Field("bytes_list", "class name"),
}
"""Every field of a record, by its name."""

PHOTO, LABEL = "image/encoded", "image/object/class/label"


def encode(record: Record) -> bytes:
    """Returns the record as a serialized `tf.train.Example`; equal records give equal bytes."""
    example = _Example()
    feature = example.features.feature
    filename = record.filename.encode()
    xmin, ymin, xmax, ymax = record.bbox
    feature["image/encoded"].bytes_list.value.append(record.encoded)
    feature["image/format"].bytes_list.value.append(b"jpeg")
    feature["image/height"].int64_list.value.append(record.height)
    feature["image/width"].int64_list.value.append(record.width)
    feature["image/original_height"].int64_list.value.append(record.original_height)
    feature["image/original_width"].int64_list.value.append(record.original_width)
    feature["image/filename"].bytes_list.value.append(filename)
    feature["image/source_id"].bytes_list.value.append(filename)
    feature["image/key/sha256"].bytes_list.value.append(record.sha256.encode())
    feature["image/object/bbox/xmin"].float_list.value.append(xmin)
    feature["image/object/bbox/ymin"].float_list.value.append(ymin)
    feature["image/object/bbox/xmax"].float_list.value.append(xmax)
    feature["image/object/bbox/ymax"].float_list.value.append(ymax)
    feature["image/object/class/label"].int64_list.value.append(record.label)
    feature["image/object/class/text"].bytes_list.value.append(record.text.encode())
    return example.SerializeToString(deterministic=True)


def decode(payload: bytes) -> Record:
    """Returns the record that a serialized `tf.train.Example` holds.

    Raises:
        ValueError: it is none, or a field is absent, of another kind, or not one value.
    """
    try:
        feature = _Example.FromString(payload).features.feature
    except message.DecodeError:
        raise ValueError("Could not parse it as a tf.train.Example") from None
    fields = {name: _value(feature, name, field.kind) for name, field in FIELDS.items()}
    return Record(
        encoded=fields["image/encoded"],
        height=fields["image/height"],
        width=fields["image/width"],
        original_height=fields["image/original_height"],
        original_width=fields["image/original_width"],
        filename=_text(fields, "image/filename"),
        sha256=_text(fields, "image/key/sha256"),
        bbox=(
            fields["image/object/bbox/xmin"],
            fields["image/object/bbox/ymin"],
            fields["image/object/bbox/xmax"],
            fields["image/object/bbox/ymax"],
        ),
        label=fields["image/object/class/label"],
        text=_text(fields, "image/object/class/text"),
    )


def parse(serialized: "tf.Tensor") -> "dict[str, tf.Tensor]":
    """Parses serialized records, one or many, inside or outside a graph.

    Args:
        serialized: string [...], a scalar or a vector.

    Returns:
        `encoded` string; `height`, `width`, `original_height`, `original_width` int64;
        `filename`, `sha256`, `text` string; `bbox` float32 [..., 4], (xmin, ymin, xmax, ymax) as
        fractions; `label` int64, from 1. All but `bbox` are of the shape of `serialized`.

    Raises:
        tf.errors.InvalidArgumentError: a field is absent or has another type or length.
    """
    import tensorflow as tf  # takes seconds; writers of records do not have it

    types = {"bytes_list": tf.string, "int64_list": tf.int64, "float_list": tf.float32}
    features = {
        name: tf.io.FixedLenFeature([], types[field.kind]) for name, field in FIELDS.items()
    }
    fields = tf.io.parse_example(serialized, features)
    sides = [fields[f"image/object/bbox/{side}"] for side in ("xmin", "ymin", "xmax", "ymax")]
    return {
        "encoded": fields["image/encoded"],
        "height": fields["image/height"],
        "width": fields["image/width"],
        "original_height": fields["image/original_height"],
        "original_width": fields["image/original_width"],
        "filename": fields["image/filename"],
        "sha256": fields["image/key/sha256"],
        "bbox": tf.stack(sides, axis=-1),
        "label": fields["image/object/class/label"],
        "text": fields["image/object/class/text"],
    }


def frame(payload: bytes) -> bytes:
    """Frames one serialized record for a TFRecord file.

    Source: the TFRecord format of TensorFlow (`tensorflow/core/lib/io/record_writer.h`):
    uint64 length, masked CRC-32C of the length, payload, masked CRC-32C of the payload.
    """
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))


def read_frames(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    """Yields the payload of each record of a TFRecord file, and what is wrong with it, if anything.

    A payload that fails its checksum is yielded and reading goes on. A length that fails its own,
    or a record that is cut off, ends the reading: the start of the next record is unknown.

    Args:
        file: opened for reading bytes, at the start of a record.
    """
    while header := file.read(12):
        if len(header) < 12:
            yield b"", f"cut off: {len(header)} bytes at the end are no record"
            return
        if not check_payload(header[:8], header[8:]):
            yield b"", "damaged: its length fails its checksum; the rest of the file is unreadable"
            return
        length = struct.unpack("<Q", header[:8])[0]
        payload, crc = file.read(length), file.read(4)
        if len(payload) < length or len(crc) < 4:
            yield b"", "cut off"
            return
        yield payload, "" if check_payload(payload, crc) else "damaged: fails its checksum"


def check_payload(payload: bytes, stored_crc: bytes) -> bool:
    """Whether the four CRC bytes that follow a payload in a TFRecord file are its own."""
    return _masked_crc(payload) == stored_crc


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _value(feature: Any, name: str, kind: str) -> Any:
    if name not in feature:
        raise ValueError(f"{name} is absent")
    found = feature[name]
    values = getattr(found, kind).value
    if len(values) != 1:
        there = found.WhichOneof("kind")
        if there != kind:
            raise ValueError(f"{name} is {there or 'empty'}, expected {kind}")
        raise ValueError(f"{name} holds {len(values)} values, expected 1")
    return values[0]


def _text(fields: dict[str, Any], name: str) -> str:
    try:
        return fields[name].decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8: {fields[name]!r}") from None


def _message_class() -> Any:
    """Returns a class whose messages are, byte for byte, those of `tf.train.Example`.

    Names, numbers and types of the fields are those of `tensorflow/core/example/example.proto` and
    `feature.proto` (TensorFlow 2.21). The package is our own and so is the pool, so that
    TensorFlow's classes may live in the same process.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="carbox/example.proto", package="carbox", syntax="proto3"
    )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name, kind, scalar in (
        (1, "bytes_list", "BytesList", _Field.TYPE_BYTES),
        (2, "float_list", "FloatList", _Field.TYPE_FLOAT),
        (3, "int64_list", "Int64List", _Field.TYPE_INT64),
    ):
        one = file.message_type.add(name=kind).field.add(name="value", number=1, type=scalar)
        one.label = _Field.LABEL_REPEATED  # and packed where it is a number: proto3's default
        _message_field(feature, name, number, kind).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    _message_field(entry, "value", 2, "Feature")
    _message_field(features, "feature", 1, "Features.FeatureEntry").label = _Field.LABEL_REPEATED
    _message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("carbox.Example"))


def _message_field(owner: Any, name: str, number: int, kind: str) -> Any:
    return owner.field.add(
        name=name,
        number=number,
        type=_Field.TYPE_MESSAGE,
        type_name=f".carbox.{kind}",
        label=_Field.LABEL_OPTIONAL,
    )


_Field = descriptor_pb2.FieldDescriptorProto
_Example = _message_class()
