"""The incomplete folder, the finished shards in it, the manifest, and the final rename.

    OUTPUT.incomplete/
        state.json          which job this is: a fingerprint of its input and flags
        data-FINGERPRINT/   what will be published: whole shards, then rejected.jsonl, dataset.json
        work-FINGERPRINT/   plan/ partial/ progress/ done/: one small file a shard

A shard stands in `data-…/` once it is whole, and `done/` says what it must be like. `data-…/`
becomes OUTPUT by one rename. Where a rename is a copy (buckets), files move one by one and the
manifest comes last: readers go by the manifest.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from preprocess import storage
from preprocess.shard import BOX_MEASURES, Result
from tfrecords import manifest
from tfrecords.errors import UserError

# To be raised when the same input and flags give other bytes than before.
_CODE_VERSION = 1


@dataclass(frozen=True)
class Output:
    """Paths of an output and of what becomes it.

    Attributes:
        path: where the data set will be.
        fingerprint: of the job, hex.
    """

    path: str
    fingerprint: str

    @property
    def incomplete(self) -> str:
        """Everything that is not finished."""
        return f"{self.path}.incomplete"

    @property
    def data(self) -> str:
        """What will be published. Its name, like that of `work`, keeps workers of a killed job,
        which may live on for a while, from putting their files into the next one.
        """  # noqa: D205
        return f"{self.incomplete}/data-{self.fingerprint[:12]}"

    @property
    def work(self) -> str:
        """Plans, partial files and results."""
        return f"{self.incomplete}/work-{self.fingerprint[:12]}"

    @property
    def replaced(self) -> str:
        """Where an old output stands while the new one takes its place."""
        return f"{self.path}.replaced"


def libraries() -> dict[str, str]:
    """Returns the versions of what decides the bytes of the output."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("apache-beam", "numpy", "pillow", "tensorflow")
    }
    return versions | {"python": platform.python_version()}


def fingerprint(parameters: dict[str, Any], stamp: str) -> str:
    """Returns what tells one job from another: flags, libraries, and the input as it is now."""
    facts = [_CODE_VERSION, manifest.FORMAT_VERSION, parameters, libraries(), stamp]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_free(output: Output, overwrite: bool) -> None:
    """Refuses to touch an output that exists, or that is no data set.

    Raises:
        UserError: there is an output, and no `overwrite`; or something else is there.
    """
    present = _present(output.path)
    if not present or _was_moving(output):
        return
    if manifest.FILE_NAME not in present:
        raise UserError(
            f"--output={output.path} exists and is no data set: it holds {sorted(present)[0]!r}"
            f" and no {manifest.FILE_NAME}. Nothing is replaced there; name another folder."
        )
    if not overwrite:
        raise UserError(
            f"--output={output.path} exists. Pass --overwrite to replace it once the new one is"
            " complete, or name another folder."
        )


@contextlib.contextmanager
def locked(output: Output) -> Iterator[None]:
    """Keeps other jobs off the incomplete folder, and heals what a killed job left.

    Raises:
        UserError: another job is at work there, or what stands there is no job's.
    """
    _require_own(output)
    if storage.is_remote(output.path):
        yield
        return
    descriptor = _lock(output.incomplete)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        undo.callback(_remove_if_empty, output.incomplete)
        _heal(output)
        yield


def is_published(output: Output) -> bool:
    """Whether this very job was killed after it had published, before it had cleaned up."""
    if manifest.FILE_NAME not in _present(output.path):
        return False
    if storage.is_remote(output.path):
        return _was_moving(output) and manifest.FILE_NAME not in storage.sizes(output.data)
    return _read_state(output)[0] == output.fingerprint and not os.path.exists(output.data)


def start(output: Output, names: list[str]) -> tuple[list[str], str]:
    """Makes the incomplete folder ready: goes on where the same job was killed, or starts over.

    Args:
        output: where.
        names: of all shards.

    Returns:
        The shards that are still to be written, and a sentence about what was found.
    """
    before, _ = _read_state(output)
    if before == output.fingerprint:
        done = [name for name in names if _is_whole(output, name)]
        note = f"going on where a job was stopped: {len(done)} of {len(names)} shards are whole"
        for folder in ("partial", "progress"):
            storage.delete(f"{output.work}/{folder}")
    else:
        done = []
        left_over = storage.sizes(output.incomplete)
        note = (
            "starting over: the input, the flags or a library changed since a job was stopped here"
            if left_over
            else ""
        )
        _clear(output)
        _write_state(output, moving=False)
    for folder in (output.data, *(f"{output.work}/{name}" for name in _WORK_FOLDERS)):
        storage.make_folder(folder)
    done_names = set(done)
    return [name for name in names if name not in done_names], note


