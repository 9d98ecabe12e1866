"""Shows what is in a data set, warns of what hurts training, and verifies every byte on request.

python -m tfrecords.inspect DIR [--verify] [--show=N] [--html=FILE]

DIR may be in a bucket (gs://…, s3://…): --verify reads every byte there, the rest a local copy.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import numpy as np
from absl import flags

from tfrecords import command, croissant, example, findings, manifest, remote, scan
from tfrecords.errors import UserError, extra

FLAGS = flags.FlagValues()
flags.DEFINE_boolean(
    "verify",
    False,
    "read every byte, decode every photo, name every fault; exit code 1 if there is one",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "show", 0, "describe the first N records of each split", lower_bound=0, flag_values=FLAGS
)
command.DEFINE_path(
    "html", None, "write a page to look at: classes, boxes, photos, duplicates", flag_values=FLAGS
)
remote.define_cache_flag(FLAGS)

_CHUNK = 16  # records that a thread examines at a time
_THREADS = os.cpu_count() or 1
_JPEG_START = b"\xff\xd8\xff"
_CHANNELS = {"Gray": 1, "CMYK": 4, "YCCK": 4}  # of a JPEG by its colorspace; 3 of any other

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: flags and the folder; those of the command line if absent.

    Raises:
        UserError: there is no data set, or something is wrong with it.
    """
    (directory,) = command.parse(FLAGS, argv, usage=__doc__, positional="DIR")
    info = manifest.read(directory)
    print(summary(info, directory))
    if FLAGS.verify:
        _print_verification(info, directory)
    directory = remote.dataset(directory, cache=FLAGS.data_cache)
    print()
    found = []
    for finding in findings.find(info, directory):
        found.append(finding)
        print(f"warning: {finding.text}")
    if FLAGS.html:
        from tfrecords import data_page  # it needs packages that the rest does not

        data_page.write(FLAGS.html, info, directory, found)
        print(f"page: {FLAGS.html}")
    if FLAGS.show:
        for line in show(info, directory, FLAGS.show):
            print(line)


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
    """Yields a sentence for everything in a data set that hurts training; see `findings.find`.

    Raises:
        UserError: a record cannot be read.
    """
    for finding in findings.find(info, directory):
        yield finding.text


def show(info: manifest.Manifest, directory: str, number: int) -> Iterator[str]:
    """Yields lines that describe the first records of each split.

    Raises:
        UserError: a record cannot be read.
    """
    for split in filter(info.splits.get, manifest.SPLITS):
        yield f"{split}:"
        one = dataclasses.replace(info, splits={split: info.splits[split]})
        for _, record in itertools.islice(scan.records(one, directory), number):
            box = " ".join(f"{side:.3f}" for side in record.bbox)
            yield (
                f"  {record.filename}  {record.label} {record.text}"
                f"  box {box}  original {record.original_height} x {record.original_width}"
            )


def verify(info: manifest.Manifest, directory: str) -> Iterator[str]:
    """Reads every byte of a data set and yields a sentence for everything that is wrong.

    Checked are: that every shard is there with the size, sha256 and records that the manifest
    says; every record's checksum, fields, label, box and photo; class counts; the number of
    rejected rows; that `croissant.json` names the same files; and that no other shard lies in the
    folder. Records count from 1.
    """
    with extra("preprocess"):
        import simplejpeg  # noqa: F401 - if missing, say so once, not for each photo
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, split in info.splits.items():
            counts = np.zeros(len(info.class_names), int)
            whole = True
            for shard in split.shards:
                for problem in _verify_shard(info, directory, shard, counts, pool):
                    whole = False
                    yield f"{shard.file}: {problem}"
            if whole and counts.tolist() != split.class_counts:
                label = int(np.flatnonzero(counts != split.class_counts)[0])
                yield (
                    f"{manifest.FILE_NAME}: split {name} has {counts[label]} records of class"
                    f" {label + 1} ({info.class_names[label]}), not {split.class_counts[label]}"
                )
    named = {shard.file for split in info.splits.values() for shard in split.shards}
    for file in sorted(_list(directory)):
        if ".tfrecord" in file and file not in named:
            yield f"{file}: {manifest.FILE_NAME} does not name it"
    yield from _verify_rejected(info, directory)
    yield from _verify_croissant(info, directory)


def _list(directory: str) -> list[str]:
    if not remote.is_remote(directory):
        return os.listdir(directory)
    return list(remote.Folder(directory).objects())


def _verify_rejected(info: manifest.Manifest, directory: str) -> Iterator[str]:
    expected, lines = sum(info.rejected.values()), 0
    try:
        with manifest.open_file(os.path.join(directory, manifest.REJECTED_NAME)) as file:
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
    except FileNotFoundError:
        pass  # as it should be where nothing was rejected
    except OSError as error:
        yield f"{manifest.REJECTED_NAME}: cannot be read: {error.strerror or error}"
        return
    if lines != expected:
        yield f"{manifest.REJECTED_NAME}: {lines} lines, {manifest.FILE_NAME} says {expected}"


