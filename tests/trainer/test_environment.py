"""What stands around a run: clusters, Slurm, GPUs, containers, and a user's Keras."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from tests.ports import free_ports
from tfrecords.errors import UserError
from trainer import cluster, strategy


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No cluster, whatever machine the tests run on."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def python(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def outputs(*processes: subprocess.Popen) -> list[str]:
    """Returns what processes print that must succeed."""
    done = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), done
    return [out for out, _ in done]


JOIN = """
from trainer import strategy
devices = strategy.make("auto")
total = strategy.sum_over_workers(devices, 1.5)
print("joined", strategy.worker(devices), strategy.describe(devices), total, flush=True)
"""


def joined(*environments: dict[str, str]) -> list[str]:
    """Returns what each of some processes says of itself when all have joined."""
    said = outputs(*(python(JOIN, **one) for one in environments))
    return [re.findall("^joined (.+)$", one, re.MULTILINE)[0] for one in said]


def test_a_master_is_the_chief(monkeypatch):
    jobs = {"worker": ["b:2222"], "master": ["a:2222"]}
    task = {"type": "master", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": task}))
    found = cluster.find("auto")
    assert found.addresses == ["a:2222", "b:2222"]
    assert (found.job, found.address) == ("chief", "a:2222")


@pytest.mark.slow  # others join too
def test_a_master_is_the_chief_of_its_workers():
    first, second = free_ports(2)
    cluster = {"master": [f"localhost:{first}"], "worker": [f"localhost:{second}"]}
    tasks = [
        {"cluster": cluster, "task": {"type": job, "index": 0}, "environment": "cloud"}
        for job in ("master", "worker")
    ]
    said = joined(*({"TF_CONFIG": json.dumps(task)} for task in tasks))
    strategies = "CollectiveAllReduceStrategy, 2 replicas on CPU 3.0"
    assert said == [f"(0, 2) {strategies}", f"(1, 2) {strategies}"]


def test_tasks_of_srun_join_on_machines_without_gpus():
    step = {
        "SLURM_JOB_ID": str(os.getpid()),  # decides the ports
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    said = joined(*(step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")))
    strategies = "CollectiveAllReduceStrategy, 2 replicas on CPU 3.0"
    assert said == [f"(0, 2) {strategies}", f"(1, 2) {strategies}"]


def two_workers(monkeypatch, mine: int, other: int) -> None:
    addresses = [f"localhost:{mine}", f"localhost:{other}"]
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))


def test_a_worker_that_never_comes_is_named(monkeypatch, capsys):
    mine, absent = free_ports(2)
    two_workers(monkeypatch, mine, absent)
    monkeypatch.setattr(cluster, "_WAIT_SECONDS", 1.0)
    refused = rf"1 of 2 workers have not come .*: localhost:{absent} \(Connection refused\)\. Start"
    with pytest.raises(UserError, match=refused):
        strategy.make("multiworker")
    assert f"waiting for localhost:{absent}, " in capsys.readouterr().out


def test_an_address_where_something_else_listens_is_told(monkeypatch):
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        two_workers(monkeypatch, port, 1)
        with pytest.raises(UserError, match=f"cannot listen at its address localhost:{port}: Addr"):
            strategy.make("multiworker")


@pytest.mark.slow
def test_a_worker_that_is_lost_while_all_join_is_not_waited_for_without_end():
    (mine,) = free_ports(1)
    with socket.create_server(("localhost", 0)) as silent:
        cluster = {"worker": [f"localhost:{silent.getsockname()[1]}", f"localhost:{mine}"]}
        task = {"cluster": cluster, "task": {"type": "worker", "index": 1}}
        process = python(
            "from trainer import cluster; cluster._JOIN_SECONDS = 5\n" + JOIN,
            TF_CONFIG=json.dumps(task),
        )
        _, complained = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: the workers have not come together within 5 s: another one" in complained
    assert "Thread 0x" not in complained


@pytest.mark.slow
def test_a_worker_that_is_only_slow_is_waited_for():
    """For longer than TensorFlow's own ten seconds without a heartbeat."""
    code = (
        JOIN
        + """
import time
for _ in range(50):
    strategy.sum_over_workers(devices, 1.0)
    time.sleep(0.1)
print("done")
"""
    )
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(2)]
    workers = [python(code, TF_CONFIG=json.dumps(task)) for task in tasks]
    while "joined" not in (line := workers[1].stdout.readline()):
        assert line
    workers[1].send_signal(signal.SIGSTOP)
    time.sleep(18)
    workers[1].send_signal(signal.SIGCONT)
    said = [worker.communicate(timeout=300) for worker in workers]
    assert all("done" in out for out, _ in said), said


