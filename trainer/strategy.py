"""Which devices a run uses, and which `tf.distribute` strategy joins them."""

import json
import os

import tensorflow as tf

from tfrecords.errors import UserError

NAMES = ("mirrored", "multiworker", "one", "auto")


def make(name: str, replicas: int | None = None) -> tf.distribute.Strategy:
    """Returns the strategy; to be called before TensorFlow touches a device.

    Args:
        name: `mirrored` (all GPUs of this machine), `multiworker` (all machines that `TF_CONFIG`
            or Slurm names), `one` (one device), or `auto`.
        replicas: use so many logical CPU devices instead of GPUs, to try a strategy without them.

    Raises:
        UserError: the name, the replicas or `TF_CONFIG` make no sense.
    """
    if name not in NAMES:
        raise UserError(f"--strategy={name}: it must be one of {', '.join(NAMES)}.")
    if replicas is not None and replicas < 1:
        raise UserError(f"--replicas={replicas}: it must be at least 1.")
    workers = _workers()
    if replicas and tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.get_visible_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if name == "auto":
        if workers > 1:
            name = "multiworker"
        else:
            name = "mirrored" if max(len(gpus), replicas or 1) > 1 else "one"
    if name == "multiworker":
        if replicas and replicas > 1:
            raise UserError("--replicas works with mirrored; a worker of multiworker has one CPU.")
        return _multi_worker(workers, bool(gpus))
    if name == "one":
        if replicas and replicas > 1:
            raise UserError(f"--strategy=one has one replica, not {replicas}: use mirrored.")
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.MirroredStrategy(_logical_cpus(replicas or 1))


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
    """Returns one line for people: strategy, replicas, devices."""
    kind = type(strategy).__name__.removesuffix("V1")
    replicas = strategy.num_replicas_in_sync
    devices = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    plural = "s" if replicas > 1 else ""
    return f"{kind}, {replicas} replica{plural} on {devices}"


def _workers() -> int:
    if "SLURM_JOB_ID" in os.environ and "TF_CONFIG" not in os.environ:
        return int(os.environ.get("SLURM_NTASKS", "1"))
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        cluster = config.get("cluster", {})
        count = sum(len(cluster.get(job, [])) for job in ("chief", "worker"))
        if count and not cluster.get(config["task"]["type"])[int(config["task"]["index"])]:
            raise ValueError("its task has no address")
        return count
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(
            "the environment variable TF_CONFIG is not the JSON of a cluster and of this machine's"
            f" task in it: {error!r}. Example:"
            ' {"cluster": {"worker": ["host1:2222", "host2:2222"]},'
            ' "task": {"type": "worker", "index": 0}}'
        ) from None


def _multi_worker(workers: int, gpus: bool) -> tf.distribute.Strategy:
    if workers < 1:
        raise UserError(
            "--strategy=multiworker needs to know the other workers: set TF_CONFIG (Kubernetes and"
            " Vertex AI do), or start it with Slurm's srun. For one machine there is"
            " --strategy=mirrored."
        )
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    resolver = None
    if "TF_CONFIG" not in os.environ:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    return tf.distribute.MultiWorkerMirroredStrategy(resolver, communication_options=options)


def _logical_cpus(replicas: int) -> list[str]:
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * replicas
        if tf.config.get_logical_device_configuration(cpu) != devices:
            tf.config.set_logical_device_configuration(cpu, devices)
    return [f"/cpu:{i}" for i in range(replicas)]
