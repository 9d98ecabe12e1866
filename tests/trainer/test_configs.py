"""Configs: what the files choose, what values and flags are refused, and what a run keeps."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from tfrecords import command
from tfrecords.errors import FlagError, UserError
from trainer import configs


@pytest.fixture(scope="module")
def values():
    found = flags.FlagValues()
    configs.define_flags(found)
    return found


def from_flags(values, *argv, default="default"):
    command.parse(values, list(argv), usage="")
    return configs.from_flags(values, default)


def changed(before, after):
    before, after = configs.flatten(before), configs.flatten(after)
    return {key: after[key] for key in after if after[key] != before[key]}


def values_of(setting):
    """Generates any value that a setting takes."""
    if setting.choices:
        found = st.sampled_from(setting.choices)
    elif setting.kind is bool:
        found = st.booleans()
    elif setting.kind is str:
        found = st.sampled_from(["none", "l1", "5*l1+2*giou", "a b/c=d.h5", "ü"])
    elif setting.kind is int:
        found = st.integers(*setting.within)
    else:
        found = st.floats(*setting.within)
    return found | st.none() if setting.optional else found


@st.composite
def any_config(draw):
    """Generates configs with any value of any setting, as long as they go together."""
    chosen = {key: draw(values_of(about)) for key, about in configs.SETTINGS.items()}
    chosen["optimizer.accumulation_steps"] = 1
    chosen["model.box_stride"] = min(chosen["model.stride"], chosen["model.box_stride"])
    if None in (chosen["model.input_height"], chosen["model.input_width"]):
        chosen["model.input_height"] = chosen["model.input_width"] = None
    if not chosen["augment.object_crop"]:
        chosen["inference.zoom_passes"] = 0
    chosen["inference.margin_tta"] = min(
        chosen["inference.zoom_margin"], chosen["inference.margin_tta"]
    )
    if chosen["jit"] == "on":
        chosen["model.batch_norm"] = "local"
    return configs.replace(configs.load("default"), chosen)


# What the files choose.


def test_the_defaults_of_the_schema_are_the_default_config():
    assert configs.load("default") == configs.Config()


def test_baseline_is_the_notebook():
    config = configs.load("baseline")
    assert (config.model.head, config.model.dropout, config.model.filters) == ("pooled", 0.5, 256)
    assert (config.loss.box, config.loss.box_reduction) == ("squared_error", "sum")
    assert (config.loss.box_weight, config.loss.label_weight) == (1, 1)
    assert config.loss.label_smoothing == 0
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (1e-4, "constant")
    assert (config.optimizer.warmup_epochs, config.optimizer.weight_decay) == (0, 0)
    assert (config.batch_size, config.seed, config.shuffle) == (64, 42, False)
    assert config.augment == configs.Augment(
        flip=False, context_crop=0.0, object_crop=0.0, color_jitter=0.0, mixup=0.0
    )
    assert config.inference == configs.Inference(zoom_passes=0, flip_tta=False)
    assert config.model.batch_norm_momentum is None
    assert not config.model.word_shared_classifier


@pytest.mark.parametrize("name", configs.NAMES)
def test_a_config_is_named_after_its_file_and_passes_the_check(name):
    config = configs.load(name)
    configs.check(config)
    assert config.name == name


def test_configs_need_neither_tensorflow_nor_keras():
    script = """
        import sys, types
        trainer = types.ModuleType("trainer")
        trainer.__path__ = ["trainer"]
        sys.modules["trainer"] = trainer
        from trainer import configs
        for name in configs.NAMES:
            configs.load(name)
        assert not {"tensorflow", "keras", "numpy"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)


# Files of one's own.


def test_a_file_of_ones_own_is_a_config(values, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from trainer import configs\n"
        "def get_config():\n"
        "    return configs.replace(configs.load('baseline'), {'model.dropout': 0.25})\n"
    )
    config = from_flags(values, f"--config={path}", "--config.seed=7")
    assert changed(configs.load("baseline"), config) == {
        "name": "mine",
        "model.dropout": 0.25,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "must define get_config"),
        ("def get_config():\n    return {}", "must define get_config"),
        ("def get_config():\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError"),
        ("def get_config(:", "mine.py: SyntaxError"),
        ("def get_config():\n    return {}['get_config']", "line 2: KeyError"),
        (
            "from trainer.configs import *\ndef get_config():\n    return Config(epochs=0)",
            "config.epochs is 0: it must be an integer between 1 and 1000000.",
        ),
        (
            "from trainer.configs import *\ndef get_config():\n    return Config(model='large')",
            "config.model.alpha is None: it must be a number",
        ),
    ],
)
def test_a_file_without_a_usable_config_is_an_error_for_people(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        configs.load(str(path))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("basline", "Did you mean baseline?"),
        ("", "There are baseline, default, sample, or a file of your own"),
        ("schema", "no such config"),
        ("nowhere/mine.py", "--config=nowhere/mine.py: there is no such file"),
    ],
)
def test_a_config_that_is_not_there_is_named(values, name, said):
    with pytest.raises(UserError) as error:
        from_flags(values, f"--config={name}")
    assert said in str(error.value)


