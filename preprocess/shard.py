"""One shard: from its rows to its finished file.

A finished shard with the fingerprint of its rows, the options and the libraries in its name is
kept. Any other is written: a few processes (threads where the source is remote or the shard small),
one more than there are cores, prepare its photos in chunks. A worker has one queue of chunks for
all its shards, so no core waits at the end of a shard; results are taken from the queue in order,
so the bytes do not depend on the number of processes.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from preprocess import photos, storage, tables
from preprocess.photos import Chunk, Row, Settings, Written

CHUNK_PHOTOS = 32
_WORTH_PROCESSES = 64  # photos of a shard; fewer are done before a process has started
_CHUNK_BYTES = 16 << 20
_PROGRESS_SECONDS = 1.0
_PROGRESS_SECONDS_REMOTE = 15.0

BOX_MEASURES = ("center_x", "center_y", "width", "height", "area", "aspect")


@dataclass
class Result:
    """Facts about a finished shard; stored as JSON beside it.

    Attributes:
        file, num_examples, bytes, sha256: as in the manifest.
        stored_as: name of the finished file in the incomplete folder.
        class_counts: label to records.
        boxes: for each of `BOX_MEASURES`: sum, sum of squares, min and max, over fractions of the
            original photo; `aspect` is width / height in pixels of it.
        clipped: boxes that reached slightly beyond their photo.
        damaged: relative paths of damaged photos that were kept, with what their decoder said.
        widths, heights: pixels of the original photos, to how many have them.
        rejected: rejected rows, with the keys of `rejected.jsonl`.
        kept: whether it was finished before this job.
    """

    file: str
    stored_as: str
    num_examples: int = 0
    bytes: int = 0
    sha256: str = ""
    class_counts: Counter[int] = field(default_factory=Counter)
    boxes: dict[str, list[float]] = field(default_factory=dict)
    clipped: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    kept: bool = False

    def to_json(self) -> str:
        """Returns the text of the sidecar."""
        return json.dumps(self.__dict__, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Parses a sidecar."""
        result = cls(**json.loads(text))
        for name in ("class_counts", "widths", "heights"):
            counts = getattr(result, name)
            setattr(result, name, Counter({int(key): value for key, value in counts.items()}))
        return result


class WriteFailed(Exception):  # noqa: N818 - some runners pass on its name as text
    """A file cannot be written or photos cannot be read now; the message says why."""


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns a failure of the machine into a `WriteFailed` that names what was being written."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise WriteFailed(f"{name}: {error.strerror or error}{where}") from error


class ShardWriter:
    """Makes shards, one after the other, in one thread of a worker."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._pool = _pool()
        self._limit = 2 * num_threads() + 1
        self._queue: deque[tuple[_OpenShard, Future[Chunk] | None]] = deque()

    def add(self, name: str, rows: pa.Table) -> list[Result]:
        """Queues a shard; returns when all its chunks are queued.

        Args:
            name: of the shard.
            rows: of it (`tables.JOINED`), in any order.

        Returns:
            The shards that were finished meanwhile.

        Raises:
            WriteFailed: a shard cannot be written, or the source cannot be read.
        """
        finished: list[Result] = []
        # The order of the hashes is as good as random, and the same on every worker.
        rows = rows.sort_by([("key", "ascending"), ("path", "ascending")]).combine_chunks()
        stored_as = f"{name}-{self._settings.fingerprint[:8]}{_fingerprint(rows)[:16]}"
        with self._failing(name):
            whole = _whole(self._settings.folder, name, stored_as)
        if whole:
            return [whole]
        shard = _OpenShard(self._settings, name, stored_as)
        # Threads wait for a network as well as processes do.
        in_processes = len(rows) >= _WORTH_PROCESSES and not storage.is_remote(
            self._settings.source
        )
        process = photos.HELPERS.process if in_processes else photos.process
        for chunk in _chunks(rows):
            self._shrink(self._limit - 1, finished)
            future = self._pool.submit(process, self._settings, chunk)
            self._queue.append((shard, future))
        self._queue.append((shard, None))
        return finished

    def finish(self) -> list[Result]:
        """Waits for what is queued; returns the shards that were finished."""
        finished: list[Result] = []
        self._shrink(0, finished)
        return finished

    def _shrink(self, length: int, finished: list[Result]) -> None:
        while len(self._queue) > length:
            shard, future = self._queue[0]
            with self._failing(shard.name):
                if future:
                    shard.write(future.result())
                else:
                    finished.append(shard.close())
            self._queue.popleft()

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Drops the queue and its partial files when something fails; names the shard."""
        try:
            with naming(name):
                yield
        except BaseException:
            for shard, future in self._queue:
                if future:
                    future.cancel()
                shard.abandon()
            self._queue.clear()
            raise


