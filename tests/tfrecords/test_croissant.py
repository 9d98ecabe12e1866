"""`croissant.json` is Croissant, as its own library reads it, and says what the manifest says."""

import fnmatch
import hashlib
import json
import re

import mlcroissant
import pytest

from tests.tfrecords import datasets
from tfrecords import croissant, example, inspect, manifest


@pytest.fixture
def directory(tmp_path):
    """A data set of three splits with its `croissant.json`."""
    datasets.write_default(str(tmp_path))
    text = croissant.to_json(manifest.read(str(tmp_path)))
    (tmp_path / croissant.FILE_NAME).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_library_of_croissant_finds_files_splits_classes_and_fields(directory):
    found = mlcroissant.Dataset(directory / croissant.FILE_NAME)  # raises where it is invalid
    metadata = found.metadata
    assert not metadata.ctx.issues.errors
    info = manifest.read(str(directory))
    for file in metadata.file_objects:
        data = (directory / file.content_url).read_bytes()
        assert file.content_size == f"{len(data)} B"
        assert file.sha256 == hashlib.sha256(data).hexdigest()
    names = {file.name for file in metadata.file_objects}
    shards = {shard.file for split in info.splits.values() for shard in split.shards}
    assert names == {*shards, manifest.FILE_NAME}
    (pattern,) = metadata.file_sets[0].includes
    assert {path.name for path in directory.iterdir() if fnmatch.fnmatch(path, pattern)} == shards
    splits = {row["splits/name"]: row["splits/num_examples"]
              for row in found.records("splits")}  # fmt: skip
    assert splits == {"train": 7, "validation": 3, "test": 4}
    classes = [row["classes/name"] for row in found.records("classes")]
    assert classes == datasets.CLASS_NAMES
    (records,) = [one for one in metadata.record_sets if one.name == "records"]
    columns = {field.source.extract.column: field.data_type for field in records.fields[1:]}
    assert columns.keys() == example.FIELDS.keys()
    assert columns["image/height"] is int
    assert columns["image/object/bbox/xmin"] is float
    regex = records.fields[0].source.transforms[0].regex
    assert {re.match(regex, shard)[1] for shard in shards} == splits.keys()


def test_it_follows_from_the_manifest_alone(directory):
    info = manifest.read(str(directory))
    text = croissant.to_json(info)
    assert text == croissant.to_json(manifest.from_json(info.to_json()))
    assert str(directory) not in text


def test_verification_names_a_file_that_it_describes_otherwise(directory):
    def problems() -> list[str]:
        return list(inspect.verify(manifest.read(str(directory)), str(directory)))

    assert problems() == []
    path = directory / croissant.FILE_NAME
    values = json.loads(path.read_text())
    shards = [one for one in values["distribution"] if one["name"].endswith(".tfrecord")]
    shards[0]["name"] = "other.tfrecord"
    shards[1]["sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    assert problems() == [
        f"{path.name}: other.tfrecord: dataset.json does not name it",
        f"{path.name}: train-00000-of-00002.tfrecord: dataset.json names it",
        f"{path.name}: train-00001-of-00002.tfrecord: its size or sha256 is not the one in"
        " dataset.json",
    ]
    path.write_text("{")
    (problem,) = problems()
    assert problem.startswith(f"{path.name}: not one that this version reads")
    path.unlink()  # a data set of an older version has none
    assert problems() == []
