"""Checkpoints on disk: what is in them, damaged ones, strange paths, other models, full disks."""

import dataclasses
import os
import resource
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import checkpoint, model, train_state
from trainer.configs import Config, Model, Optimizer
from trainer.train_state import TrainState

KERNEL = "backbone/Conv1/kernel"


def variables(**values) -> train_state.Variables:
    """Returns variables by path; `__` stands for `/`."""
    return {
        name.replace("__", "/"): tf.Variable(value, trainable=False)
        for name, value in values.items()
    }


def make_state(step: int = 0, **changes) -> TrainState:
    """Returns a state of few values, which follow from the step."""
    named = {
        "backbone__Conv1__kernel": np.full((10, 100), step, np.float32),
        "label__bias": np.arange(7, dtype=np.float32),
    }
    values = {
        "step": tf.Variable(np.int64(step)),
        "params": variables(**named),
        "batch_stats": variables(backbone__bn_Conv1__moving_mean=np.ones(3, np.float32)),
        "m": variables(**named),
        "v": variables(**named),
        "ema_params": {},
        "ema_batch_stats": {},
        "lr_scale": tf.Variable(np.float32(step)),
        "loss_scale": tf.Variable(np.float32(step)),
        "good_steps": tf.Variable(np.int64(0)),
        "first_nonfinite_step": tf.Variable(np.int64(-1)),
        "epoch_sums": tf.Variable(np.zeros(4, np.float64)),
    }
    return TrainState(**(values | changes))


def save(directory, *steps: int, keep: int = 9) -> str:
    """Saves a checkpoint for each step and returns the path of the last."""
    for step in steps:
        path = checkpoint.save(make_state(step), str(directory), keep)
    return path


def listing(directory) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def kept(directory) -> list[int]:
    """Returns the steps of the whole checkpoints that are there."""
    names = [path.name for path in directory.glob("step-*")]
    steps = sorted({int(name.partition("-")[2].partition(".")[0]) for name in names})
    files = {f"step-{n}{end}" for n in steps for end in (".index", ".data-00000-of-00001")}
    assert set(names) == files
    return steps


@pytest.fixture(scope="module")
def network() -> keras.Model:
    config = Config(weights="none", model=Model(alpha=0.35, stride=16, filters=8))
    return model.build(config, datasets.HEIGHT, datasets.WIDTH, datasets.CLASS_NAMES)


@pytest.fixture(scope="module")
def real(network) -> TrainState:
    """The state of a real, small network, averages included; no two values are alike."""
    config = Config(optimizer=Optimizer(ema=0.9))
    state = train_state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), network, config)
    random = np.random.default_rng(0)
    for variable in state.variables().values():
        variable.assign(tf.cast(random.uniform(1, 9, variable.shape), variable.dtype))
    return state


def test_a_checkpoint_tells_each_variable_of_the_network_by_its_path_and_shape(
    network, real, tmp_path
):
    path = checkpoint.save(real, str(tmp_path), keep=1)
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    found = {
        name.removesuffix(suffix): tuple(shape)
        for name, shape in tf.train.list_variables(path)
        if name.endswith(suffix) and not name.startswith("save_counter")
    }
    backbone = network.get_layer("backbone")
    conv = tuple(backbone.get_layer("Conv1").kernel.shape)
    for name in ("params", "m", "v", "ema_params"):
        assert found[f"{name}/backbone/Conv1/kernel"] == conv
        assert found[f"{name}/label/bias"] == (len(datasets.CLASS_NAMES),)
        parameters = [key for key in found if key.startswith(f"{name}/")]
        assert len(parameters) == len(network.trainable_variables)
    for name in ("batch_stats", "ema_batch_stats"):
        assert found[f"{name}/backbone/bn_Conv1/moving_mean"] == conv[-1:]
        assert found[f"{name}/head_bn/moving_variance"] == (8,)
    scalars = {"step", "lr_scale", "loss_scale", "good_steps", "first_nonfinite_step"}
    assert {name for name in found if "/" not in name} == scalars | {"epoch_sums"}
    stored = tf.train.load_variable(path, f"params/{KERNEL}{suffix}")
    np.testing.assert_array_equal(stored, real.params[KERNEL].numpy())


