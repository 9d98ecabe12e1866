"""Which devices a run uses, and which `tf.distribute` strategy joins them."""

import contextlib
import glob
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import TypeVar

import tensorflow as tf
from absl import flags
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.eager import context

from tfrecords import pipelines
from tfrecords.errors import UserError
from trainer import cluster, resources

NAMES = ("mirrored", "multiworker", "one", "auto")

# TensorFlow's 10 would end trainings on machines that are only busy.
_HEARTBEAT_SECONDS = 30

_Device = TypeVar("_Device")


def make(
    name: str, replicas: int | None = None, *, allow_cpu: bool = False
) -> tf.distribute.Strategy:
    """Returns the strategy; to be called before TensorFlow touches a device.

    Args:
        name: `mirrored` (all GPUs of this machine), `multiworker` (all machines that `TF_CONFIG`,
            Slurm or SageMaker names), `one` (one device), or `auto`.
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
    found = cluster.find(name)
    _limit_threads()
    if replicas and tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.get_visible_devices("GPU")
    if not (gpus or replicas or allow_cpu):
        _require_no_gpu()
    if name == "auto":
        if found and found.size > 1:
            name = "multiworker"
        else:
            name = "mirrored" if max(len(gpus), replicas or 1) > 1 else "one"
    if name == "multiworker" and found:
        gpus = share(gpus, *found.neighbors)
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if name == "multiworker":
        if replicas and replicas > 1:
            raise UserError("--replicas works with mirrored; a worker of multiworker has one CPU.")
        return _multi_worker(found, len(gpus))
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
        "mirrored: all GPUs of this machine; multiworker: the machines that TF_CONFIG, Slurm"
        " or SageMaker names; one: one device; auto: the one of these that fits",
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
    jobs = resolver.cluster_spec().as_dict() if resolver else {}
    chiefs, others = len(jobs.get("chief", [])), len(jobs.get("worker", []))
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


def _multi_worker(found: cluster.Cluster | None, gpus: int) -> tf.distribute.Strategy:
    if found is None:
        raise UserError(
            "--strategy=multiworker needs to know the other workers: set TF_CONFIG (Kubernetes and"
            " Vertex AI do), or start it with Slurm's srun or on SageMaker. For one machine there"
            " is --strategy=mirrored."
        )
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    spec = tf.train.ClusterSpec(found.jobs)
    # As MultiWorkerMirroredStrategy does where nobody has, but for the timeout. A test sees to it.
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(spec),
        heartbeat_timeout_in_ms=_HEARTBEAT_SECONDS * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=len(addresses))
            for job, addresses in found.jobs.items()
        ],
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec,
        task_type=found.job,
        task_id=found.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    with cluster.joining(found):
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, communication_options=options)


def _logical_cpus(replicas: int) -> list[str]:
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * replicas
        if tf.config.get_logical_device_configuration(cpu) != devices:
            tf.config.set_logical_device_configuration(cpu, devices)
    return [f"/cpu:{i}" for i in range(replicas)]
