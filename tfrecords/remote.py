"""Buckets: what is read from `gs://` or `s3://` is fetched once, into a cache of this machine.

    folder = remote.dataset("gs://bucket/cars", "data", cache)
    folder = remote.model("s3://bucket/runs/cars", "model")

Both return a local path as it is. fsspec reads and writes the buckets, by gcsfs and s3fs, which
find credentials and endpoints in the environment; it is imported for remote paths only. The cache:

    CACHE/datasets/KEY/NAME/    a data set; KEY is that of its manifest's bytes
          models/KEY/NAME/      a run (without what only training needs) or an export, as listed
          runs/KEY/NAME/        a run that is trained here; see `trainer.mirror`
          kept/NAME-NUMBER/     a run with results that could not be copied to its bucket

A file is whole, and fits its sha256 where one is known, before it gets its name. Processes that
need the same entry wait for the one that fetches it, and hold it by a lock as long as they live.
Data sets and models that no process holds are removed after 30 days without use, or when space is
short, those unused for longest first; none are on a file system without locks. What is in `runs`
and `kept` is never removed.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from absl import flags

from tfrecords import command, manifest
from tfrecords.errors import UserError
from tfrecords.progress import Progress

PATIENCE = 90.0
"""Seconds for which a server that does not answer is asked again."""

RUN_FILE, EXPORT_FILE = "config.json", "carbox.json"
"""By these a folder is known as a run or as an export."""

_EXTRAS = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_STREAMS = 8  # files fetched at once
_RESERVE = 1 << 30  # bytes of the disk that stay free
_UNUSED_DAYS = 30
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of this machine: no server says so
_ONLY_FOR_TRAINING = re.compile(r"(last|tensorboard)/|\.|.*\.damaged$")

_T = TypeVar("_T")

_datasets: dict[str, str] = {}  # by address: the local folder, of those fetched by this process
_locks: dict[str, int] = {}  # by path: descriptors of what this process holds


class NoObjectError(FileNotFoundError):
    """An object that is not in its bucket; `filename` is its name in the folder."""


@dataclasses.dataclass(frozen=True)
class Object:
    """An object of a bucket: its size in bytes, and what changes when its content does."""

    size: int
    version: str


def define_cache_flag(values: flags.FlagValues) -> None:
    """Defines the flag `--data_cache`."""
    command.DEFINE_path(
        "data_cache",
        None,
        "folder for local copies of what is in buckets; ~/.cache/carbox if absent",
        flag_values=values,
    )


def is_remote(path: str) -> bool:
    """Whether a path is an address such as `gs://bucket/folder`."""
    return "://" in path


def default_cache() -> str:
    """Returns the folder of the cache, where no flag names another."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "carbox")


def dataset(path: str, flag: str = "", cache: str | None = None) -> str:
    """Returns the local folder of a data set, which is fetched where it is remote.

    Shards that the cache holds whole are not fetched again. In this process, `local` finds the
    folder from now on.

    Args:
        path: of the data set.
        flag: that gave the path; messages name it.
        cache: folder of the cache; the default one if absent.

    Raises:
        UserError: there is no data set, it cannot be read, a shard is not what the manifest says,
            or it does not fit on the disk. Shards that are whole are kept.
    """
    if not is_remote(path):
        return path
    bucket = Folder(path, flag)
    try:
        text = bucket.read(manifest.FILE_NAME)
    except NoObjectError:
        raise UserError(
            f"{bucket.named}: there is no data set, {manifest.FILE_NAME} is missing there. Make one"
            " with `python -m preprocess.run --output=…`, or correct the address."
        ) from None
    info = manifest.parse(text, f"{path.rstrip('/')}/{manifest.FILE_NAME}")
    folder = _place(cache, "datasets", hashlib.sha256(text).hexdigest(), path)

    def is_whole() -> bool:
        return os.path.exists(os.path.join(folder, manifest.FILE_NAME)) and not missing()

    def missing() -> dict[str, manifest.Shard]:
        shards = (shard for split in info.splits.values() for shard in split.shards)
        return {
            shard.file: shard
            for shard in shards
            if _size(os.path.join(folder, shard.file)) != shard.bytes
        }

    def fetch() -> None:
        wanted = missing()
        sizes = {file: shard.bytes for file, shard in wanted.items()}
        if info.rejected and not os.path.exists(os.path.join(folder, manifest.REJECTED_NAME)):
            listed = bucket.objects().get(manifest.REJECTED_NAME)
            sizes |= {manifest.REJECTED_NAME: listed.size} if listed else {}
        digests = {file: shard.sha256 for file, shard in wanted.items()}
        try:
            _fetch(bucket, folder, sizes, digests)
        except NoObjectError as error:
            raise UserError(
                f"{bucket.named}: {error.filename} is missing there, which {manifest.FILE_NAME}"
                " names. Copy it there again, or run `python -m preprocess.run --overwrite`."
            ) from None
        _write(os.path.join(folder, manifest.FILE_NAME), text)

    _hold(folder, is_whole, fetch)
    _datasets[path] = folder
    return folder