def test_every_value_of_a_real_state_comes_back(network, real, tmp_path):
    checkpoint.save(real, str(tmp_path), keep=1)
    config = Config(optimizer=Optimizer(ema=0.9))
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    restored = train_state.create(strategy, network, config)
    assert checkpoint.restore_newest(restored, str(tmp_path)) == int(real.step.numpy())
    for name, variable in real.variables().items():
        np.testing.assert_array_equal(restored.variables()[name], variable, err_msg=name)


def test_the_order_of_the_variables_is_no_matter_where_their_names_agree(tmp_path):
    save(tmp_path, 3)
    other = make_state()
    turned = dict(reversed(other.params.items()))
    checkpoint.restore_newest(dataclasses.replace(other, params=turned), str(tmp_path))
    np.testing.assert_array_equal(other.params[KERNEL], np.full((10, 100), 3))
    np.testing.assert_array_equal(other.params["label/bias"], np.arange(7))


@pytest.mark.parametrize("name", ["lr[1e-3]", "[", "]", "a\\b", "a?b", "a*b", "{a,b}", "ä b"])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_like_any_other(tmp_path, name):
    directory = tmp_path / name
    save(directory, 2, 3, 4, keep=2)
    assert kept(directory) == [3, 4]
    before = listing(directory)
    restored = make_state()
    assert checkpoint.restore_newest(restored, str(directory)) == 4
    assert (restored.params[KERNEL].numpy() == 4).all()
    assert listing(directory) == before


def lose_the_list(directory, older: bytes) -> None:
    os.remove(directory / "checkpoint")


def keep_an_older_list(directory, older: bytes) -> None:
    (directory / "checkpoint").write_bytes(older)


@pytest.mark.parametrize("kill", [lose_the_list, keep_an_older_list])
@pytest.mark.parametrize("name", ["last", "lr[1e-3]"])
def test_a_kill_between_a_checkpoint_and_its_list_leaves_nothing_for_good(tmp_path, kill, name):
    directory = tmp_path / name
    save(directory, 1, 2, keep=2)
    older = (directory / "checkpoint").read_bytes()
    save(directory, 3, keep=9)
    kill(directory, older)
    assert checkpoint.newest(str(directory)).endswith("step-3")
    assert checkpoint.restore_newest(make_state(), str(directory)) == 3
    save(directory, 4, keep=2)
    assert kept(directory) == [3, 4]


def test_a_kill_within_a_checkpoint_leaves_nothing_for_good(tmp_path):
    path = save(tmp_path, 1, 2)
    os.remove(path + ".index")  # which is renamed into place last
    (tmp_path / "step-3_temp").mkdir()  # what TensorFlow leaves when it is killed earlier
    (tmp_path / "step-3_temp" / "part-00000-of-00001.data-00000-of-00001.tempstate1").touch()
    assert checkpoint.restore_newest(make_state(), str(tmp_path)) == 1
    assert kept(tmp_path) == [1]
    save(tmp_path, 2, keep=2)
    assert checkpoint.restore_newest(make_state(), str(tmp_path)) == 2
    assert kept(tmp_path) == [1, 2]


def test_a_run_that_was_moved_keeps_the_newest_all_the_same(tmp_path):
    save(tmp_path / "here", 1, 2)
    shutil.move(tmp_path / "here", tmp_path / "there")
    save(tmp_path / "there", 3, keep=2)
    assert kept(tmp_path / "there") == [2, 3]


def flip(path: str, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))


