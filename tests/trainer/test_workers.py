"""Workers on one machine and on several: what they refuse, and what happens when one is lost."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.ports import free_ports
from tests.trainer import commands, networks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Without XLA and a report, which cost most of the time and make no difference here.
RECIPE = [*commands.SETTINGS, "--epochs=6", "--batch_size=6", "--jit=off", "--report=none"]
SECONDS = 1500  # for a run, on a busy machine
NOTICED = 60  # within these seconds the others end

_started: list[subprocess.Popen] = []

Undisturbed = Callable[[int], dict[str, np.ndarray]]


def start(
    number: int, flags: list[str], *more: str, lan: networks.Lan | None = None
) -> list[subprocess.Popen]:
    """Starts workers by `TF_CONFIG`; the last one has more flags."""
    if lan:
        addresses = [f"{name}:{networks.PORT}" for name in lan.names]
    else:
        addresses = [f"localhost:{port}" for port in free_ports(number)]
    workers = []
    for index in range(number):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, "-m", "trainer.task", "--strategy=multiworker", *flags]
        if index == number - 1:
            command += more
        if lan:
            command = [*lan.command(index), *command]
        workers.append(commands.start_program(command, TF_CONFIG=json.dumps(task)))
    _started.extend(workers)
    return workers


def finish(workers: Sequence[subprocess.Popen]) -> list[str]:
    """Returns what workers print that must succeed."""
    said = [worker.communicate(timeout=SECONDS) for worker in workers]
    assert not any(worker.returncode for worker in workers), said
    return [out for out, _ in said]


def until(worker: subprocess.Popen, pattern: str) -> None:
    """Waits until a worker prints a line."""
    for line in iter(worker.stdout.readline, ""):
        if re.match(pattern, line):
            return
    raise AssertionError(worker.communicate())


def require_sentences(workers: Sequence[subprocess.Popen]) -> float:
    """Returns the seconds until the last of some workers has ended, as it must, by a sentence."""
    begin = time.monotonic()
    for worker in workers:
        _, complained = worker.communicate(timeout=SECONDS)
        assert worker.returncode == 1, complained
        assert "another worker has ended or cannot be reached" in complained
        assert "Traceback" not in complained
    return time.monotonic() - begin


def require_same_bits(run: str, expected: dict[str, np.ndarray]) -> None:
    ours = commands.saved(run)
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)


@pytest.fixture(autouse=True)
def nothing_left():
    """Ends what a test that failed has left: the others would wait for the network's end."""
    yield
    for worker in _started:
        worker.kill()
        worker.wait()
    _started.clear()


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Undisturbed:
    """What some workers on one machine end with that nobody disturbs."""
    known: dict[int, dict[str, np.ndarray]] = {}

    def train(number: int) -> dict[str, np.ndarray]:
        if number not in known:
            run = str(tmp_path_factory.mktemp("undisturbed") / "run")
            finish(start(number, [f"--data={data}", *RECIPE, f"--run={run}"]))
            known[number] = commands.saved(run)
        return known[number]

    return train


@pytest.fixture
def flags(data, tmp_path) -> list[str]:
    """Of a run that saves after each step."""
    return [f"--data={data}", *RECIPE, f"--run={tmp_path / 'run'}", "--checkpoint_seconds=0"]


@pytest.fixture
def three():
    """Three machines."""
    if reason := networks.missing():
        pytest.skip(reason)
    with networks.lan(["first", "second", "third"]) as lan:
        yield lan


@pytest.mark.parametrize(
    "flag", ["--config.optimizer.ema=0.5", "--steps_per_call=2", "--report=none"]
)
def test_workers_of_another_config_are_refused_before_the_first_step(data, tmp_path, flag):
    flags = [f"--data={data}", f"--run={tmp_path / 'run'}", *commands.SETTINGS]
    for worker in start(2, flags, flag):
        _, complained = worker.communicate(timeout=SECONDS)
        assert worker.returncode == 1
        name = flag.partition("=")[0]
        assert f"the workers do not have the same {name}. Start" in complained
    assert not (tmp_path / "run").exists()