def _verify_croissant(info: manifest.Manifest, directory: str) -> Iterator[str]:
    try:
        with manifest.open_file(os.path.join(directory, croissant.FILE_NAME)) as file:
            text = file.read()
        with manifest.open_file(os.path.join(directory, manifest.FILE_NAME)) as file:
            manifest_text = file.read()
    except FileNotFoundError:
        return  # an older version made the data set
    except OSError as error:
        yield f"{croissant.FILE_NAME}: cannot be read: {error.strerror or error}"
        return
    for problem in croissant.problems(text, info, manifest_text):
        yield f"{croissant.FILE_NAME}: {problem}"


def _verify_shard(
    info: manifest.Manifest,
    directory: str,
    shard: manifest.Shard,
    counts: np.ndarray,
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    """Yields what is wrong with one shard and adds its labels to `counts`."""
    path = os.path.join(directory, shard.file)
    try:
        with manifest.open_file(path) as file:
            size, digest = _size_and_sha256(file)
        if size != shard.bytes:
            yield f"{size} bytes, {manifest.FILE_NAME} says {shard.bytes}"
        if digest != shard.sha256:
            yield f"its sha256 is not the one in {manifest.FILE_NAME}"
        with manifest.open_file(path) as file:
            yield from _verify_records(info, file, shard.num_examples, counts, pool)
    except FileNotFoundError:
        yield "missing"
    except OSError as error:
        yield f"cannot be read: {error.strerror or error}"


def _size_and_sha256(file: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while block := file.read(1 << 20):
        size += len(block)
        digest.update(block)
    return size, digest.hexdigest()


def _verify_records(
    info: manifest.Manifest,
    file: BinaryIO,
    expected: int,
    counts: np.ndarray,
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    found = 0
    frames = enumerate(example.read_frames(file), start=1)
    chunks = iter(lambda: list(itertools.islice(frames, _CHUNK)), [])
    for problems, records, labels in _map(pool, lambda chunk: _examine(info, chunk), chunks):
        yield from problems
        found += records
        for label in labels:
            counts[label - 1] += 1
    if found != expected:
        yield f"{found} records, {manifest.FILE_NAME} says {expected}"


def _map(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Yields results in order, and takes items only as fast as they are processed."""
    waiting: collections.deque[Future[_Result]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 4 * _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _examine(
    info: manifest.Manifest, chunk: list[tuple[int, tuple[bytes, str]]]
) -> tuple[list[str], int, list[int]]:
    """Checks some records.

    Args:
        info: says what they should be.
        chunk: number, payload and what is wrong with the frame, of each.

    Returns:
        What is wrong; how many records there are; the labels of those that can be counted.
    """
    problems, labels = [], []
    for number, (payload, damage) in chunk:
        if damage:
            problems.append(f"record {number}: {damage}")
            continue
        try:
            record = example.decode(payload)
        except ValueError as error:
            problems.append(f"record {number}: {error}")
            continue
        wrong = [*_photo_problems(info, record.encoded), *_record_problems(info, record)]
        problems += [f"record {number} ({record.filename}): {problem}" for problem in wrong]
        if 1 <= record.label <= len(info.class_names):
            labels.append(record.label)
    return problems, sum(bool(payload) for _, (payload, _) in chunk), labels


def _photo_problems(info: manifest.Manifest, encoded: bytes) -> Iterator[str]:
    import simplejpeg

    if not encoded.startswith(_JPEG_START):
        yield "its photo is not a JPEG"
        return
    expected = info.image.height, info.image.width, 3
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        shape = height, width, _CHANNELS.get(colorspace, 3)
        if shape != expected:
            yield f"its photo is {_plain(shape)}, not {_plain(expected)}"
        else:
            simplejpeg.decode_jpeg(encoded)
    except ValueError as error:
        yield f"its photo cannot be decoded: {error}"


def _record_problems(info: manifest.Manifest, record: example.Record) -> Iterator[str]:
    expected = info.image.height, info.image.width
    if (record.height, record.width) != expected:
        yield f"says {record.height} x {record.width}, not {_plain(expected)}"
    if record.original_height < 1 or record.original_width < 1:
        yield f"original size {record.original_height} x {record.original_width}"
    label = record.label
    if not 1 <= label <= len(info.class_names):
        yield f"label {label} is outside 1 to {len(info.class_names)}"
    elif record.text != info.class_names[label - 1]:
        yield f"label {label} is {info.class_names[label - 1]!r}, the record says {record.text!r}"
    xmin, ymin, xmax, ymax = record.bbox
    if not (0 <= xmin < xmax <= 1 and 0 <= ymin < ymax <= 1):  # also false when one is NaN
        yield f"box ({xmin:.4g}, {ymin:.4g}, {xmax:.4g}, {ymax:.4g}) is not within the photo"
    if len(record.sha256) != 64:
        yield f"sha256 {record.sha256!r} is not a digest"


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
    command.run(main)