def local(path: str) -> str:
    """Returns the local folder of a data set; one that this process fetched is not asked for again.

    A local path is returned as it is.

    Raises:
        UserError: see `dataset`.
    """
    return _datasets.get(path) or dataset(path)


def is_here(path: str) -> bool:
    """Whether `local` finds a data set without fetching it."""
    return not is_remote(path) or path in _datasets


def model(path: str, flag: str = "", cache: str | None = None) -> str:
    """Returns a local folder with a run or an export, which is fetched where it is remote.

    A run is fetched without what only training needs. What changes in the bucket later does not
    change the folder: the next call returns another one.

    Args:
        path: of the run, of the export, or of one of the export's files.
        flag, cache: see `dataset`.

    Raises:
        UserError: there is neither, it cannot be read, or it does not fit on the disk.
    """
    if not is_remote(path):
        return path
    bucket, file = Folder(path.rstrip("/"), flag), ""
    objects = bucket.objects()
    if not objects:  # a file of an export?
        parent, _, file = bucket.url.rpartition("/")
        objects = Folder(parent, flag).objects() if not parent.endswith("/") else {}
        if EXPORT_FILE in objects and file in {name.partition("/")[0] for name in objects}:
            bucket = dataclasses.replace(bucket, url=parent)
        else:
            objects = {}
    for _ in range(5):
        with contextlib.suppress(NoObjectError):
            return os.path.join(_snapshot(bucket, objects, cache), file).rstrip(os.sep)
        # A training replaced a checkpoint since the listing.
        objects = bucket.objects()
    raise UserError(f"{bucket.named}: it changes faster than it can be fetched. Try again later.")


def _snapshot(bucket: "Folder", objects: dict[str, Object], cache: str | None) -> str:
    """Returns the local folder of a run or an export as it was listed.

    Raises:
        UserError: it is neither, or it cannot be fetched.
        NoObjectError: an object is no longer there.
    """
    if RUN_FILE in objects:
        objects = {
            name: found for name, found in objects.items() if not _ONLY_FOR_TRAINING.match(name)
        }
    elif EXPORT_FILE not in objects:
        raise UserError(
            f"{bucket.named}: there is no run and no export there. Check the address, and whether"
            " your credentials allow listing it."
        )
    versions = sorted((name, found.version) for name, found in objects.items())
    key = hashlib.sha256(json.dumps([bucket.url, versions]).encode()).hexdigest()
    folder = _place(cache, "models", key, bucket.url)
    _hold(folder, lambda: os.path.isdir(folder), lambda: fetch_all(bucket, folder, objects))
    return folder


