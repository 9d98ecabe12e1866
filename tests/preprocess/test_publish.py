"""What stands on the disk before, during and after: nothing half-done, nothing lost."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import threading

import pytest

from preprocess import publish, run, runner, shard, storage
from tests.preprocess import photo_sets
from tfrecords import manifest
from tfrecords.errors import UserError

SHARDS = ("--train_shards=6", "--validation_shards=1", "--test_shards=1")


class Killed(BaseException):
    """Ends a job on the spot."""


CHANGES = ("rename", "replace", "remove", "unlink", "rmdir", "mkdir", "fsync")


@contextlib.contextmanager
def killed_at(monkeypatch, step):
    """Lets the job die at a step that changes the disk, counted from 1.

    What Python would tidy up after an exception cannot: no later change succeeds either.
    Yields a list that holds the number of steps when the job is done.
    """
    count = [0]

    def dying(really):
        def change(*arguments, **more):
            count[0] += 1
            if count[0] >= step:
                raise Killed
            return really(*arguments, **more)

        return change

    def opened(path, mode="r", *more, **named):
        return (dying(open) if mode == "wb" else open)(path, mode, *more, **named)

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(storage, "open", opened, raising=False)
        with contextlib.suppress(Killed):
            try:
                yield count
            except RuntimeError as error:  # Beam wraps what it does not know
                if "Killed" not in str(error):
                    raise


def kill_after_shards(monkeypatch, flags, shards):
    """Lets the job die when it has finished so many shards."""
    really, closed = shard._OpenShard.close, []

    def close(self):
        if len(closed) == shards:
            raise Killed
        closed.append(self.name)
        return really(self)

    with monkeypatch.context() as patch:
        patch.setattr(shard._OpenShard, "close", close)
        with pytest.raises((Killed, RuntimeError), match=r"Killed|^$"):
            run.main(flags)


def run_counting(monkeypatch, flags):
    """Runs the job; returns the shards that it wrote."""
    written = []
    really = shard._OpenShard.close

    def close(self):
        written.append(self.name)
        return really(self)

    with monkeypatch.context() as patch:
        patch.setattr(shard._OpenShard, "close", close)
        run.main(flags)
    return written


def test_a_job_goes_on_with_the_shards_that_are_whole(cars, output, tmp_path, monkeypatch, capsys):
    run.main(photo_sets.flags(cars, tmp_path / "undisturbed", *SHARDS))
    flags = photo_sets.flags(cars, output, *SHARDS)
    kill_after_shards(monkeypatch, flags, 3)
    assert not output.exists()
    written = run_counting(monkeypatch, flags)
    assert len(written) == 5
    said = capsys.readouterr().out
    assert "going on where a job was stopped: 3 shards are there" in said
    assert "3 shards were whole already" in said
    assert photo_sets.contents(output) == photo_sets.contents(tmp_path / "undisturbed")
    assert os.listdir(output.parent) == ["cars"]


def test_a_shard_that_was_damaged_meanwhile_is_done_again(cars, output, tmp_path, monkeypatch):
    run.main(photo_sets.flags(cars, tmp_path / "undisturbed", *SHARDS))
    flags = photo_sets.flags(cars, output, *SHARDS)
    kill_after_shards(monkeypatch, flags, 4)
    whole = output.parent / "cars.incomplete" / "whole"
    first, second, third, _ = sorted(path for path in whole.iterdir() if path.suffix != ".json")
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    written = run_counting(monkeypatch, flags)
    assert {path.name.rsplit("-", 1)[0] for path in (first, second, third)} < set(written)
    assert len(written) == 7
    assert photo_sets.contents(output) == photo_sets.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("flag", ["--jpeg_quality=90", "--seed=7"])
def test_other_flags_start_over_and_say_so(cars, output, tmp_path, monkeypatch, capsys, flag):
    kill_after_shards(monkeypatch, photo_sets.flags(cars, output, *SHARDS), 3)
    written = run_counting(monkeypatch, photo_sets.flags(cars, output, *SHARDS, flag))
    assert len(written) == 8
    assert "starting over" in capsys.readouterr().out
    run.main(photo_sets.flags(cars, tmp_path / "undisturbed", *SHARDS, flag))
    assert photo_sets.contents(output) == photo_sets.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "change",
    [
        lambda cars: photo_sets.replace_row(cars / "anno_test.csv", 1, "00001.jpg,2,2,9,9,2"),
        lambda cars: photo_sets.path_of(cars, "test", 1).write_bytes(photo_sets.photo(seed=5)),
        lambda cars: os.utime(photo_sets.path_of(cars, "test", 1), (1, 1)),
    ],
    ids=["row", "photo", "time"],
)
def test_other_input_does_again_the_shard_that_holds_it(
    cars, output, tmp_path, monkeypatch, change
):
    """All shards but the one are kept: their rows are the same."""
    kill_after_shards(monkeypatch, photo_sets.flags(cars, output, *SHARDS), 7)
    whole = output.parent / "cars.incomplete" / "whole"
    before = {path.name.rsplit("-", 1)[0] for path in whole.glob("*.json")}
    change(cars)
    written = run_counting(monkeypatch, photo_sets.flags(cars, output, *SHARDS))
    everything = {path.name for path in output.glob("*.tfrecord")}
    (test_shard,) = (name for name in everything if name.startswith("test"))
    assert set(written) == (everything - before) | {test_shard}
    run.main(photo_sets.flags(cars, tmp_path / "undisturbed", *SHARDS))
    assert photo_sets.contents(output) == photo_sets.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("replace", "stride"),
    [
        (True, 13),
        pytest.param(False, 13, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_each_step_that_changes_the_disk(
    cars, output, tmp_path, monkeypatch, replace, stride
):
    undisturbed = tmp_path / "undisturbed"
    run.main(photo_sets.flags(cars, undisturbed))
    expected, old = photo_sets.contents(undisturbed), None
    flags = photo_sets.flags(cars, output, *(["--overwrite"] if replace else []))
    step, kills = 1, 0
    while True:
        storage.delete(str(output))
        if replace:
            run.main(photo_sets.flags(cars, output, "--seed=1"))
            old = photo_sets.contents(output)
        with killed_at(monkeypatch, step) as count:
            run.main(flags)
        now = photo_sets.contents(output) if output.exists() else None
        assert now in (None, old, expected)
        if count[0] < step:
            break
        kills += 1
        if now == old and replace and (output.parent / "cars.replaced").exists():
            pytest.fail("the old output stands twice")
        with contextlib.suppress(UserError):  # it was published already, and killed tidying up
            run.main(photo_sets.flags(cars, output) if now == expected else flags)
        assert photo_sets.contents(output) == expected
        assert os.listdir(output.parent) == ["cars"]
        step += stride
    assert now == expected
    assert kills > 40 // stride


def test_an_output_that_exists_is_kept_without_overwrite(cars, output):
    run.main(photo_sets.flags(cars, output))
    before = photo_sets.contents(output)
    with pytest.raises(UserError, match=r"exists\. Pass --overwrite"):
        run.main(photo_sets.flags(cars, output, "--seed=1"))
    assert photo_sets.contents(output) == before
    assert os.listdir(output.parent) == ["cars"]


def test_overwrite_replaces_everything(cars, output):
    run.main(photo_sets.flags(cars, output, "--train_shards=5"))
    run.main(photo_sets.flags(cars, output, "--train_shards=2", "--overwrite"))
    assert sum(name.startswith("train") for name in os.listdir(output)) == 2
    assert os.listdir(output.parent) == ["cars"]


def test_overwrite_keeps_the_old_output_until_the_new_one_is_complete(cars, output, monkeypatch):
    run.main(photo_sets.flags(cars, output))
    before = photo_sets.contents(output)
    flags = photo_sets.flags(cars, output, "--seed=1", "--overwrite")
    kill_after_shards(monkeypatch, flags, 2)
    assert photo_sets.contents(output) == before


def test_overwrite_never_replaces_what_is_no_data_set(cars, output):
    output.mkdir(parents=True)
    (output / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=r"is no data set: it holds 'thesis\.doc'"):
        run.main(photo_sets.flags(cars, output, "--overwrite"))
    assert photo_sets.contents(output) == {"thesis.doc": b"years of work"}
    file = output.parent / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is no data set"):
        run.main(photo_sets.flags(cars, file, "--overwrite"))


@pytest.mark.parametrize("suffix", ["incomplete", "replaced"])
def test_a_folder_that_only_looks_like_a_job_is_left_alone(cars, output, suffix):
    other = output.parent / f"cars.{suffix}"
    other.mkdir(parents=True)
    (other / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=rf"cars\.{suffix} is where .* 'thesis\.doc'"):
        run.main(photo_sets.flags(cars, output, "--overwrite"))
    assert photo_sets.contents(other) == {"thesis.doc": b"years of work"}


def test_an_empty_folder_is_no_output(cars, output):
    output.mkdir(parents=True)
    run.main(photo_sets.flags(cars, output))
    assert manifest.read(str(output)).splits["train"].num_examples == 18


def test_an_output_that_came_to_be_meanwhile_is_kept(cars, output, monkeypatch):
    really = publish.publish

    def slow(*arguments):
        output.mkdir()
        (output / "dataset.json").write_text("of another job")
        return really(*arguments)

    monkeypatch.setattr(publish, "publish", slow)
    with pytest.raises(UserError, match="exists"):
        run.main(photo_sets.flags(cars, output))
    assert photo_sets.contents(output) == {"dataset.json": b"of another job"}


def test_strange_files_are_not_published(cars, output, monkeypatch):
    flags = photo_sets.flags(cars, output)
    kill_after_shards(monkeypatch, flags, 1)
    data = output.parent / "cars.incomplete" / "data"
    (data / "train-00000-of-00009.tfrecord").write_bytes(b"x")
    for name in ("rejected.jsonl", "croissant.json"):
        (data / name).write_bytes(b"x")
    run.main(flags)
    assert len(os.listdir(output)) == 5
    assert (output / "croissant.json").read_bytes() != b"x"


def test_a_second_job_on_the_same_output_is_refused(cars, output, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()
    really = runner.run

    def waiting(*arguments):
        inside.set()
        assert go_on.wait(60)
        return really(*arguments)

    monkeypatch.setattr(runner, "run", waiting)
    first = threading.Thread(target=run.main, args=(photo_sets.flags(cars, output),))
    first.start()
    assert inside.wait(60)
    try:
        mine = publish.Output(str(output), "cd")
        with (
            pytest.raises(UserError, match=r"another job is writing .*cars\.incomplete"),
            publish.locked(mine),
        ):
            pytest.fail("two jobs at once")
    finally:
        go_on.set()
        first.join()
    assert manifest.read(str(output)).splits["test"].num_examples == 6


def test_the_lock_dies_with_its_job(cars, output):
    """A process that is killed leaves no lock behind."""
    incomplete = output.parent / "cars.incomplete"
    incomplete.mkdir(parents=True)
    code = (
        f"import os,fcntl; fcntl.flock(os.open({str(incomplete)!r}, 0), 2); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run(["python3", "-c", code], check=False).returncode == -9
    run.main(photo_sets.flags(cars, output))


def test_a_folder_that_vanishes_while_it_is_being_locked(tmp_path, monkeypatch):
    """The other job publishes, and removes the folder, between our open and our lock."""
    folder = tmp_path / "x.incomplete"
    really, calls = fcntl.flock, []

    def flock(descriptor, how):
        if not calls:
            os.rmdir(folder)
        calls.append(how)
        return really(descriptor, how)

    monkeypatch.setattr(publish.fcntl, "flock", flock)
    descriptor = publish._lock(str(folder))
    assert os.path.samestat(os.fstat(descriptor), os.stat(folder))
    assert len(calls) == 2
    os.close(descriptor)


def fill_disk_after(monkeypatch, writes):
    """Lets every write after so many fail as on a full disk."""
    really, count = open, 0

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            nonlocal count
            count += 1
            if count > writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

    def opened(path, mode="r", *more, **named):
        file = really(path, mode, *more, **named)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(storage, "open", opened, raising=False)


@pytest.mark.parametrize("writes", [0, 1, 5, 12, 14, 17, 18])
def test_a_full_disk_ends_in_a_clear_message_and_the_old_output_stays(
    cars, output, tmp_path, monkeypatch, writes
):
    run.main(photo_sets.flags(cars, output, "--seed=1"))
    before = photo_sets.contents(output)
    flags = photo_sets.flags(cars, output, "--overwrite", *SHARDS)
    with monkeypatch.context() as patch:
        fill_disk_after(patch, writes)
        with pytest.raises(UserError, match=r"No space left on device.*the same command again"):
            run.main(flags)
    assert photo_sets.contents(output) == before
    partial = list((output.parent / "cars.incomplete").rglob("partial/*"))
    assert partial == []
    run.main(flags)
    run.main(photo_sets.flags(cars, tmp_path / "undisturbed", *SHARDS))
    assert photo_sets.contents(output) == photo_sets.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_output_that_cannot_be_written(cars, output, monkeypatch, code):
    def makedirs(path, **more):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(publish.os, "makedirs", makedirs)
    with pytest.raises(UserError, match=os.strerror(code)) as caught:
        run.main(photo_sets.flags(cars, output))
    assert f"{output}.incomplete" in str(caught.value)
    assert not output.parent.exists()


def test_an_output_below_a_file(cars, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Not a directory"):
        run.main(photo_sets.flags(cars, tmp_path / "file" / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(cars, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        run.main(photo_sets.flags(cars, tmp_path / "locked" / "out"))


def test_results_that_no_worker_wrote_are_missed(cars, output, monkeypatch):
    """A runner whose workers write to disks of their own says that all is done."""
    monkeypatch.setattr(runner, "run", lambda *_: None)
    with pytest.raises(UserError, match="a path that all machines share"):
        run.main(photo_sets.flags(cars, output))


def test_a_sidecar_survives_its_file():
    result = shard.Result("x", "x-1", 2, 10, "ab", rejected=[{"row": 1}])
    result.class_counts.update([3, 3])
    result.widths.update([80, 60])
    again = shard.Result.from_json(result.to_json())
    assert again == result
    assert json.loads(result.to_json())["class_counts"] == {"3": 2}
