import dataclasses

from benchmarks import accuracy
from trainer import config as configs


def test_the_steps_lead_from_the_baseline_to_the_default():
    steps = [row for row in accuracy.recipes() if row[1] == "baseline"]
    last = configs.apply_settings(configs.named("baseline"), steps[-1][2])
    default = configs.named("default")
    assert dataclasses.replace(last, name=default.name, epochs=default.epochs) == default


def test_every_row_is_another_recipe_that_can_be_made():
    made = [
        configs.apply_settings(configs.named(config), settings)
        for _, config, settings in accuracy.recipes()
    ]
    assert len({configs.to_json(config) for config in made}) == len(made)
