"""Workers that differ from the driver, or that never come, stop the job in one sentence."""

import dataclasses
import os
import pickle
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apache_beam.runners.portability.prism_runner import PrismRunner

import preprocess
from preprocess import environment, progress, run, shard, storage, worker
from tests.preprocess import job_server, photo_sets
from tfrecords import image
from tfrecords.errors import UserError


@pytest.fixture
def code(tmp_path):
    """A copy of the code that runs the job."""
    root = Path(preprocess.__file__).parents[1]
    for package in ("preprocess", "tfrecords"):
        shutil.copytree(root / package, tmp_path / "code" / package)
    return tmp_path / "code"


@pytest.fixture
def settings(cars, tmp_path):
    (tmp_path / "incomplete" / "progress").mkdir(parents=True)
    return shard.Settings(
        source=str(cars),
        follow_links=False,
        folder=str(tmp_path / "incomplete"),
        image=image.ImageOptions(24, 32, "stretch", 90, 10**8, False),
        box_unit="pixel",
        class_names=photo_sets.CLASSES,
        fingerprint="0123456789abcdef",
        run=secrets.token_hex(4),
    )


def environment_of(settings, cars) -> environment.Environment:
    csvs = [
        storage.Entry(path.name, path.stat().st_size, 0, path.stat().st_size)
        for path in sorted(cars.glob("anno_*.csv"))
    ]
    source = settings.open_source()
    return environment.Environment.of(settings.folder, settings.run, source, csvs)


def test_workers_of_another_carbox_open_no_photo(cars, output, code):
    with (code / "preprocess" / "join.py").open("a") as file:
        file.write("# changed\n")
    for path in cars.rglob("*.jpg"):
        path.write_bytes(b"no photo")  # to open one is to reject it, and to say so
    version = re.escape(environment.versions()["carbox"])
    with job_server.portable_flags(str(code)) as flags, pytest.raises(UserError) as caught:
        run.main([*photo_sets.flags(cars, output), *flags])
    assert re.fullmatch(
        rf"a worker on \S+ has carbox \S+ \(code \w+\); the machine that started the job has carbox"
        rf" {version}\. Install the same on both\. .*",
        str(caught.value),
    )
    assert not output.parent.exists() or not list(output.parent.iterdir())


@pytest.mark.slow
def test_workers_of_an_older_carbox_that_cannot_load_the_job(cars, output, code):
    # Not removed: an editable install would find the project's own.
    (code / "preprocess" / "environment.py").write_text("")
    with (
        job_server.portable_flags(str(code)) as flags,
        pytest.raises(UserError, match=r"a worker cannot load the job: .*Install there the same"),
    ):
        run.main([*photo_sets.flags(cars, output), *flags])


@pytest.mark.slow
def test_workers_of_another_beam(cars, output, code):
    """Beam compares its own version and Python's; its message becomes a sentence."""
    (code / "sitecustomize.py").write_text(
        "import apache_beam.version\napache_beam.version.__version__ = '2.0.1'\n"
    )
    with (
        job_server.portable_flags(str(code)) as flags,
        pytest.raises(UserError, match=r"^a worker has Python 3\.\d+ and apache-beam 2\.0\.1; the"),
    ):
        run.main([*photo_sets.flags(cars, output), *flags])


def test_a_worker_that_never_comes(cars, output, tmp_path):
    job_server.script(tmp_path / "bin" / "python", "exec sleep 1000")
    begin = time.monotonic()
    with (
        job_server.portable_flags(None, str(tmp_path / "bin")) as flags,
        pytest.raises(UserError, match=r"--worker_timeout=2: .* no worker has begun"),
    ):
        run.main([*photo_sets.flags(cars, output), *flags, "--worker_timeout=2"])
    assert time.monotonic() - begin < 60
    assert not output.exists()


