import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from preprocess import sample
from preprocess.sample_vehicle import KINDS
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def small():
    """Five photos of a kind are enough to see every quirk, and take a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "PHOTOS_PER_CLASS", {"train": 5, "test": 1})
        yield


@pytest.fixture(scope="module")
def drawn(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample") / "data" / "sample"
    sample.draw(str(directory))
    return directory


def rows_of(directory, split):
    with open(directory / f"anno_{split}.csv", encoding="utf-8", newline="") as file:
        return [(row[0], *map(int, row[1:])) for row in csv.reader(file)]


def path_of(directory, split, name, label):
    folder = KINDS[label - 1].name.replace("/", "-")
    return directory / "car_data" / "car_data" / split / folder / name


def digests(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_every_row_has_its_photo_and_every_photo_its_row(drawn):
    for split, per_class in {"train": 5, "test": 1}.items():
        rows = rows_of(drawn, split)
        photos = set((drawn / "car_data" / "car_data" / split).rglob("*.jpg"))
        assert {path_of(drawn, split, row[0], row[5]) for row in rows} == photos
        assert np.bincount([row[5] for row in rows]).tolist() == [0] + [per_class] * len(KINDS)
        assert [row[0] for row in rows] == [f"{i:05d}.jpg" for i in range(1, len(rows) + 1)]


def test_classes_are_mixed_and_names_are_those_of_the_folders(drawn):
    labels = [row[5] for row in rows_of(drawn, "train")]
    assert labels != sorted(labels)
    with open(drawn / "names.csv", encoding="utf-8", newline="") as file:
        names = [row[0] for row in csv.reader(file)]
    assert len(names) == len(set(names)) == 10
    assert "Ram C/V Cargo Van Minivan 2012" in names
    folders = os.listdir(drawn / "car_data" / "car_data" / "train")
    assert "Ram C-V Cargo Van Minivan 2012" in folders
    assert sorted(folders) == sorted(name.replace("/", "-") for name in names)


def test_the_same_file_names_are_other_photos_in_train_and_test(drawn):
    name, *_, label = rows_of(drawn, "test")[0]
    train = {row[0]: row[5] for row in rows_of(drawn, "train")}
    first, second = (
        path_of(drawn, "test", name, label),
        path_of(drawn, "train", name, train[name]),
    )
    assert first.read_bytes() != second.read_bytes()


def test_no_photo_is_drawn_twice(drawn):
    photos = [digest for name, digest in digests(drawn).items() if name.endswith(".jpg")]
    assert len(photos) == len(set(photos)) == 6 * 10


def test_boxes_lie_within_the_photo_as_people_see_it(drawn):
    shares = []
    for split in ("train", "test"):
        for name, xmin, ymin, xmax, ymax, label in rows_of(drawn, split):
            with Image.open(path_of(drawn, split, name, label)) as photo:
                width, height = ImageOps.exif_transpose(photo).size
            assert 0 <= xmin < xmax <= width
            assert 0 <= ymin < ymax <= height
            shares.append((xmax - xmin) * (ymax - ymin) / (width * height))
    assert min(shares) > 0.15  # long and low ones are as wide as the photo before they are large
    assert max(shares) < 0.77
    assert max(shares) > 2 * min(shares)


def test_a_box_is_tight_around_what_is_painted(monkeypatch):
    import random

    seen = []

    def blank(rng, width, height, bottom, vehicle):
        seen.append(Image.new("RGB", (width, height), (1, 254, 1)))
        return seen[-1], 1.0

    monkeypatch.setattr(sample, "landscape", blank)
    monkeypatch.setattr(sample, "cast_shadow", lambda *_: None)
    for i, kind in enumerate(KINDS * 3):
        photo, box = sample._draw_photo(kind, random.Random(i))
        painted = (np.asarray(photo) != (1, 254, 1)).any(axis=2)
        ys, xs = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
        found = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
        assert np.abs(found - box).max() <= 1, (kind.name, found, box)


def test_a_few_photos_are_grayscale(drawn):
    modes = [Image.open(path).mode for path in drawn.rglob("*.jpg")]
    assert set(modes) == {"RGB", "L"}
    assert 1 <= modes.count("L") <= 0.1 * len(modes)


def test_one_photo_is_turned_upright_by_its_tag(drawn, monkeypatch, tmp_path):
    turned = [path for path in drawn.rglob("*.jpg") if Image.open(path).getexif().get(0x0112)]
    assert len(turned) == 1
    assert Image.open(turned[0]).getexif()[0x0112] == 6
    split, number = sample._TURNED
    folder = turned[0].parent.name
    label = 1 + [sample._folder(kind.name) for kind in sample.KINDS].index(folder)
    monkeypatch.setattr(sample, "_TURNED", None)
    (tmp_path / folder).mkdir()
    sample._draw_one(str(tmp_path), split, 42, number, label)
    upright = np.asarray(Image.open(tmp_path / folder / turned[0].name), int)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(turned[0])), int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).mean() < 3  # JPEG stores a turned photo a little differently


def test_another_seed_gives_other_photos(drawn, tmp_path):
    sample.draw(str(tmp_path / "other"), seed=7)  # the same seed: see the killed run below
    same = digests(drawn).items() & digests(tmp_path / "other").items()
    assert {name for name, _ in same} == {"names.csv"}


def test_a_whole_sample_is_left_as_it_is(drawn, monkeypatch):
    monkeypatch.setattr(sample, "_draw_all", lambda *_: pytest.fail("it was drawn again"))
    sample.draw(str(drawn))
    sample.draw(f"{drawn}/")


@pytest.mark.parametrize("spoil", ["photo", "rows", "names", "seed", "marker"])
def test_a_sample_that_is_not_whole_is_refused_and_kept(drawn, tmp_path, spoil):
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    if spoil == "photo":
        next(copy.rglob("00005.jpg")).unlink()
    elif spoil == "rows":
        (copy / "anno_test.csv").write_text("00001.jpg,1,2,3,4,1\n")
    elif spoil == "names":
        (copy / "names.csv").unlink()
    elif spoil == "marker":
        (copy / "sample.json").write_text("[")
    before = digests(copy)
    with pytest.raises(UserError, match=r"copy.*is not the whole sample"):
        sample.draw(str(copy), seed=43 if spoil == "seed" else 42)
    assert digests(copy) == before


def test_what_is_no_sample_is_refused_and_kept(small, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("kept")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match=name):
            sample.draw(str(tmp_path / name))
    assert sorted(digests(tmp_path)) == ["file", "thesis/chapter.txt"]


def test_an_empty_folder_and_what_a_killed_run_left_are_no_obstacle(small, drawn, tmp_path):
    (tmp_path / "a").mkdir()
    left = tmp_path / "a.incomplete"
    left.mkdir()
    (left / "sample.json").write_text(json.dumps({"drawn_by": "carbox"}))
    (left / "stray.jpg").write_bytes(b"half a photo")
    sample.draw(str(tmp_path / "a"))
    assert digests(tmp_path / "a") == digests(drawn)
    assert not left.exists()


def test_what_others_left_in_the_way_is_refused_and_kept(small, tmp_path):
    foreign = tmp_path / "b.incomplete"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"b\.incomplete.*in the way"):
        sample.draw(str(tmp_path / "b"))
    assert (foreign / "mine.txt").read_text() == "kept"


def test_nothing_stands_under_the_name_before_it_is_whole(small, tmp_path, monkeypatch):
    def break_off(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_draw_all", break_off)
    with pytest.raises(UserError, match="No space left"):
        sample.draw(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_the_command_refuses_unknown_flags_and_says_what_is_in_the_way(tmp_path):
    (tmp_path / "x").write_text("")
    command = [sys.executable, "-m", "preprocess.sample"]
    unknown = subprocess.run([*command, "--out=x"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "--out=x" in unknown.stderr
    taken = subprocess.run([*command, f"--output={tmp_path}/x"], capture_output=True, text=True)
    assert taken.returncode == 1
    assert taken.stderr.startswith("error: ")
    assert "Traceback" not in taken.stderr