@contextlib.contextmanager
def copied_back(path: str, folder: str, flag: str) -> Iterator[None]:
    """Copies what the block changes in the local folder of a remote run to its bucket.

    Args:
        path: of the run; where it is local, nothing is copied.
        folder: what `model` returned for it.
        flag: that gave the path.

    Raises:
        UserError: it cannot be copied; a folder of the cache keeps it.
    """
    if not is_remote(path):
        yield
        return
    bucket, before = Folder(path, flag), files(folder)
    try:
        yield
        now = files(folder)
        for name in sorted(now):
            if before.get(name) != now[name]:
                bucket.upload(os.path.join(folder, name), name)
        for name in sorted(before.keys() - now.keys()):
            bucket.delete(name)
    except BaseException as error:
        if files(folder) == before:
            raise
        # The cache would take them for what is in the bucket, and never copy them.
        kept = _keep(folder)
        if isinstance(error, UserError):
            raise UserError(f"{error} The results are in {kept}.") from None
        print(f"not copied to {bucket.url}: the results are in {kept}", flush=True)
        raise
    print(f"copied to: {path.rstrip('/')}/")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder in a bucket.

    Its methods ask a server that does not answer again, for `patience` seconds, and then raise
    `UserError`; so they do where access is refused. They raise `NoObjectError` for an object that
    is not there.

    Attributes:
        url: such as `gs://bucket/folder`.
        flag: that gave it; messages name it.
        patience: seconds.
    """

    url: str
    flag: str = ""
    patience: float = PATIENCE

    @property
    def named(self) -> str:
        """The address as messages name it."""
        return f"--{self.flag}={self.url}" if self.flag else self.url

    def objects(self) -> dict[str, Object]:
        """Returns all objects below, by their relative names."""
        system, root = self._open()
        try:
            found = self._ask(lambda: system.find(root, detail=True), "")
        except NoObjectError:  # not even the bucket is there
            return {}
        objects: dict[str, Object] = {}
        for path, info in found.items():
            name = path.removeprefix(root).lstrip("/")
            if not name or name.endswith("/") or info["type"] != "file":
                continue  # folders, as some tools write them
            if ".." in name.split("/"):
                raise UserError(f"{self.named}: the name of the object {name!r} leads out of it.")
            marks = ("ETag", "etag", "generation", "md5Hash", "LastModified", "created", "mtime")
            version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
            objects[name] = Object(info["size"], version)
        return objects

    def read(self, name: str) -> bytes:
        """Returns the bytes of a small object."""
        system, root = self._open()
        return self._ask(lambda: system.cat_file(f"{root}/{name}"), name)

    def open(self, name: str) -> Any:
        """Opens an object as a file, to be read from its start to its end."""
        system, root = self._open()
        return self._ask(lambda: system.open(f"{root}/{name}", "rb", cache_type="readahead"), name)

    def write(self, name: str, data: bytes) -> None:
        """Writes a small object."""
        system, root = self._open()
        self._put(lambda: system.pipe_file(f"{root}/{name}", data), name)

    def upload(self, path: str, name: str) -> None:
        """Copies a local file, which must not change meanwhile; the object appears when whole."""
        system, root = self._open()
        self._put(lambda: system.put_file(path, f"{root}/{name}"), name)

    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""
        system, root = self._open()
        with contextlib.suppress(NoObjectError):
            self._ask(lambda: system.rm_file(f"{root}/{name}"), name)

    def download(
        self, name: str, path: str, size: int, sha256: str, count: Callable[[int], None]
    ) -> None:
        """Copies an object into a local file, which appears when it is whole.

        Args:
            name: of the object.
            path: of the file.
            size: bytes that it must have.
            sha256: of its bytes in hex, or empty where it is not known.
            count: is called with the number of bytes that came, negative ones for those in vain.
        """
        from fsspec.callbacks import Callback

        system, root = self._open()
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        counted = 0

        class Counted(Callback):
            def relative_update(self, inc: int = 1) -> None:
                nonlocal counted
                counted += inc
                count(inc)

        def get() -> None:
            nonlocal counted
            count(-counted)
            counted = 0
            system.get_file(f"{root}/{name}", partial, callback=Counted())

        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._ask(get, name)
            self._require_same(partial, name, size, sha256)
            count(size - counted)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)

    def _require_same(self, path: str, name: str, size: int, sha256: str) -> None:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else ""
            os.fsync(file.fileno())
        if (found, digest) == (size, sha256):
            return
        wrong = f"{found:,} bytes instead of {size:,}" if found != size else "another sha256"
        raise UserError(
            f"{self.named}: {name} has {wrong}: it is damaged or was replaced after"
            f" {manifest.FILE_NAME if sha256 else 'it was listed'}. Copy it there again."
        )

    def _open(self) -> tuple[Any, str]:
        """Returns the file system and the path of the folder in it."""
        scheme = self.url.partition("://")[0]
        package, extra = _EXTRAS.get(scheme, ("fsspec", "gcs"))
        try:
            # gcsfs would ask by gRPC, with credentials of its own, of which kind a bucket is.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            import fsspec

            # It also logs what it raises, with a traceback.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            system, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError:
            raise UserError(
                f"{self.named}: {scheme}:// needs {package}, which is not installed:"
                f" pip install 'carbox[{extra}]'"
            ) from None
        except ValueError as error:
            raise UserError(f"{self.named}: {error}. gs:// and s3:// are known.") from None
        except Exception as error:  # its libraries' own, for credentials that cannot be used
            raise UserError(f"{self.named}: {_reason(error)}.") from None
        return system, root.rstrip("/")

    def _put(self, call: Callable[[], object], name: str) -> None:
        try:
            self._ask(call, name)
        except NoObjectError:
            raise UserError(
                f"{self.named}: there is no such bucket. Make it, or correct the address."
            ) from None

    def _ask(self, call: Callable[[], _T], name: str) -> _T:
        started, pause, told = time.monotonic(), 0.5, False
        while True:
            try:
                return call()
            except FileNotFoundError:
                raise NoObjectError(errno.ENOENT, "no such object", name) from None
            except Exception as error:  # each library has its own
                if isinstance(error, OSError) and error.errno in _DISK_FULL:
                    raise
                waited = time.monotonic() - started
                if not _is_away(error):
                    raise UserError(
                        f"{self.named}: {_reason(error)}. Check the address, your credentials and"
                        " what they allow."
                    ) from None
                if waited >= self.patience:
                    advice = " Start the same command again when it does; what is whole is kept."
                    raise UserError(
                        f"{self.named}: the server has not answered ({_reason(error)})."
                        + (advice if self.patience else "")
                    ) from None
                if not told:
                    print(f"{self.url}: no answer ({_reason(error)}), trying again", flush=True)
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, 5)


def files(folder: str) -> dict[str, tuple[int, int]]:
    """Returns size in bytes and time of change in ns of the files below, by their relative names.

    Not of those that are being written, nor of locks.
    """
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith("_temp")]
        for name in names:
            if name.startswith(".") or name.endswith((".new", ".partial", ".damaged")):
                continue
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(path)
                found[os.path.relpath(path, folder)] = about.st_size, about.st_mtime_ns
    return found


def run_place(cache: str | None, url: str) -> str:
    """Returns the folder of the cache for a run that is trained here."""
    return _place(cache, "runs", hashlib.sha256(url.rstrip("/").encode()).hexdigest(), url)


@contextlib.contextmanager
def writing(entry: str) -> Iterator[None]:
    """Says what to do where the block cannot write an entry of the cache.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except NoObjectError:
        raise
    except OSError as error:
        raise UserError(
            f"the cache {entry} cannot be written: {error.strerror or error}. Free some space, or"
            " let --data_cache (or XDG_CACHE_HOME) name another folder."
        ) from None


