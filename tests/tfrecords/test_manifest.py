import json

import pytest

from tests.tfrecords import datasets
from tfrecords import manifest
from tfrecords.errors import UserError


@pytest.fixture
def directory(tmp_path):
    datasets.write_default(str(tmp_path))
    return tmp_path


def test_what_is_written_is_read(directory):
    info = manifest.read(str(directory))
    assert info.class_names == datasets.CLASS_NAMES
    assert info.image == manifest.Image(datasets.HEIGHT, datasets.WIDTH, "jpeg", 95, "stretch")
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 7,
        "validation": 3,
        "test": 4,
    }
    assert info.splits["train"].class_counts == [3, 2, 2]
    assert manifest.from_json(info.to_json()) == info


def test_equal_manifests_give_equal_text_whatever_the_order(directory):
    info = manifest.read(str(directory))
    values = json.loads(info.to_json())
    turned = {key: values[key] for key in reversed(values)}
    turned["splits"] = {key: values["splits"][key] for key in reversed(values["splits"])}
    assert manifest.from_json(json.dumps(turned)).to_json() == info.to_json()


def test_the_manifests_of_the_first_version_are_still_read(directory):
    path = directory / manifest.FILE_NAME
    values = json.loads(path.read_text(encoding="utf-8"))
    values["format_version"] = 1
    del values["sample"], values["image"]["resize"]
    for name, sample in (("drawn", True), ("cars", False)):
        for parameters, resize in (({"resize": "letterbox"}, "letterbox"), ({}, "stretch")):
            path.write_text(json.dumps({**values, "name": name, "parameters": parameters}))
            info = manifest.read(str(directory))
            assert (info.sample, info.image.resize) == (sample, resize)
            assert info.format_version == manifest.FORMAT_VERSION
            assert manifest.from_json(info.to_json()) == info


def test_class_names_stay_legible(directory):
    assert "Citroën 2CV 1970" in (directory / manifest.FILE_NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_manifest_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{name}.*preprocess\.run"):
        manifest.read(str(tmp_path / name))


def _set(*path_and_value):
    def change(values):
        *path, key, value = path_and_value
        for step in path:
            values = values[step]
        values[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("format_version", 99), "99"),
        (_set("splits", "train", "num_examples", 8), "train: 8 examples, 7 in its shards"),
        (_set("splits", "train", "class_counts", [7]), "train: 1 class counts"),
        (_set("splits", "train", "shards", 0, "size", 1), "size"),
        (
            _set("splits", "holdout", {"num_examples": 0, "shards": [], "class_counts": []}),
            "holdout",
        ),
        (_set("color", "red"), "color"),
        (_set("sample", "yes"), "sample is 'yes'"),
        (_set("image", "resize", "crop"), "resize is 'crop'"),
        (lambda values: values.pop("sample"), "sample"),
        (lambda values: values["image"].pop("resize"), "resize"),
        (lambda values: values.pop("image"), "image"),
        (lambda values: values["splits"]["test"].pop("shards"), "shards"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(directory, change, said):
    path = directory / manifest.FILE_NAME
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        manifest.read(str(directory))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", '{"format_version": 1}'])
def test_text_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / manifest.FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=r"not a manifest"):
        manifest.read(str(tmp_path))


def test_a_manifest_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / manifest.FILE_NAME).write_bytes(b'{"name": "\xff"}')
    with pytest.raises(UserError, match=r"dataset\.json"):
        manifest.read(str(tmp_path))


def test_a_remote_path_is_reported_like_a_local_one():
    with pytest.raises(UserError, match="no data set"):
        manifest.read("file:///nowhere/at/all")
