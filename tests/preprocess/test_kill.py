"""A job that is killed with SIGKILL, at any moment, and started again until it is done."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.preprocess import photo_sets
from tfrecords import manifest

FLAGS = ("--image_height=24", "--image_width=32", "--train_shards=9", "--validation_shards=3",
         "--test_shards=3", "--max_rejected=0.1")  # fmt: skip


def start(source: Path, output: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "preprocess.run", f"--input={source}", f"--output={output}",
         *FLAGS, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def whole_shards(incomplete: Path) -> dict[str, int]:
    """The shards that are whole, with their i-nodes: a shard done again would have another."""
    whole = {path.stem.rsplit("-", 1)[0]: path.with_suffix("") for path in incomplete.glob(
        "whole/*.tfrecord-*.json")}  # fmt: skip
    found = {}
    for name, path in whole.items():
        for place in (path, incomplete / "data" / name):  # publishing moves it
            with contextlib.suppress(FileNotFoundError):
                found[name] = place.stat().st_ino
    return found


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    root = photo_sets.write(tmp_path_factory.mktemp("x") / "cars", 1400, 600, 240, 320)
    photo_sets.path_of(root, "train", 9).write_bytes(b"")
    return photo_sets.zipped(root, root.parent / "cars.zip")


@pytest.fixture(scope="module")
def undisturbed(cars, tmp_path_factory):
    """The output, and how long the job took."""
    output = tmp_path_factory.mktemp("undisturbed") / "cars"
    begin = time.monotonic()
    process = start(cars, output)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    return photo_sets.contents(output), time.monotonic() - begin


@pytest.mark.parametrize("kills", [3, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_killed_at_random_moments(cars, undisturbed, tmp_path, kills):
    """Every other kill hits when some more shards are whole, where most is at stake."""
    expected, end = undisturbed
    random_moment = random.Random(7 * kills)
    done = jobs = kept = 0
    while done < kills:
        jobs += 1
        output = tmp_path / f"job{jobs}" / "cars"
        incomplete = output.parent / "cars.incomplete"
        while True:
            before = whole_shards(incomplete)
            process = start(cars, output)
            if done < kills:
                shards = len(before) + random_moment.randint(1, 5) if done % 2 else 0
                while len(whole_shards(incomplete)) < shards and process.poll() is None:
                    time.sleep(0.005)
                wait = random_moment.uniform(0, 0.2) if shards else random_moment.uniform(0.3, end)
                moment = time.monotonic() + wait
                while time.monotonic() < moment and process.poll() is None:
                    if output.exists():
                        manifest.read(str(output))  # never half-written
                    time.sleep(0.02)
            if done < kills and process.poll() is None:
                kill(process)
                done += 1
                after = whole_shards(incomplete)
                if incomplete.exists() and not output.exists():
                    assert after.items() >= before.items()
                kept = max(kept, len(before))
            else:
                said = process.communicate(timeout=120)[0]
                published_before = "exists. Pass --overwrite" in said
                assert process.returncode == 0 or published_before, said
            if output.exists():
                assert photo_sets.contents(output) == expected
                if not incomplete.exists():
                    break
        assert os.listdir(output.parent) == ["cars"]
    print(f"{done} kills in {jobs} jobs; up to {kept} whole shards were kept")
    assert kept > 0


@pytest.mark.slow
def test_a_killed_driver_whose_workers_live_on(cars, undisturbed, tmp_path):
    """Worker processes outlive their driver for a while; what they do must not show."""
    output = tmp_path / "cars"
    more = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    process = start(cars, output, *more)
    deadline = time.monotonic() + 120
    while not whole_shards(tmp_path / "cars.incomplete"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the driver alone
    process.wait()
    again = start(cars, output)
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said
    assert photo_sets.contents(output) == undisturbed[0]
    time.sleep(3)
    assert os.listdir(tmp_path) == ["cars"]
    assert photo_sets.contents(output) == undisturbed[0]
