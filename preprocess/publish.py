"""The incomplete folder, and how its finished files are published.

    OUTPUT.incomplete/
        whole/       finished shards, NAME-FINGERPRINT, each with a JSON file about it
        partial/     shards that are being written
        progress/    how far they are
        rejected-RUN/, report-RUN.json    results of one run of the pipeline, for its driver
        data/        what will be published: shards, then rejected.jsonl, croissant.json,
                     dataset.json

`data/` becomes OUTPUT by one rename. Where a rename is a copy (buckets), files move one by one and
the manifest comes last: readers go by the manifest. No file says which job began this folder: the
name of a finished shard says which rows, options and libraries it was made from.
"""

import contextlib
import errno
import fcntl
import hashlib
import heapq
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from preprocess import shard, storage
from preprocess.statistics import Report, Totals, report_path
from tfrecords import croissant, manifest
from tfrecords.errors import UserError

CODE_VERSION = 2
"""To be raised when the same input and flags give other bytes than before."""


REJECTED_FIELDS = ("file", "row", "photo", "reason", "detail")
"""Of a line of `rejected.jsonl`."""


@dataclass(frozen=True)
class Output:
    """Paths of an output and of what becomes it.

    Attributes:
        path: where the data set will be.
        run: names this run's own files.
    """

    path: str
    run: str

    @property
    def incomplete(self) -> str:
        """Everything that is not finished."""
        return f"{self.path}.incomplete"

    @property
    def data(self) -> str:
        """What will be published; of a bucket the output itself."""
        return shard.published(self.incomplete)

    @property
    def rejected(self) -> str:
        """Where the list of rejected rows is until it is published."""
        return f"{self.incomplete}/{manifest.REJECTED_NAME}"

    @property
    def replaced(self) -> str:
        """Where an old output is while the new one takes its place."""
        return f"{self.path}.replaced"


def libraries() -> dict[str, str]:
    """Returns the versions of what decides the bytes of the output."""
    names = ("numpy", "opencv-python-headless", "pillow", "protobuf", "simplejpeg")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"python": platform.python_version()}