def results(output: Output, names: list[str]) -> Iterator[Result]:
    """Yields what is known of each shard, in order.

    Raises:
        UserError: a shard is not there although the runner said that it was done.
    """
    for name in names:
        try:
            yield Result.from_json(storage.read(f"{output.work}/done/{name}").decode())
        except FileNotFoundError:
            raise UserError(
                f"{name} was not written, and the runner gave no error. Do workers see"
                f" {output.incomplete!r}? It must be a path that all machines share."
            ) from None


class Totals:
    """Sums over shards, for the manifest; adds up in the order of shards."""

    def __init__(self, num_classes: int):
        self.shards: dict[str, list[manifest.Shard]] = {}
        self.rejected: list[dict[str, Any]] = []
        self.num_examples = 0
        self._class_counts: dict[str, Counter[int]] = {}
        self._num_classes = num_classes
        self._boxes: dict[str, list[list[float]]] = {name: [] for name in BOX_MEASURES}
        self._clipped = 0
        self._widths: Counter[int] = Counter()
        self._heights: Counter[int] = Counter()

    def add(self, split: str, result: Result) -> None:
        """Adds a shard of a split."""
        self.shards.setdefault(split, []).append(
            manifest.Shard(result.file, result.num_examples, result.bytes, result.sha256)
        )
        self.num_examples += result.num_examples
        self.rejected += result.rejected
        self._class_counts.setdefault(split, Counter()).update(result.class_counts)
        for name, sums in result.boxes.items():
            self._boxes[name].append(sums)
        self._clipped += result.clipped
        self._widths.update(result.widths)
        self._heights.update(result.heights)

    def splits(self) -> dict[str, manifest.Split]:
        """Returns the splits that have records."""
        splits = {}
        for name, shards in self.shards.items():
            counts = self._class_counts[name]
            total = sum(shard.num_examples for shard in shards)
            if total:
                per_class = [counts[label] for label in range(1, self._num_classes + 1)]
                splits[name] = manifest.Split(total, shards, per_class)
        return splits

    def box_stats(self) -> dict[str, Any]:
        """Returns mean, std, min and max of each of `BOX_MEASURES`, and the number clipped.

        Centre, size and area are fractions of the photo; aspect is width / height in pixels.
        """
        stats: dict[str, Any] = {"clipped": self._clipped}
        for name, sums in self._boxes.items():
            if not sums:
                continue
            totals, squares, lows, highs = zip(*sums, strict=True)
            mean = math.fsum(totals) / self.num_examples
            variance = max(0.0, math.fsum(squares) / self.num_examples - mean * mean)
            stats[name] = {
                "mean": round(mean, 5),
                "std": round(math.sqrt(variance), 5),
                "min": round(min(lows), 5),
                "max": round(max(highs), 5),
            }
        return stats

    def original_sizes(self) -> dict[str, Any]:
        """Returns min, median and max of the photos' own widths and heights, in pixels."""
        return {
            name: {"min": min(counts), "median": _median(counts), "max": max(counts)}
            for name, counts in (("width", self._widths), ("height", self._heights))
            if counts
        }


def write_rejected(output: Output, known: pa.Table, found: list[dict[str, Any]]) -> Counter[str]:
    """Writes `rejected.jsonl` into the incomplete folder, sorted by file and row.

    Args:
        output: where.
        known: rows set aside before photos were opened, `source.REJECTED`.
        found: rows set aside with their photos.

    Returns:
        How many by reason. Without any there is no file.
    """
    path = f"{output.data}/{manifest.REJECTED_NAME}"
    table = pa.concat_tables([known, pa.Table.from_pylist(found, schema=known.schema)])
    if not len(table):
        storage.delete(path)
        return Counter()
    table = table.sort_by([("file", "ascending"), ("row", "ascending")])
    with storage.create(path) as file:
        for batch in table.to_batches(max_chunksize=4096):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
            file.write("".join(lines).encode())
    counts = table["reason"].value_counts().to_pylist()
    return Counter({count["values"]: count["counts"] for count in counts})


def publish(output: Output, contents: manifest.Manifest, overwrite: bool) -> None:
    """Puts the data set in its place, all of it at once.

    Raises:
        UserError: it cannot be put there.
    """
    wanted = {shard.file for split in contents.splits.values() for shard in split.shards}
    if contents.rejected:
        wanted.add(manifest.REJECTED_NAME)
    for name in storage.sizes(output.data).keys() - wanted:
        storage.delete(f"{output.data}/{name}")
    storage.write(f"{output.data}/{manifest.FILE_NAME}", contents.to_json().encode())
    if storage.is_remote(output.path):
        _move_files(output, sorted(wanted), overwrite)
    else:
        _move_folder(output, overwrite)
    clean_up(output)


