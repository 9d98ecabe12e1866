"""One shard: from its plan, a list of rows, to its finished file.

Photos are worked on in chunks by a few threads, one more than there are cores. A worker keeps its
chunks in one queue that runs on from shard to shard, so no core waits while a shard ends; results
are taken from it in order, so the bytes do not depend on threads.
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
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from preprocess import image, storage
from tfrecords import example, pipelines

PLAN = pa.schema(
    [
        ("file", pa.large_string()),  # CSV
        ("row", pa.int64()),  # its line, from 1
        ("path", pa.large_string()),  # where the source has the photo
        ("size", pa.int64()),  # and the rest of its storage.Entry
        ("offset", pa.int64()),
        ("stored", pa.int64()),
        ("xmin", pa.float64()),  # box in pixels of the photo
        ("ymin", pa.float64()),
        ("xmax", pa.float64()),
        ("ymax", pa.float64()),
        ("label", pa.int32()),  # class, from 1
    ]
)

CHUNK_PHOTOS = 32
_CHUNK_BYTES = 16 << 20
_PROGRESS_SECONDS = 1.0
_PROGRESS_SECONDS_REMOTE = 15.0

BOX_MEASURES = ("center_x", "center_y", "width", "height", "area", "aspect")


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to make any shard.

    Attributes:
        source: path of the folder, zip or bucket.
        data: folder of the finished shards.
        work: folder with `plan/`, `done/`, `progress/` and `partial/`.
        options: how photos are stored.
        class_names: label = index + 1.
    """

    source: str
    data: str
    work: str
    options: image.ImageOptions
    class_names: tuple[str, ...]


@dataclass
class Result:
    """What there is to know of a finished shard; stored as JSON beside it.

    Attributes:
        file, num_examples, bytes, sha256: as in the manifest.
        class_counts: label to records.
        boxes: for each of `BOX_MEASURES`: sum, sum of squares, min and max, over fractions of the
            original photo; `aspect` is width / height in pixels of it.
        clipped: boxes that stood out of their photo a little.
        widths, heights: pixels of the original photos, to how many have them.
        rejected: rows set aside, with the keys of `rejected.jsonl`.
    """

    file: str
    num_examples: int = 0
    bytes: int = 0
    sha256: str = ""
    class_counts: Counter[int] = field(default_factory=Counter)
    boxes: dict[str, list[float]] = field(default_factory=dict)
    clipped: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)

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


class ShardFailed(Exception):  # noqa: N818 - its name stands in the message that users see
    """A shard cannot be written or its photos cannot be read now; the message says why."""


class ShardWriter:
    """Makes shards, one after the other, in one thread of a worker."""

    def __init__(self, job: Job):
        image.warm_up(job.options)
        self._job = job
        self._pool = _pool()
        self._limit = 2 * _num_threads() + 1
        self._queue: deque[tuple[_OpenShard, Future[_Chunk] | None]] = deque()

    def add(self, name: str) -> list[Result]:
        """Queues a shard; returns when all its chunks have been taken up.

        Args:
            name: of a plan in `work/plan`.

        Returns:
            The shards that were finished meanwhile.

        Raises:
            ShardFailed: a shard cannot be written, or the source cannot be read.
        """
        finished: list[Result] = []
        with self._failing(name):
            plan = read_plan(f"{self._job.work}/plan/{name}")
        shard = _OpenShard(self._job, name)
        for rows in _chunks(plan):
            self._shrink(self._limit - 1, finished)
            self._queue.append((shard, self._pool.submit(_process, self._job, rows)))
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
            yield
        except BaseException as error:
            for shard, future in self._queue:
                if future:
                    future.cancel()
                shard.abandon()
            self._queue.clear()
            if not isinstance(error, OSError):
                raise
            where = f" ({error.filename})" if error.filename else ""
            raise ShardFailed(f"{name}: {error.strerror or error}{where}") from error


class _Row(NamedTuple):
    file: str
    row: int
    entry: storage.Entry
    box: tuple[float, float, float, float]
    label: int

    @property
    def photo(self) -> str:
        return "/".join(self.entry.path.split("/")[-3:])


class _Written(NamedTuple):
    label: int
    box: tuple[float, float, float, float]
    height: int
    width: int
    clipped: bool


class _Chunk(NamedTuple):
    framed: bytes
    written: list[_Written]
    rejected: list[dict[str, Any]]


class _OpenShard:
    """A shard that is being written, under a name of its own until it is whole."""

    def __init__(self, job: Job, name: str):
        self.name = name
        self.path = f"{job.work}/partial/{name}.{os.urandom(8).hex()}"
        self._job = job
        self._file: BinaryIO | None = None
        self._opened = contextlib.ExitStack()
        self._sha256 = hashlib.sha256()
        self._result = Result(name)
        self._written: list[_Written] = []
        self._reported = time.monotonic()

    def write(self, chunk: "_Chunk") -> None:
        if self._file is None:
            self._file = self._opened.enter_context(storage.create(self.path))
        self._file.write(chunk.framed)
        self._sha256.update(chunk.framed)
        self._result.bytes += len(chunk.framed)
        self._written += chunk.written
        self._result.rejected += chunk.rejected
        self._report()

    def close(self) -> Result:
        if self._file is None:
            self.write(_Chunk(b"", [], []))
        self._opened.close()
        result = self._result
        result.num_examples = len(self._written)
        result.sha256 = self._sha256.hexdigest()
        _add_statistics(result, self._written)
        # The shard first: a sidecar without its shard would be a promise that nobody keeps.
        storage.rename(self.path, f"{self._job.data}/{self.name}")
        storage.write(f"{self._job.work}/done/{self.name}", result.to_json().encode())
        return result

    def abandon(self) -> None:
        for undo in (self._opened.close, lambda: storage.delete(self.path)):
            with contextlib.suppress(Exception):  # the first error is the one to report
                undo()

    def _report(self) -> None:
        now = time.monotonic()
        remote = storage.is_remote(self._job.work)
        if now - self._reported > (_PROGRESS_SECONDS_REMOTE if remote else _PROGRESS_SECONDS):
            self._reported = now
            counts = [len(self._written), len(self._result.rejected)]
            storage.write(
                f"{self._job.work}/progress/{self.name}", json.dumps(counts).encode(), sync=False
            )


