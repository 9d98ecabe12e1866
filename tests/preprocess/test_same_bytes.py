"""The same input gives the same bytes on every runner, with any number of workers and threads."""

import sys

import pytest

from preprocess import photos, run, shard
from tests.preprocess import job_server, photo_sets


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    root = photo_sets.write(tmp_path_factory.mktemp("x") / "cars", train=90, test=30)
    # What takes other ways through the code must come out the same too.
    photo_sets.path_of(root, "train", 5).write_bytes(photo_sets.photo(kind="PNG"))
    photo_sets.path_of(root, "train", 9).write_bytes(b"")
    photo_sets.path_of(root, "test", 7).write_bytes(photo_sets.photo()[:900])
    return root


SHARDS = ("--train_shards=5", "--test_shards=2", "--max_rejected=0.1")


@pytest.fixture(scope="module")
def expected(cars, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected") / "out"
    run.main(photo_sets.flags(cars, output, *SHARDS))
    found = photo_sets.contents(output)
    assert len(found) == 11  # 8 shards, rejected.jsonl, croissant.json, dataset.json
    return found


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_any_number_of_threads(cars, expected, tmp_path, monkeypatch, threads):
    monkeypatch.setattr(shard, "num_threads", lambda: threads)
    shard._pool.cache_clear()
    run.main(photo_sets.flags(cars, tmp_path / "out", *SHARDS))
    shard._pool.cache_clear()
    assert photo_sets.contents(tmp_path / "out") == expected


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes(cars, expected, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(shard, "num_threads", lambda: processes)
    monkeypatch.setattr(shard, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(photos, "process", lambda *_: pytest.fail("in this process"))
    shard._pool.cache_clear()
    run.main(photo_sets.flags(cars, tmp_path / "out", *SHARDS))
    shard._pool.cache_clear()
    assert photo_sets.contents(tmp_path / "out") == expected


@pytest.mark.parametrize(("count", "size"), [(1, 1 << 20), (7, 1 << 20), (1000, 3000)])
def test_any_size_of_chunks(cars, expected, tmp_path, monkeypatch, count, size):
    monkeypatch.setattr(shard, "CHUNK_PHOTOS", count)
    monkeypatch.setattr(shard, "_CHUNK_BYTES", size)
    run.main(photo_sets.flags(cars, tmp_path / "out", *SHARDS))
    assert photo_sets.contents(tmp_path / "out") == expected


def test_threads_as_workers(cars, expected, tmp_path):
    flags = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
    run.main([*photo_sets.flags(cars, tmp_path / "out", *SHARDS), *flags])
    assert photo_sets.contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "workers", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_processes_as_workers(cars, expected, tmp_path, workers):
    flags = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    run.main([*photo_sets.flags(cars, tmp_path / "out", *SHARDS), *flags])
    assert photo_sets.contents(tmp_path / "out") == expected


def test_portable_runner_with_workers_of_its_own(cars, expected, tmp_path):
    """Everything is pickled to other processes, as on Flink, Spark and Dataflow."""
    worker = job_server.script(
        tmp_path / "carbox-worker", f'exec {sys.executable} -m preprocess.worker "$@"'
    )
    with job_server.portable_flags(None, None, f"--container_executable={worker}") as flags:
        run.main([*photo_sets.flags(cars, tmp_path / "out", *SHARDS), *flags])
    assert photo_sets.contents(tmp_path / "out") == expected
