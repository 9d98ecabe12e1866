import dataclasses

from benchmarks import accuracy
from trainer import config as configs


def test_the_steps_lead_from_the_baseline_to_the_default():
    steps = [row for row in accuracy.recipes() if row[1] == "baseline"]
    last = configs.apply_settings(configs.named("baseline"), steps[-1][2])
    default = configs.named("default")
    assert dataclasses.replace(last, name=default.name, epochs=default.epochs) == default


def test_every_row_is_another_recipe_that_can_be_made():
    made = []
    for _, config, settings in accuracy.recipes():
        flag = settings.get("--replicas")
        fields = {key: value for key, value in settings.items() if key != "--replicas"}
        recipe = configs.apply_settings(configs.named(config), fields)
        made.append((configs.to_json(recipe), flag))
    assert len(set(made)) == len(made)