def write_plan(path: str, rows: pa.Table) -> None:
    """Writes the rows of a shard (`PLAN`)."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PLAN) as writer:
        writer.write_table(rows.cast(PLAN))
    storage.write(path, sink.getvalue().to_pybytes(), sync=False)


def read_plan(path: str) -> pa.Table:
    """Reads the rows of a shard (`PLAN`)."""
    with pa.ipc.open_file(pa.py_buffer(storage.read(path))) as reader:
        return reader.read_all()


def _chunks(plan: pa.Table) -> Iterator[list[_Row]]:
    """Cuts a plan into chunks of so many photos, and so many bytes of them."""
    chunk: list[_Row] = []
    size = 0
    for batch in plan.to_batches(max_chunksize=1024):
        for file, row, path, length, offset, stored, *box, label in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if chunk and (len(chunk) == CHUNK_PHOTOS or size + length > _CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            entry = storage.Entry(path, length, offset, stored)
            chunk.append(_Row(file, row, entry, tuple(box), label))
            size += length
    if chunk:
        yield chunk


def _process(job: Job, rows: list[_Row]) -> _Chunk:
    """Reads, prepares and frames the photos of a chunk."""
    source = storage.opened(job.source)
    photos = [_read(source, row.entry) for row in rows]
    prepared = iter(
        image.prepare([photo for photo in photos if isinstance(photo, bytes)], job.options)
    )
    framed, written, rejected = [], [], []
    for row, photo in zip(rows, photos, strict=True):
        try:
            if isinstance(photo, image.Rejected):
                raise photo
            result = next(prepared)
            if isinstance(result, image.Rejected):
                raise result
            record, facts = _record(job, row, photo, result)
        except image.Rejected as why:
            rejected.append(
                {"file": row.file, "row": row.row, "photo": row.photo,
                 "reason": why.reason, "detail": why.detail}
            )  # fmt: skip
            continue
        framed.append(example.frame(example.encode(record)))
        written.append(facts)
    return _Chunk(b"".join(framed), written, rejected)


def _read(source: storage.Source, entry: storage.Entry) -> bytes | image.Rejected:
    if entry.size > storage.MAX_PHOTO_BYTES:
        return image.Rejected(
            "too_large",
            f"a file of {entry.size} bytes; photos of up to {storage.MAX_PHOTO_BYTES} are read",
        )
    try:
        return source.read(entry)
    # These say something about the photo. Other errors (a network that fails, a disk that
    # breaks) say something about the machine, and must not cost rows.
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return image.Rejected("unreadable", str(error))


def _record(
    job: Job, row: _Row, data: bytes, photo: image.Photo
) -> tuple[example.Record, _Written]:
    box, clipped = image.normalise_box(row.box, photo.original_height, photo.original_width)
    record = example.Record(
        encoded=photo.encoded,
        height=job.options.height,
        width=job.options.width,
        original_height=photo.original_height,
        original_width=photo.original_width,
        filename=row.photo,
        sha256=hashlib.sha256(data).hexdigest(),
        bbox=image.place_box(box, photo, job.options),
        label=row.label,
        text=job.class_names[row.label - 1],
    )
    return record, _Written(row.label, box, photo.original_height, photo.original_width, clipped)


def _add_statistics(result: Result, written: list[_Written]) -> None:
    result.class_counts.update(one.label for one in written)
    result.heights.update(one.height for one in written)
    result.widths.update(one.width for one in written)
    result.clipped = sum(one.clipped for one in written)
    measures = list(zip(*(_measures(one) for one in written), strict=True))
    for name, values in zip(BOX_MEASURES, measures, strict=False):
        # fsum is exact, so that the sums of a shard do not depend on a machine's vector units.
        squares = math.fsum(value * value for value in values)
        result.boxes[name] = [math.fsum(values), squares, min(values), max(values)]


def _measures(one: _Written) -> tuple[float, ...]:
    xmin, ymin, xmax, ymax = one.box
    width, height = xmax - xmin, ymax - ymin
    aspect = width * one.width / (height * one.height)
    return (xmin + xmax) / 2, (ymin + ymax) / 2, width, height, width * height, aspect


def _num_threads() -> int:
    """One more than there are cores: one of them waits for the interpreter or the disk."""
    return 1 + pipelines.CORES


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One pool for all writers of a process."""
    return ThreadPoolExecutor(_num_threads(), thread_name_prefix="photos")
