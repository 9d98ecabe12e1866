"""A job on Vertex AI or SageMaker writes where the service looks, and knows its machines."""

import contextlib
import io
import json
import os
import sys

import pytest

from tests.trainer import commands, networks
from tests.trainer.test_environment import JOIN
from tfrecords.errors import FlagError, UserError
from trainer import cluster, configs, platforms, strategy, task, tensorboard


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AIP_", "SM_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TF_CONFIG", raising=False)


def plan(data: str, *flags: str) -> str:
    """What the command says it will do; a mistake in --profile then stops it."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(FlagError):
        task.main([f"--data={data}", "--strategy=one", *commands.SETTINGS, "--profile=2", *flags])
    return said.getvalue()


def test_the_run_goes_where_the_job_says_unless_a_flag_says_otherwise(data, tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", f"{tmp_path}/checkpoints/")
    said = plan(data)
    assert f"run:      {tmp_path}/checkpoints\n" in said
    assert "which is AIP_CHECKPOINT_DIR" in said
    monkeypatch.setenv("AIP_MODEL_DIR", f"{tmp_path}/model/")
    assert f"run:      {tmp_path}/model\n" in plan(data)
    said = plan(data, f"--run={tmp_path}/mine")
    assert f"run:      {tmp_path}/mine\n" in said
    assert "AIP_" not in said


def test_a_bucket_becomes_the_run_as_it_is_written(monkeypatch):
    monkeypatch.setenv("AIP_MODEL_DIR", "gs://bucket/cars/model/")
    assert platforms.run_folder() == "gs://bucket/cars/model"


def test_summaries_go_to_the_tensorboard_of_the_job(data, tmp_path, monkeypatch):
    mount, run = tmp_path / "gcs", tmp_path / "run"
    (mount / "bucket").mkdir(parents=True)
    monkeypatch.setattr(platforms, "MOUNT", str(mount))
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "gs://bucket/cars/logs/")
    assert f"TensorBoard: {mount}/bucket/cars/logs, which is AIP" in plan(data, f"--run={run}")
    tensorboard.write_config(str(run), configs.load("sample"))
    assert list((mount / "bucket" / "cars" / "logs" / "train").glob("events.out.tfevents.*"))
    assert not run.exists()


def test_a_bucket_that_is_not_mounted_is_told_and_the_summaries_stay_in_the_run(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(platforms, "MOUNT", str(tmp_path))
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "gs://bucket/logs")
    assert "gs://bucket/logs is not mounted" in plan(data, f"--run={tmp_path}/run")
    assert tensorboard.folder("run") == "run/tensorboard"


def test_the_run_goes_where_sagemaker_keeps_models(data, tmp_path, monkeypatch):
    monkeypatch.setenv("SM_MODEL_DIR", f"{tmp_path}/model")
    said = plan(data)
    assert f"run:      {tmp_path}/model\n" in said
    assert "which is SM_MODEL_DIR" in said


def resource_config(folder, text: str) -> None:
    (folder / "input" / "config").mkdir(parents=True)
    (folder / "input" / "config" / "resourceconfig.json").write_text(text)


def test_machines_of_sagemaker_are_workers(tmp_path, monkeypatch):
    """By the file that is always there, and by the toolkit's variables, which come first."""
    monkeypatch.setattr(platforms, "SAGEMAKER", str(tmp_path))
    assert cluster.find("auto") is None
    resource_config(tmp_path, '{"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}')
    found = cluster.find("auto")
    assert found.addresses == ["algo-1:8890", "algo-2:8890"]
    assert found.address == "algo-2:8890"
    assert cluster.find("mirrored") is None
    monkeypatch.setenv("SM_HOSTS", '["algo-1", "algo-2", "algo-3"]')
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-3")
    assert cluster.find("multiworker").index == 2
    monkeypatch.setenv("SM_HOSTS", '["algo-1"]')
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-1")
    assert cluster.find("auto") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"hosts": ["a", "b"], "current_host": "c"}'])
def test_machines_of_sagemaker_that_make_no_sense_are_told_so(tmp_path, monkeypatch, text):
    monkeypatch.setattr(platforms, "SAGEMAKER", str(tmp_path))
    resource_config(tmp_path, text)
    with pytest.raises(UserError, match=r"resourceconfig\.json should name .* Set TF_CONFIG"):
        strategy.make("auto")


@pytest.mark.slow
def test_machines_of_sagemaker_join():
    hosts = ["algo-1", "algo-2"]
    if reason := networks.missing():
        pytest.skip(reason)
    with networks.lan(hosts) as lan:
        python = [sys.executable, "-c", JOIN]
        machines = [
            commands.start_program(
                [*lan.command(index), *python], SM_HOSTS=json.dumps(hosts), SM_CURRENT_HOST=host
            )
            for index, host in enumerate(hosts)
        ]
        said = [machine.communicate(timeout=600) for machine in machines]
    for index, (out, complained) in enumerate(said):
        assert f"joined ({index}, 2) " in out, complained
