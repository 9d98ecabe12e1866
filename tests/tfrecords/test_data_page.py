"""The data page: its numbers, its sample, what it warns of; in a real browser, too."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.tfrecords import browsers, datasets
from tfrecords import data_page, data_rows, findings, image, inspect, manifest, near

HOSTILE = "<script>alert(1)</script>"
NAMES = [HOSTILE, "Ram C/V Cargo Van Minivan 2012", "Citroën 2CV 1970"]


def hostile(first, count, split="train"):
    return [
        datasets.record(
            seed,
            text=NAMES[seed % 3],
            filename=f"{split}/{NAMES[seed % 3]}/{seed:05d}.jpg",
            original_height=480 + seed,
        )
        for seed in range(first, first + count)
    ]


def make(directory) -> str:
    info = manifest.read(str(directory))
    found = list(findings.find(info, str(directory)))
    return data_page.make(info, str(directory), found)


def lists(page: str) -> dict[str, dict]:
    """Returns the tables and galleries of a page by their labels."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {one["label"]: one for one in map(json.loads, found)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Three splits, one class with a hostile name, rejected rows, duplicates of both kinds."""
    directory = tmp_path_factory.mktemp("data")
    train = hostile(0, 40)
    again = datasets.record(0, text=HOSTILE, filename="test/again.jpg")
    photo = Image.open(io.BytesIO(datasets.jpeg(4)))
    out = io.BytesIO()
    photo.resize((photo.width - 3, photo.height - 2)).resize(photo.size).save(
        out, "JPEG", quality=60
    )
    like = datasets.record(
        5, encoded=out.getvalue(), text=NAMES[2], filename="test/like.jpg", sha256="e" * 64
    )
    splits = {
        "train": [train[:25], train[25:]],
        "validation": [hostile(50, 6, "validation")],
        "test": [[*hostile(60, 9, "test"), again, like]],
    }
    rejected = {"missing": 60, "box_outside": 1}
    datasets.write(str(directory), splits, class_names=NAMES, rejected=rejected)
    with open(directory / manifest.REJECTED_NAME, "w", encoding="utf-8") as file:
        for reason, count in rejected.items():
            for row in range(count):
                values = {"file": "anno_train.csv", "row": row, "photo": f"{reason}/{row}.jpg"}
                file.write(json.dumps({**values, "reason": reason, "detail": HOSTILE}) + "\n")
    return directory


@pytest.fixture(scope="module")
def page(directory):
    return make(directory)


def test_the_numbers_are_those_of_the_manifest(directory, page):
    info = manifest.read(str(directory))
    table = lists(page)["Photos of each class"]
    assert [column["name"] for column in table["columns"]] == [
        "class", "photos", "train", "validation", "test",
    ]  # fmt: skip
    by_class = list(zip(*(info.splits[name].class_counts for name in manifest.SPLITS), strict=True))
    assert table["rows"] == [
        [name, sum(counts), *counts] for name, counts in zip(NAMES, by_class, strict=True)
    ]
    text = re.sub(r"<[^>]*>", " ", page)
    assert re.search(r"train\s+40\s+70.2 %\s+3 of 3\s+13\s+13\s+14\s+2", text)
    assert "57 photos of 3 classes" in text


def test_names_stay_text(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_refers_to_nothing_outside(page):
    assert not re.search(r"https?:|src=|@import|url\((?!data:)", page)


def test_every_photo_is_shown_with_its_box_where_there_are_few(directory, page):
    sheet = lists(page)["Photos with their boxes"]
    assert len(sheet["cards"]) == 57
    assert "All 57 photos with their boxes." in page
    card = sheet["cards"][0]
    assert card["lines"] == [f"train/{HOSTILE}/00000.jpg", "640 × 480 pixels"]
    assert card["photos"][0]["boxes"] == [{"sides": [0.125, 0.25, 0.75, 0.875], "kind": "true"}]
    assert {tuple(card["facets"]) for card in sheet["cards"]} == {
        (name, split) for name in NAMES for split in manifest.SPLITS
    }


def test_duplicates_across_splits_are_shown_in_pairs(page):
    pairs = lists(page)["Photos that look the same"]["cards"]
    assert [pair["lines"] for pair in pairs] == [
        [f"train/{HOSTILE}/00000.jpg", "test/again.jpg"],
        ["train/Ram C/V Cargo Van Minivan 2012/00004.jpg", "test/like.jpg"],
    ]
    assert pairs[0]["badges"] == ["train and test", "same file"]
    assert pairs[1]["badges"][0] == "train and test"
    assert pairs[1]["badges"][1].endswith(" of 64 bits differ")
    assert pairs[1]["badges"][2] == "two names"


def test_warnings_have_their_remedies(directory, page):
    info = manifest.read(str(directory))
    found = list(findings.find(info, str(directory)))
    assert [finding.text for finding in found] == list(inspect.warnings(info, str(directory)))
    text = (
        re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page)).replace("&lt;", "<").replace("&gt;", ">")
    )
    for finding in found:
        assert finding.text[1:] + "." in text
        assert finding.remedy in text
    assert "1 photo looks like one of an earlier split." in text