def clean_up(output: Output) -> None:
    """Removes what a published output leaves behind; the state last, which says that it is."""
    remote = storage.is_remote(output.path)
    if not remote:
        _sync_folder(os.path.dirname(output.path))
        storage.delete(output.replaced)
    for name in storage.sizes(output.incomplete) if remote else os.listdir(output.incomplete):
        if name != "state.json":
            storage.delete(f"{output.incomplete}/{name}")
    storage.delete(f"{output.incomplete}/state.json")
    if not remote:
        _remove_if_empty(output.incomplete)


_OWN_TRACES = re.compile(r"(data|work)(-[0-9a-f]{12})?/|state\.json")
_OWN_FILES = re.compile(
    rf"({re.escape(manifest.FILE_NAME)}|{re.escape(manifest.REJECTED_NAME)}"
    rf"|({'|'.join(manifest.SPLITS)})-\d{{5}}-of-\d{{5}}\.tfrecord)$"
)
_WORK_FOLDERS = ("plan", "partial", "progress", "done")


def _present(path: str) -> set[str]:
    """Returns the names of what stands in an output, or its own if it is no folder."""
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
            continue  # the job that had it has just published
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
    with contextlib.suppress(OSError):  # it holds something: a job can go on from there
        os.rmdir(folder)


def _require_own(output: Output) -> None:
    """Refuses to clear away what only looks like the traces of a job.

    Raises:
        UserError: there are other things.
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
    """Ends a replacement that was killed between its renames, whichever way is safe."""
    if not os.path.lexists(output.replaced):
        return
    if os.path.lexists(output.path):
        storage.delete(output.replaced)
    else:
        os.rename(output.replaced, output.path)


def _read_state(output: Output) -> tuple[str, bool]:
    """Returns the fingerprint of the job whose folder this is, and whether it moves its files."""
    try:
        state = json.loads(storage.read(f"{output.incomplete}/state.json"))
        return state["fingerprint"], state["moving"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", False


def _write_state(output: Output, moving: bool) -> None:
    state = json.dumps({"fingerprint": output.fingerprint, "moving": moving})
    storage.write(f"{output.incomplete}/state.json", state.encode())


def _was_moving(output: Output) -> bool:
    """Whether this job was stopped while it moved its files into a bucket's output."""
    return storage.is_remote(output.path) and _read_state(output) == (output.fingerprint, True)


def _clear(output: Output) -> None:
    if storage.is_remote(output.path):
        storage.delete(output.incomplete)
        return
    for name in os.listdir(output.incomplete):
        storage.delete(f"{output.incomplete}/{name}")


def _is_whole(output: Output, name: str) -> bool:
    """Whether a shard is what its sidecar says, to the byte."""
    try:
        result = Result.from_json(storage.read(f"{output.work}/done/{name}").decode())
    except (OSError, ValueError, TypeError):
        return False
    # Publishing to a bucket that was stopped halfway has moved some shards already.
    folders = [output.data, output.path] if storage.is_remote(output.path) else [output.data]
    for folder in folders:
        with contextlib.suppress(OSError), storage.open_read(f"{folder}/{name}") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == result.sha256  # type: ignore[arg-type]
    return False


def _move_folder(output: Output, overwrite: bool) -> None:
    _sync_folder(output.data)
    require_free(output, overwrite)  # it may have come to be while this job ran
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


def _move_files(output: Output, names: list[str], overwrite: bool) -> None:
    """The rename of a bucket: without a manifest readers see no data set, so it goes first and
    comes last.
    """  # noqa: D205
    require_free(output, overwrite)
    _write_state(output, moving=True)
    waiting = storage.sizes(output.data)
    for name in sorted(_present(output.path), key=lambda name: name != manifest.FILE_NAME):
        if name in waiting or name not in names:
            storage.delete(f"{output.path}/{name}")
    for name in names:
        if name in waiting:
            storage.rename(f"{output.data}/{name}", f"{output.path}/{name}")
    storage.rename(f"{output.data}/{manifest.FILE_NAME}", f"{output.path}/{manifest.FILE_NAME}")


def _sync_folder(path: str) -> None:
    """Makes renames in a folder outlive a power cut."""
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _median(counts: Counter[int]) -> int:
    """Returns the lower median of values counted."""
    half = (sum(counts.values()) + 1) // 2
    for value in sorted(counts):
        half -= counts[value]
        if half <= 0:
            return value
    raise ValueError("no values")
