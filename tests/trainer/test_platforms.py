"""A job on Vertex AI or SageMaker writes where the service looks, and knows its machines."""

import contextlib
import io

import pytest

from tests.trainer import commands
from tfrecords.errors import FlagError
from trainer import configs, platforms, task, tensorboard


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR", "AIP_TENSORBOARD_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)


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
