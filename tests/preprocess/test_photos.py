"""Processes that work on photos: the same answers as in this process, and no way to hang."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from preprocess import photos, storage
from tests.preprocess import photo_sets
from tfrecords import image
from tfrecords.errors import UserError

CODE = """
import sys
from preprocess import photos
photos.HELPERS.start(2)
print(*(helper._process.pid for helper in [photos.HELPERS._idle.get() for _ in range(2)]))
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def settings(cars):
    return photos.Settings(
        source=str(cars),
        follow_links=False,
        folder=str(cars.parent / "out.incomplete"),
        image=image.ImageOptions(24, 32),
        box_unit="pixel",
        class_names=photo_sets.CLASSES,
        fingerprint="0" * 64,
        run="run",
    )


@pytest.fixture
def rows(cars):
    paths = [photo_sets.path_of(cars, "train", number) for number in range(1, 6)]
    paths[2].write_bytes(b"no photo")
    return [
        photos.Row("anno_train.csv", number, f"train/x/{path.name}",
                   storage.Entry(str(path.relative_to(cars)), path.stat().st_size, 0, 0),
                   (1.0, 5.0, 70.0, 54.5), 1)
        for number, path in enumerate(paths, 1)
    ]  # fmt: skip


@pytest.fixture
def helpers():
    some = photos.Helpers()
    yield some
    some.stop()


def test_another_process_gives_the_same_chunk_again_and_again(settings, rows, helpers):
    expected = photos.process(settings, rows)
    assert len(expected.written) == 4
    assert [row["row"] for row in expected.rejected] == [3]
    for _ in range(3):
        assert helpers.process(settings, rows) == expected


def test_a_source_that_is_gone_fails_the_job_and_costs_no_row(settings, rows, helpers, tmp_path):
    gone = dataclasses.replace(settings, source=str(tmp_path / "gone.zip"), run="other")
    for process in (photos.process, helpers.process):
        with pytest.raises(UserError, match=r"gone\.zip does not exist"):
            process(gone, rows)


def test_a_process_that_is_killed_is_an_error_that_names_the_photos(settings, rows, helpers):
    helpers.start(1)
    helper = helpers._idle.get()
    helper.process(settings, rows)
    os.kill(helper._process.pid, signal.SIGKILL)
    with pytest.raises(OSError, match=r"train/x/00001\.jpg … train/x/00005\.jpg .* signal 9"):
        helper.process(settings, rows)


def test_no_process_outlives_a_driver_that_is_killed():
    driver = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
