"""The photos of a few rows: read, prepared, and framed as records.

Python runs one thread at a time, so threads that each do a little Python between decoding and
encoding keep two cores from being busy. `Helpers` are processes that do nothing but `process`. They
are no children of `multiprocessing`, whose start runs the caller's main module again, and they end
when their input does: none outlives a driver that is killed.
"""

import contextlib
import fcntl
import gc
import hashlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from preprocess import storage
from tfrecords import example, image

_PIPE_BYTES = 1 << 20
# Signals of a crash inside a decoder; any other signal comes from outside the process.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True)
class Settings:
    """What a worker needs to make any shard.

    Attributes:
        source: path of the folder, zip or bucket.
        follow_links: whether links that lead out of a folder are followed.
        folder: the incomplete folder, which all workers share.
        image: how photos are stored.
        box_unit: `pixel`, or `fraction` of the photo.
        class_names: label = index + 1.
        fingerprint: of the options and libraries, hex.
        run: names this run of the pipeline and its own files in the incomplete folder.
    """

    source: str
    follow_links: bool
    folder: str
    image: image.ImageOptions
    box_unit: str
    class_names: tuple[str, ...]
    fingerprint: str
    run: str

    def open_source(self) -> storage.Source:
        """Opens the source, once in a process."""
        return storage.opened(self.source, self.follow_links, self.run)


class Row(NamedTuple):
    """A row and its photo: CSV, its line, relative path, where it lies, box, label."""

    file: str
    row: int
    photo: str
    entry: storage.Entry
    box: tuple[float, float, float, float]
    label: int


class Written(NamedTuple):
    """Facts about a record, for statistics: label, box in fractions, original size, clipped."""

    label: int
    box: tuple[float, float, float, float]
    height: int
    width: int
    clipped: bool


class Chunk(NamedTuple):
    """Framed records, their statistics, rejected rows, and damaged photos that were kept."""

    framed: bytes
    written: list[Written]
    rejected: list[dict[str, Any]]
    damaged: dict[str, str]


def process(settings: Settings, rows: list[Row]) -> Chunk:
    """Reads, prepares and frames the photos of a chunk, in this process.

    Raises:
        OSError: the machine failed, not a photo.
    """
    source = settings.open_source()
    framed: list[bytes] = []
    written: list[Written] = []
    rejected: list[dict[str, Any]] = []
    damaged: dict[str, str] = {}
    for row in rows:
        try:
            data = _read(source, row.entry)
            photo = image.prepare(data, settings.image)
            record, facts = _record(settings, row, data, photo)
        except image.Rejected as why:
            rejected.append(
                {"file": row.file, "row": row.row, "photo": row.photo,
                 "reason": why.reason, "detail": why.detail}
            )  # fmt: skip
            continue
        if photo.damage:
            damaged[row.photo] = photo.damage
        framed.append(example.frame(example.encode(record)))
        written.append(facts)
    return Chunk(b"".join(framed), written, rejected, damaged)


def _read(source: storage.Source, entry: storage.Entry) -> bytes:
    if entry.size > storage.MAX_PHOTO_BYTES:
        raise image.Rejected(
            "too_large",
            f"a file of {entry.size} bytes; photos of up to {storage.MAX_PHOTO_BYTES} are read",
        )
    try:
        return source.read(entry)
    # These say something about the photo. Other errors (a network that fails, a disk that
    # breaks) say something about the machine, and must not cost rows.
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise image.Rejected("unreadable", str(error)) from None


def _record(
    settings: Settings, row: Row, data: bytes, photo: image.Photo
) -> tuple[example.Record, Written]:
    height, width = photo.original_height, photo.original_width
    box = row.box
    if settings.box_unit == "fraction":
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    fractions, clipped = image.normalize_box(box, height, width)
    record = example.Record(
        encoded=photo.encoded,
        height=settings.image.height,
        width=settings.image.width,
        original_height=height,
        original_width=width,
        filename=row.photo,
        sha256=hashlib.sha256(data).hexdigest(),
        bbox=image.place_box(fractions, photo.content, settings.image),
        label=row.label,
        text=settings.class_names[row.label - 1],
    )
    return record, Written(row.label, fractions, height, width, clipped)