# Values.


@pytest.mark.parametrize("key", configs.SETTINGS)
def test_every_value_of_a_config_obeys_its_range_and_a_value_of_another_type_does_not(key):
    about = configs.SETTINGS[key]
    assert all(about.takes(configs.flatten(configs.load(name))[key]) for name in configs.NAMES)
    assert about.help
    assert about.takes(None) == about.optional
    assert not about.takes([])
    assert not about.takes(b"")
    if about.kind in (int, float):
        assert about.choices or about.within, "a number needs a range"
        assert not about.takes("1")
        assert not about.takes(True)
        assert not any(about.takes(float(odd)) for odd in ("nan", "inf", "-inf"))
    if about.kind is int:
        assert not about.takes(1.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_size": 6, "optimizer.accumulation_steps": 4}, "=4 equal parts"),
        ({"model.stride": 16, "model.box_stride": 32}, "set --config.model.box_stride=16"),
        ({"augment.object_crop": 0.0}, "set --config.inference.zoom_passes=0, or train with"),
        ({"model.batch_norm": "synchronized", "jit": "on"}, "set --config.jit=off"),
        ({"model.input_height": 64}, "give both, or neither"),
        ({"model.input_width": 64}, "give both, or neither"),
        ({"model.input_width": 64, "model.input_height": 31}, "between 32 and"),
        ({"model.head": "round"}, "one of pooled, spatial, soft_argmax"),
        ({"model.batch_norm_momentum": 2.0}, "between 0 and 1 or None"),
        ({"inference.zoom_passes": 9}, "between 0 and 8"),
        ({"shuffle": "yes"}, "True or False"),
        ({"optimizer": 1}, "config.optimizer: there is no such setting"),
        ({"name": "mine"}, "config.name: there is no such setting"),
    ],
)
def test_values_that_cannot_be_are_answered_with_the_remedy(values, said):
    with pytest.raises(UserError) as error:
        configs.replace(configs.load("default"), values)
    assert said in str(error.value)


def test_without_zoom_passes_object_crops_need_not_be_learned():
    values = {"augment.object_crop": 0.0, "inference.zoom_passes": 0}
    assert changed(configs.Config(), configs.replace(configs.Config(), values)) == values


# Flags.


@given(config=any_config())
def test_flags_set_every_setting(values, config):
    argv = [
        f"--config.{key}={str(value).lower() if value is None or value is True else value!s}"
        for key, value in configs.flatten(config).items()
        if key != "name"
    ]
    parsed = from_flags(values, *argv)
    assert parsed == config
    kinds = {key: type(value) for key, value in configs.flatten(parsed).items()}
    assert kinds == {key: type(value) for key, value in configs.flatten(config).items()}


def test_flags_change_only_what_they_name(values):
    config = from_flags(values, "--config.optimizer.ema", "0.99", "--noconfig.augment.flip")
    assert changed(configs.load("default"), config) == {
        "optimizer.ema": 0.99,
        "augment.flip": False,
    }
    assert from_flags(values) == configs.load("default")


def test_the_config_is_the_one_asked_for_or_else_the_one_of_the_data(values):
    assert from_flags(values, default="sample") == configs.load("sample")
    assert from_flags(values, "--config=baseline", default="sample") == configs.load("baseline")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("weights", "none", "none"),
        ("epochs", "3", 3),
        ("batch_size", "8", 8),
        ("jit", "off", "off"),
        ("precision", "mixed_bfloat16", "mixed_bfloat16"),
    ],
)
def test_a_short_flag_is_the_same_as_the_long_one(values, name, text, value):
    short, long = f"--{name}={text}", f"--config.{name}={text}"
    for argv in ([short], [long], [short, long]):
        assert changed(configs.load("default"), from_flags(values, *argv)) == {name: value}


def test_a_short_flag_and_the_long_one_may_not_contradict_each_other(values):
    with pytest.raises(FlagError, match=r"--epochs=3 and .*epochs=4 contradict each other"):
        from_flags(values, "--epochs=3", "--config.epochs=4")


