"""A run and its bucket: what the bucket holds at every moment, and how a run goes on from it.

The files stand for those of a run. That a training goes on with the same bits, on real servers, is
in tests/test_buckets.py.
"""

import contextlib
import errno
import fcntl
import os
import re
import time

import fsspec
import fsspec.implementations.memory
import pytest

from tfrecords import remote
from tfrecords.errors import UserError
from trainer import mirror

RUN = "memory://box/runs/cars"
STEPS = (3, 5, 8, 10)  # of checkpoints; an epoch has 5 steps


@pytest.fixture(autouse=True)
def bucket():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def objects(under: str = "") -> dict[str, bytes]:
    """The objects of the run in the bucket."""
    root = f"/box/runs/cars/{under}"
    store = fsspec.filesystem("memory").store
    return {name[len(root) :]: file.getvalue() for name, file in store.items()
            if name.startswith(root)}  # fmt: skip


def write(folder: str, name: str, text: str) -> None:
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def train(folder: str, to: int) -> None:
    """Leaves in a folder what a training to a step leaves; it begins at the start again.

    Two checkpoints are kept, and the last epoch is the best.
    """
    write(folder, "data.json", "{}")
    write(folder, "config.json", "{}")
    for step in [step for step in STEPS if step <= to]:
        epochs = [f'{{"epoch": {number + 1}}}\n' for number in range(step // 5)]
        write(folder, "metrics.jsonl", "".join(epochs))
        for part, keep in [("best", 1)] * (step % 5 == 0) + [("last", 2)]:
            write(folder, f"{part}/step-{step}.data-00000-of-00001", f"data of {step}")
            write(folder, f"{part}/step-{step}.index", f"index of {step}")
            write(folder, f"{part}/checkpoint", f"{step}")
            steps = sorted(steps_of(os.listdir(f"{folder}/{part}")))
            for old in steps[:-keep]:
                for ending in ("index", "data-00000-of-00001"):
                    os.remove(f"{folder}/{part}/step-{old}.{ending}")
    write(folder, "tensorboard/train/events.1", "e" * to)


def steps_of(names) -> set[int]:
    """The steps of checkpoints that count as whole: those with an index."""
    found = (re.search(r"step-(\d+)\.index$", name) for name in names)
    return {int(match[1]) for match in found if match}


def trained(cache, to: int) -> str:
    """Trains a run in the bucket to a step, on the machine with this cache; returns its folder."""
    with mirror.opened(RUN, str(cache)) as mirrored:
        with mirrored.kept_up():
            train(mirrored.folder, to)
        return mirrored.folder


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def own(folder: str) -> dict[str, bytes]:
    return {name: open(os.path.join(folder, name), "rb").read() for name in remote.files(folder)}


def test_a_local_run_is_trained_where_it_is(tmp_path):
    with mirror.opened(str(tmp_path), None) as mirrored, mirrored.kept_up():
        mirrored.check()
        assert mirrored.folder == mirrored.describe() == str(tmp_path)


def test_the_bucket_holds_at_last_what_the_folder_holds(tmp_path, capsys):
    folder = trained(tmp_path, 8)
    found = objects()
    del found[mirror.MARK]
    assert found == own(folder)
    assert steps_of(objects("last/")) == {5, 8}
    assert capsys.readouterr().out.endswith(f"copied to: {RUN}/\n")


def test_another_machine_goes_on_from_the_bucket(tmp_path):
    first = trained(tmp_path / "one", 8)
    before = own(first)
    with mirror.opened(RUN, str(tmp_path / "two")) as mirrored:
        assert own(mirrored.folder) == before
    trained(tmp_path / "two", 10)
    # The first machine comes back, behind.
    with mirror.opened(RUN, str(tmp_path / "one")) as mirrored:
        assert mirrored.folder == first
        assert steps_of(own(first)) == {8, 10}


@pytest.mark.parametrize("to", [8, 10])
def test_wherever_the_copying_ends_the_bucket_holds_a_whole_run(bucket, tmp_path, monkeypatch, to):
    really = {name: getattr(remote.Folder, name) for name in ("upload", "delete")}
    monkeypatch.setattr(remote, "PATIENCE", 0)
    trained(tmp_path / "before", 5)
    before = objects()
    newest, allowed = 0, 0
    while newest < to or steps_of(objects("last/")) != set(STEPS[STEPS.index(to) - 1 :][:2]):
        bucket.store.clear()
        for name, data in before.items():
            bucket.pipe_file(f"/box/runs/cars/{name}", data)
        left = allowed

        def counted(how: str):
            def call(self, *args):
                nonlocal left
                left -= 1
                if left < 0:
                    raise UserError("the server is gone.")
                return really[how](self, *args)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(UserError):
            for name in really:
                patch.setattr(remote.Folder, name, counted(name))
            trained(tmp_path / str(allowed), to)
        files, newest = objects(), max(steps_of(objects("last/")))
        assert files["metrics.jsonl"].count(b"\n") >= newest // 5
        # The best epoch that the history up to the newest checkpoint has, or a later one.
        assert max(steps_of(objects("best/"))) >= newest // 5 * 5
        for part in ("last", "best"):
            for step in steps_of(objects(f"{part}/")):
                assert files[f"{part}/step-{step}.index"] == b"index of %d" % step
                assert files[f"{part}/step-{step}.data-00000-of-00001"] == b"data of %d" % step
        allowed += 1
    assert allowed >= 6


@pytest.mark.parametrize("machine", ["the same machine", "another machine"])
def test_wherever_a_first_copy_ends_the_same_command_goes_on(
    bucket, tmp_path, monkeypatch, machine
):
    really, allowed, cut = remote.Folder.upload, 0, True
    monkeypatch.setattr(remote, "PATIENCE", 0)
    while cut:
        bucket.store.clear()
        left, cut, cache = allowed, False, tmp_path / str(allowed)

        def upload(self, *args):
            nonlocal left, cut
            left -= 1
            if left < 0:
                cut = True
                raise UserError("the server is gone.")
            really(self, *args)

        with monkeypatch.context() as patch, contextlib.suppress(UserError):
            patch.setattr(remote.Folder, "upload", upload)
            trained(cache, 8)
        assert len(objects()) == allowed + 1
        folder = trained(cache if machine == "the same machine" else tmp_path / f"{allowed}b", 10)
        found = objects()
        del found[mirror.MARK]
        assert found == own(folder)
        allowed += cut
    assert allowed == 12


def test_a_copy_that_was_cut_short_leaves_nothing_behind(bucket, tmp_path, monkeypatch):
    really = remote.Folder.upload

    def upload(self, path, name):
        if name == "last/checkpoint":
            raise UserError("the server is gone.")
        really(self, path, name)

    with monkeypatch.context() as patch, contextlib.suppress(UserError):
        patch.setattr(remote, "PATIENCE", 0)
        patch.setattr(remote.Folder, "upload", upload)
        trained(tmp_path, 5)
    assert steps_of(objects("last/")) == {3, 5}
    folder = trained(tmp_path, 10)
    assert steps_of(objects("last/")) == {8, 10}
    # Before a checkpoint is copied that was saved anew, its index is deleted.
    bucket.rm_file("/box/runs/cars/last/step-10.index")
    trained(tmp_path, 10)
    found = objects()
    del found[mirror.MARK]
    assert found == own(folder)


def test_while_checkpoints_replace_each_other_the_bucket_always_holds_a_whole_run(
    tmp_path, monkeypatch
):
    seen: list[dict[str, bytes]] = []  # the bucket after each change

    def looked(really):
        def call(self, *args):
            really(self, *args)
            seen.append(objects())

        return call

    for name in ("upload", "delete"):
        monkeypatch.setattr(remote.Folder, name, looked(getattr(remote.Folder, name)))
    monkeypatch.setattr(mirror, "_SECONDS", 0.001)
    with mirror.opened(RUN, str(tmp_path)) as mirrored, mirrored.kept_up():
        for epoch in range(1, 100):
            write(mirrored.folder, "metrics.jsonl", '{"epoch": 1}\n' * epoch)
            for part in ("best", "last"):
                folder = os.path.join(mirrored.folder, part)
                write(folder, f"step-{epoch}.data-00000-of-00001", f"data of {epoch}")
                write(folder, f"step-{epoch}.index", f"index of {epoch}")
                for ending in ("index", "data-00000-of-00001"):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(f"{folder}/step-{epoch - 1}.{ending}")
            time.sleep(0.003)
    copied = set()
    for files in seen:
        last, best = (steps_of(n for n in files if n.startswith(p)) for p in ("last/", "best/"))
        copied |= last
        if last:
            assert max(best) >= max(last)
            assert files["metrics.jsonl"].count(b"\n") >= max(last)
            assert all(f"last/step-{step}.data-00000-of-00001" in files for step in last)
    assert len(copied) > 5
    assert last == best == {99}


def test_a_checkpoint_that_is_saved_again_while_it_is_copied_is_not_mixed(tmp_path, monkeypatch):
    """As TensorFlow does it: the data are renamed into place, the index is written in place."""
    really, seen = remote.Folder.upload, []
    data, index = "last/step-3.data-00000-of-00001", "last/step-3.index"

    def upload(self, path, name):
        folder = mirrored.folder
        if name == data and not seen:
            write(folder, data, "data, again")
            with open(os.path.join(folder, index), "w") as file:
                file.write("index, again")
        really(self, path, name)
        seen.append(objects() if name in (data, index) else {})

    monkeypatch.setattr(mirror, "_SECONDS", 0.01)
    with mirror.opened(RUN, str(tmp_path)) as mirrored, mirrored.kept_up():
        train(mirrored.folder, 3)
        wait_until(lambda: index in objects())
        monkeypatch.setattr(remote.Folder, "upload", upload)
        write(mirrored.folder, data, "data, once")
        with open(os.path.join(mirrored.folder, index), "w") as file:
            file.write("index, once")
        wait_until(lambda: objects()[index] == b"index, again")
    both = [(files[data], files[index]) for files in seen if {data, index} <= files.keys()]
    assert both[-1] == (b"data, again", b"index, again")
    assert set(both) <= {(b"data, once", b"index, once"), both[-1]}


def test_a_folder_that_is_further_than_the_bucket_is_kept(tmp_path, capsys):
    folder = trained(tmp_path / "one", 5)
    train(folder, 8)  # and the machine lost the bucket
    trained(tmp_path / "two", 5)
    with mirror.opened(RUN, str(tmp_path / "one")) as mirrored, mirrored.kept_up():
        assert steps_of(own(mirrored.folder)) == {5, 8}
    assert "is at step 8, memory://box/runs/cars at 5: going on here" in capsys.readouterr().out
    assert steps_of(objects("last/")) == {5, 8}


def test_the_training_that_started_last_writes_and_the_other_one_stops(tmp_path, capsys):
    def overtaken() -> None:
        with mirror.opened(RUN, str(tmp_path / "one")) as first, first.kept_up():
            train(first.folder, 3)
            trained(tmp_path / "two", 10)
            train(first.folder, 8)
            for _ in range(100):
                first.check()
                time.sleep(0.1)

    with pytest.raises(UserError, match=r"a training on .* writes there now, so this training st"):
        overtaken()
    assert "warning" not in capsys.readouterr().out  # the error says it
    assert steps_of(objects("last/")) == {8, 10}
    with mirror.opened(RUN, str(tmp_path / "two")) as second:
        assert steps_of(own(second.folder)) == {8, 10}


@pytest.mark.parametrize("known", ["nothing", "an earlier moment", "all"])
def test_a_run_that_another_training_copied_to_while_this_one_started_is_not_mixed_with_it(
    tmp_path, capsys, known
):
    trained(tmp_path / "one", 8)
    if known != "nothing":
        trained(tmp_path / "two", 8)
    if known == "an earlier moment":
        trained(tmp_path / "one", 8)
    meanwhile = pytest.raises(UserError, match="another training copied to it while this one")
    with mirror.opened(RUN, str(tmp_path / "two")) as second:
        trained(tmp_path / "one", 10)
        with meanwhile, second.kept_up():
            train(second.folder, 10)
    capsys.readouterr()
    folder = trained(tmp_path / "two", 10)
    assert "another run was in the cache" not in capsys.readouterr().out
    found = objects()
    del found[mirror.MARK]
    assert found == own(folder)


def test_what_another_training_was_about_to_copy_is_not_mixed_with_the_run(bucket, tmp_path):
    trained(tmp_path / "one", 8)
    before = objects("best/")
    old = [f"/box/runs/cars/best/step-3.{kind}" for kind in ("data-00000-of-00001", "index")]
    for path in old:
        bucket.pipe_file(path, b"of 3")

    def late() -> None:
        with mirror.opened(RUN, str(tmp_path / "two")) as mirrored, mirrored.kept_up():
            bucket.rm_file(old[1])
            train(mirrored.folder, 8)

    with pytest.raises(UserError, match="another training copied to it while this one started"):
        late()
    assert steps_of(objects("best/")) == {5}
    trained(tmp_path / "two", 8)
    assert objects("best/") == before


def test_a_training_that_is_overtaken_in_the_midst_of_copying_changes_no_further_file(
    tmp_path, monkeypatch
):
    really, changes = {name: getattr(remote.Folder, name) for name in ("upload", "delete")}, []
    with mirror.opened(RUN, str(tmp_path / "two")) as second, contextlib.ExitStack() as held:

        def changed(how: str):
            def call(self, *args):
                changes.append(args[-1])
                really[how](self, *args)
                if len(changes) == 1:
                    second.fetch()
                    held.enter_context(second.kept_up())

            return call

        with monkeypatch.context() as patch:
            for name in really:
                patch.setattr(remote.Folder, name, changed(name))
            with pytest.raises(UserError, match="writes there now, so this training stops"):
                trained(tmp_path / "one", 10)
        assert changes == ["data.json"]


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_mark_costs_nothing(bucket, tmp_path, damaged):
    trained(tmp_path / "one", 8)
    bucket.pipe_file(f"/box/runs/cars/{mirror.MARK}", damaged)
    trained(tmp_path / "two", 10)
    assert steps_of(objects("last/")) == {8, 10}
    with mirror.opened(RUN, str(tmp_path / "one")) as mirrored:
        assert steps_of(own(mirrored.folder)) == {8, 10}


def test_two_trainings_of_a_run_on_one_machine(tmp_path):
    refused = pytest.raises(UserError, match="another training is at work on memory://box/runs/ca")
    with mirror.opened(RUN, str(tmp_path)), refused:
        trained(tmp_path, 3)


def test_what_a_killed_fetch_left_of_a_run_is_removed(tmp_path):
    folder = trained(tmp_path, 3)
    left = f"{folder}.{'0123' * 8}.partial"
    write(left, "last/step-3.index", "index")
    trained(tmp_path, 5)
    assert not os.path.exists(left)
    assert steps_of(own(folder)) == {3, 5}


def test_a_cache_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    trained(tmp_path, 3)
    assert steps_of(objects("last/")) == {3}


def test_a_run_that_was_deleted_in_the_bucket_is_not_put_there_again_unasked(bucket, tmp_path):
    folder = trained(tmp_path, 5)
    bucket.store.clear()
    with pytest.raises(UserError, match=rf"the run is no longer there; {folder} is its copy"):
        trained(tmp_path, 8)


def test_another_run_under_the_same_address_puts_the_old_copy_aside(bucket, tmp_path, capsys):
    folder = trained(tmp_path / "one", 10)
    bucket.store.clear()
    trained(tmp_path / "two", 3)
    with mirror.opened(RUN, str(tmp_path / "one")) as mirrored:
        assert steps_of(own(mirrored.folder)) == {3}
    (aside,) = re.findall(r"another run was in the cache; it is in (\S+) now",
                          capsys.readouterr().out)  # fmt: skip
    assert steps_of(own(f"{aside}/{os.path.basename(folder)}/last")) == {8, 10}


def test_a_folder_with_other_things_is_no_run(bucket, tmp_path):
    bucket.pipe_file("/box/runs/cars/thesis.doc", b"x")
    with pytest.raises(UserError, match=f"--run={RUN} holds other things"):
        trained(tmp_path, 3)
    assert objects() == {"thesis.doc": b"x"}


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    trained(tmp_path / "one", 5)
    (tmp_path / "file").write_text("")
    for cache in ("/proc/nope", tmp_path / "file"):
        with pytest.raises(UserError, match=f"{cache}/runs/.* cannot be written: .* --data_cache"):
            trained(cache, 3)

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = pytest.raises(UserError, match=r"cannot be written: No space left .* --data_cache")
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", fill)
        with said:
            trained(tmp_path / "two", 8)
    with mirror.opened(RUN, str(tmp_path / "one")) as mirrored, monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill)
        with said, mirrored.kept_up():
            pass