@pytest.mark.slow
def test_a_worker_that_has_joined_and_does_not_train_yet_ends_by_sigterm():
    (port,) = free_ports(1)
    task = {
        "cluster": {"worker": [f"localhost:{port}"]},
        "task": {"type": "worker", "index": 0},
    }
    code = """
from trainer import strategy
import time
strategy.make("multiworker")
print("joined", flush=True)
time.sleep(600)
"""
    process = python(code, TF_CONFIG=json.dumps(task))
    assert "joined" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("job", ["ps", "evaluator"])
def test_a_machine_that_would_not_train_is_told_so(monkeypatch, job):
    cluster = {"worker": ["a:1", "b:1"], job: ["c:1"]}
    for task in (job, "worker"):
        value = {"cluster": cluster, "task": {"type": task, "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(value))
        with pytest.raises(UserError, match=f"TF_CONFIG names a job '{job}'.*Leave"):
            strategy.make("auto")


@pytest.mark.parametrize(
    ("cluster", "task"),
    [
        ({"chief": ["a:1"], "master": ["b:1"]}, {"type": "chief", "index": 0}),
        ({"worker": ["a:1"]}, {"type": "worker", "index": 1}),
        ({"worker": ["a:1"]}, {"type": "worker", "index": -1}),
        ({"worker": ["a:1"]}, {"type": "chief", "index": 0}),
        ({"worker": ["a:1", "b"]}, {"type": "worker", "index": 0}),
        ({"worker": ["a:1", "b:66000"]}, {"type": "worker", "index": 0}),
        ({"worker": ["a:1", ".empty:2222"]}, {"type": "worker", "index": 0}),
        ({"worker": ["a:1", f"{'long' * 16}:2222"]}, {"type": "worker", "index": 0}),
    ],
)
def test_a_cluster_that_makes_no_sense_is_told_so(monkeypatch, cluster, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(UserError, match="TF_CONFIG is not the JSON of a cluster"):
        strategy.make("auto")


def sbatch(monkeypatch, tasks: str) -> None:
    for name, value in {"JOB_ID": "1", "NTASKS": tasks, "JOB_NODELIST": "node[1-4]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_tasks_of_slurm_that_srun_did_not_start_are_told_how_to(monkeypatch, name):
    sbatch(monkeypatch, "4")
    with pytest.raises(UserError, match=r"gave this job 4 tasks, but srun did not .*`srun python"):
        strategy.make(name)


@pytest.mark.parametrize(("name", "tasks"), [("one", "4"), ("mirrored", "4"), ("auto", "1")])
def test_a_job_of_slurm_trains_on_its_own_machine_without_srun(monkeypatch, name, tasks):
    sbatch(monkeypatch, tasks)
    assert strategy.make(name).num_replicas_in_sync == 1


@pytest.mark.parametrize(
    ("variables", "neighbors"),
    [
        ({}, (2, 1)),
        ({"TRES_PER_TASK": "cpu=8"}, (2, 1)),
        ({"TRES_PER_TASK": "cpu=8,gres/gpu=2"}, (1, 0)),
        ({"GPUS_PER_TASK": "2"}, (1, 0)),
    ],
)
def test_tasks_of_slurm_share_gpus_unless_each_has_its_own(monkeypatch, variables, neighbors):
    sbatch(monkeypatch, "4")
    places = {"PROCID": "3", "STEP_NODELIST": "n[9-10]", "STEP_TASKS_PER_NODE": "2(x2)"}
    for name, value in (places | variables).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = cluster.find("multiworker")
    assert found is not None
    assert (found.address.split(":")[0], found.neighbors) == ("n10", neighbors)


def test_variables_of_slurm_that_contradict_each_other_are_told(monkeypatch):
    sbatch(monkeypatch, "4")
    for name, value in {"PROCID": "4", "STEP_NODELIST": "n[9-10]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    with pytest.raises(UserError, match=r"contradict each other .*SLURM_PROCID=4"):
        strategy.make("auto")


@pytest.mark.parametrize(
    ("gpus", "tasks", "index", "own"),
    [("abcd", 1, 0, "abcd"), ("abcd", 2, 1, "cd"), ("abc", 2, 0, "a"), ("a", 2, 1, "a")],
)
def test_tasks_of_one_machine_share_its_gpus(gpus, tasks, index, own):
    assert strategy.share(gpus, tasks, index) == list(own)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A machine on which nvidia-smi lists two GPUs."""
    program = tmp_path / "nvidia-smi"
    lines = [f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})" for i in range(2)]
    program.write_text("#!/bin/sh\necho '" + "\n  MIG 1g.10gb\n".join(lines) + "'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_gpus_are_found_by_their_device_files(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert strategy.gpus_of_machine(str(tmp_path)) == [f"{tmp_path}/nvidia0", f"{tmp_path}/nvidia1"]


def test_gpus_are_found_by_nvidia_smi(tmp_path, nvidia_smi):
    expected = ["GPU 0: NVIDIA H100", "GPU 1: NVIDIA H100"]
    assert strategy.gpus_of_machine(str(tmp_path)) == expected


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_on_purpose_are_none(tmp_path, nvidia_smi, monkeypatch, value):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert strategy.gpus_of_machine(str(tmp_path)) == []


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="TensorFlow sees one")
def test_a_gpu_that_tensorflow_does_not_see_is_an_error_unless_the_cpu_is_allowed(monkeypatch):
    monkeypatch.setattr(strategy, "gpus_of_machine", lambda: ["/dev/nvidia0"])
    with pytest.raises(UserError, match=r"1 GPU \(/dev/nvidia0\).*carbox\[gpu\].*--allow_cpu"):
        strategy.make("auto")
    assert strategy.make("auto", allow_cpu=True).num_replicas_in_sync == 1
    assert strategy.make("mirrored", 2).num_replicas_in_sync == 2  # asked for CPUs


def test_tensorflow_starts_as_many_threads_as_the_container_may_keep_busy():
    code = """
import tensorflow as tf
from tfrecords import pipelines
from trainer import resources, strategy
pipelines.CORES = 8
resources.cores = lambda: 3
strategy.make("one")
threading = tf.config.threading
print(threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())
"""
    assert outputs(python(code)) == ["3 3\n"]


@pytest.mark.parametrize(
    ("file", "variables"),
    [
        ('{"backend": "theano", "image_dim_ordering": "tf"}', {}),
        (
            '{"floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}',
            {"KERAS_BACKEND": "jax"},
        ),
        pytest.param(
            '{"floatx": "int3", "epsilon": "small", "nnx_enabled": true}',
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param("[]", {}, marks=pytest.mark.slow),
    ],
)
def test_the_keras_of_a_user_changes_nothing(tmp_path, file, variables):
    home = tmp_path / ".keras"
    home.mkdir()
    (home / "keras.json").write_text(file)
    code = """
import trainer, keras, os
from keras import config
from keras.src.utils import file_utils
print(config.backend(), config.floatx(), config.image_data_format(), config.epsilon())
print(file_utils.get_file("weights", "file://" + os.environ["FROM"], cache_subdir="models"))
"""
    source = tmp_path / "source"
    source.write_text("weights")
    (said,) = outputs(python(code, HOME=str(tmp_path), FROM=str(source), **variables))
    settings, *_, stored = said.splitlines()
    assert settings == "tensorflow float32 channels_last 1e-07"
    assert stored == str(home / "models" / "weights")
    assert (home / "keras.json").read_text() == file
