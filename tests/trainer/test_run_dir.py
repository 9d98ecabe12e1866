"""The folder of a run: what it is enough for, and what may change when a run goes on."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import checkpoint, configs, inference, model, run_dir, train_state

NETWORK = {
    "weights": "none",
    "epochs": 4,
    "model.alpha": 0.35,
    "model.stride": 16,
    "model.filters": 8,
    "model.batch_norm_momentum": 0.0,  # statistics of the last photos only
}
# Of version 0.1, whose settings had other names.
OLD_CONFIG = {
    "name": "default",
    "weights": "imagenet",
    "image_height": 256,
    "image_width": 320,
    "epochs": 30,
    "model": {"alpha": 1.0, "shared_words": True},
    "augment": {"flip": True, "crop": 0.4, "zoom": 0.75, "jitter": 0.15, "colour": 0.3},
    "predict": {"looks": 3, "flip": True},
}


@pytest.fixture(scope="module")
def described(data) -> run_dir.DatasetInfo:
    return run_dir.describe_data(data, manifest.read(data))


def make_config(**changes) -> configs.Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return configs.replace(configs.load("default"), NETWORK | named)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer__ema": 0.9, "loss__weighting": "uncertainty"},
        # MobileNetV2 would take no photos of 16x24 pixels.
        {"downscale": 2, "model__input_height": 40, "model__input_width": 64},
    ],
)
def test_the_network_of_a_run_says_what_its_state_says(described, tmp_path, settings):
    """Also where the averaged values differ, and photos are decoded smaller than the records."""
    config, run = make_config(**settings), str(tmp_path)
    run_dir.create(run, config, described)
    height, width = (side // config.downscale for side in (datasets.HEIGHT, datasets.WIDTH))
    network = model.build(config, height, width, datasets.CLASS_NAMES)
    shape = network.input.shape[1:3]
    coarse = np.random.default_rng(0).uniform(0, 255, (4, 4, 4, 3))
    photos = tf.image.resize(coarse, shape)
    network(photos, training=True)  # with any other statistics all outputs were the same
    state = train_state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), network, config)
    for variable in (state.params if state.ema_params else {}).values():
        variable.assign(variable * 2)
    state.step.assign(7)
    checkpoint.save(state, os.path.join(run, run_dir.BEST), keep=1)

    trained = run_dir.load_trained(run)
    assert (trained.config, trained.data, trained.step) == (config, described, 7)
    assert trained.network.input.shape[1:3] == shape
    once = dataclasses.replace(config, inference=configs.Inference(zoom_passes=0, flip_tta=False))
    evaluated = inference.make_predict(network, once)(
        {path: variable.numpy() for path, variable in state.eval_params.items()},
        {path: variable.numpy() for path, variable in state.eval_batch_stats.items()},
        photos,
    )
    found = trained.network(photos)
    assert np.ptp(found["logits"], axis=0).max() > 0.05
    for name in evaluated:
        np.testing.assert_allclose(found[name], evaluated[name], atol=1e-5, err_msg=name)


def test_a_run_without_a_finished_epoch_has_no_network_yet(described, tmp_path):
    run_dir.create(str(tmp_path), make_config(), described)
    with pytest.raises(UserError, match="has not finished its first epoch"):
        run_dir.load_trained(str(tmp_path))


def test_a_checkpoint_of_another_network_is_refused(described, tmp_path):
    run_dir.create(str(tmp_path), make_config(), described)
    other = tf.train.Checkpoint(step=tf.Variable(1))
    other.write(str(tmp_path / run_dir.BEST / "step-1"))
    with pytest.raises(UserError, match=r"step-1 is of another model \('backbone/Conv1/kernel'\)"):
        run_dir.load_trained(str(tmp_path))


def test_a_run_of_a_version_whose_settings_had_other_names_is_refused_in_a_sentence(
    described, tmp_path
):
    run_dir.create(str(tmp_path), make_config(), described)
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
    for use in (run_dir.read, run_dir.load_trained):
        with pytest.raises(UserError, match="made by another version of carbox") as error:
            use(str(tmp_path))
        assert "use that version, or train anew under another --run" in str(error.value)
        assert str(error.value).count(". ") == 0


def test_epochs_may_be_raised_and_not_lowered(described, tmp_path):
    run = str(tmp_path)
    run_dir.create(run, make_config(epochs=4), described)
    run_dir.check(run, make_config(epochs=4), described)
    run_dir.check(run, make_config(epochs=9), described)
    with pytest.raises(UserError, match="epochs is 3 now and was 4"):
        run_dir.check(run, make_config(epochs=3), described)
    with pytest.raises(UserError, match="seed is 1 now and was 42") as error:
        run_dir.check(run, make_config(epochs=9, seed=1), described)
    assert "epochs is" not in str(error.value)
