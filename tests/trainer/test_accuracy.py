import argparse
import dataclasses
import json
import math
import os

import pytest

from benchmarks import accuracy
from tests.tfrecords import datasets
from trainer import config as configs


def test_the_steps_lead_from_the_baseline_to_the_default():
    steps = [row for row in accuracy.recipes() if row[1] == "baseline"]
    last = configs.apply_settings(configs.named("baseline"), steps[-1][2])
    default = configs.named("default")
    assert dataclasses.replace(last, name=default.name, epochs=default.epochs) == default


def test_every_row_can_be_chosen_by_its_name():
    assert not [name for name, _, _ in accuracy.recipes() if "," in name]


def test_every_row_is_another_recipe_that_can_be_made():
    made = []
    for _, config, settings in accuracy.recipes():
        flag = settings.get("--replicas")
        fields = {key: value for key, value in settings.items() if key != "--replicas"}
        recipe = configs.apply_settings(configs.named(config), fields)
        made.append((configs.to_json(recipe), flag))
    assert len(set(made)) == len(made)


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    """What the benchmark runs, noted instead of run; what it would leave is made up."""
    noted = []

    def note(module: str, arguments: list[str]) -> None:
        run = next(word for word in arguments if word.startswith("--run=")).removeprefix("--run=")
        noted.append(module)
        os.makedirs(run, exist_ok=True)
        with open(os.path.join(run, "evaluation-validation.json"), "w") as file:
            json.dump({"top1": len(noted) / 10}, file)

    monkeypatch.setattr(accuracy, "_command", note)
    return noted


def test_rows_that_differ_in_how_they_judge_share_one_training(commands, tmp_path):
    (tmp_path / "data").mkdir()
    datasets.write_default(str(tmp_path / "data"))
    flags = argparse.Namespace(
        data=str(tmp_path / "data"), runs=str(tmp_path / "runs"), weights="none", epochs=2
    )
    train, judge = "trainer.task", "trainer.evaluate"
    default = accuracy.recipes()[len(accuracy.STEPS) - 1]
    first = accuracy.judge(flags, default[1], {**default[2], "seed": "1"})
    assert commands == [train, judge]
    one_look = accuracy.judge(flags, "default", {"predict.looks": "1", "seed": "1"})
    assert commands == [train, judge, judge]
    assert one_look["top1"] != first["top1"]
    assert accuracy.judge(flags, "default", {"seed": "1"}) == first
    assert commands == [train, judge, judge]
    accuracy.judge(flags, "default", {"seed": "2"})
    accuracy.judge(flags, "default", {"seed": "1", "--replicas": "2"})
    flags.epochs = 3
    accuracy.judge(flags, "default", {"seed": "1"})
    assert commands[3:] == [train, judge] * 3


def test_a_training_that_was_interrupted_has_no_time(commands, tmp_path):
    os.makedirs(tmp_path / "begun")
    assert math.isnan(accuracy._train(str(tmp_path / "begun"), []))
    assert accuracy._train(str(tmp_path / "fresh"), []) < 60
    row = accuracy.describe(
        "name",
        [dict.fromkeys(accuracy.JUDGED, value) for value in (0.25, math.nan)],
    )
    assert "| 0.250 (0.250 to 0.250) |" in row