@contextlib.contextmanager
def locked(entry: str) -> Iterator[bool | None]:
    """Locks an entry of the cache while the block runs.

    Gives False where others hold it; None where nobody knows: on a file system without locks.
    """
    os.makedirs(os.path.dirname(entry), exist_ok=True)
    descriptor = os.open(f"{entry}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def fetch_all(bucket: Folder, folder: str, objects: Mapping[str, Object]) -> None:
    """Fetches objects into a folder, which appears when all are whole.

    Raises:
        UserError: they cannot be read, or do not fit on the disk.
        NoObjectError: one is no longer there.
    """
    partial = f"{folder}.{uuid.uuid4().hex}.partial"
    try:
        _fetch(bucket, partial, {name: found.size for name, found in objects.items()}, {})
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(entry: str) -> None:
    """Removes what processes left of an entry that were killed while they fetched it.

    To be called with the entry locked.
    """
    for parent, folders, names in os.walk(entry):
        for name in [name for name in (*folders, *names) if name.endswith(".partial")]:
            path = os.path.join(parent, name)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.remove(path)


def _keep(folder: str) -> str:
    """Moves a run out of what is removed from the cache, and returns where it is."""
    entry, name = os.path.split(folder)
    kept = os.path.join(os.path.dirname(os.path.dirname(entry)), "kept")
    with writing(entry):
        os.makedirs(kept, exist_ok=True)
        kept = os.path.join(kept, f"{name}-{uuid.uuid4().hex[:8]}")
        os.rename(folder, kept)
    return kept


def _place(cache: str | None, kind: str, key: str, url: str) -> str:
    name = re.sub(r"[^\w.-]", "_", url.rstrip("/").rpartition("/")[2])[:80].lstrip(".") or "_"
    return os.path.join(os.path.abspath(cache or default_cache()), kind, key[:16], name)


def _hold(folder: str, is_whole: Callable[[], bool], fetch: Callable[[], None]) -> None:
    """Locks an entry of the cache for this process, and fetches it where it is not whole."""
    entry = os.path.dirname(folder)
    path = f"{entry}.lock"
    with writing(entry):
        os.makedirs(os.path.dirname(entry), exist_ok=True)
        if path not in _locks:
            _locks[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        descriptor = _locks[path]
        while True:
            _flock(descriptor, fcntl.LOCK_SH)
            os.utime(path)
            if is_whole():
                return
            is_mine = _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_mine is False:
                print(f"waiting for another process that fetches {folder}", flush=True)
                is_mine = _flock(descriptor, fcntl.LOCK_EX)
            if not is_whole():
                if is_mine:
                    remove_partial(entry)
                fetch()
                print(f"fetched to {folder}", flush=True)


def _flock(descriptor: int, how: int) -> bool | None:
    """Returns whether the lock was got; None for a file system without locks."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:
        return None  # files still appear whole
    return True


def _fetch(
    bucket: Folder, folder: str, sizes: Mapping[str, int], digests: Mapping[str, str]
) -> None:
    """Fetches objects, several at once.

    Args:
        bucket: where they are.
        folder: to put them into.
        sizes: in bytes, by name.
        digests: hex sha256 by name, where it is known.
    """
    total = sum(sizes.values())
    os.makedirs(folder, exist_ok=True)
    _make_room(os.path.dirname(os.path.dirname(os.path.dirname(folder))), total, bucket)
    done, counting = 0, threading.Lock()
    with Progress(
        f"fetching {bucket.url}", max(1, round(total / 1e6)), "MB", interval=5.0, brief=True
    ) as progress:

        def count(number: int) -> None:
            nonlocal done
            with counting:
                before, done = round(done / 1e6), done + number
                progress.update(round(done / 1e6) - before)

        def download(name: str) -> None:
            if not stopped:
                path = os.path.join(folder, name)
                bucket.download(name, path, sizes[name], digests.get(name, ""), count)

        stopped: list[BaseException] = []
        with ThreadPoolExecutor(_STREAMS) as pool:
            for future in [pool.submit(download, name) for name in sizes]:
                try:
                    future.result()
                except BaseException as error:
                    stopped.append(error)
                    if not isinstance(error, Exception):
                        raise
        if stopped:
            raise stopped[0]


def _make_room(root: str, needed: int, bucket: Folder) -> None:
    """Removes what was not used for long, and more where the disk is full.

    Raises:
        UserError: there is not enough space all the same.
    """
    now = time.time()
    for used, entry in sorted(_entries(root)):
        is_old = now - used > _UNUSED_DAYS * 86400
        if not is_old and shutil.disk_usage(root).free >= needed + _RESERVE:
            break
        with locked(entry) as is_free:
            if is_free:
                shutil.rmtree(entry, ignore_errors=True)
                date = datetime.date.fromtimestamp(used)
                print(f"removed from the cache: {entry}, last used on {date}", flush=True)
    free = shutil.disk_usage(root).free
    if free < needed + _RESERVE:
        raise UserError(
            f"{bucket.named}: it takes {needed / 1e9:,.1f} GB, and {root} has {free / 1e9:,.1f} GB"
            f" free, of which {_RESERVE / 1e9:.0f} stay free. Free some space, or let --data_cache"
            " (or XDG_CACHE_HOME) name another folder."
        )


def _entries(root: str) -> Iterator[tuple[float, str]]:
    """Yields when the data sets and models of the cache were last used, and their folders."""
    for kind in ("datasets", "models"):
        with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(root, kind)) as found:
            for entry in found:
                if entry.is_dir():
                    with contextlib.suppress(FileNotFoundError):
                        yield os.stat(f"{entry.path}.lock").st_mtime, entry.path


def _write(path: str, data: bytes) -> None:
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _is_away(error: BaseException) -> bool:
    """Whether a server did not answer, or answered that it cannot at the moment."""
    names = {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "Timeout",
        "TimeoutError",
        "TransportError",
    }
    for cause in _causes(error):
        if any(kind.__name__ in names for kind in type(cause).__mro__):
            return True
        response = getattr(cause, "response", None)
        about = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        for status in (
            getattr(cause, "code", None),
            getattr(cause, "status", None),
            about.get("HTTPStatusCode"),
        ):
            if str(status) in ("408", "429", "500", "502", "503", "504"):
                return True
    return False


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:200]
    return text or type(error).__name__
