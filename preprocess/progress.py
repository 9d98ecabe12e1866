"""The job's progress, read from the incomplete folder, so that it works with every runner."""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from preprocess import storage
from tfrecords.progress import Progress

_SECONDS = 0.5  # between two reads of a local folder
_SECONDS_REMOTE = 15.0
_LOG_SECONDS = 5.0  # between two lines where there is no terminal


class Counts:
    """Counts photos done and rejected, from finished shards and workers' reports."""

    def __init__(self, folder: str, run: str):
        """Args: the incomplete folder; the name of this run of the pipeline."""
        self._folder, self._run = folder, run
        self._before = set(storage.sizes(f"{folder}/whole"))
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
            if name not in shards and not name.startswith("total-"):
                with contextlib.suppress(OSError, ValueError):
                    counts.append(json.loads(storage.read(f"{self._folder}/progress/{name}")))
        return sum(done for done, _ in counts), sum(rejected for _, rejected in counts)


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
