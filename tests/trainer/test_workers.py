"""Workers on one machine, as on several: what they refuse, and what is said when one is lost."""

import json
import re
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.trainer import commands

pytestmark = pytest.mark.slow


def start(number: int, flags: list[str], *more: str) -> list[subprocess.Popen]:
    """Starts workers by `TF_CONFIG`; the last one has more flags."""
    ports = []
    for _ in range(number):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return [
        commands.start(
            "trainer.task",
            "--strategy=multiworker",
            *flags,
            *(more if index == number - 1 else ()),
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(number)
    ]


@pytest.mark.parametrize(
    "flag", ["--config.optimizer.ema=0.5", "--steps_per_call=2", "--report=none"]
)
def test_workers_of_another_config_are_refused_before_the_first_step(data, tmp_path, flag):
    flags = [f"--data={data}", f"--run={tmp_path / 'run'}", *commands.SETTINGS]
    for worker in start(2, flags, flag):
        _, complained = worker.communicate(timeout=120)
        assert worker.returncode == 1
        name = flag.partition("=")[0]
        assert f"the workers do not have the same {name}. Start" in complained
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_the_jobs_environment_names_is_refused(data, monkeypatch):
    monkeypatch.setenv("AIP_MODEL_DIR", "gs://bucket/model")
    for worker in start(2, [f"--data={data}", *commands.SETTINGS]):
        _, complained = worker.communicate(timeout=300)
        assert worker.returncode == 1
        assert complained.splitlines()[-1].startswith(
            "error: gs://bucket/model, which the job's environment names: several machines train in"
        )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_worker_ends_the_others_and_the_same_command_reaches_the_same_bits(
    data, tmp_path, lost
):
    recipe = [f"--data={data}", *commands.SETTINGS, "--epochs=6", "--batch_size=6"]
    undisturbed, run = str(tmp_path / "undisturbed"), str(tmp_path / "run")
    flags = [*recipe, f"--run={run}", "--checkpoint_seconds=0"]
    for worker in start(3, [*recipe, f"--run={undisturbed}"]):
        assert worker.communicate(timeout=300)
        assert worker.returncode == 0
    workers = start(3, flags)
    for line in iter(workers[0].stdout.readline, ""):
        if re.match(r"epoch 3/6: .*100%", line):
            break
    workers[lost].kill()
    killed = time.monotonic()
    for index, worker in enumerate(workers):
        _, complained = worker.communicate(timeout=120)
        if index != lost:
            assert worker.returncode == 1
            assert "another worker has ended or cannot be reached" in complained
            assert "Traceback" not in complained
    assert time.monotonic() - killed < 60
    for worker in start(3, flags):
        assert worker.communicate(timeout=300)
        assert worker.returncode == 0
    ours, theirs = commands.saved(run), commands.saved(undisturbed)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