def fingerprint(parameters: dict[str, Any], class_names: list[str]) -> str:
    """Returns a hash of what decides a shard's bytes beside its rows: flags, classes, versions."""
    facts = [CODE_VERSION, manifest.FORMAT_VERSION, parameters, class_names, libraries()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_free(output: Output, overwrite: bool) -> None:
    """Refuses to touch an output that exists, or that is no data set.

    Raises:
        UserError: there is an output and no `overwrite`, or there are other files.
    """
    if not storage.is_remote(output.path) and os.path.ismount(output.path):
        raise UserError(
            f"--output={output.path} is where a disk is mounted, and a data set appears by a rename"
            " that cannot replace that. Name a folder inside it."
        )
    present = _present(output.path)
    if not present or _was_moving(output, present):
        return
    if manifest.FILE_NAME not in present:
        raise UserError(
            f"--output={output.path} exists and is no data set: it holds {sorted(present)[0]!r}"
            f" and no {manifest.FILE_NAME}. Nothing is replaced there; name another folder."
        )
    for name in sorted(present):
        if not storage.is_remote(output.path) and not _OWN_FILES.match(name):
            raise UserError(
                f"--output={output.path} holds {name!r} beside a data set, and replacing it would"
                " delete that too. Move it away, or name another folder."
            )
    if not overwrite:
        raise UserError(
            f"--output={output.path} exists. Pass --overwrite to replace it once the new one is"
            " complete, or name another folder."
        )


@contextlib.contextmanager
def locked(output: Output) -> Iterator[None]:
    """Locks the incomplete folder, and repairs what a killed job left.

    Raises:
        UserError: another job is running there, or the folder holds other files.
    """
    _require_own(output)
    if storage.is_remote(output.path):
        if _is_published(output):
            clean_up(output)
        yield
        return
    descriptor = _lock(output.incomplete)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        undo.callback(_remove_if_empty, output.incomplete)
        _heal(output)
        if _is_published(output):
            clean_up(output)
        yield


def has_traces(output: Output) -> bool:
    """Whether a job that was stopped left something behind."""
    if storage.is_remote(output.path):
        return bool(storage.sizes(output.incomplete))
    return os.path.lexists(output.incomplete) or os.path.lexists(output.replaced)


def start(output: Output, fingerprint: str) -> str:
    """Prepares the incomplete folder, and removes finished shards that no longer fit.

    Args:
        output: where.
        fingerprint: of the options and libraries.

    Returns:
        A sentence about what was found, or "".
    """
    mine = re.compile(rf"whole/[^/]*-{fingerprint[:8]}[0-9a-f]{{16}}(\.json)?$")
    left_over = sorted(storage.sizes(output.incomplete))
    kept = [name for name in left_over if mine.match(name) and name.endswith(".json")]
    for name in left_over:
        if not mine.match(name) and not name.startswith("data/") and name != manifest.FILE_NAME:
            storage.delete(f"{output.incomplete}/{name}")
    for folder in (*_FOLDERS, f"rejected-{output.run}"):
        storage.make_folder(f"{output.incomplete}/{folder}")
    if kept:
        return f"going on where a job was stopped: {len(kept)} shards are there"
    if any(name.startswith(("whole/", "data-")) for name in left_over):
        return "starting over: the flags, the class names or a library changed since a job stopped"
    return ""


def write_rejected(output: Output, found: list[dict[str, Any]]) -> None:
    """Writes `rejected.jsonl` into the incomplete folder, sorted by file and row, if there is any.

    Args:
        output: where.
        found: rows rejected with their photos.
    """
    folder = f"{output.incomplete}/rejected-{output.run}"
    pieces = (_rows_of(f"{folder}/{name}") for name in sorted(storage.sizes(folder)))
    known = (row for piece in pieces for row in piece)
    by_place = lambda row: (row["file"], row["row"])  # noqa: E731
    with contextlib.ExitStack() as opened:
        file = None
        for row in heapq.merge(known, sorted(found, key=by_place), key=by_place):
            file = file or opened.enter_context(storage.create(output.rejected))
            ordered = {name: row[name] for name in REJECTED_FIELDS}
            file.write((json.dumps(ordered, ensure_ascii=False) + "\n").encode())


def publish(output: Output, contents: manifest.Manifest, totals: Totals, overwrite: bool) -> None:
    """Puts the data set in its place, all of it at once.

    Args:
        output: where.
        contents: its manifest.
        totals: of its shards, which are in the incomplete folder.
        overwrite: whether it may replace another one.

    Raises:
        UserError: it cannot be put there.
    """
    wanted = {shard.file for split in contents.splits.values() for shard in split.shards}
    moves = {f"whole/{totals.stored_as[name]}": name for name in sorted(wanted)}
    if contents.rejected:
        moves[manifest.REJECTED_NAME] = manifest.REJECTED_NAME
    require_free(output, overwrite)  # it may have appeared while this job ran
    text = contents.to_json().encode()
    if storage.is_remote(output.path):
        # From here on only this job can finish the output, which has no manifest until the end.
        storage.write(f"{output.incomplete}/{manifest.FILE_NAME}", text)
    _make_way(output, set(moves.values()))
    waiting = storage.sizes(output.incomplete)
    for source, name in moves.items():
        if source in waiting:
            storage.rename(f"{output.incomplete}/{source}", f"{output.data}/{name}")
    described = croissant.to_json(contents).encode()
    for name, content in ((croissant.FILE_NAME, described), (manifest.FILE_NAME, text)):
        storage.write(f"{output.incomplete}/partial/{name}", content)
        storage.rename(f"{output.incomplete}/partial/{name}", f"{output.data}/{name}")
    if not storage.is_remote(output.path):
        _move_folder(output)
    clean_up(output)


def clean_up(output: Output) -> None:
    """Removes what is left after publication; the file that marks it goes last."""
    if storage.is_remote(output.path):
        for name in storage.sizes(output.incomplete):
            if name != manifest.FILE_NAME:
                storage.delete(f"{output.incomplete}/{name}")
        storage.delete(f"{output.incomplete}/{manifest.FILE_NAME}")
        return
    _sync_folder(os.path.dirname(output.path))
    storage.delete(output.replaced)
    for _ in range(10):  # a worker of a killed job may be adding files meanwhile
        with contextlib.suppress(OSError):
            for name in os.listdir(output.incomplete):
                storage.delete(f"{output.incomplete}/{name}")
            os.rmdir(output.incomplete)
            return


def read_report(output: Output) -> Report:
    """Reads the report of the pipeline.

    Raises:
        UserError: there is none, although the runner reported success.
    """
    try:
        return Report.from_json(storage.read(report_path(output.incomplete, output.run)).decode())
    except FileNotFoundError:
        raise UserError(
            f"nothing was written, and the runner gave no error. Do workers see"
            f" {output.incomplete!r}? It must be a path that all machines share."
        ) from None


def forget(output: Output) -> None:
    """Removes what a refused input leaves, except finished shards and rejected rows."""
    kept = (manifest.FILE_NAME, manifest.REJECTED_NAME)
    for name in storage.sizes(output.incomplete):
        if not name.startswith(("whole/", "data/")) and name not in kept:
            storage.delete(f"{output.incomplete}/{name}")
    if not storage.is_remote(output.path) and not os.listdir(f"{output.incomplete}/whole"):
        for name in os.listdir(output.incomplete):
            _remove_if_empty(f"{output.incomplete}/{name}")


_FOLDERS = ("whole", "partial", "progress", "data")
_OWN_TRACES = re.compile(
    r"(whole|partial|progress|data|rejected-[0-9a-f]+)/|report-[0-9a-f]+\.json"
    rf"|({re.escape(manifest.FILE_NAME)}|{re.escape(manifest.REJECTED_NAME)})"
    r"(\.[0-9a-f]{32}\.partial)?$"
    r"|(data|work)-[0-9a-f]{12}/|state\.json"  # of version 0.1
)
_OWN_FILES = re.compile(
    rf"({re.escape(manifest.FILE_NAME)}|{re.escape(manifest.REJECTED_NAME)}"
    rf"|{re.escape(croissant.FILE_NAME)}"
    rf"|({'|'.join(manifest.SPLITS)})-\d{{5}}-of-\d{{5}}\.tfrecord)$"
)


def _present(path: str) -> set[str]:
    """Returns the names in an output folder, or its own name if it is a file."""
    if storage.is_remote(path):
        return set(storage.sizes(path))
    if os.path.isdir(path):
        return set(os.listdir(path))  # a rename replaces an empty folder
    return {os.path.basename(path)} if os.path.lexists(path) else set()


def _lock(folder: str) -> int:
    """Locks a folder through its own descriptor: nothing is left when the process dies."""
    while True:
        os.makedirs(folder, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the job that held the lock has just published
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"another job is writing {folder}. Wait for it, or name another --output."
                ) from None
            raise
        # The folder may have been removed between opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):  # it holds something that a job can continue with
        os.rmdir(folder)


def _require_own(output: Output) -> None:
    """Refuses to delete files that no job has made.

    Raises:
        UserError: there are such files.
    """
    places = [(output.incomplete, _OWN_TRACES)]
    if not storage.is_remote(output.path):
        places.append((output.replaced, _OWN_FILES))
    for folder, own in places:
        for name in sorted(storage.sizes(folder)):
            if not own.match(name):
                raise UserError(
                    f"{folder} is where a job for --output={output.path} keeps what is not"
                    f" finished, but it holds something else: {name!r}. Move it away, or name"
                    " another --output."
                )


def _heal(output: Output) -> None:
    """Finishes or undoes a replacement that was killed between its renames."""
    if not os.path.lexists(output.replaced):
        return
    if os.path.lexists(output.path):
        storage.delete(output.replaced)
    else:
        os.rename(output.replaced, output.path)


def _is_published(output: Output) -> bool:
    """Whether a job was stopped after it had published, before it had cleaned up."""
    if manifest.FILE_NAME not in _present(output.path):
        return False
    if not storage.is_remote(output.path):
        left = os.listdir(output.incomplete)
        return bool(left) and "data" not in left
    try:
        moved = storage.read(f"{output.incomplete}/{manifest.FILE_NAME}")
        return moved == storage.read(f"{output.path}/{manifest.FILE_NAME}")
    except OSError:
        return False


def _was_moving(output: Output, present: set[str]) -> bool:
    """Whether a job was stopped while it moved its files into a bucket's output."""
    return (
        storage.is_remote(output.path)
        and manifest.FILE_NAME not in present
        and manifest.FILE_NAME in storage.sizes(output.incomplete)
    )


def _rows_of(path: str) -> Iterator[dict[str, Any]]:
    for line in storage.read(path).splitlines():
        yield json.loads(line)


def _make_way(output: Output, wanted: set[str]) -> None:
    """Removes unwanted files from the folder that will be published; the manifest first."""
    names = sorted(storage.sizes(output.data), key=lambda name: name != manifest.FILE_NAME)
    remote = storage.is_remote(output.path)
    for name in names:
        if name not in wanted and (not remote or _OWN_FILES.match(name)):
            storage.delete(f"{output.data}/{name}")


def _move_folder(output: Output) -> None:
    _sync_folder(output.data)
    try:
        if _present(output.path):
            os.rename(output.path, output.replaced)
        os.rename(output.data, output.path)
    except OSError as error:
        _heal(output)
        raise UserError(
            f"the data set is complete at {output.data} but cannot be renamed to {output.path}:"
            f" {error.strerror}. Move it there yourself, or run the same command again."
        ) from None


def _sync_folder(path: str) -> None:
    """Makes renames in a folder outlive a power cut."""
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