def test_rejected_rows_are_counted_and_shown_by_reason(page):
    rows = lists(page)["Rejected rows, examples"]["rows"]
    assert [row[0] for row in rows].count("missing") == 50
    assert rows[-1] == ["box_outside", "box_outside/0.jpg", HOSTILE, "anno_train.csv", "0"]
    assert "61 rows were rejected. The first 50 of each reason are shown" in page
    assert re.search(r"missing</th><td class=\"number\">60<", page)


def test_a_sound_data_set_is_told_so(tmp_path):
    datasets.write_default(str(tmp_path))
    page = make(tmp_path)
    assert "Nothing in this data set is known to hurt training." in page
    assert "No photo is or looks like one of another split." in page
    assert "All photos had 640 × 480 pixels" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"encoded": b"no photo"},
        {"encoded": datasets.jpeg(1)[:200]},
        {"encoded": datasets.jpeg(1, 8, 16)},
        {"label": 9},
        {"bbox": (float("nan"), 0.5, 0.4, 7.0)},
        {"original_width": 0},
        {"sha256": ""},
    ],
)
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_record_that_is_wrong_inside_does_not_stop_the_page(tmp_path, changes, resize):
    content = [datasets.record(0), datasets.record(1, **changes)]
    form = manifest.Image(datasets.HEIGHT, datasets.WIDTH, "jpeg", 95, resize)
    datasets.write(str(tmp_path), {"train": [content], "test": [content]}, image=form)
    assert "4 photos of 3 classes" in make(tmp_path)


def test_an_empty_data_set_has_a_page(tmp_path):
    datasets.write(str(tmp_path), {})
    assert "0 photos of 3 classes" in make(tmp_path)


def test_a_letterbox_shows_no_black_and_its_boxes_lie_on_the_photo(tmp_path):
    options = image.ImageOptions(96, 128, "letterbox")
    out = io.BytesIO()
    Image.new("RGB", (300, 600), (200, 180, 160)).save(out, "JPEG")
    photo = image.prepare(out.getvalue(), options)
    record = datasets.record(
        0, encoded=photo.encoded, height=96, width=128, original_height=600, original_width=300,
        bbox=image.place_box((0.1, 0.2, 0.9, 0.6), photo.content, options),
    )  # fmt: skip
    form = manifest.Image(96, 128, "jpeg", 95, "letterbox")
    datasets.write(str(tmp_path), {"train": [[record]]}, image=form)
    shown = lists(make(tmp_path))["Photos with their boxes"]["cards"][0]["photos"][0]
    assert shown["boxes"][0]["sides"] == pytest.approx([0.1, 0.2, 0.9, 0.6], abs=1e-3)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert thumbnail.size == (80, 160)
    assert np.asarray(thumbnail).min() > 120


# The sample.


def some_rows(classes, each):
    rows = np.zeros(classes * each, data_rows.ROW)
    rows["label"] = np.arange(len(rows)) % classes + 1
    rows["split"] = np.arange(len(rows)) // classes % 3
    return rows


def test_the_sample_has_every_class_and_split_and_is_always_the_same():
    rows = some_rows(20, 90)
    chosen = data_rows.choose_sample(rows, 60)
    assert len(set(chosen)) == 60
    groups = [(rows["label"][i], rows["split"][i]) for i in chosen]
    assert groups == [(label, split) for label in range(1, 21) for split in range(3)]
    assert chosen == data_rows.choose_sample(rows, 60)
    assert len(data_rows.choose_sample(rows[:7], 60)) == 7


# Photos that look the same.


