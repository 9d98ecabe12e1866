"""Which devices a run uses, and which `tf.distribute` strategy joins them."""

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import tensorflow as tf
from absl import flags
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

from tfrecords import pipelines
from tfrecords.errors import UserError
from trainer import resources

NAMES = ("mirrored", "multiworker", "one", "auto")

_Device = TypeVar("_Device")


def make(
    name: str, replicas: int | None = None, *, allow_cpu: bool = False
) -> tf.distribute.Strategy:
    """Returns the strategy; to be called before TensorFlow touches a device.

    Args:
        name: `mirrored` (all GPUs of this machine), `multiworker` (all machines that `TF_CONFIG`
            or Slurm names), `one` (one device), or `auto`.
        replicas: use so many logical CPU devices instead of GPUs, to try a strategy without them.
        allow_cpu: go on where the machine has GPUs and TensorFlow sees none.

    Raises:
        UserError: the name, the replicas or `TF_CONFIG` are not valid, Slurm's tasks were not
            started by `srun`, or TensorFlow does not see the machine's GPUs.
    """
    if name not in NAMES:
        raise UserError(f"--strategy={name}: it must be one of {', '.join(NAMES)}.")
    if replicas is not None and replicas < 1:
        raise UserError(f"--replicas={replicas}: it must be at least 1.")
    cluster = _find_cluster(name)
    _limit_threads()
    if replicas and tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.get_visible_devices("GPU")
    if not (gpus or replicas or allow_cpu):
        _require_no_gpu()
    if name == "auto":
        if cluster and cluster.size > 1:
            name = "multiworker"
        else:
            name = "mirrored" if max(len(gpus), replicas or 1) > 1 else "one"
    if name == "multiworker" and cluster:
        gpus = share(gpus, *cluster.neighbors)
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if name == "multiworker":
        if replicas and replicas > 1:
            raise UserError("--replicas works with mirrored; a worker of multiworker has one CPU.")
        return _multi_worker(cluster, len(gpus))
    if name == "one":
        if replicas and replicas > 1:
            raise UserError(f"--strategy=one has one replica, not {replicas}: use mirrored.")
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.MirroredStrategy(_logical_cpus(replicas or 1))


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that choose devices: `--strategy`, `--replicas`, `--allow_cpu`."""
    flags.DEFINE_enum(
        "strategy",
        "auto",
        NAMES,
        "mirrored: all GPUs of this machine; multiworker: the machines that TF_CONFIG or Slurm"
        " names; one: one device; auto: the one of these that fits",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "logical CPU devices, to try a strategy without GPUs",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "allow_cpu",
        False,
        "train on the CPU although the machine has GPUs that TensorFlow does not see",
        flag_values=flag_values,
    )


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns this process's place among the workers, from 0 (the chief), and how many there are.

    Only the chief writes the run folder.
    """
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    chiefs, others = len(cluster.get("chief", [])), len(cluster.get("worker", []))
    if chiefs + others < 2:
        return 0, 1
    index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
    return index, chiefs + others


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns one line for the user: strategy, replicas, devices."""
    kind = type(strategy).__name__.removesuffix("V1")
    replicas = strategy.num_replicas_in_sync
    devices = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    plural = "s" if replicas > 1 else ""
    return f"{kind}, {replicas} replica{plural} on {devices}"


def sum_over_workers(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the sum of all workers' values; each waits here for all others."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    return float(_sum_over_workers(strategy, tf.constant(value)))


def gather(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    """Returns the rows of all replicas, in their order; to be called inside a `tf.function`.

    On one machine there is nothing to send. TensorFlow's own `gather` would send all the same, and
    its messages would be taken for those of another strategy, if the process has made one before.
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.gather(value, axis=0)
    return tf.concat(strategy.experimental_local_results(value), 0)


@tf.function
def _sum_over_workers(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    return strategy.reduce(
        tf.distribute.ReduceOp.SUM, strategy.run(lambda mine: mine, (value,)), axis=None
    )


def share(gpus: Sequence[_Device], tasks: int, index: int) -> list[_Device]:
    """Returns the GPUs of one of several tasks on a machine that all see all of them.

    Args:
        gpus: that the task sees; fewer than tasks when each sees only its own.
        tasks: on the machine.
        index: of the task among them.
    """
    each = len(gpus) // tasks
    return list(gpus[index * each : (index + 1) * each] if each else gpus)


def gpus_of_machine(devices: str = "/dev") -> list[str]:
    """Returns the NVIDIA GPUs that the machine shows, whether TensorFlow can use them or not.

    None where `CUDA_VISIBLE_DEVICES` hides them all.

    Args:
        devices: where device files are.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None and not re.match(r"\s*(\d|GPU-|MIG-)", wanted):
        return []
    found = sorted(glob.glob(os.path.join(glob.escape(devices), "nvidia[0-9]*")))
    if found or not shutil.which("nvidia-smi"):
        return found
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(" (UUID")[0] for line in listed.stdout.splitlines() if line[:4] == "GPU "]


@dataclass(frozen=True)
class _Cluster:
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
    def size(self) -> int:
        """How many workers there are."""
        return sum(map(len, self.jobs.values()))


def _find_cluster(name: str) -> _Cluster | None:
    if os.environ.get("TF_CONFIG"):
        return _cluster_of_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_JOB_ID" in os.environ and name in ("auto", "multiworker"):
        return _cluster_of_slurm()
    return None


def _cluster_of_tf_config(text: str) -> _Cluster | None:
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
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(
            "the environment variable TF_CONFIG is not the JSON of a cluster and of this machine's"
            f" task in it: {error!r}. Example:"
            ' {"cluster": {"worker": ["host1:2222", "host2:2222"]},'
            ' "task": {"type": "worker", "index": 0}}'
        ) from None
    return _Cluster(jobs, job, index)


def _cluster_of_slurm() -> _Cluster | None:
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
    if {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"} & os.environ.keys():
        count, task = 1, 0  # each task sees its own GPUs only
    addresses = [f"{host}:{port + place}" for host, place, _ in places]
    return _Cluster({"worker": addresses}, "worker", int(rank), (count, task))


def _limit_threads() -> None:
    """Limits TensorFlow's threads to a container's cores; by itself it counts the machine's."""
    cores = resources.cores()
    if cores < pipelines.CORES:
        with contextlib.suppress(RuntimeError):  # TensorFlow has started them
            tf.config.threading.set_intra_op_parallelism_threads(cores)
            tf.config.threading.set_inter_op_parallelism_threads(cores)


def _require_no_gpu() -> None:
    found = gpus_of_machine()
    if found:
        raise UserError(
            f"this machine has {len(found)} GPU{'s' * (len(found) > 1)} ({', '.join(found)}), and"
            " TensorFlow sees none. Install what it needs by `pip install 'carbox[gpu]'`, and check"
            " by `nvidia-smi` that the driver works and is one for CUDA 12; or pass --allow_cpu"
            " to go on without a GPU."
        )


def _multi_worker(cluster: _Cluster | None, gpus: int) -> tf.distribute.Strategy:
    if cluster is None:
        raise UserError(
            "--strategy=multiworker needs to know the other workers: set TF_CONFIG (Kubernetes and"
            " Vertex AI do), or start it with Slurm's srun. For one machine there is"
            " --strategy=mirrored."
        )
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs),
        task_type=cluster.job,
        task_id=cluster.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver, communication_options=options)


def _logical_cpus(replicas: int) -> list[str]:
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * replicas
        if tf.config.get_logical_device_configuration(cpu) != devices:
            tf.config.set_logical_device_configuration(cpu, devices)
    return [f"/cpu:{i}" for i in range(replicas)]
