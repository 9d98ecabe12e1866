import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from tests.tfrecords import datasets
from tfrecords import example, inspect, manifest

SHARD = "train-00001-of-00002.tfrecord"  # records 4, 5 and 6
SIZE = f"{datasets.HEIGHT} x {datasets.WIDTH}"


@pytest.fixture
def directory(tmp_path):
    datasets.write_default(str(tmp_path))
    return tmp_path


def problems(directory):
    return list(inspect.verify(manifest.read(str(directory)), str(directory)))


def warned(directory):
    return list(inspect.warnings(manifest.read(str(directory)), str(directory)))


def frames(directory, name=SHARD):
    with open(directory / name, "rb") as file:
        return [example.frame(payload) for payload, _ in example.read_frames(file)]


def edit_manifest(directory, change):
    path = directory / manifest.FILE_NAME
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def test_a_sound_data_set_has_no_problems_and_no_warnings(directory):
    assert problems(directory) == []
    assert warned(directory) == []


def test_the_summary_tells_what_is_there(directory):
    text = inspect.summary(manifest.read(str(directory)), "data/x")
    assert text.startswith(f"data/x: tiny, 3 classes, jpeg {SIZE} (height x width), quality 95")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["train"][:2] == ["7", "2"]
    assert rows["train"][3:] == ["2", "2", "3"]
    assert rows["test"][:2] == ["4", "1"]
    assert "median 0.3906" in text
    assert "0 rows" in text
    assert list(rows)[2:5] == ["train", "validation", "test"]


def test_rejected_rows_are_told_by_reason(tmp_path):
    rejected = {"missing": 1200, "box outside": 1}
    datasets.write(str(tmp_path), {"train": [datasets.records(0, 3)]}, rejected=rejected)
    text = inspect.summary(manifest.read(str(tmp_path)), "x")
    assert "1,201 rows: box outside 1, missing 1,200" in text
    assert problems(tmp_path) == ["rejected.jsonl: 0 lines, dataset.json says 1201"]


def test_show_describes_the_first_records(directory):
    lines = list(inspect.show(manifest.read(str(directory)), str(directory), 2))
    assert [line for line in lines if not line.startswith(" ")] == [
        "train:",
        "validation:",
        "test:",
    ]
    assert len(lines) == 3 + 6
    assert lines[2] == (
        "  train/Ram C/V Cargo Van Minivan 2012/00001.jpg  2 Ram C/V Cargo Van Minivan 2012"
        "  box 0.125 0.250 0.750 0.875  original 480 x 640"
    )


# What --verify must find. Each changes a sound data set in one way.


def test_a_missing_shard(directory):
    (directory / SHARD).unlink()
    assert problems(directory) == [f"{SHARD}: missing"]


def test_a_data_set_elsewhere_is_verified_through_tensorflow(directory):
    place = f"file://{directory}"
    info = manifest.read(place)
    assert list(inspect.verify(info, place)) == []
    assert list(inspect.warnings(info, place)) == []
    assert list(inspect.show(info, place, 1)) == list(inspect.show(info, str(directory), 1))
    (directory / SHARD).unlink()
    assert list(inspect.verify(info, place)) == [f"{SHARD}: missing"]


def test_a_flipped_bit_is_found_with_its_record(directory):
    whole = frames(directory)
    damaged = bytearray(whole[1])
    damaged[200] ^= 1
    (directory / SHARD).write_bytes(whole[0] + bytes(damaged) + whole[2])
    found = problems(directory)
    assert found == [
        f"{SHARD}: its sha256 is not the one in dataset.json",
        f"{SHARD}: record 2: damaged: fails its checksum",
    ]


def test_a_shard_that_is_cut_off(directory):
    data = (directory / SHARD).read_bytes()
    (directory / SHARD).write_bytes(data[:-10])
    found = "\n".join(problems(directory))
    assert f"{len(data) - 10} bytes, dataset.json says {len(data)}" in found
    assert f"{SHARD}: record 3: cut off" in found
    assert f"{SHARD}: 2 records, dataset.json says 3" in found