def num_threads() -> int:
    """One more than there are cores: one of them waits for the driver or the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 + (cores or 1)


class _OpenShard:
    """A shard that is being written, under a name of its own until it is finished."""

    def __init__(self, settings: Settings, name: str, stored_as: str):
        self.name = name
        self._folder = settings.folder
        self._path = f"{settings.folder}/partial/{name}.{os.urandom(8).hex()}"
        self._file: BinaryIO | None = None
        self._opened = contextlib.ExitStack()
        self._sha256 = hashlib.sha256()
        self._result = Result(name, stored_as)
        self._written: list[Written] = []
        self._reported = time.monotonic()

    def write(self, chunk: Chunk) -> None:
        if self._file is None:
            self._file = self._opened.enter_context(storage.create(self._path))
        self._file.write(chunk.framed)
        self._sha256.update(chunk.framed)
        self._result.bytes += len(chunk.framed)
        self._written += chunk.written
        self._result.rejected += chunk.rejected
        self._result.damaged |= chunk.damaged
        self._report()

    def close(self) -> Result:
        if self._file is None:
            self.write(Chunk(b"", [], [], {}))
        self._opened.close()
        result = self._result
        result.num_examples = len(self._written)
        result.sha256 = self._sha256.hexdigest()
        _add_statistics(result, self._written)
        # The shard first: a sidecar must not exist without its shard.
        whole = f"{self._folder}/whole/{result.stored_as}"
        storage.rename(self._path, whole)
        storage.write(f"{whole}.json", result.to_json().encode())
        return result

    def abandon(self) -> None:
        for undo in (self._opened.close, lambda: storage.delete(self._path)):
            with contextlib.suppress(Exception):  # the first error is the one to report
                undo()

    def _report(self) -> None:
        now = time.monotonic()
        remote = storage.is_remote(self._folder)
        if now - self._reported > (_PROGRESS_SECONDS_REMOTE if remote else _PROGRESS_SECONDS):
            self._reported = now
            counts = [len(self._written), len(self._result.rejected)]
            storage.write(
                f"{self._folder}/progress/{self.name}", json.dumps(counts).encode(), sync=False
            )


def _whole(folder: str, name: str, stored_as: str) -> Result | None:
    """Returns the facts about a finished shard whose bytes are those that its sidecar names."""
    try:
        text = storage.read(f"{folder}/whole/{stored_as}.json").decode()
        result = Result.from_json(text)
    except (OSError, ValueError, TypeError):
        return None
    # A publication that was stopped halfway has moved some shards already.
    for path in (f"{folder}/whole/{stored_as}", f"{published(folder)}/{name}"):
        with contextlib.suppress(OSError), storage.open_read(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == result.sha256:  # type: ignore[arg-type]
                result.kept = True
                return result
    return None


def published(folder: str) -> str:
    """Returns where the files of an incomplete folder are put together for publication.

    Locally a folder beside them, which one rename publishes. A bucket has no such rename: there it
    is the output itself, which counts only from its manifest on.
    """
    return folder.removesuffix(".incomplete") if storage.is_remote(folder) else f"{folder}/data"


def _fingerprint(rows: pa.Table) -> str:
    """Hashes every value of every column; strings with their lengths."""
    digest = hashlib.sha256()
    for name in tables.JOINED.names:
        column = rows[name].combine_chunks()
        if pa.types.is_string(column.type):
            digest.update(pc.binary_length(column).to_numpy().tobytes())
            digest.update("".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _chunks(rows: pa.Table) -> Iterator[list[Row]]:
    """Cuts rows into chunks of limited numbers of photos and of their bytes."""
    chunk: list[Row] = []
    size = 0
    for batch in rows.select(tables.JOINED.names[:13]).to_batches(max_chunksize=1024):
        for file, row, photo, path, length, offset, stored, _, *box, label in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if chunk and (len(chunk) == CHUNK_PHOTOS or size + length > _CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            entry = storage.Entry(path, length, offset, stored)
            chunk.append(Row(file, row, photo, entry, tuple(box), label))
            size += length
    if chunk:
        yield chunk


def _add_statistics(result: Result, written: list[Written]) -> None:
    result.class_counts.update(one.label for one in written)
    result.heights.update(one.height for one in written)
    result.widths.update(one.width for one in written)
    result.clipped = sum(one.clipped for one in written)
    measures = list(zip(*(_measures(one) for one in written), strict=True))
    for name, values in zip(BOX_MEASURES, measures, strict=False):
        # fsum is exact, so that the sums of a shard do not depend on a machine's vector units.
        squares = math.fsum(value * value for value in values)
        result.boxes[name] = [math.fsum(values), squares, min(values), max(values)]


def _measures(one: Written) -> tuple[float, ...]:
    xmin, ymin, xmax, ymax = one.box
    width, height = xmax - xmin, ymax - ymin
    aspect = width * one.width / (height * one.height)
    return (xmin + xmax) / 2, (ymin + ymax) / 2, width, height, width * height, aspect


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One pool for all writers of a process."""
    return ThreadPoolExecutor(num_threads(), thread_name_prefix="photos")
