"""One line of progress: redrawn in place on a terminal, printed now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType


class Progress:
    """Shows how far a job is, its rate and the time left.

    On a terminal one line is redrawn up to ten times a second. Elsewhere (a log file, a pipe, a
    notebook cell) a whole line is printed every `interval` seconds, so that logs stay readable.

        with Progress("train", total=8144, unit="images") as progress:
            progress.update(64, lambda: f"loss {loss:.4f}")
    """

    def __init__(self, title: str, total: int, unit: str, *, done: int = 0, interval: float = 10.0):
        """Starts the clock.

        Args:
            title: what is going on.
            total: how many units there are.
            unit: what is counted, in the plural.
            done: units already done before, which do not count for the rate.
            interval: seconds between lines where there is no terminal.
        """
        self._title, self._total, self._unit = title, total, unit
        self._done = self._before = done
        self._terminal = sys.stdout.isatty()
        self._interval = 0.1 if self._terminal else interval
        self._start = self._shown = time.monotonic()
        self._note: Callable[[], str] = str
        self._width, self._last = 0, -1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._last != self._done:
            self._show()
        if self._terminal:
            print(flush=True)

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def update(self, count: int, note: Callable[[], str] = str) -> None:
        """Adds `count` units done and shows them when it is time.

        Args:
            count: units done since the last call.
            note: gives what else to show; called only when it is shown.
        """
        self._done += count
        self._note = note
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._show()

    def _show(self) -> None:
        self._last = self._done
        rate = self.rate
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        share = self._done / self._total if self._total else 1.0
        text = f"{self._title}: {self._done}/{self._total} {self._unit} ({share:.0%})"
        text += f", {rate:.0f}/s, {_clock(left)} left" if self._done < self._total else ""
        note = self._note()
        text += f", {note}" if note else ""
        if self._terminal:
            print("\r" + text.ljust(self._width), end="", flush=True)
            self._width = len(text)
        else:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
