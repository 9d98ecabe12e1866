"""Beam's own job server and pool of workers, as processes: everything is pickled to others, as on
Flink, Spark and Dataflow."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_ports


@contextlib.contextmanager
def portable_flags(
    code: str | None = None, programs: str | None = None, *pool_flags: str
) -> Iterator[list[str]]:
    """Starts both, and yields the flags that run a job on them.

    Args:
        code: folder whose packages the workers import; this project if absent.
        programs: folder whose `python` starts a worker; that of this interpreter if absent.
        pool_flags: of the pool of workers.
    """
    jobs, workers = free_ports(2)
    code = code or os.getcwd()
    first = programs or os.path.dirname(sys.executable)
    environment = os.environ | {
        "PATH": first + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": code,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            env=environment,
            cwd=code,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for module, flags in (
            ("apache_beam.runners.portability.local_job_service_main", ["-p", str(jobs)]),
            (
                "apache_beam.runners.worker.worker_pool_main",
                [f"--service_port={workers}", *pool_flags],
            ),
        )
    ]
    try:
        for port in (jobs, workers):
            _wait_for(port)
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{jobs}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{workers}",
        ]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def script(path: Path, text: str) -> Path:
    """Writes a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)
    pytest.fail(f"nothing listens on port {port}")
