"""One line of progress: redrawn in place on a terminal, printed now and then elsewhere."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_COUNT = "{desc}: {n:,}/{total:,} {unit} ({percentage:.0f}%)"
_RATE = ", {rate_noinv:,.0f}/s"
_LEFT = ", {remaining} left"
_NOTE = "{postfix}"  # with its comma
_TERMINAL_SECONDS = 0.1


@contextlib.contextmanager
def waiting(what: str, *, interval: float = 10.0) -> Iterator[None]:
    """Says what is going on, and every `interval` seconds that it still is.

    with waiting("compiling the training step"):
        step(batch)
    """
    print(f"{what} …", flush=True)
    done = threading.Event()

    def tell() -> None:
        seconds = interval
        while not done.wait(interval):
            print(f"{what} …, {seconds:.0f} s", flush=True)
            seconds += interval

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


class Progress:
    """Shows how far a job is, its rate and the time left.

    On a terminal one line is redrawn up to ten times a second. Elsewhere (a log file, a pipe, a
    notebook cell) a whole line is printed every `interval` seconds, so that logs stay readable.

        with Progress("train", total=8144, unit="images") as progress:
            progress.update(64, lambda: f"loss {loss:.4f}")
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        interval: float = 10.0,
        file: TextIO | None = None,
        brief: bool = False,
    ):
        """Starts the clock.

        Args:
            title: what is going on.
            total: how many units there are; None if unknown.
            unit: what is counted, in the plural.
            done: units already done before, which do not count for the rate.
            interval: seconds between lines where there is no terminal.
            file: where to show it; standard output by default.
            brief: where there is no terminal, say nothing if all is done within `interval`.
        """
        self._title, self._total, self._unit = title, total, unit
        self._done = self._before = done
        self._file = file or sys.stdout
        self._terminal = self._file.isatty()
        self._redraw = tqdm.status_printer(self._file) if self._terminal else None
        self._interval = _TERMINAL_SECONDS if self._terminal else interval
        self._start = self._shown = time.monotonic()
        self._note: Callable[[], str] = str
        self._last = -1
        self._needs_end = self._terminal or not brief

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._needs_end and self._last != self._done:
            self._show()
        if self._terminal:
            print(file=self._file, flush=True)

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def update(self, count: int, note: Callable[[], str] = str) -> None:
        """Adds `count` units done and shows them when it is time.

        Args:
            count: units done since the last call.
            note: returns more text to show; called only when it is shown.
        """
        self._done += count
        self._note = note
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._needs_end = True
            self._show()

    def _show(self) -> None:
        self._last = self._done
        if self._redraw:
            self._redraw(self._line(shutil.get_terminal_size().columns))
        else:
            print(self._line(None), file=self._file, flush=True)

    def _line(self, columns: int | None) -> str:
        return tqdm.format_meter(
            # tqdm takes a total that is exceeded for an unknown one.
            n=min(self._done, self._total) if self._total is not None else self._done,
            total=self._total,
            elapsed=time.monotonic() - self._start,
            ncols=columns,
            prefix=self._title,
            unit=f" {self._unit}" if columns else self._unit,
            rate=self.rate,
            bar_format=None if columns else self._log_format(),
            postfix=self._note(),
            initial=self._before,
        )

    def _log_format(self) -> str:
        if not self._total:
            return "{desc}: {n:,} {unit}" + _RATE + _NOTE
        return _COUNT + (_RATE + _LEFT if self._done < self._total else "") + _NOTE
