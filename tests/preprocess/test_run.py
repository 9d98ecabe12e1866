"""The command, in this process: what it writes, what it refuses, and in which words."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from preprocess import photos, publish, run, runner, storage
from tests.preprocess import photo_sets
from tfrecords import croissant, example, manifest, reader
from tfrecords.errors import FlagError, UserError


def records(folder, split):
    info = manifest.read(str(folder))
    files = [f"{folder}/{part.file}" for part in info.splits[split].shards]
    return [
        {key: value.numpy() for key, value in example.parse(record).items()}
        for record in tf.data.TFRecordDataset(files)
    ]


def rejected(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_what_is_written(cars, output):
    run.main(photo_sets.flags(cars, output, "--train_shards=3"))
    info = manifest.read(str(output))
    assert sorted(path.name for path in output.parent.iterdir()) == ["cars"]
    assert {path.name for path in output.iterdir()} == {
        "croissant.json",
        "dataset.json",
        *(f"train-0000{i}-of-00003.tfrecord" for i in range(3)),
        "validation-00000-of-00001.tfrecord",
        "test-00000-of-00001.tfrecord",
    }
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 18,
        "validation": 6,
        "test": 6,
    }
    assert info.class_names == list(photo_sets.CLASSES)
    assert (output / "croissant.json").read_text() == croissant.to_json(info)
    assert info.splits["validation"].class_counts == [2, 2, 2]
    assert (info.rejected, info.unannotated, info.name) == ({}, 0, "cars")
    assert info.parameters["train_shards"] == 3
    assert info.original_sizes["width"] == {"min": 80, "median": 80, "max": 80}
    for split in info.splits.values():
        for part in split.shards:
            data = (output / part.file).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (part.bytes, part.sha256)


def test_every_record_is_its_photo(cars, output):
    run.main(photo_sets.flags(cars, output))
    seen = []
    for split in ("train", "validation", "test"):
        for record in records(output, split):
            path = record["filename"].decode()
            seen.append(path)
            photo = (cars / "car_data" / path).read_bytes()
            assert path.startswith("test/" if split == "test" else "train/")
            assert record["sha256"].decode() == hashlib.sha256(photo).hexdigest()
            number = int(path[-9:-4])
            assert record["label"] == number % 3 + 1
            assert record["text"].decode() == photo_sets.CLASSES[number % 3]
            assert (record["original_height"], record["original_width"]) == (60, 80)
            expected = np.array([(number % 9 + 1) / 80, 5 / 60, 70 / 80, 54.5 / 60], np.float32)
            np.testing.assert_array_equal(record["bbox"], expected)
            stored = Image.open(io.BytesIO(record["encoded"]))
            assert (stored.size, record["height"], record["width"]) == ((32, 24), 24, 32)
            careful = Image.open(io.BytesIO(photo)).resize((32, 24), Image.Resampling.BOX)
            assert np.abs(np.asarray(stored).astype(int) - np.asarray(careful)).mean() < 8
    assert len(set(seen)) == 30
    assert len(list(reader.stream(str(output), "train"))) == 18


def test_box_statistics_are_those_of_the_boxes(cars, output):
    run.main(photo_sets.flags(cars, output))
    boxes = np.array([record["bbox"] for split in ("train", "validation", "test")
                      for record in records(output, split)], float)  # fmt: skip
    stats = manifest.read(str(output)).box_stats
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    for name, values in {
        "width": width, "area": width * height, "aspect": width * 80 / (height * 60),
        "center_x": (boxes[:, 0] + boxes[:, 2]) / 2,
    }.items():  # fmt: skip
        expected = [values.mean(), values.std(), values.min(), values.max()]
        found = [stats[name][key] for key in ("mean", "std", "min", "max")]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert stats["clipped"] == 0


def test_a_zip_gives_the_records_of_its_folder(cars, tmp_path):
    run.main(photo_sets.flags(cars, tmp_path / "a"))
    run.main(photo_sets.flags(photo_sets.zipped(cars, tmp_path / "cars.zip"), tmp_path / "b"))
    assert photo_sets.contents(tmp_path / "a") == photo_sets.contents(tmp_path / "b")


GRAY = photo_sets.pixels(60, 80)[..., 0]


def bad_photos() -> dict[str, tuple[bytes, str | None]]:
    good = photo_sets.photo()
    bomb = bytearray(good)
    at = bomb.index(b"\xff\xc0")
    bomb[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(photo_sets.pixels(60, 80))
    rgba = picture.convert("RGBA")
    rgba.putalpha(90)
    return {
        "truncated": (good[: len(good) // 2], "damaged"),
        "zero bytes": (b"", "unreadable"),
        "text": (b"<html>404 not found</html>", "unreadable"),
        "bomb": (bytes(bomb), "too_large"),
        "png": (photo_sets.photo(kind="PNG"), None),
        "gif": (photo_sets.photo(kind="GIF"), None),
        "bmp": (photo_sets.photo(kind="BMP"), None),
        "webp": (photo_sets.photo(kind="WEBP"), None),
        "cmyk": (photo_sets.encode(picture.convert("CMYK")), None),
        "gray": (photo_sets.encode(picture.convert("L")), None),
        "alpha": (photo_sets.encode(rgba, "PNG"), None),
        "16 bit": (
            photo_sets.encode(Image.fromarray(np.uint16(255) * GRAY), "PNG"),
            None,
        ),
        "turned so that the box is outside": (photo_sets.encode(picture, exif=exif), "box_outside"),
        "smaller than its box": (photo_sets.photo(30, 40), "box_outside"),
    }  # fmt: skip


def test_bad_photos_are_set_aside_by_name_and_the_rest_is_used(cars, output, capsys):
    kinds = bad_photos()
    for number, (data, _) in enumerate(kinds.values(), 1):
        photo_sets.path_of(cars, "train", number).write_bytes(data)
    photo_sets.replace_row(cars / "anno_train.csv", 13, "00013.jpg,1,5,70,54.5,2")
    run.main(photo_sets.flags(cars, output, "--max_rejected=0.5"))
    info = manifest.read(str(output))
    found = {row["row"]: row for row in rejected(output)}
    expected = {n: why for n, (_, why) in enumerate(kinds.values(), 1) if why}
    assert {number: row["reason"] for number, row in found.items()} == expected
    assert list(found) == sorted(found)
    assert info.rejected == {"box_outside": 2, "damaged": 1, "too_large": 1, "unreadable": 2}
    assert sum(split.num_examples for split in info.splits.values()) == 30 - len(expected)
    row = found[4]
    assert row["file"] == "anno_train.csv"
    assert row["photo"] == f"train/{photo_sets.FOLDERS[1]}/00004.jpg"
    assert "60000x60000" in row["detail"]
    out = capsys.readouterr().out
    assert "2 box_outside, 1 damaged, 1 too_large, 2 unreadable" in out
    assert f"rejected rows: {output}/rejected.jsonl" in out


def test_a_photo_turned_by_exif_keeps_the_box_that_people_see(cars, output):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.new("RGB", (80, 60), "gray")
    upright.paste("white", (20, 5, 70, 55))
    data = photo_sets.encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=98)
    photo_sets.path_of(cars, "test", 1).write_bytes(data)
    photo_sets.replace_row(cars / "anno_test.csv", 1, "00001.jpg,20,5,70,55,2")
    run.main(photo_sets.flags(cars, output))
    (record,) = [r for r in records(output, "test") if r["filename"].endswith(b"00001.jpg")]
    assert (record["original_height"], record["original_width"]) == (60, 80)
    bright = np.asarray(Image.open(io.BytesIO(record["encoded"])).convert("L")) > 190
    rows, columns = np.nonzero(bright)
    found = [columns.min() / 32, rows.min() / 24, (columns.max() + 1) / 32, (rows.max() + 1) / 24]
    np.testing.assert_allclose(found, record["bbox"], atol=0.05)


def test_too_many_rejected_stop_the_job_and_say_which(cars, output):
    photo_sets.path_of(cars, "train", 7).write_bytes(b"")
    photo_sets.replace_row(cars / "anno_test.csv", 2, "00002.jpg,1,2,3,4,99")
    with pytest.raises(UserError) as caught:
        run.main(photo_sets.flags(cars, output, "--max_rejected=0.05"))
    message = str(caught.value)
    assert "2 of 30 rows (6.7%) are rejected" in message
    assert "1 unknown_class, 1 unreadable" in message
    assert "anno_test.csv row 2, 00002.jpg: unknown_class: class 99 is not in names.csv" in message
    assert f"anno_train.csv row 7, train/{photo_sets.FOLDERS[1]}/00007.jpg: unreadable" in message
    assert not output.exists()
    listed = re.search(r"All are in (\S+)\. ", message).group(1)
    assert Path(listed).read_text().count("\n") == 2
    # Raised, the job goes on from what is done.
    run.main(photo_sets.flags(cars, output, "--max_rejected=0.1"))
    assert len(rejected(output)) == 2
    assert os.listdir(output.parent) == ["cars"]


def test_rows_rejected_before_any_photo_is_opened_stop_the_job_at_once(cars, output, monkeypatch):
    shutil.rmtree(cars / "car_data" / "train" / photo_sets.FOLDERS[2])
    monkeypatch.setattr(photos, "process", lambda *_: pytest.fail("a photo was opened"))
    with pytest.raises(UserError, match="8 missing_photo"):
        run.main(photo_sets.flags(cars, output))


def test_nothing_left_to_publish_is_an_error(cars, output):
    for number in range(1, 25):
        photo_sets.path_of(cars, "train", number).write_bytes(b"")
    for number in range(1, 7):
        photo_sets.path_of(cars, "test", number).write_bytes(b"")
    with pytest.raises(UserError, match="30 of 30 rows"):
        run.main(photo_sets.flags(cars, output, "--max_rejected=1"))


def test_a_shard_whose_photos_are_all_bad_is_empty_and_listed(cars, output):
    run.main(photo_sets.flags(cars, output, "--test_shards=6", "--max_rejected=1"))
    for number in (1, 2):
        photo_sets.path_of(cars, "test", number).write_bytes(b"")
    run.main(photo_sets.flags(cars, output, "--test_shards=6", "--max_rejected=1", "--overwrite"))
    info = manifest.read(str(output))
    assert sorted(part.num_examples for part in info.splits["test"].shards) == [0, 0, 1, 1, 1, 1]
    assert len(reader.Records(str(output), "test")) == 4


def test_a_link_that_leads_out_is_rejected_by_name(cars, output, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo_sets.photo())
    path = photo_sets.path_of(cars, "train", 3)
    path.unlink()
    os.symlink(secret, path)
    run.main(photo_sets.flags(cars, output, "--max_rejected=0.1"))
    (row,) = rejected(output)
    assert (row["row"], row["reason"]) == (3, "unsafe_path")
    assert "symbolic link that leads out of the data set" in row["detail"]


def test_a_member_that_leads_out_of_its_zip_is_rejected_by_name(cars, output, tmp_path):
    path = photo_sets.path_of(cars, "train", 3)
    data = path.read_bytes()
    path.unlink()
    zipped = photo_sets.zipped(cars, tmp_path / "cars.zip")
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(f"../train/{photo_sets.FOLDERS[0]}/00003.jpg", data)
    run.main(photo_sets.flags(zipped, output, "--max_rejected=0.1"))
    (row,) = rejected(output)
    assert (row["row"], row["reason"]) == (3, "unsafe_path")


def test_a_zip_bomb_is_refused_unread(cars, output, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_PHOTO_BYTES", 100_000)
    photo_sets.path_of(cars, "train", 3).write_bytes(bytes(200_000))
    zipped = photo_sets.zipped(cars, tmp_path / "cars.zip", zipfile.ZIP_DEFLATED)
    run.main(photo_sets.flags(zipped, output, "--max_rejected=0.1"))
    (row,) = rejected(output)
    assert (row["reason"], row["detail"][:24]) == ("too_large", "a file of 200000 bytes; ")


def test_a_dry_run_takes_the_first_rows(cars, output):
    run.main(photo_sets.flags(cars, output, "--limit=5"))
    names = {record["filename"][-9:] for record in records(output, "train")}
    assert set(manifest.read(str(output)).splits) == {"train", "test"}  # too few for validation
    assert names == {b"%05d.jpg" % number for number in range(1, 6)}
    assert manifest.read(str(output)).unannotated == 0


def test_shards_by_size(cars, output):
    run.main(photo_sets.flags(cars, output, "--shard_mb=0.004"))
    info = manifest.read(str(output))
    assert len(info.splits["train"].shards) > 3
    assert all(part.bytes < 12_000 for part in info.splits["train"].shards)


def test_letterbox(cars, output):
    run.main(photo_sets.flags(cars, output, "--resize=letterbox", "--image_height=64"))
    record = records(output, "test")[0]
    # 80x60 in 32x64 is 32x24, with 20 black rows above and below.
    number = int(record["filename"][-9:-4])
    expected = [(number % 9 + 1) / 80, (20 + 24 * 5 / 60) / 64, 70 / 80, (20 + 24 * 54.5 / 60) / 64]
    np.testing.assert_allclose(record["bbox"], expected, rtol=1e-6)
    stored = np.asarray(Image.open(io.BytesIO(record["encoded"])))
    assert stored[:16].max() < 16
    assert stored[22:42].mean() > 40


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("--image_height=0", "--image_height=0: 0 is not an integer in the range [1, 16384]"),
        ("--jpeg_quality=0", "--jpeg_quality=0: 0 is not an integer in the range [1, 100]"),
        ("--jpeg_quality=101", "101 is not an integer in the range [1, 100]"),
        ("--jpeg_quality=high", "--jpeg_quality=high: it is not an integer in the range [1, 100]"),
        ("--validation_fraction=1.5", "1.5 is not a number in the range [0, 0.999999]"),
        ("--validation_fraction=nan", "--validation_fraction=nan: it is not a number in the"),
        ("--max_rejected=-1", "-1.0 is not a number in the range [0, 1]"),
        ("--shard_mb=0", "0.0 is not a number in the range [0.001"),
        ("--train_shards=0", "--train_shards=0: 0 is not an integer in the range [1, 99999]"),
        ("--resize=crop", "should be one of <stretch|letterbox>"),
        ("--limit=0", "--limit=0: 0 is not an integer in the range"),
        ("--input=", "--input=: it is empty"),
        ("--output=", "--output=: it is empty"),
        (f"--seed={10**70}", "--seed=1000"),
        ("--first_class=2", "--first_class=2: 2 is not an integer in the range [0, 1]"),
        ("--box_unit=meters", "should be one of <pixel|fraction>"),
    ],
)
def test_flags_out_of_range(cars, output, wrong, says):
    with pytest.raises(FlagError) as caught:
        run.main(photo_sets.flags(cars, output, wrong))
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("--outputt=x", "unknown flag --outputt.* Did you mean --output?"),
        ("--image-height=3", "unknown flag --image-height.* Did you mean --image_height?"),
        ("--image_heigth=3", "Did you mean --image_height?"),
        ("--direct_num_worker=3", "Did you mean --direct_num_workers?"),
        ("--quux", "unknown flag --quux"),
        ("cars.zip", "unexpected argument 'cars.zip'"),
        ("--direct_running_mode=multi_process", "invalid choice: 'multi_process'"),
        ("--runner=DirectRuner", "--runner=DirectRuner: .*DirectRuner"),
    ],
)
def test_flags_that_nobody_knows(cars, output, wrong, says):
    with pytest.raises(UserError, match=re.escape(says).replace(r"\.\*", ".*")):
        run.main([*photo_sets.flags(cars, output), wrong])
    assert not output.parent.exists()


def test_bad_input_leaves_nothing_behind(tmp_path, output):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"names\.csv is missing"):
        run.main(photo_sets.flags(tmp_path / "empty", output))
    assert not output.parent.exists()


def test_without_input_the_sample_is_drawn(output, tmp_path, monkeypatch):
    from preprocess import sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "draw", lambda directory: photo_sets.write(tmp_path / directory))
    run.main(photo_sets.flags("x", output)[1:])
    info = manifest.read(str(output))
    assert (info.name, info.sample) == ("drawn", True)


def test_the_photos_of_a_vanished_file_are_named(cars, output, monkeypatch):
    """Listed, and gone when a worker opens it."""
    really = storage.Folder.scan

    def scan(self):
        yield from really(self)
        photo_sets.path_of(cars, "train", 4).unlink(missing_ok=True)

    monkeypatch.setattr(storage.Folder, "scan", scan)
    run.main(photo_sets.flags(cars, output, "--max_rejected=0.1"))
    (row,) = rejected(output)
    assert (row["row"], row["reason"]) == (4, "unreadable")
    assert "No such file" in row["detail"]


def test_a_disk_that_breaks_fails_the_job_and_costs_no_row(cars, output, monkeypatch):
    really = storage.Folder.read

    def read(self, entry):
        if entry.path.endswith("00004.jpg"):
            raise OSError(5, "Input/output error", entry.path)
        return really(self, entry)

    monkeypatch.setattr(storage.Folder, "read", read)
    with pytest.raises(UserError, match=r"Input/output error .*00004\.jpg"):
        run.main(photo_sets.flags(cars, output))
    monkeypatch.undo()
    run.main(photo_sets.flags(cars, output))
    assert manifest.read(str(output)).rejected == {}


def test_an_interrupt_is_an_interrupt_and_what_is_done_is_kept(cars, output, monkeypatch, capsys):
    really, calls = photos.process, []

    def process(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return really(*arguments)

    monkeypatch.setattr(photos, "process", process)
    with pytest.raises(KeyboardInterrupt):
        run.main(photo_sets.flags(cars, output, "--train_shards=6"))
    assert not output.exists()
    run.main(photo_sets.flags(cars, output, "--train_shards=6"))
    said = capsys.readouterr().out
    assert "Run the same command again" in said
    assert "going on where a job was stopped" in said


def test_metrics_count_what_was_written_and_rejected(cars, output, monkeypatch):
    import apache_beam as beam

    photo_sets.path_of(cars, "train", 4).write_bytes(b"")
    seen = {}

    class Pipeline(beam.Pipeline):
        def run(self, test_runner_api="AUTO"):
            result = super().run(test_runner_api)
            for counter in result.metrics().query()["counters"]:
                seen[counter.key.metric.name] = counter.committed
            return result

    monkeypatch.setattr(runner.beam, "Pipeline", Pipeline)
    run.main(photo_sets.flags(cars, output, "--max_rejected=0.1"))
    assert seen == {"written": 29, "rejected_unreadable": 1}


def test_parameters_hold_every_flag_that_shapes_the_output(cars, output):
    run.main(photo_sets.flags(cars, output))
    parameters = manifest.read(str(output)).parameters.keys()
    not_shaping = {
        *("input", "output", "overwrite", "max_rejected", "follow_links", "worker_timeout"),
    }
    assert set(run.FLAGS) - parameters == not_shaping
    assert str(cars.parent) not in (output / "dataset.json").read_text()
    assert publish.libraries().keys() >= {"simplejpeg", "numpy", "pillow", "python"}


def test_what_lies_beside_a_data_set_is_never_replaced(cars, output):
    """The input below the output, or checkpoints beside the shards, would be deleted with it."""
    run.main(photo_sets.flags(cars, output))
    shutil.copytree(cars, output / "photos")
    before = photo_sets.contents(output)
    with pytest.raises(UserError, match=r"holds 'photos' beside a data set, and replacing it"):
        run.main(photo_sets.flags(output / "photos", output, "--overwrite"))
    assert photo_sets.contents(output) == before


def test_a_small_set_is_judged_by_all_rows_of_its_csv(cars, output):
    """Ids from 0 show further down than the limit: the rows before them would be misread."""
    for split, last in (("train", 24), ("test", 6)):
        csv = cars / f"anno_{split}.csv"
        photo_sets.replace_row(csv, last, f"{last:05d}.jpg,1,5,70,54,0")
    with pytest.raises(UserError, match=r"class ids seem to start at 0: 2 rows have class 0"):
        run.main(photo_sets.flags(cars, output, "--limit=3"))
    assert not output.exists()


def test_rows_beyond_the_limit_are_neither_written_nor_rejected(cars, output):
    run.main(photo_sets.flags(cars, output, "--limit=4", "--max_rejected=0"))
    info = manifest.read(str(output))
    assert sum(split.num_examples for split in info.splits.values()) == 8
    assert (info.rejected, info.unannotated) == ({}, 0)


def test_one_bad_row_does_not_hide_that_classes_are_shifted(cars, output):
    """Numbers repeat in every folder, ids are off by one, and the first class has no row."""
    shutil.rmtree(cars / "car_data")
    names = ["A", "B", "C", "D"]
    rows = []
    for label, name in enumerate(names):
        for number in range(1, 21):
            path = cars / "train" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo_sets.photo(seed=number))
            rows += [f"{number}.jpg,1,5,70,54,{label}\n"] * (label > 0)
    (cars / "names.csv").write_text("\n".join(names))
    (cars / "anno_train.csv").write_text("".join([*rows, "oops,,,,,\n"]))
    (cars / "anno_test.csv").unlink()
    with pytest.raises(UserError, match=r"folder train/D: 20 photos and no row"):
        run.main(photo_sets.flags(cars, output, "--max_rejected=0.5"))


def test_an_interrupt_of_the_terminal_leaves_no_traceback(tmp_path):
    """It reaches the processes that read photos too, while they start."""
    root = photo_sets.write(tmp_path / "cars", train=700, test=10)
    for delay in (0.2, 0.8, 1.2, 1.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "preprocess.run",
             *photo_sets.flags(root, tmp_path / "out", "--overwrite")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        process.stdout.readline()  # before that, Python itself is starting
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
