import json

import pytest

from tfrecords.errors import UserError
from trainer import config as configs


def test_settings_take_both_forms_in_any_mix():
    words = ["epochs", "3", "model.head=pooled", "optimizer.ema", "0.99"]
    assert configs.parse_settings(words) == {
        "epochs": "3",
        "model.head": "pooled",
        "optimizer.ema": "0.99",
    }


def test_settings_change_only_what_they_name():
    config = configs.apply_settings(configs.named("default"), {"model.dropout": "0.4"})
    before, after = configs.flatten(configs.Config()), configs.flatten(config)
    assert {key for key in after if before[key] != after[key]} == {"model.dropout"}
    assert config.model.dropout == 0.4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.haed", "pooled", "model.head"),
        ("model", "pooled", "no such setting"),
        ("epochs", "many", "type int"),
        ("epochs", "0", "between 1 and"),
        ("shuffle", "yes", "true or false"),
        ("model.head", "round", "pooled, spatial"),
        ("optimizer.accumulate", "5", "equal parts"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(key, value, said):
    with pytest.raises(UserError, match=key.split(".")[0]) as error:
        configs.apply_settings(configs.Config(), {key: value})
    assert said in str(error.value)


def test_looks_from_near_without_close_ups_to_learn_from_are_refused():
    with pytest.raises(UserError, match=r"looks 1, or train with augment\.zoom above 0"):
        configs.apply_settings(configs.named("default"), {"augment.zoom": "0"})
    configs.apply_settings(configs.named("default"), {"augment.zoom": "0", "predict.looks": "1"})


def test_a_box_read_from_behind_the_end_of_the_backbone_is_refused():
    settings = {"model.stride": "16", "model.box_stride": "32"}
    with pytest.raises(UserError, match=r"ends at model\.stride=16: set model\.box_stride 16"):
        configs.apply_settings(configs.named("default"), settings)


def test_a_setting_without_value_is_named():
    with pytest.raises(UserError, match="epochs"):
        configs.parse_settings(["epochs"])


@pytest.mark.parametrize("name", configs.NAMES)
def test_a_config_survives_its_file(name):
    config = configs.named(name)
    configs.check(config)
    assert configs.from_json(configs.to_json(config)) == config


def test_a_damaged_config_file_is_an_error_for_people():
    with pytest.raises(UserError, match="not one that this version reads"):
        configs.from_json('{"epochs": 3, "colour": 1}')


@pytest.mark.parametrize(("part", "key"), [(None, "shuffle"), ("model", "box_stride")])
def test_a_config_of_a_version_without_a_field_is_refused(part, key):
    values = json.loads(configs.to_json(configs.Config()))
    (values[part] if part else values).pop(key)
    with pytest.raises(UserError, match=key):
        configs.from_json(json.dumps(values))


def test_baseline_is_the_notebook():
    config = configs.named("baseline")
    assert (config.model.head, config.model.dropout, config.model.filters) == ("pooled", 0.5, 256)
    assert (config.loss.box, config.loss.box_reduction) == ("squared_error", "sum")
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (1e-4, "constant")
    assert (config.batch_size, config.seed, config.shuffle) == (64, 42, False)
    assert config.augment == configs.Augment(flip=False, crop=0.0, zoom=0.0, colour=0.0, mixup=0.0)
    assert config.predict == configs.Predict(looks=1, flip=False)
    assert config.model.batch_norm_momentum is None
    assert not config.model.shared_words
