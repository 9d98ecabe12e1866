"""How far the job is, read off the incomplete folder, so that it works with every runner."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from preprocess import storage

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 5.0


class Progress:
    """Counts photos done and rejected, from sidecars and from what workers report on the way."""

    def __init__(self, work: str, names: list[str], total: int):
        """Args: the work folder; shards still to be written; photos in them."""
        self._work = work
        self._total = total
        self._waiting = set(names)
        self._done = 0
        self._rejected = 0
        self._started = time.monotonic()

    def line(self) -> str:
        """Returns one line: photos done, rate, time left, rejected so far."""
        done, rejected = self._count()
        seconds = time.monotonic() - self._started
        rate = (done + rejected) / seconds if seconds else 0.0
        left = _duration((self._total - done - rejected) / rate) if rate else "?"
        return (
            f"{done + rejected:,}/{self._total:,} photos, {rate:,.0f}/s, {left} left,"
            f" {rejected:,} rejected"
        )

    def _count(self) -> tuple[int, int]:
        done, rejected = 0, 0
        finished = storage.sizes(f"{self._work}/done").keys() & self._waiting
        for name in finished:
            with contextlib.suppress(OSError, ValueError, KeyError):
                result = json.loads(storage.read(f"{self._work}/done/{name}"))
                self._done += result["num_examples"]
                self._rejected += len(result["rejected"])
                self._waiting.discard(name)
        for name in storage.sizes(f"{self._work}/progress").keys() & self._waiting:
            with contextlib.suppress(OSError, ValueError):
                some_done, some_rejected = json.loads(storage.read(f"{self._work}/progress/{name}"))
                done += some_done
                rejected += some_rejected
        return self._done + done, self._rejected + rejected


@contextlib.contextmanager
def shown(progress: Progress, stream: TextIO = sys.stderr) -> Iterator[None]:
    """Shows progress while the block runs: a line redrawn on a terminal, log lines elsewhere."""
    terminal = stream.isatty()
    stop = threading.Event()

    def show() -> None:
        while not stop.wait(_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            with contextlib.suppress(OSError):
                text = progress.line()
                stream.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
                stream.flush()

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal:
            stream.write("\r\x1b[K")
            stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
