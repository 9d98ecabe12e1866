"""SIGKILL at random steps, again and again, until the run is done: the same bits as undisturbed."""

import os
import random
import time

import numpy as np
import pytest

from tests.trainer import commands
from trainer import checkpoint, history

KILLS = 20
DEVICES = {"one": ["--strategy=one"], "mirrored": ["--strategy=mirrored", "--replicas=2"]}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DEVICES)
def test_a_run_killed_twenty_times_ends_with_the_same_bits(data, tmp_path, strategy):
    # Dropout, BatchNorm in training and all augmentation are on; every step saves.
    recipe = """
        --config=default --weights=none --epochs=20 --batch_size=4 --config.model.alpha=0.35
        --config.model.stride=8 --config.model.box_stride=8
        --config.model.dropout=0.2 --config.optimizer.ema=0.9
    """
    flags = [f"--data={data}", *DEVICES[strategy], *recipe.split()]
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    commands.run("trainer.task", *flags, f"--run={undisturbed}")
    steps: list[int] = []
    chance, last = random.Random(1), os.path.join(killed, "last")
    while len(steps) < KILLS:
        before = checkpoint.newest(last)
        process = commands.start(
            "trainer.task", *flags, f"--run={killed}", "--checkpoint_seconds=0"
        )
        while checkpoint.newest(last) == before and process.poll() is None:
            time.sleep(0.01)
        # From here anything may be going on: a step, a checkpoint, validation, a rename.
        time.sleep(chance.uniform(0, 1))
        assert process.poll() is None, f"it ended by itself: {process.communicate()}"
        process.kill()
        process.communicate()
        steps.append(int(checkpoint.newest(last).rsplit("-", 1)[1]))
    print(f"{strategy}: killed {len(steps)} times, when the newest checkpoints were {steps}")
    commands.run("trainer.task", *flags, f"--run={killed}")
    ours, theirs = commands.saved(killed), commands.saved(undisturbed)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert history.read(killed) == history.read(undisturbed)
