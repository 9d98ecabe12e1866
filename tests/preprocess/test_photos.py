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


def test_a_process_that_is_killed_costs_nothing_where_another_can_do_it(settings, rows, helpers):
    expected = helpers.process(settings, rows)
    helper = helpers._idle.get()
    os.kill(helper._process.pid, signal.SIGKILL)
    helpers._idle.put(helper)
    assert helpers.process(settings, rows) == expected


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """Lets a process die by a signal when it meets a photo of 12 bytes."""

    def with_signal(number):
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(
            "import os, sys\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'preprocess.photos':\n"
            "            import tfrecords.image as image\n"
            "            really = image.prepare\n"
            "            def prepare(data, options):\n"
            f"                return os.kill(os.getpid(), {number}) if len(data) == 12"
            " else really(data, options)\n"
            "            image.prepare = prepare\n"
            "sys.meta_path.insert(0, Finder())\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/hook:{os.getcwd()}")

    return with_signal


def test_a_photo_that_crashes_its_decoder_is_set_aside_alone(settings, rows, helpers, cars, deadly):
    deadly(signal.SIGSEGV)
    photo_sets.path_of(cars, "train", 3).write_bytes(b"x" * 12)
    chunk = helpers.process(settings, rows)
    assert len(chunk.written) == 4
    ((row, detail),) = [(row["row"], row["detail"]) for row in chunk.rejected]
    assert row == 3
    assert "its decoder crashed (signal 11)" in detail


def test_a_process_that_the_system_kills_is_no_fault_of_its_photo(
    settings, rows, helpers, cars, deadly
):
    deadly(signal.SIGKILL)
    photo_sets.path_of(cars, "train", 3).write_bytes(b"x" * 12)
    with pytest.raises(OSError, match=r"train/x/00003\.jpg ended with signal 9: .* memory"):
        helpers.process(settings, rows)


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
