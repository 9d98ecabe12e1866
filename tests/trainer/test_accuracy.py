"""The table of ingredients: its rows are recipes that exist, and none is trained twice."""

import dataclasses
import math
import os

import pytest

from benchmarks import accuracy
from tests.tfrecords import datasets
from tfrecords import command, manifest
from trainer import configs, evaluate, run_dir, task


def recipe(config: str, settings: accuracy.Settings) -> configs.Config:
    of_config = {key: value for key, value in settings.items() if key != "--replicas"}
    return configs.replace(configs.load(config), of_config)


def test_the_steps_lead_from_the_baseline_to_the_default():
    steps = [row for row in accuracy.recipes() if row[1] == "baseline"]
    last = recipe("baseline", steps[-1][2])
    default = configs.load("default")
    assert dataclasses.replace(last, name=default.name, epochs=default.epochs) == default


def test_every_row_can_be_chosen_by_its_name():
    names = [name for name, _, _ in accuracy.recipes()]
    assert not [name for name in names if "," in name]
    assert len(set(names)) == len(names)


def test_every_row_is_another_recipe_that_can_be_made():
    made = [
        (configs.to_json(recipe(config, settings)), settings.get("--replicas"))
        for _, config, settings in accuracy.recipes()
    ]
    assert len(set(made)) == len(made)


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    """What the benchmark runs: the flags are parsed as ever, what is computed is made up."""
    noted: list[str] = []

    def note(module: str, arguments: list[str]) -> None:
        noted.append(module)
        if module == "trainer.task":
            command.parse(task.FLAGS, arguments, usage="")
            config = configs.from_flags(task.FLAGS, "default")
            data = run_dir.describe_data(task.FLAGS.data, manifest.read(task.FLAGS.data))
            os.makedirs(task.FLAGS.run, exist_ok=True)
            run_dir.create(task.FLAGS.run, config, data)
            return
        command.parse(evaluate.FLAGS, arguments, usage="")
        run = evaluate.FLAGS.run
        config, data = run_dir.read(run)
        suffix = evaluate.result_suffix(run, data, configs.apply(evaluate.FLAGS, config))
        name = f"evaluation-{evaluate.FLAGS.split}{suffix}.json"
        run_dir.write_json(run, name, {"top1": len(noted) / 10})

    monkeypatch.setattr(accuracy, "_command", note)
    return noted


def test_rows_that_differ_in_their_inference_share_one_training(commands, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    datasets.write_default(str(data))
    flags = [f"--data={data}", f"--runs={tmp_path / 'runs'}", "--weights=none"]
    command.parse(accuracy.FLAGS, [*flags, "--epochs=2"], usage="")
    train, evaluation = "trainer.task", "trainer.evaluate"
    _, config, steps = accuracy.recipes()[len(accuracy.STEPS) - 1]
    first = accuracy.measure(config, steps | {"seed": 1})
    assert commands == [train, evaluation]
    zoomed_once = accuracy.measure("default", {"inference.zoom_passes": 1, "seed": 1})
    assert commands == [train, evaluation, evaluation]
    assert zoomed_once["top1"] != first["top1"]
    assert accuracy.measure("default", {"seed": 1}) == first
    assert commands == [train, evaluation, evaluation]
    accuracy.measure("default", {"seed": 2})
    accuracy.measure("default", {"seed": 1, "--replicas": 2})
    command.parse(accuracy.FLAGS, [*flags, "--epochs=3"], usage="")
    accuracy.measure("default", {"seed": 1})
    assert commands[3:] == [train, evaluation] * 3


def test_what_is_trained_is_what_the_row_says(commands, tmp_path):
    datasets.write_default(str(tmp_path))
    flags = [f"--data={tmp_path}", f"--runs={tmp_path / 'runs'}", "--weights=none", "--epochs=2"]
    command.parse(accuracy.FLAGS, flags, usage="")
    settings = {"model.batch_norm_momentum": None, "augment.flip": False, "seed": 7}
    accuracy.measure("default", settings)
    (run,) = os.listdir(tmp_path / "runs")
    trained, _ = run_dir.read(str(tmp_path / "runs" / run))
    single_pass = {"inference.zoom_passes": 0, "inference.flip_tta": False}
    # Rows that differ in these share a training.
    single_pass |= {"inference.zoom_margin": 0.0, "inference.margin_tta": 0.0}
    expected = settings | single_pass | {"epochs": 2, "weights": "none"}
    assert trained == configs.replace(configs.load("default"), expected)


def test_a_training_that_was_interrupted_has_no_time(commands, tmp_path):
    datasets.write_default(str(tmp_path))
    flags = [f"--data={tmp_path}", f"--runs={tmp_path / 'runs'}", "--weights=none", "--epochs=2"]
    command.parse(accuracy.FLAGS, flags, usage="")
    assert accuracy.measure("default", {"seed": 1})["training_seconds"] < 60
    (run,) = os.listdir(tmp_path / "runs")
    os.remove(tmp_path / "runs" / run / "seconds.json")  # as if it had been killed
    assert math.isnan(accuracy.measure("default", {"seed": 1})["training_seconds"])
    row = accuracy.describe(
        "name",
        [dict.fromkeys(accuracy.SHOWN, value) for value in (0.25, math.nan)],
    )
    assert "| 0.250 (0.250 to 0.250) |" in row