DAMAGES = {
    "a byte of the values": lambda path: flip(path + ".data-00000-of-00001", 500),
    "a byte of the index": lambda path: flip(path + ".index", 40),
    "the last byte of the index": lambda path: flip(path + ".index", -1),
    "values cut off": lambda path: os.truncate(path + ".data-00000-of-00001", 100),
    "no values": lambda path: os.truncate(path + ".data-00000-of-00001", 0),
    "an index cut off": lambda path: os.truncate(path + ".index", 100),
    "an empty index": lambda path: os.truncate(path + ".index", 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_fails_its_checksum_is_set_aside(tmp_path, damage, capsys):
    DAMAGES[damage](save(tmp_path, 3, 4))
    restored = make_state()
    assert checkpoint.restore_newest(restored, str(tmp_path)) == 3
    assert (restored.params[KERNEL].numpy() == 3).all()
    assert "step-4 is damaged" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.damaged")} == {
        "step-4.index.damaged",
        "step-4.data-00000-of-00001.damaged",
    }
    save(tmp_path, 4, keep=1)
    assert checkpoint.restore_newest(restored, str(tmp_path)) == 4


def test_checkpoints_that_are_all_damaged_do_not_start_the_run_anew(tmp_path):
    flip(save(tmp_path, 3) + ".index", 40)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        checkpoint.restore_newest(make_state(), str(tmp_path))


def put_a_folder_in_place_of_the_values(path: str) -> None:
    os.remove(path + ".data-00000-of-00001")
    os.mkdir(path + ".data-00000-of-00001")


def another_model(**changes):
    """Returns a state whose `params` differ; None takes one away."""
    state = make_state()
    params = state.params | {path.replace("__", "/"): value for path, value in changes.items()}
    params = {
        path: value if isinstance(value, tf.Variable) else tf.Variable(value)
        for path, value in params.items()
        if value is not None
    }
    return dataclasses.replace(state, params=params)


def nothing(path: str) -> None:
    pass


HINDRANCES = {
    "is a directory": (put_a_folder_in_place_of_the_values, make_state),
    "no such file": (lambda path: os.remove(path + ".data-00000-of-00001"), make_state),
    f"params/{KERNEL} is float32 [10, 100] in the checkpoint and float32 [100, 10] in": (
        nothing,
        lambda: another_model(backbone__Conv1__kernel=np.zeros((100, 10), np.float32)),
    ),
    "params/label/offset is not in the checkpoint; params/label/bias is not in this model": (
        nothing,
        lambda: another_model(label__bias=None, label__offset=np.zeros(7, np.float32)),
    ),
    "ema_params/label/bias is not in the checkpoint": (
        nothing,
        lambda: make_state(ema_params=variables(label__bias=np.zeros(7, np.float32))),
    ),
    "params/label/bias is float32 [7] in the checkpoint and float64 [7] in this model": (
        nothing,
        lambda: another_model(label__bias=np.zeros(7, np.float64)),
    ),
    "step is not in the checkpoint; params/": (
        lambda path: tf.train.Checkpoint(kernel=tf.Variable(1.0)).write(path),
        make_state,
    ),
}


@pytest.mark.parametrize("said", HINDRANCES)
def test_an_error_that_is_no_damage_is_told_and_renames_nothing(tmp_path, said):
    hinder, make = HINDRANCES[said]
    hinder(save(tmp_path, 3, 4))
    before = listing(tmp_path)
    restored = make()
    values = {name: value.numpy() for name, value in restored.variables().items()}
    with pytest.raises(UserError) as error:
        checkpoint.restore_newest(restored, str(tmp_path))
    assert said.lower() in str(error.value).lower()
    assert "step-4" in str(error.value)
    assert listing(tmp_path) == before
    for name, value in restored.variables().items():
        np.testing.assert_array_equal(value.numpy(), values[name], err_msg=name)


def test_many_differences_are_named_by_the_first(tmp_path):
    save(tmp_path, 3)
    more = {f"layer{number}__kernel": np.zeros(3, np.float32) for number in range(9)}
    with pytest.raises(UserError, match=r"params/layer4/kernel .*; and 4 more") as error:
        checkpoint.restore_newest(another_model(**more), str(tmp_path))
    assert "layer5" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_that_may_not_be_read_is_told_and_renames_nothing(tmp_path):
    path = save(tmp_path, 3, 4)
    os.chmod(path + ".data-00000-of-00001", 0)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="Permission denied"):
        checkpoint.restore_newest(make_state(), str(tmp_path))
    assert listing(tmp_path) == before


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path):
    save(tmp_path, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this, as on a disk that is full there.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"step-4 cannot be written .*before it are kept"):
            save(tmp_path, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.restore_newest(make_state(), str(tmp_path)) == 3


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "last").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "last", 3)
