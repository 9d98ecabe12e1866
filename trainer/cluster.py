"""The workers of a run: who says which they are, and how they come together."""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

from tfrecords.errors import UserError
from tfrecords.progress import waiting
from trainer import platforms

# A pod may have to wait for its machine and its image.
_WAIT_SECONDS = 900.0
# All others listen by then.
_JOIN_SECONDS = 120.0
_PROBE_SECONDS = 2.0
_SAGEMAKER_PORT = 8890  # as its own containers choose for `tf.distribute`
_NAMED = 3  # workers that a message names


@dataclass(frozen=True)
class Cluster:
    """All workers, and which of them this process is.

    Attributes:
        jobs: addresses of `chief`, if any, and `worker`.
        job, index: this process's place.
        neighbors: how many tasks share this machine and its GPUs, and this one's index among them.
    """

    jobs: dict[str, list[str]]
    job: str
    index: int
    neighbors: tuple[int, int] = (1, 0)

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of all workers, the chief first."""
        return [*self.jobs.get("chief", []), *self.jobs.get("worker", [])]

    @property
    def address(self) -> str:
        """HOST:PORT of this process."""
        return self.jobs[self.job][self.index]

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self.addresses)


def find(name: str) -> Cluster | None:
    """Returns the workers that the environment names, if any.

    Args:
        name: of the strategy. Only `auto` and `multiworker` ask Slurm and SageMaker, on which one
            may also train on one machine.

    Raises:
        UserError: the environment contradicts itself.
    """
    if os.environ.get("TF_CONFIG"):
        return _of_tf_config(os.environ["TF_CONFIG"])
    if name not in ("auto", "multiworker"):
        return None
    if "SLURM_JOB_ID" in os.environ:
        return _of_slurm()
    return _of_sagemaker()


@contextlib.contextmanager
def joining(cluster: Cluster) -> Iterator[None]:
    """Waits for all workers, and watches over the block, in which TensorFlow joins them.

    TensorFlow would wait for a worker that never comes for an hour, say nothing, and hear neither
    Ctrl-C nor SIGTERM meanwhile, because it holds Python's lock.

    Raises:
        UserError: a worker does not come, or is lost while they join.
    """
    if cluster.size > 1:
        _wait_for_all(cluster)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _ending_after(
            _JOIN_SECONDS,
            f"error: the workers have not come together within {_JOIN_SECONDS:.0f} s: another one"
            " does not answer. Start the same command on all machines again.",
        ):
            yield
    except tf.errors.OpError as error:
        said = str(error.message).strip().splitlines() or [type(error).__name__]
        raise UserError(
            "the workers have not come together: another one has ended or cannot be reached. Start"
            f" the same command on all machines again. TensorFlow says: {said[0]}"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            # TensorFlow has taken SIGTERM: one before the first step would do nothing.
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _ending_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with a message after some time, though the block holds Python's lock."""
    code = (
        "import select, sys\n"
        "if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]: sys.exit(sys.argv[2])"
    )
    command = [sys.executable, "-I", "-c", code, str(seconds), message]
    with (
        open(os.devnull, "w") as nowhere,
        subprocess.Popen(command, stdin=subprocess.PIPE),  # which says so, and ends with the block
    ):
        # A thread without that lock; its stacks tell a user nothing.
        faulthandler.dump_traceback_later(seconds + 2, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _wait_for_all(cluster: Cluster) -> None:
    missing = {address: "" for address in cluster.addresses if address != cluster.address}

    def probe() -> None:
        for address in list(missing):
            try:
                socket.create_connection(_host_and_port(address), _PROBE_SECONDS).close()
            except OSError as error:
                missing[address] = error.strerror or str(error)
            else:
                del missing[address]

    deadline = time.monotonic() + _WAIT_SECONDS
    with _listening(cluster.address):
        probe()
        if not missing:
            return
        minutes = f"{_WAIT_SECONDS / 60:.0f} minutes at most"
        with waiting(f"waiting for {_some(list(missing))}, {minutes}"):
            while missing and time.monotonic() < deadline:
                time.sleep(0.5)
                probe()
    if missing:
        reasons = [f"{address} ({reason})" for address, reason in missing.items()]
        raise UserError(
            f"{len(missing)} of {cluster.size} workers have not come within {_WAIT_SECONDS:.0f} s:"
            f" {_some(reasons)}. Start the same command on all machines, and let them reach each"
            " other at these addresses."
        )


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    """Lets the others see that this worker is there, before TensorFlow listens at its address."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    _, port = _host_and_port(address)
    try:
        server = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise UserError(
            f"this worker cannot listen at its address {address}: {error.strerror}. End what"
            " listens there, or give the worker another port."
        ) from None
    with server:
        yield


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(f"{address!r} is not HOST:PORT")
    host = host.strip("[]")
    host.encode("idna")  # what a connection would do; a UnicodeError is a ValueError
    return host, int(port)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _of_tf_config(text: str) -> Cluster | None:
    try:
        config = json.loads(text)
        jobs = {job: list(addresses) for job, addresses in config.get("cluster", {}).items()}
        if not jobs:
            return None
        job, index = config["task"]["type"], int(config["task"]["index"])
        for unknown in sorted({*jobs, job} - {"chief", "master", "worker"}):
            raise UserError(
                f"TF_CONFIG names a job {unknown!r}, and all machines train alike here: there is"
                " one chief (or master), and workers. Leave parameter servers and evaluators out."
            )
        # Older platforms call the chief `master`; TensorFlow understands only `chief`.
        if "master" in jobs:
            jobs["chief"] = [*jobs.pop("master"), *jobs.get("chief", [])]
        job = "chief" if job == "master" else job
        if len(jobs.get("chief", [])) > 1:
            raise ValueError("it has more than one chief")
        if not (0 <= index < len(jobs[job]) and jobs[job][index]):
            raise ValueError("its task has no address")
        cluster = Cluster(jobs, job, index)
        for address in cluster.addresses:
            _host_and_port(address)
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(
            "the environment variable TF_CONFIG is not the JSON of a cluster and of this machine's"
            f" task in it: {error!r}. Example:"
            ' {"cluster": {"worker": ["host1:2222", "host2:2222"]},'
            ' "task": {"type": "worker", "index": 0}}'
        ) from None
    return cluster


def _of_slurm() -> Cluster | None:
    names = ("PROCID", "STEP_NODELIST", "STEP_TASKS_PER_NODE")
    values = [os.environ.get(f"SLURM_{name}", "") for name in names]
    if not all(values):
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks == "1":
            return None
        raise UserError(
            f"Slurm gave this job {tasks} tasks, but srun did not start this process, so it is not"
            " one of them. Start it by `srun python -m trainer.task …`, or pass --strategy=mirrored"
            " to train on this machine alone."
        )
    rank, nodes, counts = values
    try:
        # Jobs that share a machine must use different ports.
        port = 12000 + 16 * (int(os.environ["SLURM_JOB_ID"]) % 1000)
        tasks_of = zip(
            slurm.expand_hostlist(nodes), slurm.expand_tasks_per_node(counts), strict=True
        )
        places = [(host, task, count) for host, count in tasks_of for task in range(count)]
        _, task, count = places[int(rank)]
    except (ValueError, LookupError) as error:
        raise UserError(
            f"Slurm's variables contradict each other ({error}): SLURM_PROCID={rank},"
            f" SLURM_STEP_NODELIST={nodes}, SLURM_STEP_TASKS_PER_NODE={counts}. Start the command"
            " by srun, or set TF_CONFIG."
        ) from None
    # Slurm sets the second one for processor cores alone too.
    if "SLURM_GPUS_PER_TASK" in os.environ or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", ""):
        count, task = 1, 0  # each task sees its own GPUs only
    addresses = [f"{host}:{port + place}" for host, place, _ in places]
    return Cluster({"worker": addresses}, "worker", int(rank), (count, task))


def _of_sagemaker() -> Cluster | None:
    found = platforms.sagemaker_hosts()
    if not found or len(found[0]) < 2:
        return None
    hosts, mine = found
    return Cluster(
        {"worker": [f"{host}:{_SAGEMAKER_PORT}" for host in hosts]}, "worker", hosts.index(mine)
    )
