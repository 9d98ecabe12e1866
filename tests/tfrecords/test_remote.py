"""What is fetched from buckets: whole, checked, once, and with a word on what is wrong."""

import errno
import fcntl
import functools
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from tests.tfrecords import datasets
from tfrecords import inspect, manifest, reader, remote
from tfrecords.errors import UserError

CARS = "memory://box/sets/cars"
SHARDS = [f"train-{number:05d}-of-00003.tfrecord" for number in range(3)]
TEST = "test-00000-of-00001.tfrecord"


@pytest.fixture
def bucket():
    """The objects of a bucket in memory, with a data set in it, by their names."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def cars(bucket, tmp_path) -> dict[str, bytes]:
    """The files of a data set that is in the bucket."""
    (tmp_path / "cars").mkdir()
    records = [datasets.records(10 * number, 4) for number in range(3)]
    datasets.write(str(tmp_path / "cars"), {"train": records, "test": [datasets.records(90, 3)]})
    bucket.put(f"{tmp_path / 'cars'}/", CARS.removeprefix("memory:/"), recursive=True)
    return contents(str(tmp_path / "cars"))


def contents(folder: str) -> dict[str, bytes]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def shards(cache) -> dict[str, bytes]:
    """What the cache holds of its only data set."""
    ((folder,),) = [list(entry.iterdir()) for entry in (cache / "datasets").iterdir()
                    if entry.is_dir()]  # fmt: skip
    return contents(str(folder))


def test_a_data_set_is_fetched_once_and_read_as_a_local_one(bucket, cars, tmp_path):
    folder = remote.dataset(CARS, "data", str(tmp_path / "cache"))
    assert contents(folder) == cars
    for name in (*SHARDS, TEST):
        bucket.rm_file(f"/box/sets/cars/{name}")
    assert remote.dataset(CARS, "data", str(tmp_path / "cache")) == folder
    assert len(reader.Records(CARS, "train")) == 12
    assert len(list(reader.stream(CARS, "test"))) == 3


@pytest.mark.parametrize(
    ("change", "said"), [(b"x" * 40, "40 bytes instead of"), (None, "is missing there")]
)
def test_a_fetch_that_failed_keeps_whole_shards_and_goes_on_with_the_rest(
    bucket, cars, tmp_path, monkeypatch, change, said
):
    monkeypatch.setattr(remote, "_STREAMS", 1)  # several may all have failed before the first ends
    path = f"/box/sets/cars/{SHARDS[1]}"
    bucket.rm_file(path)
    if change:
        bucket.pipe_file(path, change)
    with pytest.raises(UserError, match=f"^--data={CARS}: {SHARDS[1]} .*{said}"):
        remote.dataset(CARS, "data", str(tmp_path))
    kept = shards(tmp_path)
    assert SHARDS[0] in kept
    assert kept.items() <= {name: cars[name] for name in (SHARDS[0], SHARDS[2], TEST)}.items()
    for name in kept:
        bucket.rm_file(f"/box/sets/cars/{name}")  # fetched again, they would be missed
    bucket.pipe_file(path, cars[SHARDS[1]])
    assert contents(remote.dataset(CARS, "data", str(tmp_path))) == cars


def test_a_shard_that_was_altered_in_the_bucket_is_named(bucket, cars, tmp_path, capsys):
    altered = bytearray(cars[SHARDS[2]])
    altered[100] ^= 1
    remote.dataset(CARS, "data", str(tmp_path / "before"))
    bucket.pipe_file(f"/box/sets/cars/{SHARDS[2]}", bytes(altered))
    with pytest.raises(UserError, match=rf"--data={CARS}: {SHARDS[2]} has another sha256"):
        remote.dataset(CARS, "data", str(tmp_path / "after"))
    # A whole copy in the cache does not hide it.
    with pytest.raises(UserError, match="is not whole"):
        inspect.main([CARS, "--verify", f"--data_cache={tmp_path / 'before'}"])
    assert f"wrong: {SHARDS[2]}: its sha256" in capsys.readouterr().out


def test_inspect_verifies_and_describes_a_bucket(bucket, cars, tmp_path, capsys):
    inspect.main([CARS, "--verify", "--show=1", f"--data_cache={tmp_path}"])
    said = capsys.readouterr().out
    assert "verified: 15 records in 4 shards" in said
    assert "original 480 x 640" in said


def test_processes_that_fetch_at_once_all_get_it_whole(cars, tmp_path):
    # Through a file system of fsspec's that several processes see.
    address = f"local://{tmp_path / 'cars'}"
    code = (
        "import sys; from tfrecords import remote;"
        "print(remote.dataset(sys.argv[1], 'data', sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, address, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert len(set(said)) == 1
    assert contents(said[0]) == cars


def test_data_sets_unused_for_long_go_unless_a_process_holds_them(bucket, cars, tmp_path):
    cache = str(tmp_path / "cache")
    code = (
        "import sys; from tfrecords import remote;"
        "print(remote.dataset(sys.argv[1], 'data', sys.argv[2]), flush=True); sys.stdin.read()"
    )

    def process(name: str) -> tuple[subprocess.Popen, str]:
        folder = tmp_path / name
        folder.mkdir()
        datasets.write(str(folder), {"test": [datasets.records(len(name), 1)]})
        started = subprocess.Popen(
            [sys.executable, "-c", code, f"local://{folder}", cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert started.stdout.readline().startswith("fetched to ")
        return started, started.stdout.readline().strip()

    (done, unused), (alive, held) = process("a"), process("ab")
    done.communicate()
    for folder in (unused, held):
        os.utime(os.path.dirname(folder) + ".lock", (1, time.time() - 40 * 86400))
    kept = tmp_path / "cache" / "kept" / "cars-1" / "report.html"
    kept.parent.mkdir(parents=True)
    kept.touch()
    os.utime(kept.parent, (1, 1))
    remote.dataset(CARS, "data", cache)
    assert not os.path.exists(unused)
    assert kept.exists()
    assert manifest.read(held).name == "tiny"
    alive.communicate()


def test_without_locks_nothing_is_removed_that_others_may_use(bucket, cars, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name in ("a", "b"):
        bucket.pipe_file(f"/box/exports/{name}/carbox.json", b"{}")
    first = remote.model("memory://box/exports/a", "model", str(tmp_path))
    os.utime(os.path.dirname(first) + ".lock", (1, time.time() - 40 * 86400))
    whole = remote.dataset(CARS, "data", str(tmp_path))
    assert os.path.exists(first)
    # Nor what another process is fetching at the moment.
    os.remove(os.path.join(whole, TEST))
    partial = os.path.join(whole, f"{SHARDS[0]}.0123.partial")
    open(partial, "w").close()
    remote.dataset(CARS, "data", str(tmp_path))
    assert os.path.exists(partial)
    assert os.path.exists(os.path.join(whole, TEST))


def test_what_does_not_fit_on_the_disk_is_said_before_it_is_fetched(bucket, cars, tmp_path):
    text = cars[manifest.FILE_NAME].decode()
    size = f'"bytes": {len(cars[TEST])}'
    assert size in text
    bucket.pipe_file(
        f"/box/sets/cars/{manifest.FILE_NAME}", text.replace(size, f'"bytes": {10**16}').encode()
    )
    with pytest.raises(UserError, match=r"takes 10,000,000\.0 GB, .* free"):
        remote.dataset(CARS, "data", str(tmp_path / "cache"))


def test_a_disk_that_becomes_full_is_not_taken_for_a_fault_of_the_server(
    bucket, cars, tmp_path, monkeypatch
):
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(bucket), "get_file", fill)
    with pytest.raises(UserError, match=r"cannot be written: No space left .* --data_cache"):
        remote.dataset(CARS, "data", str(tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_is_said(bucket, cars):
    with pytest.raises(UserError, match=r"/proc/nope/datasets/.* cannot be written: No such file"):
        remote.dataset(CARS, "data", "/proc/nope")


@pytest.mark.parametrize("stopped", ["refused", "interrupted", "in the block"])
def test_what_could_not_be_copied_back_is_kept(bucket, tmp_path, monkeypatch, capsys, stopped):
    run = "memory://box/runs/cars"
    bucket.pipe_file("/box/runs/cars/config.json", b"{}")
    folder = remote.model(run, "run", str(tmp_path))

    def stop(*_: object, **__: object) -> None:
        raise PermissionError("not allowed") if stopped == "refused" else KeyboardInterrupt

    def write() -> None:
        with remote.copied_back(run, folder, "run"), open(f"{folder}/report.html", "w"):
            if stopped == "in the block":
                stop()

    with monkeypatch.context() as away:
        away.setattr(type(bucket), "put_file", stop)
        with pytest.raises((UserError, KeyboardInterrupt)) as error:
            write()
    assert isinstance(error.value, UserError) == (stopped == "refused")
    said = f"{error.value} {capsys.readouterr().out}"
    (kept,) = re.findall(rf"results are in ({tmp_path}/kept/cars-\w+)", said)
    # Made once more, it is new to the cache, and copied.
    folder, stopped = remote.model(run, "run", str(tmp_path)), ""
    assert os.listdir(folder) == ["config.json"]
    write()
    assert bucket.exists("/box/runs/cars/report.html")
    assert sorted(os.listdir(kept)) == ["config.json", "report.html"]


def test_a_block_that_changed_nothing_leaves_the_copy_in_its_place(bucket, tmp_path):
    bucket.pipe_file("/box/runs/cars/config.json", b"{}")
    folder = remote.model("memory://box/runs/cars", "run", str(tmp_path))
    with pytest.raises(UserError, match=r"^wrong$"):  # noqa: SIM117
        with remote.copied_back("memory://box/runs/cars", folder, "run"):
            raise UserError("wrong")
    assert os.listdir(folder) == ["config.json"]


def test_a_data_set_is_here_when_it_was_fetched(bucket, cars, tmp_path):
    assert remote.is_here(str(tmp_path))
    assert not remote.is_here("memory://box/sets/trucks")
    remote.dataset(CARS, "data", str(tmp_path / "cache"))
    assert remote.is_here(CARS)


def test_a_manifest_cannot_write_outside_of_the_cache(bucket, cars, tmp_path):
    text = cars[manifest.FILE_NAME].decode().replace(TEST, f"../{TEST}")
    bucket.pipe_file(f"/box/sets/cars/{manifest.FILE_NAME}", text.encode())
    with pytest.raises(UserError, match=r"'\.\./test-.*' is not the name of a file"):
        remote.dataset(CARS, "data", str(tmp_path / "cache"))


@pytest.mark.parametrize("change", ["new object", "other content"])
def test_a_run_that_changed_in_the_bucket_is_fetched_anew(bucket, tmp_path, change):
    files = {"config.json": b"{}", "best/step-2.index": b"i", "metrics.jsonl": b"m"}
    for name, data in (files | {"last/step-3.index": b"i", ".mirror.json": b"{}"}).items():
        bucket.pipe_file(f"/box/runs/cars/{name}", data)
    first = remote.model("memory://box/runs/cars", "model", str(tmp_path))
    assert os.path.basename(first) == "cars"
    assert contents(first) == files
    assert remote.model("memory://box/runs/cars/", "model", str(tmp_path)) == first
    name = "best/step-4.index" if change == "new object" else "metrics.jsonl"
    bucket.pipe_file(f"/box/runs/cars/{name}", b"more")
    second = remote.model("memory://box/runs/cars", "model", str(tmp_path))
    assert contents(first) == files
    assert contents(second) == files | {name: b"more"}


def test_a_file_of_an_export_brings_all_of_the_export(bucket, tmp_path):
    for name in ("carbox.json", "model.onnx", "saved_model/saved_model.pb"):
        bucket.pipe_file(f"/box/exports/cars/{name}", b"x")
    path = remote.model("memory://box/exports/cars/model.onnx", "model", str(tmp_path))
    assert os.path.basename(path) == "model.onnx"
    assert len(contents(os.path.dirname(path))) == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: remote.dataset("memory://box/no", "data"), "--data=memory://box/no: there is no"),
        (lambda: remote.model("memory://box/no", "model"), "--model=memory://box/no: there is no"),
        (lambda: remote.model("memory://box/sets"), "^memory://box/sets: there is no run"),
        (lambda: remote.dataset("nosuch://box/no", "data"), "--data=nosuch://.*gs:// and s3://"),
    ],
)
def test_what_is_not_there_is_said_with_the_flag(bucket, cars, call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_only_remote_paths_need_fsspec(tmp_path):
    code = (
        "import sys; sys.modules['fsspec'] = None\n"
        "import carbox; from tfrecords import inspect, remote; from tfrecords.errors import *\n"
        f"assert remote.dataset({str(tmp_path)!r}) == {str(tmp_path)!r}\n"
        "run_command(lambda: remote.dataset('s3://box/cars', 'data'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == (
        "error: --data=s3://box/cars: s3:// needs s3fs, which is not installed:"
        " pip install 'carbox[s3]'\n"
    )
    assert done.returncode == 1


def test_a_server_that_does_not_answer_yet_is_asked_again(cars, tmp_path, capsys):
    # A plain web server is a place that fsspec reads.
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(UserError, match="the server has not answered"):
        remote.Folder(f"http://127.0.0.1:{port}", "data", patience=0).read(manifest.FILE_NAME)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "cars")
    servers = []

    def serve() -> None:
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", port), handler))
        servers[0].serve_forever()

    starts = threading.Timer(1.0, serve)
    starts.start()
    folder = remote.dataset(f"http://127.0.0.1:{port}", "data", str(tmp_path / "cache"))
    servers[0].shutdown()
    starts.join()
    servers[0].server_close()
    assert contents(folder) == cars
    assert "no answer" in capsys.readouterr().out