def test_a_path_of_weights_may_begin_at_home(values, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_text(
        "from trainer.configs import Config\n"
        "def get_config():\n    return Config(weights='~/backbone.h5')\n"
    )
    for argv in (["--weights=~/backbone.h5"], ["--config=~/mine.py"]):
        assert from_flags(values, *argv).weights == str(tmp_path / "backbone.h5")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.epochs=0", "0 is not an integer in the range [1, 1000000]"),
        ("--epochs=many", "--epochs=many: it is not an integer in the range [1, 1000000]"),
        ("--config.optimizer.ema=1", "in the range [0, 0.999999]"),
        ("--config.optimizer.learning_rate=nan", "=nan: it is not a number in the range"),
        ("--config.optimizer.learning_rate=inf", "inf is not a number in the range"),
        ("--config.model.batch_norm_momentum=nan", "in the range [0, 1], or none"),
        ("--config.model.input_height=many", "in the range [32, 16384], or none"),
        ("--config.model.head=round", "<pooled|spatial|soft_argmax>"),
        ("--config.downscale=3", "<1|2|4|8>"),
        ("--config.shuffle=perhaps", "--config.shuffle=perhaps: it is not true or false"),
        ("--batch-size=3", "Did you mean --batch_size?"),
        ("--lr=1", "Did you mean --config.optimizer.learning_rate?"),
        ("--optimizer.lr=1", "Did you mean --config.optimizer.learning_rate?"),
        ("--config.augment.colour=1", "Did you mean --config.augment.color_jitter?"),
        ("--set", "Write --config.KEY=VALUE; --helpfull shows every KEY."),
    ],
)
def test_a_wrong_flag_is_answered(values, argument, said):
    with pytest.raises(FlagError) as error:
        from_flags(values, argument)
    assert said in str(error.value)


def shown(values, argument, capsys):
    with pytest.raises(SystemExit):
        command.parse(values, [argument], usage="")
    return " ".join(capsys.readouterr().out.split())


def test_full_help_lists_every_setting_with_its_default_and_range(values, capsys):
    text = shown(values, "--helpfull", capsys)
    assert all(f"config.{key}: " in text for key in configs.SETTINGS)
    assert "is evaluated; 0 for none (default: 0.0; sample 0.98) (a number in the range" in text
    assert "(default: 0.9; baseline none) (a number in the range [0, 1], or none)" in text
    assert "--config.downscale: <1|2|4|8>: decode photos" in text


def test_help_shows_the_short_flags_and_where_the_settings_are(values, capsys):
    text = shown(values, "--help", capsys)
    assert "--helpfull lists them" in text
    assert "--epochs: passes over the training split (default: 30; baseline 5; sample 26)" in text
    assert "--config.epochs" not in text


def test_a_command_may_take_the_settings_of_one_section_only(capsys):
    values = flags.FlagValues()
    configs.define_flags(values, sections=["inference"])
    names = {"zoom_passes", "zoom_margin", "flip_tta", "margin_tta"}
    assert set(values) == {f"config.inference.{name}" for name in names}
    assert "--config.inference.zoom_passes: " in shown(values, "--help", capsys)
    command.parse(values, ["--config.inference.zoom_passes=0"], usage="")
    config = configs.apply(values, configs.load("default"))
    assert changed(configs.load("default"), config) == {"inference.zoom_passes": 0}
    command.parse(values, ["--config.inference.zoom_passes=1"], usage="")
    with pytest.raises(UserError, match="never sees crops of the object"):
        configs.apply(values, configs.load("baseline"))


def test_a_crop_of_the_last_pass_may_not_cut_into_the_box(values):
    with pytest.raises(UserError, match=r"--config.inference.zoom_margin=0.01: the smaller crop"):
        from_flags(values, "--config.inference.zoom_margin=0.01")
    flags = ["--config.inference.zoom_margin=0.01", "--config.inference.margin_tta=0.01"]
    assert from_flags(values, *flags).inference.margin_tta == 0.01


# What a run keeps.


@given(config=any_config())
def test_a_config_survives_its_json(config):
    config = dataclasses.replace(config, name="mine")
    assert configs.from_json(configs.to_json(config)) == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["predict", "looks"], ["inference", "zoom_passes"]),
        (["optimizer", "accumulate"], ["optimizer", "accumulation_steps"]),
        (["image_height"], None),
        (None, ["shuffle"]),
        (None, ["model", "box_stride"]),
    ],
)
def test_a_config_whose_settings_had_other_names_is_refused(old, new):
    values = json.loads(configs.to_json(configs.load("default")))
    if new:
        (values if len(new) == 1 else values[new[0]]).pop(new[-1])
    if old:
        (values if len(old) == 1 else values.setdefault(old[0], {}))[old[-1]] = 3
    with pytest.raises(UserError, match="made by another version of carbox") as error:
        configs.from_json(json.dumps(values))
    assert ".".join(old or new) in str(error.value)
    assert "use that version, or train anew under another --run" in str(error.value)


def test_runs_from_before_a_setting_existed_keep_what_they_did():
    values = json.loads(configs.to_json(configs.load("default")))
    assert values["model"].pop("last_stride") == 1
    assert configs.from_json(json.dumps(values)).model.last_stride == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"name"', "null"])
def test_a_damaged_config_is_an_error_for_people(text):
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        configs.from_json(text)


@pytest.mark.parametrize("text", ["NaN", "Infinity", '"0.1"', "null", "true", "-1"])
def test_a_value_that_no_config_can_have_is_not_read(text):
    damaged = configs.to_json(configs.load("default")).replace(
        '"learning_rate": 0.001', f'"learning_rate": {text}'
    )
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate is"):
        configs.from_json(damaged)
