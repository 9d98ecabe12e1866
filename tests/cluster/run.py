"""Runs the pre-processing job on Flink and Prism, with failures, and measures it.

    make cluster-test

Flink has a job manager and two task managers on this machine. The parts:

    flink      the whole job, by PortableRunner and by FlinkRunner, on both task managers at once
    killed     a task manager, then a Python worker is killed in the middle of the job
    no_worker  a worker that never comes ends the job in bounded time
    prism      the whole job on Prism
    tenfold    ten times the photos

In each the output must be that of DirectRunner, byte for byte. The last line is JSON with figures.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import preprocess as benchmark
from preprocess import sample
from tests.cluster import engines
from tests.cluster.flink import Flink
from tests.cluster.processes import Processes, until
from tests.preprocess.job_server import script

_BUILD_SECONDS, _TEST_SECONDS = 1500, 1200  # for all engines, for all parts
_SECONDS = 600.0  # for a job
_TIMES = 2  # the photos of the sample, but for the last part
_PROJECT = Path(__file__).parents[2]


class Done(NamedTuple):
    """A job that has ended."""

    status: int
    seconds: float
    said: str
    peak_mb: float


def main() -> None:
    """Runs all parts."""
    begin = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_BUILD_SECONDS)
    built = engines.get()
    signal.alarm(_TEST_SECONDS)
    build_seconds = time.monotonic() - begin
    sample.draw(sample.DEFAULT_DIRECTORY)
    with tempfile.TemporaryDirectory(prefix="carbox-cluster-") as name:
        folder = Path(name)
        processes = Processes(folder)
        try:
            tests = Tests(folder, processes, built)
            figures = {
                part.__name__: _said(part)
                for part in (tests.flink, tests.killed, tests.no_worker, tests.prism, tests.tenfold)
            }
            until("the end of all Python workers", 60, lambda: not processes.workers())
        except AssertionError:
            for log in sorted(folder.glob("*.log")):
                print(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            raise
        finally:
            processes.stop()
        assert not list(processes.alive())
    seconds = time.monotonic() - begin
    print(json.dumps(figures | {"build_seconds": build_seconds, "seconds": seconds}))


def _said(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    begin = time.monotonic()
    figures = part()
    print(f"{part.__name__}: {time.monotonic() - begin:.0f} s, {json.dumps(figures)}", flush=True)
    return figures


class Tests:
    """The parts; each returns its figures."""

    def __init__(self, folder: Path, processes: Processes, built: engines.Engines):
        """Args: for all files; who starts processes; the engines."""
        self._folder, self._processes, self._built = folder, processes, built
        worker = _install_wheel(folder)
        self._environment = [
            "--environment_type=PROCESS",
            "--environment_config=" + json.dumps({"command": str(worker)}),
            "--parallelism=2",
        ]
        self._photos = self._repeated(_TIMES)
        self._direct = self._job("direct", self._photos, "--runner=DirectRunner")
        self._expected = _digests(folder / "direct")
        self._flink = Flink(processes, built.flink, built.job_server, folder / "flink")
        self._portable = [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self._flink.job_port}",
            *self._environment,
        ]

    def flink(self) -> dict[str, Any]:
        """The whole job by both runners; both task managers write shards at once."""
        portable = self._same("portable", *self._portable)
        shares = self._shares()
        runner = self._same(
            "flink-runner",
            "--runner=FlinkRunner",
            f"--flink_master={self._flink.master}",
            "--flink_version=1.19",
            f"--flink_job_server_jar={self._built.job_server}",
            *self._environment,
        )
        self._shares()
        return {
            "photos": _photos(self._folder / "direct"),
            "direct_seconds": self._direct.seconds,
            "portable_seconds": portable.seconds,
            "flink_runner_seconds": runner.seconds,
            **shares,
        }

    def killed(self) -> dict[str, Any]:
        """SIGKILL, to what runs when a third of the shards are whole; another job follows."""
        figures = {}
        enough = len([file for file in self._expected if "tfrecord" in file]) // 3
        for name, kill in (
            ("task_manager", self._replace_task_manager),
            ("python_worker", self._kill_worker),
            ("task_manager_for_good", self._kill_task_manager),
        ):
            output = f"killed-{name}"
            flags = [*self._portable, "--worker_timeout=60"]
            job = self._start(output, self._photos, *flags)
            until("some shards", _SECONDS, lambda at=output: self._whole(at) >= enough)
            assert job.poll() is None, "the job was done before anything was killed"
            kill()
            first = self._wait(output, job)
            if len(self._flink.task_managers) < 2:
                self._flink.start_task_manager(f"{name}-again")
            self._free_slots()
            # With one task manager less there are not enough slots to go on.
            assert (first.status == 0) == (name != "task_manager_for_good"), first.said
            if first.status:
                self._require_sentence(first)
                again = self._job(output, self._photos, *flags)
                assert "going on where a job was stopped" in again.said, again.said
            assert _digests(self._folder / output) == self._expected
            figures[name] = {
                "recovered": first.status == 0,
                "seconds": first.seconds,
                "said": first.said.splitlines()[-1],
            }
        return figures

    def no_worker(self) -> dict[str, Any]:
        """A command that starts no worker, one that is not there, and one of another version."""
        figures = {}
        sleeper = script(self._folder / "sleeper", "exec sleep 100000")
        code = self._folder / "other"
        for package in ("preprocess", "tfrecords"):
            shutil.copytree(self._folder / "source" / package, code / package)
        with (code / "preprocess" / "join.py").open("a") as file:
            file.write("# changed\n")
        python = f"exec {self._folder}/worker/bin/python -m preprocess.worker"
        other = script(self._folder / "other.sh", f'cd {code} && PYTHONPATH={code} {python} "$@"')
        for name, command, expected in (
            ("never", sleeper, "no worker has begun"),
            ("missing", self._folder / "missing", "No such file or directory"),
            ("other_version", other, "Install the same on both"),
        ):
            config = "--environment_config=" + json.dumps({"command": str(command)})
            job = self._start(name, self._photos, *self._portable, config, "--worker_timeout=20")
            done = self._wait(name, job)
            assert expected in done.said, done.said
            self._require_sentence(done)
            figures[f"{name}_seconds"] = done.seconds
            self._free_slots()
        return figures

    def prism(self) -> dict[str, Any]:
        """The whole job on Prism, which Beam starts."""
        done = self._same("prism", "--runner=PrismRunner", f"--prism_location={self._built.prism}")
        return {"seconds": done.seconds}

    def tenfold(self) -> dict[str, Any]:
        """Ten times the photos take ten times as long, and the driver no more memory."""
        few = self._job("few", self._repeated(1), *self._portable)
        few_writing = self._shares()["writing_seconds"]
        photos = self._repeated(10)
        direct = self._job("direct-tenfold", photos, "--runner=DirectRunner")
        many = self._job("tenfold", photos, *self._portable)
        shares = self._shares()
        expected = _digests(self._folder / "direct-tenfold")
        assert _digests(self._folder / "tenfold") == expected
        times = shares["writing_seconds"] / few_writing
        assert times < 13, f"ten times the photos took {times:.1f} times as long"
        growth = many.peak_mb - few.peak_mb
        assert growth < 0.1 * few.peak_mb, f"the driver grew from {few.peak_mb} by {growth} MB"
        return {
            "photos": _photos(self._folder / "tenfold"),
            "direct_seconds": direct.seconds,
            "seconds": many.seconds,
            "tenth_seconds": few.seconds,
            "times_as_long": times,
            "driver_peak_mb": many.peak_mb,
            "driver_peak_mb_of_a_tenth": few.peak_mb,
            **shares,
        }

    def _repeated(self, times: int) -> Path:
        folder = self._folder / f"photos-{times}"
        benchmark.repeated(sample.DEFAULT_DIRECTORY, str(folder), times)
        return folder

    def _same(self, output: str, *flags: str) -> Done:
        done = self._job(output, self._photos, *flags)
        assert _digests(self._folder / output) == self._expected, output
        return done

    def _job(self, output: str, photos: Path, *flags: str) -> Done:
        done = self._wait(output, self._start(output, photos, *flags))
        assert done.status == 0, done.said
        return done

    def _start(self, output: str, photos: Path, *flags: str) -> subprocess.Popen:
        self._begin = time.monotonic()
        return self._processes.start(
            f"job-{output}",
            [sys.executable, "-m", "preprocess.run", f"--input={photos}",
             f"--output={self._folder}/{output}", "--train_shards=12", *flags],
        )  # fmt: skip

    def _wait(self, output: str, job: subprocess.Popen) -> Done:
        """Waits for a job; its peak memory is that of the driver alone."""
        deadline = self._begin + _SECONDS
        while True:
            pid, status, usage = os.wait4(job.pid, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < deadline, f"{output} has not ended in {_SECONDS:.0f} s"
            time.sleep(0.1)
        peak = usage.ru_maxrss / 1024
        job.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self._begin
        return Done(job.returncode, seconds, self._processes.log(f"job-{output}"), peak)

    def _whole(self, output: str) -> int:
        return len(list((self._folder / f"{output}.incomplete" / "whole").glob("*.json")))

    def _shares(self) -> dict[str, Any]:
        """Returns how the task managers shared the writing of the last job: both, at once."""
        job = self._flink.jobs()[0]
        assert job["state"] == "FINISHED", job
        subtasks = self._flink.subtasks(job["jid"], "WriteFiles")
        begin = max(one["start-time"] for one in subtasks)
        end = min(one["end-time"] for one in subtasks)
        shards = {one["taskmanager-id"]: one["metrics"]["read-records"] for one in subtasks}
        assert len(shards) == 2, shards
        assert all(shards.values()), shards
        assert begin < end, subtasks
        first = min(one["start-time"] for one in subtasks)
        last = max(one["end-time"] for one in subtasks)
        return {
            "shards_of_task_managers": shards,
            "seconds_at_once": (end - begin) / 1000,
            "writing_seconds": (last - first) / 1000,
        }

    def _require_sentence(self, done: Done) -> None:
        assert done.status == 1, done.said
        assert "error: " in done.said.splitlines()[-1], done.said
        assert "Traceback" not in done.said, done.said

    def _free_slots(self) -> None:
        """Cancels what a job that gave up has left: Beam's job server does not, for batch jobs."""
        for one in self._flink.jobs():
            if one["state"] not in ("FINISHED", "FAILED", "CANCELED"):
                self._flink.rest(f"/jobs/{one['jid']}?mode=cancel", "PATCH")
        self._flink.wait_for_slots(2)

    def _kill_task_manager(self) -> str:
        name, victim = self._flink.task_managers.popitem()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        return name

    def _replace_task_manager(self) -> None:
        """Kills one, and starts another as a cluster's supervisor does."""
        self._flink.start_task_manager(f"{self._kill_task_manager()}-again")

    def _kill_worker(self) -> None:
        """Kills the worker that has done most."""

        def seconds(worker: psutil.Process) -> float:
            return sum(worker.cpu_times()[:4])

        workers = self._processes.workers()
        assert workers, "there is no worker to kill"
        max(workers, key=seconds).kill()


def _too_long(*_: object) -> None:
    raise AssertionError(f"longer than {_BUILD_SECONDS} s to build, or {_TEST_SECONDS} s to test")


def _digests(output: Path) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}
    assert "dataset.json" in found
    return found


def _photos(output: Path) -> int:
    splits = json.loads((output / "dataset.json").read_text())["splits"]
    return sum(split["num_examples"] for split in splits.values())


def _install_wheel(folder: Path) -> Path:
    """Installs the project's wheel into an environment for workers; returns their command."""
    print("installing the wheel for the workers", flush=True)
    source, python = folder / "source", folder / "worker" / "bin" / "python"
    # A copy: what an earlier build has left in the project would get into the wheel.
    shutil.copytree(_PROJECT, source, ignore=shutil.ignore_patterns(
        ".*", "build", "data", "runs", "*.egg-info", "__pycache__"))  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", folder / "worker"], check=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", source]
    subprocess.run(wheel, check=True)
    (built,) = folder.glob("carbox-*.whl")
    lock = ["--constraint", _PROJECT / "requirements.lock"]
    subprocess.run([*pip, "install", *lock, f"{built}[preprocess]"], check=True)
    return python.with_name("carbox-worker")


if __name__ == "__main__":
    main()
