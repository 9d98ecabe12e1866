"""New runs that start from the weights of another one."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import checkpoint, configs, model, run_dir, train_state, warm_start

CONFIG = configs.replace(
    configs.load("default"),
    {
        "weights": "none",
        "model.alpha": 0.35,
        "model.stride": 16,
        "model.filters": 8,
        "optimizer.ema": 0.9,
    },
)
OTHER_NAMES = ["Ford Ka 1996", "Ford Focus 1998", "Fiat Panda 1980"]


def build(class_names=datasets.CLASS_NAMES, **changes) -> keras.Model:
    """Returns a network with random values of its own."""
    named = {"seed": 1} | {name.replace("__", "."): value for name, value in changes.items()}
    config = configs.replace(CONFIG, named)
    return model.build(config, datasets.HEIGHT, datasets.WIDTH, class_names)


def values(network: keras.Model) -> dict[str, np.ndarray]:
    found = train_state.named_variables(network)
    return {path: variable.numpy() for path, variable in found.items()}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> tuple[str, dict[str, np.ndarray]]:
    """A run whose averages differ from its last values; and these averages."""
    folder = str(tmp_path_factory.mktemp("run"))
    run_dir.create(folder, CONFIG, run_dir.describe_data(data, manifest.read(data)))
    network = build()
    state = train_state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), network, CONFIG)
    random = np.random.default_rng(0)
    for path, variable in (state.eval_params | state.eval_batch_stats).items():
        shape = train_state.named_variables(network)[path].shape
        variable.assign(random.uniform(0.5, 1.5, shape).astype(np.float32))
    checkpoint.save(state, os.path.join(folder, run_dir.BEST), keep=1)
    averages = state.eval_params | state.eval_batch_stats
    return folder, {path: variable.numpy() for path, variable in averages.items()}


def test_all_weights_are_taken_over_averaged_ones_where_there_are(run):
    folder, averages = run
    network = build()
    said = warm_start.load(network, folder, datasets.CLASS_NAMES)
    found = values(network)
    assert found.keys() == averages.keys()
    for path in averages:
        np.testing.assert_array_equal(found[path], averages[path], err_msg=path)
    assert said == f"weights: {len(averages)} of {len(averages)} arrays from {folder}"


@pytest.mark.parametrize("class_names", [OTHER_NAMES, [*datasets.CLASS_NAMES, "Fiat Panda 1980"]])
def test_where_the_classes_differ_the_classifier_starts_anew(run, class_names):
    folder, averages = run
    network = build(class_names)
    before = values(network)
    said = warm_start.load(network, folder, class_names)
    found = values(network)
    anew = {path for path in found if path.startswith("label/")}
    assert anew >= {"label/kernel", "label/bias"}
    for path in found:
        expected = before if path in anew else averages
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
    assert said.endswith("; label start anew")


def test_another_head_starts_anew_on_the_backbone_of_the_run(run):
    folder, averages = run
    network = build(model__filters=16)
    before = values(network)
    said = warm_start.load(network, folder, datasets.CLASS_NAMES)
    found = values(network)
    np.testing.assert_array_equal(found["head_conv/kernel"], before["head_conv/kernel"])
    for path in found:
        if path.startswith(train_state.BACKBONE):
            np.testing.assert_array_equal(found[path], averages[path], err_msg=path)
    assert "head_bn, head_conv" in said


@pytest.mark.parametrize("other", [{"model__alpha": 0.5}, {"model__stride": 32}])
def test_another_backbone_is_refused_and_nothing_is_changed(run, other):
    network = build(**other)
    before = values(network)
    with pytest.raises(UserError, match="its backbone is another one") as error:
        warm_start.load(network, run[0], datasets.CLASS_NAMES)
    assert "--config.model.alpha=0.35 --config.model.stride=16" in str(error.value)
    for path, value in values(network).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no run there"):
        warm_start.load(build(), str(tmp_path), datasets.CLASS_NAMES)