def test_a_record_too_many(directory):
    whole = frames(directory)
    (directory / SHARD).write_bytes(b"".join([*whole, whole[0]]))
    assert f"{SHARD}: 4 records, dataset.json says 3" in problems(directory)


def test_class_counts_that_are_not_true(directory):
    edit_manifest(directory, lambda m: m["splits"]["test"].update(class_counts=[1, 2, 1]))
    assert problems(directory) == [
        "dataset.json: split test has 1 records of class 2 (Ram C/V Cargo Van Minivan 2012), not 2"
    ]


def test_a_shard_that_nobody_names(directory):
    (directory / "train-00000-of-00001.tfrecord").write_bytes(b"")
    assert problems(directory) == ["train-00000-of-00001.tfrecord: dataset.json does not name it"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoded": datasets.jpeg(1, 8, 16)}, f"its photo is 8 x 16 x 3, not {SIZE} x 3"),
        ({"encoded": datasets.jpeg(1)[:200]}, "its photo cannot be decoded"),
        (
            {"encoded": datasets.jpeg(1)[:-50]},
            "its photo cannot be decoded: Premature end of JPEG file",
        ),
        ({"encoded": b"no photo"}, "its photo is not a JPEG"),
        ({"label": 4}, "label 4 is outside 1 to 3"),
        ({"label": 0}, "label 0 is outside 1 to 3"),
        ({"text": "Audi"}, "label 2 is 'Ram C/V Cargo Van Minivan 2012', the record says 'Audi'"),
        ({"bbox": (0.5, 0.1, 0.4, 0.9)}, "box (0.5, 0.1, 0.4, 0.9) is not within the photo"),
        ({"bbox": (0.5, 0.1, 0.6, 1.5)}, "box (0.5, 0.1, 0.6, 1.5) is not within the photo"),
        ({"bbox": (float("nan"), 0.1, 0.6, 0.9)}, "box (nan, 0.1, 0.6, 0.9)"),
        ({"height": 25}, f"says 25 x {datasets.WIDTH}, not {SIZE}"),
        ({"original_width": 0}, "original size 480 x 0"),
        ({"sha256": "abc"}, "sha256 'abc' is not a digest"),
    ],
)
def test_a_record_that_is_wrong_inside(tmp_path, changes, said):
    content = [datasets.record(0), datasets.record(1, **changes), datasets.record(2)]
    datasets.write(str(tmp_path), {"train": [content]})
    found = problems(tmp_path)
    assert len([line for line in found if "record 2" in line]) == 1, found
    assert not [line for line in found if "record 1" in line or "record 3" in line]
    assert said in "\n".join(found)


def test_a_photo_in_another_format(tmp_path):
    out = io.BytesIO()
    Image.open(io.BytesIO(datasets.jpeg(1))).save(out, "PNG")
    datasets.write(str(tmp_path), {"train": [[datasets.record(1, encoded=out.getvalue())]]})
    assert [p for p in problems(tmp_path) if "record 1" in p and "not a JPEG" in p]


def test_a_grayscale_photo(tmp_path):
    out = io.BytesIO()
    Image.open(io.BytesIO(datasets.jpeg(1))).convert("L").save(out, "JPEG")
    datasets.write(str(tmp_path), {"train": [[datasets.record(1, encoded=out.getvalue())]]})
    assert f"{SIZE} x 1, not {SIZE} x 3" in problems(tmp_path)[0]


def test_faults_are_told_in_order_with_the_number_of_their_record(tmp_path):
    content = datasets.records(0, 200)  # more than one thread looks into at a time
    for number in range(7, 200, 11):
        content[number - 1] = datasets.record(number, encoded=b"no photo")
    datasets.write(str(tmp_path), {"train": [content]})
    found = problems(tmp_path)
    numbers = [line.split(": record ")[1].split(" (")[0] for line in found if "record " in line]
    assert numbers == [str(number) for number in range(7, 200, 11)]


# What hurts training.


def test_classes_without_photos_are_named(tmp_path):
    only_first = [datasets.record(0), datasets.record(3)]
    splits = {"train": [datasets.records(6, 3)], "test": [only_first]}
    datasets.write(str(tmp_path), splits)
    assert warned(tmp_path) == [
        "there is no validation split",
        "2 of 3 classes have no photo in test: Ram C/V Cargo Van Minivan 2012, Citroën 2CV 1970",
    ]


