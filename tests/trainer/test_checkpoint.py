"""Checkpoints on disk: damaged ones, strange paths, other models, full disks."""

import os
import resource

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.errors import UserError
from trainer import checkpoint, state


def make_state(step: int = 0, size: int = 1000, **changes) -> state.State:
    """Returns a state of few values, which follow from the step."""
    scalar = np.float32(step)
    values = {
        "step": np.int64(step),
        "weights": np.full(size, step, np.float32),
        "first": np.zeros(size, np.float32),
        "second": np.zeros(size, np.float32),
        "statistics": np.ones(3, np.float32),
        "ema_weights": None,
        "ema_statistics": None,
        "plateau": scalar,
        "loss_scale": scalar,
        "good_steps": np.int64(0),
        "bad_step": np.int64(-1),
        "sums": np.zeros(4, np.float64),
    }
    return state.State(
        **{
            name: None if value is None else tf.Variable(value, trainable=False)
            for name, value in (values | changes).items()
        }
    )


def save(directory, *steps: int) -> str:
    """Saves a checkpoint for each step and returns the path of the last."""
    for step in steps:
        path = checkpoint.save(make_state(step), str(directory), keep=9)
    return path


def listing(directory) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


@pytest.mark.parametrize("name", ["lr[1e-3]", "[", "a\\b", "a?b", "a*b", "{a,b}", "ä b"])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_read_back(tmp_path, name):
    directory = tmp_path / name
    save(directory, 3, 4)
    before = listing(directory)
    restored = make_state()
    assert checkpoint.restore_newest(restored, str(directory)) == 4
    assert (restored.weights.numpy() == 4).all()
    assert listing(directory) == before


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
    assert (restored.weights.numpy() == 3).all()
    assert "step-4 is damaged" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.damaged")} == {
        "step-4.index.damaged",
        "step-4.data-00000-of-00001.damaged",
    }


def test_checkpoints_that_are_all_damaged_do_not_start_the_run_anew(tmp_path):
    flip(save(tmp_path, 3) + ".index", 40)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        checkpoint.restore_newest(make_state(), str(tmp_path))


def put_a_folder_in_place_of_the_values(path: str) -> None:
    os.remove(path + ".data-00000-of-00001")
    os.mkdir(path + ".data-00000-of-00001")


HINDRANCES = {
    "is a directory": (put_a_folder_in_place_of_the_values, make_state),
    "no such file": (lambda path: os.remove(path + ".data-00000-of-00001"), make_state),
    "weights is [1000] in the checkpoint and [7] in this model": (
        lambda path: None,
        lambda: make_state(weights=np.zeros(7, np.float32)),
    ),
    "ema_weights is not in the checkpoint": (
        lambda path: None,
        lambda: make_state(ema_weights=np.zeros(1000, np.float32)),
    ),
    "dtype": (lambda path: None, lambda: make_state(weights=np.zeros(1000, np.float64))),
    "kernel is not in this model": (
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
