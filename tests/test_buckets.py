"""The whole way through object stores: real servers of S3 and GCS, and what can fail on it.

`make test-slow` runs it, as does `pytest -m slow tests/test_buckets.py`. The servers that Go builds
are used where they are; what is skipped says how to get one.
"""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from tests import object_stores
from tests.preprocess import photo_sets
from tests.tfrecords import datasets
from tests.trainer import commands, servers, test_workers
from tfrecords import remote
from trainer import history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = [
    *commands.SETTINGS,
    "--config.model.dropout=0.2",
    "--config.inference.zoom_passes=0",
    "--config.inference.flip_tta=false",
    "--checkpoint_seconds=0",
]
SETTINGS = [*RECIPE, "--strategy=one"]


@pytest.fixture(scope="module", params=["moto", "minio", "gs"])
def store(request):
    if how := object_stores.missing(request.param):
        pytest.skip(how)
    with getattr(object_stores, request.param)() as started:
        yield started


@pytest.fixture(scope="module")
def local_data(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    splits = {
        "train": [datasets.records(0, 9), datasets.records(9, 13)],
        "validation": [datasets.records(30, 5)],
        "test": [datasets.records(40, 7)],
    }
    datasets.write(folder, splits)
    return folder


@pytest.fixture(scope="module")
def data(store, local_data) -> str:
    store.put(local_data, "sets/tiny")
    return f"{store.url}/sets/tiny"


@pytest.fixture(scope="module")
def undisturbed(local_data, tmp_path_factory) -> str:
    """The same run on local paths."""
    run = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    commands.run("trainer.task", *SETTINGS, "--epochs=6", f"--data={local_data}", f"--run={run}")
    return run


def same_bits(run: str, expected: str) -> None:
    ours, theirs = commands.saved(run), commands.saved(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert history.read(run) == history.read(expected)


def fetched(store, name: str, folder) -> str:
    """Copies a run as it is in the store now to a local folder, without carbox."""
    for path, content in store.objects(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return str(folder)


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def newest(store, run: str) -> int:
    """The step of the newest checkpoint of a run in the store."""
    names = [name for name in store.names(run) if name.startswith("last/step-")]
    return max((int(name[10:-6]) for name in names if name.endswith(".index")), default=0)


def test_machines_that_are_taken_away_one_after_the_other_end_with_the_same_bits(
    store, data, undisturbed, tmp_path
):
    flags = [*SETTINGS, "--epochs=6", f"--data={data}", f"--run={store.url}/runs/killed"]
    for number in range(3):
        before = newest(store, "runs/killed")
        cache = tmp_path / f"machine-{number}"
        process = commands.start("trainer.task", *flags, f"--data_cache={cache}")
        wait_for(lambda before=before: newest(store, "runs/killed") > before, process)
        process.kill()
        process.communicate()
        # What is there is whole at this moment.
        here = fetched(store, "runs/killed", tmp_path / f"seen-{number}")
        commands.saved(here)
    said = commands.run("trainer.task", *flags, f"--data_cache={tmp_path / 'last'}")
    assert "resuming at step" in said
    assert said.endswith(f"copied to: {store.url}/runs/killed/\n")
    same_bits(fetched(store, "runs/killed", tmp_path / "whole"), undisturbed)


@pytest.mark.timeout(1800)
def test_several_machines_train_a_run_in_a_bucket_and_others_go_on_with_the_same_bits(
    store, data, local_data, tmp_path
):
    if store.name != "moto":
        pytest.skip("only the chief speaks to the store, as it does alone")

    def start(run: str, *caches: str, ema: float = 0.9) -> list[subprocess.Popen]:
        flags = [*RECIPE, "--epochs=6", f"--config.optimizer.ema={ema}"]
        flags += [f"--data={data}", f"--run={run}", f"--data_cache={caches[0]}"]
        return test_workers.start(2, flags, f"--data_cache={caches[-1]}")

    def ended(workers: list[subprocess.Popen], code: int) -> list[str]:
        said = [process.communicate(timeout=600) for process in workers]
        assert [process.returncode for process in workers] == [code, code], said
        return ["".join(one) for one in said]

    run = f"{store.url}/runs/workers"
    ended(start(str(tmp_path / "local"), str(tmp_path / "cache")), 0)
    # Two on one machine, which share its cache.
    workers = start(run, str(tmp_path / "cache"))
    wait_for(lambda: newest(store, "runs/workers") > 5, workers[0])
    workers[1].kill()
    said, complained = workers[0].communicate(timeout=120)
    assert workers[0].returncode == 1, said + complained
    assert "another worker has ended" in complained
    assert "Traceback" not in complained
    workers[1].communicate()
    # Two machines, on which nothing of the run is.
    caches = [str(tmp_path / "one"), str(tmp_path / "two")]
    for said in ended(start(run, *caches, ema=0.5), 1):
        assert "was made with other settings or data: optimizer.ema is 0.5" in said
        assert "Traceback" not in said
    chief, other = ended(start(run, *caches), 0)
    assert "resuming at step" in chief
    assert f"copied to: {run}/" in chief
    assert "copied to" not in other
    assert not os.path.exists(remote.run_place(caches[1], run))
    same_bits(fetched(store, "runs/workers", tmp_path / "whole"), str(tmp_path / "local"))


def test_sigterm_leaves_all_in_the_bucket(store, data, tmp_path):
    flags = [*SETTINGS, "--epochs=40", f"--data={data}", f"--run={store.url}/runs/term"]
    process = commands.start("trainer.task", *flags, f"--data_cache={tmp_path}")
    wait_for(lambda: newest(store, "runs/term"), process)
    process.send_signal(signal.SIGTERM)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 75, said + complained
    step = int(said.split("SIGTERM: saved at step ")[1].split()[0])
    assert newest(store, "runs/term") == step


def test_a_run_in_a_bucket_is_used_like_a_local_one(store, data, undisturbed, local_data, tmp_path):
    store.put(undisturbed, "runs/used")
    run, environment = f"{store.url}/runs/used", {"XDG_CACHE_HOME": str(tmp_path)}
    (tmp_path / "photo.jpg").write_bytes(datasets.jpeg(3, 200, 300))
    photo = str(tmp_path / "photo.jpg")
    for at, path in (("local", undisturbed), ("bucket", run)):
        said = commands.run("trainer.predict", f"--model={path}", photo, **environment)
        (tmp_path / at).write_text(said)
    assert (tmp_path / "local").read_text() == (tmp_path / "bucket").read_text()

    flags = [f"--run={run}", f"--data={data}", "--split=validation", "--strategy=one"]
    said = commands.run("trainer.evaluate", *flags, **environment)
    assert f"copied to: {run}/" in said
    found = json.loads(store.objects("runs/used")["evaluation-validation.json"])
    assert found["num_examples"] == 5
    assert found["data"] == data
    said = commands.run("trainer.compare", run, undisturbed, "--split=test", **environment)
    assert "only used names 0 photos right" in said

    flags = [f"--run={run}", f"--data={data}", "--formats=keras", f"--output={tmp_path / 'out'}"]
    commands.run("trainer.export", *flags, **environment)
    store.put(str(tmp_path / "out"), "exports/used")
    path = f"--model={store.url}/exports/used"
    said = commands.run("trainer.predict", path, photo, **environment)
    assert json.loads(said)["names"][0] == json.loads((tmp_path / "local").read_text())["names"][0]


def test_a_model_in_a_bucket_is_served_like_a_local_one(store, undisturbed, tmp_path):
    store.put(undisturbed, "runs/served")
    run, photo = f"{store.url}/runs/served", datasets.jpeg(3, 200, 300)
    (tmp_path / "photo.jpg").write_bytes(photo)
    path = str(tmp_path / "photo.jpg")
    expected = json.loads(commands.run("trainer.predict", f"--model={undisturbed}", path))
    with servers.started(run, XDG_CACHE_HOME=str(tmp_path)) as server:
        assert f"serving {run}: 3 classes" in server.announced
        found = server.ask("POST", "/predict", photo)
        # What was fetched is not asked for again.
        store.door.shut()
        try:
            assert server.ask("POST", "/predict", photo).json == found.json
        finally:
            store.door.open()
    assert found.status == 200
    assert {**found.json, "photo": path} == expected


def test_a_server_that_is_away_for_half_a_minute_costs_nothing(store, data, undisturbed, tmp_path):
    flags = [*SETTINGS, "--epochs=6", f"--data={data}", f"--run={store.url}/runs/away"]
    process = commands.start("trainer.task", *flags, f"--data_cache={tmp_path / 'cache'}")
    wait_for(lambda: newest(store, "runs/away"), process)
    store.door.shut()
    time.sleep(30)
    store.door.open()
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 0, said + complained
    assert "Traceback" not in complained
    same_bits(fetched(store, "runs/away", tmp_path / "whole"), undisturbed)


def test_a_server_that_is_away_at_the_start_is_waited_for(store, data, tmp_path):
    store.door.shut()
    process = commands.start("tfrecords.inspect", data, f"--data_cache={tmp_path}")
    time.sleep(10)
    store.door.open()
    said, complained = process.communicate(timeout=200)
    assert process.returncode == 0, said + complained
    assert "tiny, 3 classes" in said


def test_a_server_that_is_gone_for_good_is_said_and_the_local_run_is_whole(
    store, data, undisturbed, tmp_path
):
    flags = [*SETTINGS, "--epochs=6", f"--data={data}", f"--run={store.url}/runs/gone"]
    process = commands.start("trainer.task", *flags, f"--data_cache={tmp_path}")
    wait_for(lambda: newest(store, "runs/gone"), process)
    store.door.shut()
    try:
        said, complained = process.communicate(timeout=400)
    finally:
        store.door.open()
    assert process.returncode == 1, said + complained
    assert "Traceback" not in complained
    (error,) = [line for line in complained.splitlines() if line.startswith("error: ")]
    assert f"--run={store.url}/runs/gone: the server has not answered" in error
    folder = error.split("it is whole in ")[1].split(":")[0]
    same_bits(folder, undisturbed)
    # What was fetched is not asked for again: the page has its photos.
    assert f"{store.url}/sets/tiny: no answer" not in said
    with open(os.path.join(folder, "report.html")) as page:
        assert "No photos are shown" not in page.read()
    # What is in the bucket is an earlier moment of the run, whole.
    here = fetched(store, "runs/gone", tmp_path / "seen")
    assert int(commands.saved(here)["step"]) <= 30
    # The same command copies the rest.
    commands.run("trainer.task", *flags, f"--data_cache={tmp_path}")
    same_bits(fetched(store, "runs/gone", tmp_path / "whole"), undisturbed)


def test_wrong_addresses_and_refusals_name_the_flag(store, data, tmp_path):
    cache = f"--data_cache={tmp_path}"

    def error_of(*flags: str, **environment: str) -> str:
        process = commands.start("trainer.task", *SETTINGS, cache, *flags, **environment)
        said, complained = process.communicate(timeout=200)
        assert process.returncode == 1, said + complained
        (line,) = [line for line in complained.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in complained
        return line

    scheme = store.url.partition("://")[0]
    nowhere = f"{scheme}://no-such-bucket-here"
    assert f"--data={nowhere}/x: there is no data set" in error_of(f"--data={nowhere}/x")
    said = error_of(f"--data={data}", f"--run={nowhere}/runs/x")
    assert f"--run={nowhere}/runs/x: there is no such bucket" in said
    # Nothing in the cache that a corrected bucket would be refused for.
    assert os.listdir(remote.run_place(str(tmp_path), f"{nowhere}/runs/x")) == [".lock"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "Forbidden. Check the address, your cred"),
        ({"AWS_ACCESS_KEY_ID": "stranger"}, "Forbidden. Check the address, your cred"),
    ],
)
def test_credentials_that_are_not_there_or_refused(store, data, tmp_path, environment, said):
    if store.name != "minio":
        pytest.skip("this store lets everybody in")
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    process = commands.start("trainer.task", f"--data={data}", **environment)
    _, complained = process.communicate(timeout=200)
    assert process.returncode == 1
    (line,) = complained.splitlines()
    assert line.startswith(f"error: --data={data}: ")
    assert said in line


@pytest.fixture(scope="module")
def cars(store, tmp_path_factory) -> str:
    """A folder of photos, which is in the store as `photos/cars` and `photos/cars.zip`."""
    folder = photo_sets.write(tmp_path_factory.mktemp("photos") / "cars")
    store.put(str(folder), "photos/cars")
    zipped = photo_sets.zipped(folder, folder.with_suffix(".zip"))
    store.write("photos/cars.zip", zipped.read_bytes())
    return str(folder)


def prepare(source: str, output: str, *flags: str) -> str:
    return commands.run("preprocess.run", *photo_sets.flags(source, output, *flags))


def test_preprocess_reads_from_the_store_and_writes_to_it(store, cars, tmp_path):
    prepare(cars, str(tmp_path / "expected"))
    expected = photo_sets.contents(tmp_path / "expected")
    source, output = f"{store.url}/photos/cars", f"{store.url}/sets/cars"
    prepare(source, str(tmp_path / "out"))
    assert photo_sets.contents(tmp_path / "out") == expected
    prepare(source, output)
    assert store.objects("sets/cars") == expected
    assert not store.objects("sets/cars.incomplete")
    # Another data set takes its place, from a zip; photos of 32 pixels can be trained on.
    prepare(cars, str(tmp_path / "other"), "--image_height=32")
    prepare(f"{source}.zip", output, "--image_height=32", "--overwrite")
    other = photo_sets.contents(tmp_path / "other")
    assert store.objects("sets/cars") == other != expected
    run = tmp_path / "run"
    flags = [*SETTINGS, "--epochs=1", f"--data={output}", f"--run={run}"]
    commands.run("trainer.task", *flags, f"--data_cache={tmp_path}")
    assert json.loads((run / "evaluation-test.json").read_text())["num_examples"] == 6


def test_a_job_that_is_killed_goes_on_in_the_store(store, cars, tmp_path):
    if store.name != "gs":
        pytest.skip("Beam makes a client of S3 for each call, so that many shards take minutes")
    flags = ["--train_shards=16", "--validation_shards=4", "--test_shards=4"]
    prepare(cars, str(tmp_path / "expected"), *flags)
    both = photo_sets.flags(f"{store.url}/photos/cars", f"{store.url}/sets/killed", *flags)
    process = commands.start("preprocess.run", *both)
    wait_for(lambda: len(store.names("sets/killed.incomplete/whole")) > 2, process)
    process.kill()
    process.communicate()
    assert "dataset.json" not in store.names("sets/killed")
    assert "going on where a job was stopped" in commands.run("preprocess.run", *both)
    assert store.objects("sets/killed") == photo_sets.contents(tmp_path / "expected")
    assert not store.objects("sets/killed.incomplete")
