"""Shows what is in a data set, warns of what hurts training, and verifies every byte on request.

python -m tfrecords.inspect DIR [--verify] [--show=N]
"""

import argparse
import collections
import hashlib
import os
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfrecords.quiet import quiet_imports

with quiet_imports():
    import tensorflow as tf

from tfrecords import example, manifest, pipelines, reader
from tfrecords.errors import UserError, run_command

_IMBALANCE = 10  # times more training photos in the largest class than in the smallest: a warning
_SMALL_BOX, _FULL_BOX = 0.01, 0.99  # share of the photo's area below and above which a box is odd
_NAMED = 5  # photos or classes that one warning names before it says "and N more"
_CHUNK = 128  # records examined in one graph call


def summary(info: manifest.Manifest, directory: str) -> str:
    """Returns what the manifest says of a data set, as aligned text of several lines."""
    image = info.image
    lines = [
        f"{directory}: {info.name}, {len(info.class_names)} classes, {image.encoding}"
        f" {image.height} x {image.width} (height x width), quality {image.quality}",
        "",
        f"{'split':<12}{'examples':>10}{'shards':>8}{'MB':>10}   per class: min  median  max",
    ]
    for name in filter(info.splits.get, manifest.SPLITS):
        split = info.splits[name]
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        counts = split.class_counts or [0]
        lines.append(
            f"{name:<12}{split.num_examples:>10,}{len(split.shards):>8,}{megabytes:>10,.1f}"
            f"{min(counts):>17,}{statistics.median(counts):>8,.0f}{max(counts):>5,}"
        )
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in sorted(info.rejected.items()))
    facts = {
        "boxes": info.box_stats,
        "originals": info.original_sizes,
        "rejected": f"{sum(info.rejected.values()):,} rows" + (f": {rejected}" if rejected else ""),
        "unannotated": f"{info.unannotated:,} photos that no CSV row names",
        "parameters": info.parameters,
        "libraries": info.libraries,
        "source": f"fingerprint {info.source_fingerprint[:16]}",
    }
    return "\n".join([*lines, "", *_aligned(facts)])


def _aligned(facts: dict[str, Any]) -> Iterator[str]:
    """Yields `name  value` lines; a value that is itself a dict of dicts takes a line for each."""
    for name, value in facts.items():
        nested = isinstance(value, dict) and any(isinstance(v, dict) for v in value.values())
        rows = [f"{key:<14} {_plain(v)}" for key, v in value.items()] if nested else [_plain(value)]
        for i, row in enumerate(rows):
            yield f"{name if i == 0 else '':<12}{row}".rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_plain(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def warnings(info: manifest.Manifest, directory: str) -> Iterator[str]:
    """Yields a sentence for everything in a data set that hurts training.

    Reads every record for its digest and box, decodes no photo, and keeps 8 bytes for each.

    Raises:
        UserError: a record cannot be read.
    """
    yield from _class_warnings(info)
    prefixes = []
    odd: dict[str, list[str]] = collections.defaultdict(list)
    counts: collections.Counter[str] = collections.Counter()
    for _, batch in _fields(info, directory):
        prefixes.append(_prefixes(batch["sha256"]))
        area = np.prod(batch["bbox"][:, 2:] - batch["bbox"][:, :2], axis=1)
        for what, where in (
            (f"less than {_SMALL_BOX:.0%}", area < _SMALL_BOX),
            (f"more than {_FULL_BOX:.0%}", area > _FULL_BOX),
        ):
            counts[what] += int(where.sum())
            room = max(0, _NAMED - len(odd[what]))
            odd[what] += [name.decode() for name in batch["filename"][where][:room]]
    for what, count in counts.items():
        if count:
            yield f"{count:,} boxes cover {what} of their photo: {_some(odd[what], count)}"
    if prefixes:
        values, times = np.unique(np.concatenate(prefixes), return_counts=True)
        if (times > 1).any():
            yield from _duplicate_warnings(info, directory, values[times > 1])


def _class_warnings(info: manifest.Manifest) -> Iterator[str]:
    for name in manifest.SPLITS:
        if name not in info.splits:
            yield f"there is no {name} split"
            continue
        counts = info.splits[name].class_counts
        absent = [c for c, count in zip(info.class_names, counts, strict=True) if not count]
        if absent:
            yield (
                f"{len(absent):,} of {len(counts):,} classes have no photo in {name}:"
                f" {_some(absent, len(absent))}"
            )
    counts = info.splits["train"].class_counts if "train" in info.splits else []
    present = [count for count in counts if count]
    if present and max(present) > _IMBALANCE * min(present):
        most, least = (info.class_names[counts.index(f(present))] for f in (max, min))
        yield (
            f"training classes are far from even: {most!r} has {max(present):,} photos,"
            f" {least!r} has {min(present):,}"
        )


def _duplicate_warnings(
    info: manifest.Manifest, directory: str, repeated: np.ndarray
) -> Iterator[str]:
    """Reads the names of the photos whose digests begin alike, and says which are the same."""
    places: dict[bytes, list[tuple[str, str]]] = collections.defaultdict(list)
    for split, batch in _fields(info, directory):
        for i in np.flatnonzero(np.isin(_prefixes(batch["sha256"]), repeated)):
            places[batch["sha256"][i]].append((split, batch["filename"][i].decode()))
    for same in places.values():
        if len(same) > 1:
            splits = sorted({split for split, _ in same}, key=manifest.SPLITS.index)
            names = " and ".join(name for _, name in same[:_NAMED])
            more = f" and {len(same) - _NAMED:,} more" if len(same) > _NAMED else ""
            where = f"twice in {splits[0]}" if len(splits) == 1 else "in " + " and ".join(splits)
            yield f"the same photo is {where}: {names}{more}"


def _prefixes(digests: np.ndarray) -> np.ndarray:
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)


