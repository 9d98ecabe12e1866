"""Processes that end with this one, and all that they start."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

_MARK = "CARBOX_CLUSTER_TEST"  # in the environment of every process, and of all that it starts
_PR_SET_PDEATHSIG = 1


class Processes:
    """Starts processes; logs go to files of a folder."""

    def __init__(self, logs: Path):
        """Args: folder of the logs."""
        self.logs = logs
        self._token = _token(psutil.Process())
        _end_orphans()
        self._started: list[subprocess.Popen] = []

    def start(self, name: str, command: list[str]) -> subprocess.Popen:
        """Starts one that is killed when this process dies, even by SIGKILL."""
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=os.environ | {_MARK: self._token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        self._started.append(process)
        return process

    def log(self, name: str) -> str:
        """Returns what one has written."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def alive(self) -> Iterator[psutil.Process]:
        """Yields all that live, those too that were started by those started here."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._token:
                    yield process

    def workers(self) -> list[psutil.Process]:
        """Returns the Python workers that an engine has started."""
        found = []
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                if any(part.startswith("--provision_endpoint=") for part in process.cmdline()):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Kills all."""
        for _ in range(20):
            left = list(self.alive())
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            for started in self._started:
                started.poll()
            if not left:
                return
            time.sleep(0.2)


def until(what: str, seconds: float, found: Callable[[], T]) -> T:
    """Waits until something is found, and returns it.

    Args:
        what: is waited for, for the message.
        seconds: to wait at most.
        found: returns it, or something false.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if it := found():
            return it
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def listens(port: int) -> bool:
    """Whether something listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def _token(owner: psutil.Process) -> str:
    return f"{owner.pid}-{owner.create_time()}"


def _end_orphans() -> None:
    """Kills what a run that was killed has left: the children of its children."""
    alive = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive.add(_token(process))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            token = process.environ().get(_MARK)
            if token and token not in alive:
                process.kill()


def _die_with_parent() -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
