"""The job's progress, read from the incomplete folder, so that it works with every runner."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from preprocess import environment, storage
from tfrecords.errors import UserError
from tfrecords.progress import Progress

_SECONDS = 0.5  # between two reads of a local folder
_SECONDS_REMOTE = 15.0
_SIGNS = ("total-", "heartbeat-", "driver-", "refused-")  # files beside those that count
_LOG_SECONDS = 5.0  # between two lines where there is no terminal


class Counts:
    """Counts photos done and rejected, from finished shards and workers' reports."""

    def __init__(self, folder: str, run: str):
        """Args: the incomplete folder; the name of this run of the pipeline."""
        self._folder, self._run = folder, run
        self._seen: dict[str, tuple[int, int]] = {}

    def total(self) -> int | None:
        """Returns the number of photos to come; None while rows and photos are being joined."""
        try:
            return json.loads(storage.read(f"{self._folder}/progress/total-{self._run}"))
        except (OSError, ValueError):
            return None

    def done(self) -> tuple[int, int]:
        """Returns photos done and rejected, of this run and of finished shards that it found."""
        finished = storage.sizes(f"{self._folder}/whole")
        for name in finished:
            if name.endswith(".json") and name not in self._seen:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    result = json.loads(storage.read(f"{self._folder}/whole/{name}"))
                    self._seen[name] = result["num_examples"], len(result["rejected"])
        counts = list(self._seen.values())
        shards = {name.rsplit("-", 1)[0] for name in self._seen}
        for name in storage.sizes(f"{self._folder}/progress"):
            if name not in shards and not name.startswith(_SIGNS):
                with contextlib.suppress(OSError, ValueError):
                    counts.append(json.loads(storage.read(f"{self._folder}/progress/{name}")))
        return sum(done for done, _ in counts), sum(rejected for _, rejected in counts)


_THEN = "Cancel the job in the cluster if it is still there: it may hold slots"


class Watch:
    """Notices that a worker refuses to work, or that none has shown a sign of life for too long.

    Runners wait without end for a worker that never comes, and some for one that fails early.
    """

    def __init__(self, folder: str, run: str, seconds: float):
        """Args: the incomplete folder; the name of this run of the pipeline; how long to wait."""
        self._counts = Counts(folder, run)
        self._heartbeat = environment.heartbeat_path(folder, run)
        self._refusal = environment.refusal_path(folder, run)
        self._folder, self._seconds = folder, seconds
        self._between = _SECONDS_REMOTE if storage.is_remote(folder) else _SECONDS
        self._first = self._signs()
        self._last = self._first
        self._changed = self._looked = time.monotonic()

    def check(self) -> None:
        """Looks for signs.

        Raises:
            UserError: there have been none for too long, or a worker has refused.
        """
        now = time.monotonic()
        if now - self._looked < self._between:
            return
        with contextlib.suppress(OSError):
            raise UserError(f"{storage.read(self._refusal).decode()}. {_THEN}.")
        self._looked, signs = now, self._signs()
        if signs != self._last:
            self._last, self._changed = signs, now
        elif now - self._changed > self._seconds:
            waited = f"--worker_timeout={self._seconds:g}: for as many seconds"
            if signs == self._first:
                raise UserError(
                    f"{waited} no worker has begun. Does the cluster have free slots, can it start"
                    " the workers that --environment_type and --environment_config name, and do"
                    f" they see {self._folder}? {_THEN}. Correct that, or wait longer."
                )
            raise UserError(
                f"{waited} no worker has shown a sign of life. {_THEN}, and look into its logs."
                " Finished shards are kept: run the same command again and it continues."
            )

    def _signs(self) -> object:
        heartbeat = None
        with contextlib.suppress(OSError):
            heartbeat = storage.read(self._heartbeat)
        return heartbeat, self._counts.done()


@contextlib.contextmanager
def shown(counts: Counts, stream: TextIO = sys.stderr) -> Iterator[None]:
    """Shows progress while the block runs: a line redrawn on a terminal, log lines elsewhere."""
    stop = threading.Event()
    remote = storage.is_remote(counts._folder)

    def wait() -> bool:
        return not stop.wait(_SECONDS_REMOTE if remote else _SECONDS)

    def show() -> None:
        total = None
        while total is None and wait():
            total = counts.total()
        if total is None:
            return
        with Progress("photos", total, "photos", interval=_LOG_SECONDS, file=stream) as progress:
            shown = 0
            while wait():
                with contextlib.suppress(OSError):
                    done, rejected = counts.done()
                    note = f"{rejected:,} rejected"
                    progress.update(done + rejected - shown, note.__str__)
                    shown = done + rejected

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