def test_the_same_photo_in_two_splits_and_twice_in_one(directory):
    again = datasets.record(0, filename="test/again.jpg")
    twice = [datasets.record(10), datasets.record(10, filename="validation/copy.jpg")]
    splits = {
        "train": [datasets.records(0, 3)],
        "validation": [[*twice, *datasets.records(11, 2)]],
        "test": [[again, *datasets.records(20, 3)]],
    }
    datasets.write(str(directory), splits)
    assert warned(directory) == [
        "the same photo is in train and test:"
        " train/Audi TTS Coupe 2012/00000.jpg and test/again.jpg",
        "the same photo is twice in validation:"
        " train/Ram C/V Cargo Van Minivan 2012/00010.jpg and validation/copy.jpg",
    ]


def test_digests_that_only_begin_alike_are_not_the_same_photo(directory):
    near = "f" * 63
    train = [datasets.record(0, sha256=near + "0"), *datasets.records(1, 2)]
    test = [datasets.record(3, sha256=near + "1"), *datasets.records(4, 2)]
    splits = {"train": [train], "validation": [datasets.records(6, 3)], "test": [test]}
    datasets.write(str(directory), splits)
    assert warned(directory) == []


def test_uneven_classes_and_odd_boxes(directory):
    train = [datasets.record(3 * i) for i in range(21)] + datasets.records(64, 2)
    tiny = {"bbox": (0.5, 0.5, 0.59, 0.59), "filename": "tiny.jpg"}
    full = {"bbox": (0.0, 0.0, 1.0, 1.0), "filename": "full.jpg"}
    train[0], train[1] = datasets.record(0, **tiny), datasets.record(3, **full)
    splits = {"train": [train], "validation": [datasets.records(70, 3)]}
    datasets.write(str(directory), {**splits, "test": [datasets.records(80, 3)]})
    uneven, small, large = warned(directory)
    assert "'Audi TTS Coupe 2012' has 21 photos" in uneven
    assert "has 1" in uneven
    assert small == "1 boxes cover less than 1% of their photo: tiny.jpg"
    assert large == "1 boxes cover more than 99% of their photo: full.jpg"


# The command.


def run(*arguments):
    command = [sys.executable, "-m", "tfrecords.inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_verifies_and_shows(directory):
    done = run(directory, "--verify", "--show=1")
    assert done.returncode == 0, done.stderr
    assert "verified: 14 records in 4 shards" in done.stdout
    assert "train/Audi TTS Coupe 2012/00000.jpg" in done.stdout


def test_the_command_fails_with_the_damaged_shard_named(directory):
    (directory / SHARD).unlink()
    done = run(directory, "--verify")
    assert done.returncode == 1
    assert f"wrong: {SHARD}: missing" in done.stdout
    assert "1 found" in done.stderr
    assert "Traceback" not in done.stderr
    assert "verified" not in done.stdout


def test_without_verify_an_unreadable_shard_is_one_message(directory):
    (directory / SHARD).write_bytes(b"no records, just text")
    done = run(directory)
    assert done.returncode == 1
    assert f"error: the train split of '{directory}' cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_out_of_range_is_named(directory):
    done = run(directory, "--show=-1")
    assert done.returncode == 2
    assert done.stderr == "error: flag --show=-1: -1 is not a non-negative integer\n"


def test_who_reads_only_the_first_line_is_not_shouted_at(directory):
    command = f"{sys.executable} -m tfrecords.inspect {directory} --show=3 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_bytes_that_are_no_record(tmp_path):
    datasets.write(str(tmp_path), {"train": [datasets.records(0, 3)]})
    shard = tmp_path / "train-00000-of-00001.tfrecord"
    whole = frames(tmp_path, shard.name)
    shard.write_bytes(whole[0] + example.frame(b"text") + whole[2])
    assert f"{shard.name}: record 2: Could not parse" in "\n".join(problems(tmp_path))