def _some(names: list[str], count: int) -> str:
    more = count - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _fields(info: manifest.Manifest, directory: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields (split, batch of fields without photos), each field an array [n, ...]."""

    def light(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        fields = example.parse(serialized)
        return {key: fields[key] for key in ("sha256", "bbox", "filename")}

    for split in filter(info.splits.get, manifest.SPLITS):
        files = [os.path.join(directory, s.file) for s in reader.shards(info, directory, split)]
        records = tf.data.TFRecordDataset(files).map(light, num_parallel_calls=pipelines.CORES)
        batches = records.batch(1024).prefetch(2).with_options(pipelines.untuned())
        try:
            for batch in batches.as_numpy_iterator():
                yield split, batch
        except (tf.errors.OpError, ValueError) as error:
            raise UserError(
                f"the {split} split of {directory!r} cannot be read: {error}."
                f" `python -m tfrecords.inspect {directory} --verify` names every fault."
            ) from None


def show(info: manifest.Manifest, directory: str, number: int) -> Iterator[str]:
    """Yields lines that describe the first records of each split.

    Raises:
        UserError: a record cannot be read.
    """
    for split in filter(info.splits.get, manifest.SPLITS):
        yield f"{split}:"
        for fields in reader.stream(directory, split, limit=number).as_numpy_iterator():
            box = " ".join(f"{side:.3f}" for side in fields["bbox"])
            original = f"{fields['original_height']} x {fields['original_width']}"
            yield (
                f"  {fields['filename'].decode()}  {fields['label']} {fields['text'].decode()}"
                f"  box {box}  original {original}"
            )


def verify(info: manifest.Manifest, directory: str) -> Iterator[str]:
    """Reads every byte of a data set and yields a sentence for everything that is wrong.

    Checked are: that every shard is there with the size, sha256 and records that the manifest
    says; every record's checksum, fields, label, box and photo; class counts; the number of
    rejected rows; and that no other shard lies in the folder. Records count from 1.
    """
    for name, split in info.splits.items():
        counts = np.zeros(len(info.class_names), int)
        whole = True
        for shard in split.shards:
            for problem in _verify_shard(info, directory, shard, counts):
                whole = False
                yield f"{shard.file}: {problem}"
        if whole and counts.tolist() != split.class_counts:
            label = int(np.flatnonzero(counts != split.class_counts)[0])
            yield (
                f"{manifest.FILE_NAME}: split {name} has {counts[label]} records of class"
                f" {label + 1} ({info.class_names[label]}), not {split.class_counts[label]}"
            )
    named = {shard.file for split in info.splits.values() for shard in split.shards}
    for file in sorted(tf.io.gfile.listdir(directory)):
        if ".tfrecord" in file and file not in named:
            yield f"{file}: {manifest.FILE_NAME} does not name it"
    yield from _verify_rejected(info, directory)


def _verify_rejected(info: manifest.Manifest, directory: str) -> Iterator[str]:
    path, expected = os.path.join(directory, manifest.REJECTED_NAME), sum(info.rejected.values())
    lines = 0
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            lines = sum(1 for _ in file)
    if lines != expected:
        yield f"{manifest.REJECTED_NAME}: {lines} lines, {manifest.FILE_NAME} says {expected}"


def _verify_shard(
    info: manifest.Manifest, directory: str, shard: manifest.Shard, counts: np.ndarray
) -> Iterator[str]:
    """Yields what is wrong with one shard and adds its labels to `counts`."""
    path = os.path.join(directory, shard.file)
    try:
        size = tf.io.gfile.stat(path).length
        if size != shard.bytes:
            yield f"{size} bytes, {manifest.FILE_NAME} says {shard.bytes}"
        if _sha256(path) != shard.sha256:
            yield f"its sha256 is not the one in {manifest.FILE_NAME}"
        with tf.io.gfile.GFile(path, "rb") as file:
            yield from _verify_records(info, file, shard.num_examples, counts)
    except tf.errors.NotFoundError:
        yield "missing"
    except tf.errors.OpError as error:
        yield f"cannot be read: {error.message}"


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verify_records(
    info: manifest.Manifest, file: tf.io.gfile.GFile, expected: int, counts: np.ndarray
) -> Iterator[str]:
    found, numbers, payloads = 0, [], []
    for number, (payload, problem) in enumerate(example.read_frames(file), start=1):
        if problem:
            yield f"record {number}: {problem}"
        else:
            numbers.append(number)
            payloads.append(payload)
        found += bool(payload)
        if len(payloads) == _CHUNK:
            yield from _verify_chunk(info, numbers, payloads, counts)
            numbers, payloads = [], []
    if payloads:
        yield from _verify_chunk(info, numbers, payloads, counts)
    if found != expected:
        yield f"{found} records, {manifest.FILE_NAME} says {expected}"


def _verify_chunk(
    info: manifest.Manifest, numbers: list[int], payloads: list[bytes], counts: np.ndarray
) -> Iterator[str]:
    try:
        fields = {key: value.numpy() for key, value in _examine(tf.constant(payloads)).items()}
    except tf.errors.InvalidArgumentError as error:
        if len(payloads) == 1:
            yield f"record {numbers[0]}: {_said(error)}"
            return
        for number, payload in zip(numbers, payloads, strict=True):
            yield from _verify_chunk(info, [number], [payload], counts)
        return
    for i, number in enumerate(numbers):
        record = {key: value[i] for key, value in fields.items()}
        for problem in _record_problems(info, record):
            yield f"record {number} ({record['filename'].decode()}): {problem}"
        if 1 <= record["label"] <= len(counts):
            counts[record["label"] - 1] += 1


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def _examine(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses records [n] and decodes their photos; `decoded` int32 [n, 3] is the photos' shape."""

    def one(record: tf.Tensor) -> dict[str, tf.Tensor]:
        fields = example.parse(record)
        encoded = fields.pop("encoded")
        is_jpeg = tf.io.is_jpeg(encoded)  # decode_jpeg takes other formats too
        return fields | {"decoded": tf.shape(tf.io.decode_jpeg(encoded)), "is_jpeg": is_jpeg}

    integers = ("height", "width", "original_height", "original_width", "label")
    signature = {
        **{key: tf.TensorSpec([], tf.int64) for key in integers},
        **{key: tf.TensorSpec([], tf.string) for key in ("filename", "sha256", "text")},
        "bbox": tf.TensorSpec([4], tf.float32),
        "decoded": tf.TensorSpec([3], tf.int32),
        "is_jpeg": tf.TensorSpec([], tf.bool),
    }
    return tf.map_fn(one, serialized, fn_output_signature=signature, parallel_iterations=16)


def _said(error: tf.errors.OpError) -> str:
    """Returns what an operation said, without where in the graph it stood."""
    lines = [line.strip() for line in error.message.splitlines()]
    told = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected"))]
    return told[-1]


def _record_problems(info: manifest.Manifest, record: dict[str, Any]) -> Iterator[str]:
    expected = info.image.height, info.image.width, 3
    if tuple(record["decoded"]) != expected:
        yield f"its photo is {_plain(record['decoded'].tolist())}, not {_plain(expected)}"
    if not record["is_jpeg"]:
        yield "its photo is not a JPEG"
    if (record["height"], record["width"]) != expected[:2]:
        yield f"says {record['height']} x {record['width']}, not {_plain(expected[:2])}"
    if record["original_height"] < 1 or record["original_width"] < 1:
        yield f"original size {record['original_height']} x {record['original_width']}"
    label, text = record["label"], record["text"].decode(errors="replace")
    if not 1 <= label <= len(info.class_names):
        yield f"label {label} is outside 1 to {len(info.class_names)}"
    elif text != info.class_names[label - 1]:
        yield f"label {label} is {info.class_names[label - 1]!r}, the record says {text!r}"
    xmin, ymin, xmax, ymax = record["bbox"].tolist()
    if not (0 <= xmin < xmax <= 1 and 0 <= ymin < ymax <= 1):  # also false when one is NaN
        yield f"box ({xmin:.4g}, {ymin:.4g}, {xmax:.4g}, {ymax:.4g}) is not within the photo"
    if len(record["sha256"]) != 64:
        yield f"sha256 {record['sha256'].decode(errors='replace')!r} is not a digest"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tfrecords.inspect",
        description="Shows what is in a data set and warns of what hurts training.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="the folder that holds dataset.json")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte, decode every photo, name every fault; exit code 1 if there is one",
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="first N of each split")
    arguments = parser.parse_args()
    directory = arguments.directory
    info = manifest.read(directory)
    print(summary(info, directory))
    if arguments.verify:
        _print_verification(info, directory)
    print()
    for line in warnings(info, directory):
        print(f"warning: {line}")
    if arguments.show > 0:
        for line in show(info, directory, arguments.show):
            print(line)


def _print_verification(info: manifest.Manifest, directory: str) -> None:
    problems = 0
    for problem in verify(info, directory):
        problems += 1
        print(f"wrong: {problem}", flush=True)
    if problems:
        raise UserError(
            f"{directory!r} is not whole: {problems} found."
            " Copy it again, or run `python -m preprocess.run --overwrite`."
        )
    records = sum(split.num_examples for split in info.splits.values())
    shards = sum(len(split.shards) for split in info.splits.values())
    print(f"\nverified: {records:,} records in {shards:,} shards")


if __name__ == "__main__":
    run_command(main)