def test_pairs_are_those_that_all_comparisons_find():
    random = np.random.default_rng(3)
    looks = random.integers(1, 1 << 63, 400, np.uint64)
    splits = random.integers(0, 3, 400).astype(np.uint8)
    for number in range(100):  # some that differ from another in up to six bits
        flips = random.integers(0, 64, random.integers(0, 7)).astype(np.uint64)
        looks[300 + number] = looks[number] ^ np.bitwise_xor.reduce(
            np.uint64(1) << flips, initial=np.uint64(0)
        )
    wanted = {}
    for one in range(400):
        for other in range(400):
            bits = int(np.bitwise_count(looks[one] ^ looks[other]))
            if splits[other] < splits[one] and bits <= near.NEAR:
                wanted[one] = min(bits, wanted.get(one, 99))
    found = near.pairs(looks, splits)
    assert {pair.photo: pair.bits for pair in found} == wanted
    assert [pair.bits for pair in found] == sorted(pair.bits for pair in found)
    assert all(
        np.bitwise_count(looks[p.photo] ^ looks[p.earlier]) == p.bits
        and splits[p.earlier] < splits[p.photo]
        for p in found
    )


def test_a_photo_of_one_gray_looks_like_none():
    assert near.look(np.full((9, 30, 3), 77, np.uint8)) == 0
    assert near.pairs(np.zeros(4, np.uint64), np.array([0, 1, 2, 2], np.uint8)) == []


def test_a_look_survives_size_quality_and_brightness():
    photo = np.asarray(Image.open(io.BytesIO(datasets.jpeg(3, 240, 320))))
    small = np.asarray(Image.fromarray(photo).resize((90, 60)))
    dark = (photo * 0.8).astype(np.uint8)
    for other in (small, dark):
        bits = np.bitwise_count(np.uint64(near.look(photo)) ^ np.uint64(near.look(other)))
        assert bits <= near.NEAR
        assert near.same_tint(near.tint(photo), near.tint(other))


# The command, and the page in a browser.


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The page of 10,000 classes, of which 2,000 have a photo, by the command."""
    directory = tmp_path_factory.mktemp("many")
    names = [f"class {number}" for number in range(10_000)]
    form = datasets.jpeg(1)
    content = [
        datasets.record(
            0, encoded=form, label=number + 1, text=name, filename=f"train/{name}/1.jpg",
            sha256=hashlib.sha256(name.encode()).hexdigest(),
        )
        for number, name in enumerate(names[:2000])
    ]  # fmt: skip
    datasets.write(str(directory), {"train": [content]}, class_names=names)
    path = directory / "pages" / "data.html"
    inspect.main([str(directory), f"--html={path}"])
    return path


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


def test_the_command_needs_no_tensorflow(directory, tmp_path):
    script = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['apache_beam'] = None\n"
        "from tfrecords import inspect; inspect.main(sys.argv[1:])"
    )
    path = tmp_path / "page.html"
    arguments = [sys.executable, "-c", script, str(directory), f"--html={path}"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"page: {path}" in done.stdout
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_ten_thousand_classes_are_usable(many, browser):
    assert os.path.getsize(many) < 3_000_000
    with browsers.opened(browser, many) as page:
        assert page.evaluate("document.querySelectorAll('*').length") < 2000
        classes = page.locator("#classes")
        assert classes.get_by_role("status").inner_text() == "1–25 of 10,000 classes"
        classes.get_by_label("search").fill("class 777")
        assert classes.get_by_role("status").inner_text() == "1–19 of 19 classes, out of 10,000"
        assert "600 of the 2,000 photos" in page.locator("#photos").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(page, browser, tmp_path, scheme):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with browsers.opened(browser, path, color_scheme=scheme) as shown:
        assert browsers.violations(shown) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_on_a_phone_and_in_the_dark(directory, page, browser, tmp_path, scheme):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with browsers.opened(browser, path, **browsers.PHONE, color_scheme=scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") == 375
        photos = shown.locator("#photos")
        photos.get_by_label("class").select_option(HOSTILE)
        photos.get_by_label("split").select_option("validation")
        assert photos.locator(".card .title").all_inner_texts() == [HOSTILE] * 2
        assert shown.locator("#duplicates li.card img").count() == 4
        heading = shown.get_by_role("link", name="Rejected rows")
        heading.click()
        assert shown.evaluate("location.hash") == "#rejected"