@pytest.mark.parametrize("name", ["python", "apache-beam", "carbox", "numpy", "simplejpeg"])
def test_each_version_must_be_equal(settings, monkeypatch, name):
    here = environment.Environment(settings.folder, settings.run)
    stored = pickle.dumps(here)
    assert pickle.loads(stored) == here
    watch = progress.Watch(settings.folder, settings.run, 1000)
    watch._between = 0
    watch.check()
    other = environment.versions() | {name: "0.0"}
    monkeypatch.setattr(environment, "versions", lambda: other)
    with pytest.raises(UserError, match=rf"has {name} 0\.0; the machine .* has {name} [\w.]+"):
        pickle.loads(stored)
    with pytest.raises(UserError, match=rf"has {name} 0\.0; .* Cancel the job in the cluster"):
        watch.check()  # whatever the runner does with the worker's error


def test_carbox_worker_refuses_before_it_starts(settings):
    """What Beam itself compares fails so early that Flink hangs on it."""
    here = environment.Environment(settings.folder, settings.run)
    other = dataclasses.replace(here, versions=here.versions | {"python": "3.99"})
    done = subprocess.run(
        [sys.executable, "-m", "preprocess.worker", "--id=1", "--provision_endpoint=localhost:1"],
        env=os.environ | {environment.VARIABLE: other.to_json()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"error: a worker on \S+ has python 3\.\d+; the machine .* 3\.99", done.stderr)
    watch = progress.Watch(settings.folder, settings.run, 1000)
    watch._between = 0
    with pytest.raises(UserError, match=r"has python 3\.\d+; .* Cancel the job in the cluster"):
        watch.check()


def test_carbox_worker_that_finds_no_runner_says_so(monkeypatch, capsys):
    monkeypatch.setattr(worker, "_CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(
        sys, "argv", ["carbox-worker", "--id=7", "--provision_endpoint=localhost:1"]
    )
    with pytest.raises(SystemExit, check=lambda error: error.code == 1):
        worker.command()
    said = capsys.readouterr().err
    assert said.startswith("error: --provision_endpoint=localhost:1: no runner says there what")
    assert "Traceback" not in said


def test_a_worker_must_see_the_same_input(cars, settings):
    environment.mark(settings)
    here = environment_of(settings, cars)
    environment.require_shared(settings, here)
    other = dataclasses.replace(settings, run="0" * 8)  # another process has checked nothing yet
    environment.mark(other)
    (cars / "anno_test.csv").write_text("00001.jpg,1,1,30,30,1\n")
    with pytest.raises(UserError, match="sees another input at --input="):
        environment.require_shared(other, here)
    shutil.rmtree(cars)
    with pytest.raises(UserError, match="cannot read the input"):
        environment.require_shared(other, here)


def test_a_worker_must_see_the_output(cars, settings):
    here = environment_of(settings, cars)
    with pytest.raises(UserError, match="All machines must share --output under the same path"):
        environment.require_shared(settings, here)


def test_a_sign_of_life_is_any_change_in_the_incomplete_folder(settings):
    folder = Path(settings.folder)
    (folder / "whole").mkdir()
    watch = progress.Watch(settings.folder, settings.run, 0.3)
    watch._between = 0
    signs = [
        lambda: environment.heartbeat(settings),
        lambda: (folder / "progress" / "train-00000").write_text("[3, 0]"),
        lambda: (folder / "progress" / "train-00000").write_text("[4, 0]"),
    ]
    for sign in signs:
        time.sleep(0.2)
        sign()
        watch.check()
    time.sleep(0.4)
    with pytest.raises(UserError, match="no worker has shown a sign of life"):
        watch.check()


@pytest.mark.parametrize("flags", [[], ["--runner=DirectRunner"], ["--runner=direct"]])
def test_the_direct_runner_is_the_same_on_every_machine(cars, output, monkeypatch, flags):
    """Beam's own goes to the internet first, and runs on what it finds."""
    monkeypatch.setattr(PrismRunner, "run_pipeline", lambda *_: pytest.fail("Prism was tried"))
    run.main([*photo_sets.flags(cars, output), *flags])