def test_workers_that_do_not_share_the_run_folder_are_refused_before_the_first_step(data, tmp_path):
    flags = [f"--data={data}", f"--run={tmp_path / 'run'}", *commands.SETTINGS]
    for worker in start(2, flags, f"--run={tmp_path / 'other'}"):
        _, complained = worker.communicate(timeout=SECONDS)
        assert worker.returncode == 1
        assert "1 of 2 workers do not see" in complained
        assert "Traceback" not in complained
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize("lost", [0, 2])
def test_a_killed_worker_ends_the_others_and_the_same_command_reaches_the_same_bits(
    flags, tmp_path, undisturbed, lost
):
    workers = start(3, flags)
    until(workers[0], r"epoch 3/6: .*100%")
    workers[lost].kill()
    killed = workers.pop(lost)
    assert require_sentences(workers) < NOTICED
    killed.communicate()
    finish(start(3, flags))
    require_same_bits(tmp_path / "run", undisturbed(3))


@pytest.mark.parametrize(
    ("lose", "lost"), [("unplug", 0), ("unplug", 2), ("shut_down", 0), ("shut_down", 2)]
)
def test_a_lost_network_ends_all_workers_and_the_same_command_reaches_the_bits_of_one_machine(
    flags, tmp_path, undisturbed, three, lose, lost
):
    workers = start(3, flags, lan=three)
    until(workers[0], r"epoch 3/6: .*100%")
    getattr(three, lose)(lost)
    seconds = require_sentences(workers)
    print(f"{lose} {lost}: all ended after {seconds:.0f} s")
    assert seconds < NOTICED
    (three.plug if lose == "unplug" else three.put_up)(lost)
    finish(start(3, flags, lan=three))
    require_same_bits(tmp_path / "run", undisturbed(3))


def test_a_network_that_is_lost_for_twelve_seconds_is_waited_for(
    flags, tmp_path, undisturbed, three
):
    workers = start(3, flags, lan=three)
    until(workers[0], r"epoch 3/6: .*100%")
    three.unplug(1)
    time.sleep(12)
    three.plug(1)
    finish(workers)
    require_same_bits(tmp_path / "run", undisturbed(3))


def unfinished(run: str) -> int | None:
    """Returns the step whose checkpoint is being written, if any; older ones may be in removal."""
    steps = {
        end: [int(re.findall(r"step-(\d+)", os.path.basename(file))[0]) for file in found]
        for end in ("", ".index")
        for found in [glob.glob(os.path.join(run, "last", f"step-*{end}"))]
    }
    newest, whole = max(steps[""], default=0), max(steps[".index"], default=0)
    return newest if newest > whole else None


def kill_while_it_saves(chief: subprocess.Popen, run: str, after: int) -> int:
    """Kills a process in the middle of a save; returns the step that it has not saved."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert chief.poll() is None, chief.communicate()
        if (unfinished(run) or 0) > after:
            # Stopped first: now nothing changes any more, and one can see whether it came in time.
            chief.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            if left := unfinished(run):
                chief.kill()
                chief.communicate()
                assert unfinished(run) == left
                return left
            chief.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError("no save was hit")


def test_a_chief_killed_while_it_saves_ends_the_others_and_the_run_goes_on_from_a_whole_checkpoint(
    flags, tmp_path, undisturbed
):
    run = str(tmp_path / "run")
    chief, other = start(2, flags)
    step = kill_while_it_saves(chief, run, after=3)
    print(f"killed while it saved step {step}")
    assert require_sentences([other]) < NOTICED
    said, _ = finish(start(2, flags))
    (resumed,) = re.findall(r"^resuming at step (\d+) of 18$", said, re.MULTILINE)
    assert 3 <= int(resumed) < step
    assert unfinished(run) is None
    assert glob.glob(f"{run}/last/*_temp") == []
    require_same_bits(run, undisturbed(2))
