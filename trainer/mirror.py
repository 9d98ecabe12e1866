"""A run in a bucket: it is trained in a local folder, and a thread copies that to the bucket.

    with mirror.opened("gs://bucket/runs/cars", cache) as mirrored:   # fetches the run
        with mirrored.kept_up():                                      # copies until all is there
            train(mirrored.folder, on_steps=mirrored.check)

The bucket holds a whole run at every moment: what the newest checkpoint needs comes before it, the
index after the data, and old checkpoints go last. When a machine is taken away, only the steps
since the last checkpoint in the bucket are lost; on another one of its kind the run goes on with
the same bits.

`.mirror.json` in the bucket says which run it is and which process writes it. The one that started
last writes; one that was started earlier stops at its next copy. If it copied while the later one
started, the later one stops too, and goes on when it is started again.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from tfrecords import remote
from tfrecords.errors import UserError
from tfrecords.progress import waiting
from trainer import run_dir

MARK = ".mirror.json"

_SECONDS = 2.0  # between two looks at what has changed
_CHECKPOINT = re.compile(r"step-(\d+)\.(index|data-\d+-of-\d+)$")
_DATA_FILE = "data.json"
_BEGUN = frozenset({MARK, _DATA_FILE})  # what a start leaves that was killed early

_Stamp = tuple[int, int]


class Mirror:
    """A run's local folder and its bucket; of a local run, the folder alone.

    Attributes:
        folder: where the run is trained.
        is_shared: whether all workers see it.
    """

    def __init__(self, path: str, cache: str | None, *, is_shared: bool = True):
        """Names the folder; `opened` makes one that is ready.

        Args:
            path: of the run.
            cache: see `remote.dataset`.
            is_shared: whether all workers see a local one.
        """
        self.folder = path
        self.is_shared = is_shared and not remote.is_remote(path)
        self._bucket: remote.Folder | None = None
        if not remote.is_remote(path):
            return
        self.folder = remote.run_place(cache, path)
        self._bucket = remote.Folder(path.rstrip("/"), "run")
        self._entry = os.path.dirname(self.folder)
        self._writer = ""  # this process, once it has said so in the bucket
        self._run = ""
        # What `fetch` listed, until it is sure that nobody has written since.
        self._listed: dict[str, remote.Object] | None = None
        # By name: stamp and sha256 of the file that was copied; None for one of another process.
        self._copied: dict[str, tuple[_Stamp, str] | None] = {}
        self._trouble = self._lost = ""
        self._stop = threading.Event()

    def describe(self) -> str:
        """Returns where the run is, for the user."""
        return f"{self._bucket.url}, trained in {self.folder}" if self._bucket else self.folder

    def check(self) -> None:
        """Stops a training whose run another one has taken over.

        Raises:
            UserError: it has.
        """
        if self._bucket and self._lost:
            raise UserError(self._lost)

    @contextlib.contextmanager
    def kept_up(self) -> Iterator[None]:
        """Copies what changes in the folder while the block runs, and at its end all that is left.

        Raises:
            UserError: bucket or cache cannot be written at the start, or the bucket is away at the
                end; or another training copied to it after `fetch`.
        """
        if not self._bucket:
            yield
            return
        writer = uuid.uuid4().hex
        mark = {"run": self._run, "writer": writer, "host": socket.gethostname()}
        self._bucket.write(MARK, json.dumps(mark).encode())
        self._require_as_fetched()
        self._writer = writer
        with remote.writing(self._entry):
            self._remember()
        thread = threading.Thread(target=self._keep_up, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if (problem := self._finish(thread)) and problem != str(error):
                print(f"warning: {problem}", flush=True)
            raise
        if problem := self._finish(thread):
            raise UserError(problem)
        print(f"copied to: {self._bucket.url}/", flush=True)

    def fetch(self) -> None:
        """Brings the folder to where the run in the bucket is, unless it is further itself.

        Raises:
            UserError: the bucket cannot be read, holds something else, or lost the run.
        """
        assert self._bucket
        self._listed = objects = self._bucket.objects()
        mark = _parse(self._bucket.read(MARK)) if MARK in objects else {}
        known = self._recall()
        self._run = mark.get("run", "")
        if remote.RUN_FILE not in objects:
            if not _BEGUN.issuperset(objects):
                raise UserError(
                    f"{self._bucket.named} holds other things. Name a folder that does not exist"
                    " yet."
                )
            if remote.RUN_FILE in known.get("copied", {}):
                raise UserError(
                    f"{self._bucket.named}: the run is no longer there; {self.folder} is its copy"
                    f" on this machine. Delete {self._entry} to start anew, or copy it back."
                )
            self._run = known.get("run") or uuid.uuid4().hex
            return
        here, there = _newest_step(remote.files(self.folder)), _newest_step(objects)
        same_run = bool(mark) and known.get("run") == mark["run"]
        if same_run and known["writer"] == mark["writer"] and here >= there:
            # A copy that was cut short wrote and deleted what nothing here remembers.
            copied = known["copied"]
            self._copied = {
                name: copied.get(name)
                for name in objects
                if name in copied or _is_of_checkpoint(name)
            }
            return
        if same_run and here > there:
            print(f"{self.folder} is at step {here}, {self._bucket.url} at {there}: going on here")
            self._copied = {name: None for name in objects if _is_of_checkpoint(name)}
            return
        self._run = self._run or uuid.uuid4().hex
        self._replace(objects, keep=not same_run)

    def _replace(self, objects: dict[str, remote.Object], *, keep: bool) -> None:
        assert self._bucket
        if os.path.isdir(self.folder):
            aside = f"{self._entry}.{time.strftime('%Y%m%d-%H%M%S')}.old"
            os.rename(self._entry, aside)
            if keep:
                print(f"another run was in the cache; it is in {aside} now")
            else:
                shutil.rmtree(aside)
        objects = {name: found for name, found in objects.items() if name != MARK}
        remote.fetch_all(self._bucket, self.folder, objects)
        self._copied = {
            name: (stamp, _sha256(os.path.join(self.folder, name)))
            for name, stamp in remote.files(self.folder).items()
        }
        self._remember()

    def _require_as_fetched(self) -> None:
        """Checks that nobody has copied to the bucket since `fetch`.

        Raises:
            _TakenOverError: somebody has: with what is here it would be a mixture of two runs.
        """
        assert self._bucket
        assert self._listed is not None
        now = self._bucket.objects()
        if {**now, MARK: None} != {**self._listed, MARK: None}:
            raise _TakenOverError(
                f"{self._bucket.named}: another training copied to it while this one started."
                " It stops now: start the same command again."
            )

    def _finish(self, thread: threading.Thread) -> str:
        """Waits until all is copied, and returns what is wrong, if anything."""
        assert self._bucket
        self._stop.set()
        thread.join(timeout=_SECONDS)
        if thread.is_alive():
            with waiting(f"copying the run to {self._bucket.url}"):
                thread.join()
        if self._trouble:
            return (
                f"{self._trouble} The run is not all in the bucket; it is whole in {self.folder}:"
                " the same command copies the rest."
            )
        return self._lost

    def _keep_up(self) -> None:
        deadline = float("inf")
        while True:
            last = self._stop.wait(_SECONDS)
            if last:
                deadline = min(deadline, time.monotonic() + remote.PATIENCE)
            try:
                self._copy()
                self._trouble = ""
            except _TakenOverError as error:
                self._lost, self._trouble = str(error), ""
                return
            except Exception as error:  # whatever it is, a run that is not copied must not seem so
                if not self._trouble and not last:
                    print(f"warning: {error} The training goes on, and this is tried again.")
                self._trouble = str(error) or type(error).__name__
                if time.monotonic() < deadline:
                    time.sleep(_SECONDS if last else 0)
                    continue
            if last:
                return

    def _copy(self) -> None:
        """Copies what has changed since the last call, as it was at one moment."""
        staged = f"{self._entry}.staged"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            there, changed = self._stage(staged)
            gone = sorted(self._copied.keys() - there, key=lambda name: "index" not in name)
            if not changed and not gone:
                return
            if self._listed is not None:
                # The other training may have been about to change one more file.
                self._writable()
                try:
                    self._require_as_fetched()
                except _TakenOverError:
                    self._writer = ""  # so the next start does not take it for what it copied
                    self._remember()
                    raise
                self._listed = None
            for name in sorted(changed, key=_order):
                path = os.path.join(staged, name)
                digest, before = _sha256(path), self._copied.get(name)
                # A run that goes on may save again what is there, with the same bits.
                if before is None or before[1] != digest:
                    index = re.sub(r"\.data-.*", ".index", name)
                    if index != name and index in self._copied:
                        self._writable().delete(index)
                        del self._copied[index]
                    self._writable().upload(path, name)
                self._copied[name] = changed[name], digest
            for name in gone:
                self._writable().delete(name)
                del self._copied[name]
            self._remember()
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _stage(self, staged: str) -> tuple[set[str], dict[str, _Stamp]]:
        """Makes copies that stay as they are, of what has changed, in another folder.

        Checkpoints come first: so all else is at least as new as they are, as a run needs it.

        Returns:
            The names of all files of the run, and the stamps of those that were staged.
        """
        there: set[str] = set()
        changed: dict[str, _Stamp] = {}
        for part in (run_dir.LAST, run_dir.BEST):
            while True:
                listed = _whole_checkpoints(self.folder, part)
                new = {name: stamp for name, stamp in listed.items() if self._is_new(name, stamp)}
                try:
                    for name in new:
                        # Saved again, a step gets new data, but its index is written in place.
                        stage = _link if ".data-" in name else _copy_still
                        stage(os.path.join(self.folder, name), os.path.join(staged, name))
                    # A list that is made while one checkpoint replaces another may hold neither.
                    if _whole_checkpoints(self.folder, part) == listed:
                        break
                except FileNotFoundError:  # a newer one has replaced it meanwhile
                    pass
                shutil.rmtree(os.path.join(staged, part), ignore_errors=True)
            there |= listed.keys()
            changed |= new
        for name, stamp in remote.files(self.folder).items():
            if _is_of_checkpoint(name):
                continue
            there.add(name)
            if not self._is_new(name, stamp):
                continue
            with contextlib.suppress(FileNotFoundError):
                _copy_still(os.path.join(self.folder, name), os.path.join(staged, name))
                changed[name] = stamp
        return there, changed

    def _is_new(self, name: str, stamp: _Stamp) -> bool:
        copied = self._copied.get(name)
        return copied is None or copied[0] != stamp

    def _writable(self) -> remote.Folder:
        """Returns the bucket; asked before each change, for another process may start any time.

        Raises:
            _TakenOverError: it is no longer this process's to write.
        """
        assert self._bucket
        bucket = remote.Folder(self._bucket.url, self._bucket.flag, patience=0)
        try:
            mark = _parse(bucket.read(MARK))
        except remote.NoObjectError:
            mark = {"host": ""}
        if mark.get("writer") == self._writer:
            return bucket
        host = mark.get("host", "another machine")
        who = f"a training on {host} writes there now" if host else "it was deleted"
        raise _TakenOverError(
            f"{bucket.named}: {who}, so this training stops. Its state is kept in {self.folder}."
        )

    def _remember(self) -> None:
        values = {"run": self._run, "writer": self._writer, "copied": self._copied}
        os.makedirs(os.path.dirname(self._entry), exist_ok=True)
        with open(f"{self._entry}.json.new", "w") as file:
            json.dump(values, file)
        os.replace(file.name, f"{self._entry}.json")

    def _recall(self) -> dict[str, Any]:
        if not os.path.isdir(self.folder):
            return {}
        with contextlib.suppress(OSError, ValueError), open(f"{self._entry}.json") as file:
            known = json.load(file)
            for name, copied in known["copied"].items():
                if copied:
                    known["copied"][name] = tuple(copied[0]), copied[1]
            return known
        return {}


def _parse(mark: bytes) -> dict[str, str]:
    """Returns what a mark says; nothing where somebody has damaged it."""
    with contextlib.suppress(ValueError):
        found = json.loads(mark)
        if isinstance(found, dict) and {"run", "writer", "host"} <= found.keys():
            return found
    return {}


class _TakenOverError(UserError):
    """Another process writes the run in the bucket."""


@contextlib.contextmanager
def opened(path: str, cache: str | None, *, chief: bool = True) -> Iterator[Mirror]:
    """Gives a run's local folder, which for a remote run is brought to where the bucket is.

    Args:
        path: of the run.
        cache: see `remote.dataset`.
        chief: whether this is the worker that fetches a remote run and copies it back. The others
            get an empty folder of their own, for `workers.copy_from_chief`.

    Raises:
        UserError: see `Mirror.fetch`; or this machine trains the run already, or the cache cannot
            be written.
    """
    if not remote.is_remote(path):
        yield Mirror(path, cache)
        return
    if not chief:
        with tempfile.TemporaryDirectory() as folder:
            yield Mirror(folder, cache, is_shared=False)
        return
    mirror = Mirror(path, cache)
    entry = os.path.dirname(mirror.folder)
    with contextlib.ExitStack() as held:
        with remote.writing(entry):
            is_free = held.enter_context(remote.locked(entry))
            if is_free is False:
                raise UserError(
                    f"another training is at work on {path} on this machine. Wait for it, or name"
                    " another --run."
                )
            if is_free:
                remote.remove_partial(entry)
            _fetch(mirror, path)
        yield mirror


def _fetch(mirror: Mirror, path: str) -> None:
    for attempt in range(5, 0, -1):
        try:
            mirror.fetch()
            break
        except remote.NoObjectError:  # a training elsewhere replaced a checkpoint meanwhile
            if attempt == 1:
                raise UserError(
                    f"--run={path}: it changes faster than it can be fetched: another training is"
                    " at work there. Wait for it, or name another --run."
                ) from None


def _newest_step(names: Any) -> int:
    """Returns the step of the newest whole checkpoint among the files of a run, or 0."""
    steps = (re.fullmatch(rf"{run_dir.LAST}/step-(\d+)\.index", name) for name in names)
    return max((int(match[1]) for match in steps if match), default=0)


def _is_of_checkpoint(name: str) -> bool:
    return name.startswith((f"{run_dir.LAST}/", f"{run_dir.BEST}/"))


def _whole_checkpoints(folder: str, part: str) -> dict[str, _Stamp]:
    """Returns the files of whole checkpoints, and `checkpoint`, which lists them, with stamps."""
    found = {
        f"{part}/{name}": stamp for name, stamp in remote.files(os.path.join(folder, part)).items()
    }
    return {
        name: stamp
        for name, stamp in found.items()
        if name == f"{part}/checkpoint"
        or (_CHECKPOINT.search(name) and re.sub(r"\.data-.*", ".index", name) in found)
    }


def _order(name: str) -> tuple[int, int, str]:
    """Returns the place of a file in the order of copying.

    First what makes it a run: a first copy that is cut short leaves what a start goes on from.
    """
    first, last = (_DATA_FILE, remote.RUN_FILE), (run_dir.BEST, run_dir.LAST)
    folder = name.partition("/")[0]
    if name in first:
        place = first.index(name)
    else:
        place = len(first) + (last.index(folder) + 1 if folder in last else 0)
    kind = 2 if name.endswith("/checkpoint") else name.endswith(".index")
    return place, kind, name


def _link(source: str, target: str) -> None:
    """Gives a file that is never written again a second name, or copies it."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _copy_still(source: str, target: str) -> None:
    """Copies a file that is written in place, where possible while nobody does."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    for _ in range(3):
        before = _stamp(source)
        shutil.copyfile(source, target)
        if _stamp(source) == before:
            return


def _stamp(path: str) -> _Stamp:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
