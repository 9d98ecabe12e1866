"""`dataset.json`, the manifest of a data set, as dataclasses: read, write, validate."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tfrecords.errors import UserError

FILE_NAME = "dataset.json"
REJECTED_NAME = "rejected.jsonl"
FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
RESIZE = ("stretch", "letterbox")


@dataclass(frozen=True)
class Image:
    """How photos are stored: pixels, encoding name, JPEG quality (1 to 100).

    `resize` says how they were brought to that size: `stretch` to its shape, or `letterbox`, the
    whole photo on black.
    """

    height: int
    width: int
    encoding: str
    quality: int
    resize: str


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split: name, records, size in bytes, hex sha256 of the file."""

    file: str
    num_examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One split. `class_counts[label - 1]` is the number of records with that label."""

    num_examples: int
    shards: list[Shard]
    class_counts: list[int]


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a published data set.

    Attributes:
        name: of the data set, taken from its input.
        sample: whether it is the built-in sample, which carbox draws itself.
        image: how photos are stored.
        class_names: label = index + 1.
        splits: by name, out of `SPLITS`; a split without records is absent.
        rejected: number of rejected rows, by reason.
        unannotated: number of photos found that no CSV row names.
        box_stats: what the boxes look like; see `preprocess.publish`.
        original_sizes: what the photos' own sizes look like; see `preprocess.publish`.
        parameters: every flag that shaped the output.
        source_fingerprint: sha256 over the CSVs and the photo listing.
        libraries: name to version, of what decides the bytes.
        format_version: of this file and of the records.
    """

    name: str
    sample: bool
    image: Image
    class_names: list[str]
    splits: dict[str, Split]
    rejected: dict[str, int]
    unannotated: int
    box_stats: dict[str, Any]
    original_sizes: dict[str, Any]
    parameters: dict[str, Any]
    source_fingerprint: str
    libraries: dict[str, str]
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        """Returns the text of `dataset.json`; equal manifests give equal text."""
        return (
            json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
            + "\n"
        )


def read(directory: str) -> Manifest:
    """Reads and validates the manifest of a data set.

    Args:
        directory: where `dataset.json` is, a local path or a remote one; see `tfrecords.remote`.

    Raises:
        UserError: there is none, it is not JSON, or it is not a manifest that this version reads.
    """
    path = os.path.join(directory, FILE_NAME)
    try:
        with open_file(path) as file:
            data = file.read()
    except OSError:
        raise UserError(
            f"no data set at {directory!r}: {FILE_NAME} is missing or unreadable there."
            " Make one with `python -m preprocess.run --output=DIR`, or name another folder."
        ) from None
    return parse(data, path)


def parse(data: bytes, path: str) -> Manifest:
    """Returns the manifest that a file holds.

    Args:
        data: the bytes of `dataset.json`.
        path: of the file; messages name it.

    Raises:
        UserError: it is not JSON, or it is not a manifest that this version reads.
    """
    try:
        return from_json(data.decode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest that this version of carbox reads: {error!r}."
            " Run `python -m preprocess.run` again."
        ) from None


def from_json(text: str) -> Manifest:
    """Parses the text of `dataset.json`.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not a valid manifest.
    """
    values = _upgrade(json.loads(text))
    splits = {
        name: Split(
            num_examples=split["num_examples"],
            shards=[Shard(**shard) for shard in split["shards"]],
            class_counts=split["class_counts"],
        )
        for name, split in values.pop("splits").items()
    }
    manifest = Manifest(image=Image(**values.pop("image")), splits=splits, **values)
    _validate(manifest)
    return manifest


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Opens a file of a data set to read its bytes, a local one or one in a bucket.

    Raises:
        OSError: it cannot be opened or read; `FileNotFoundError` where there is none.
        UserError: it is remote and cannot be opened.
    """
    from tfrecords import remote  # it reads manifests by this module

    if not remote.is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    folder, _, name = path.rpartition("/")
    with remote.Folder(folder).open(name) as file:
        yield file


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest as this version writes it."""
    version = values["format_version"]
    if version == FORMAT_VERSION:
        return values
    if version != 1:
        raise ValueError(f"format_version {version}, expected 1 or {FORMAT_VERSION}")
    # Version 1 marked the sample by its name, and had the resize mode among the flags only.
    resize = values["parameters"].get("resize", "stretch")
    return {
        **values,
        "format_version": FORMAT_VERSION,
        "sample": values["name"] == "drawn",
        "image": {**values["image"], "resize": resize},
    }


def _validate(manifest: Manifest) -> None:
    if manifest.image.resize not in RESIZE:
        raise ValueError(f"image.resize is {manifest.image.resize!r}, expected one of {RESIZE}")
    if not isinstance(manifest.sample, bool):
        raise ValueError(f"sample is {manifest.sample!r}, expected true or false")
    for name, split in manifest.splits.items():
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}")
        in_shards = sum(shard.num_examples for shard in split.shards)
        for shard in split.shards:
            if os.path.basename(shard.file) != shard.file or shard.file in ("", ".", ".."):
                raise ValueError(f"split {name}: {shard.file!r} is not the name of a file")
        if split.num_examples != in_shards:
            raise ValueError(
                f"split {name}: {split.num_examples} examples, {in_shards} in its shards"
            )
        if len(split.class_counts) != len(manifest.class_names):
            raise ValueError(f"split {name}: {len(split.class_counts)} class counts")
