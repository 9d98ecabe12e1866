"""One record: its fields, how it is encoded, framed and parsed.

The field names are those of the TensorFlow Object Detection API, so other tools read the shards.
This is the only place that knows them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import google_crc32c
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


_FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/format": tf.io.FixedLenFeature([], tf.string),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
    "image/original_height": tf.io.FixedLenFeature([], tf.int64),
    "image/original_width": tf.io.FixedLenFeature([], tf.int64),
    "image/filename": tf.io.FixedLenFeature([], tf.string),
    "image/source_id": tf.io.FixedLenFeature([], tf.string),
    "image/key/sha256": tf.io.FixedLenFeature([], tf.string),
    "image/object/bbox/xmin": tf.io.FixedLenFeature([1], tf.float32),
    "image/object/bbox/ymin": tf.io.FixedLenFeature([1], tf.float32),
    "image/object/bbox/xmax": tf.io.FixedLenFeature([1], tf.float32),
    "image/object/bbox/ymax": tf.io.FixedLenFeature([1], tf.float32),
    "image/object/class/label": tf.io.FixedLenFeature([1], tf.int64),
    "image/object/class/text": tf.io.FixedLenFeature([1], tf.string),
}


def encode(record: Record) -> bytes:
    """Returns the record as a serialized `tf.train.Example`; equal records give equal bytes."""
    example = tf.train.Example()
    feature = example.features.feature

    def set_bytes(key: str, value: bytes) -> None:
        feature[key].bytes_list.value.append(value)

    def set_int(key: str, value: int) -> None:
        feature[key].int64_list.value.append(value)

    set_bytes("image/encoded", record.encoded)
    set_bytes("image/format", b"jpeg")
    set_int("image/height", record.height)
    set_int("image/width", record.width)
    set_int("image/original_height", record.original_height)
    set_int("image/original_width", record.original_width)
    set_bytes("image/filename", record.filename.encode())
    set_bytes("image/source_id", record.filename.encode())
    set_bytes("image/key/sha256", record.sha256.encode())
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), record.bbox, strict=True):
        feature[f"image/object/bbox/{name}"].float_list.value.append(value)
    set_int("image/object/class/label", record.label)
    set_bytes("image/object/class/text", record.text.encode())
    return example.SerializeToString(deterministic=True)


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
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
    fields = tf.io.parse_example(serialized, _FEATURES)
    sides = [fields[f"image/object/bbox/{name}"] for name in ("xmin", "ymin", "xmax", "ymax")]
    return {
        "encoded": fields["image/encoded"],
        "height": fields["image/height"],
        "width": fields["image/width"],
        "original_height": fields["image/original_height"],
        "original_width": fields["image/original_width"],
        "filename": fields["image/filename"],
        "sha256": fields["image/key/sha256"],
        "bbox": tf.concat(sides, axis=-1),
        "label": fields["image/object/class/label"][..., 0],
        "text": fields["image/object/class/text"][..., 0],
    }


def frame(payload: bytes) -> bytes:
    """Frames one serialized record as it stands in a TFRecord file.

    Source: the TFRecord format of TensorFlow (`tensorflow/core/lib/io/record_writer.h`):
    uint64 length, masked CRC-32C of the length, payload, masked CRC-32C of the payload.
    """
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))


def read_frames(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    """Yields the payload of each record of a TFRecord file, and what is wrong with it, if anything.

    A payload that fails its checksum is yielded and reading goes on. A length that fails its own,
    or a record that is cut off, ends the file: nothing tells where the next record would begin.

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