class Helpers:
    """Processes that work on photos, started when they are needed and used again."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()

    def start(self, count: int) -> None:
        """Starts some in advance: their imports take a moment."""
        for _ in range(count):
            self._idle.put(_Helper())

    def stop(self) -> None:
        """Ends those that are idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()

    def process(self, settings: Settings, rows: list[Row]) -> Chunk:
        """Does `process` in another process; many threads may call it at once.

        Raises:
            OSError: as `process`, or the other process was killed.
        """
        try:
            helper = self._idle.get_nowait()
        except queue.Empty:
            helper = _Helper()
        try:
            chunk = helper.process(settings, rows)
        except _Died as died:
            return self._one_by_one(settings, rows, died)
        except Exception:
            self._idle.put(helper)
            raise
        self._idle.put(helper)
        return chunk

    def _one_by_one(self, settings: Settings, rows: list[Row], died: "_Died") -> Chunk:
        """Finds the photo that crashes its decoder, and rejects it."""
        if len(rows) > 1:
            chunks = [self.process(settings, [row]) for row in rows]
            framed, written, rejected, damaged = zip(*chunks, strict=True)
            return Chunk(
                b"".join(framed),
                [one for some in written for one in some],
                [one for some in rejected for one in some],
                {photo: text for some in damaged for photo, text in some.items()},
            )
        if died.signal not in _CRASHES:
            how = f"signal {died.signal}" if died.signal > 0 else f"exit code {-died.signal}"
            raise OSError(
                f"the process that read {rows[0].photo} ended with {how}: is there enough memory"
            )
        row, detail = rows[0], f"its decoder crashed (signal {died.signal})"
        rejected_row = {"file": row.file, "row": row.row, "photo": row.photo,
                        "reason": "unreadable", "detail": detail}  # fmt: skip
        return Chunk(b"", [], [rejected_row], {})


HELPERS = Helpers()
"""Those of this process."""


class _Died(Exception):  # noqa: N818 - said of a process
    """A process ended without an answer: by this signal, or minus its exit code."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


class _Helper:
    """One process. It gets the settings once, and answers each list of rows with a chunk.

    Questions and answers are plain tuples: for a named tuple, pickle also writes its class.
    """

    def __init__(self) -> None:
        # The same modules as here, whatever changed the path since the interpreter started.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from preprocess import photos; photos.serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # an interrupt at the terminal is for the driver to answer
            env={"OPENBLAS_NUM_THREADS": "1"} | os.environ,  # threads that only wait, and spin
        )
        self._settings: Settings | None = None
        with contextlib.suppress(AttributeError, OSError):  # Linux: a chunk in one go
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def stop(self) -> None:
        self._process.communicate()

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def process(self, settings: Settings, rows: list[Row]) -> Chunk:
        asked = self._process.stdin
        assert asked is not None
        try:
            if settings is not self._settings:
                pickle.dump(settings, asked, pickle.HIGHEST_PROTOCOL)
                self._settings = settings
            plain = [(*row[:3], tuple(row.entry), *row[4:]) for row in rows]
            pickle.dump(plain, asked, pickle.HIGHEST_PROTOCOL)
            asked.flush()
            answer = pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise _Died(-self._process.wait()) from None
        if isinstance(answer, Exception):
            raise answer
        framed, written, *rest = answer
        return Chunk(framed, [Written(*one) for one in written], *rest)


def serve() -> None:
    """Answers on standard output what comes on standard input, until it ends."""
    asked: IO[bytes] = sys.stdin.buffer
    # Output of a library must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.disable()  # nothing here refers to itself
    settings = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            question = pickle.load(asked)
            if isinstance(question, Settings):
                settings = question
                continue
            assert settings is not None
            answer: Any
            try:
                rows = [Row._make((*row[:3], storage.Entry(*row[3]), *row[4:])) for row in question]
                framed, written, *rest = process(settings, rows)
                answer = framed, [tuple(one) for one in written], *rest
            except Exception as error:
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
