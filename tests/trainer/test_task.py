"""The command as people run it: what it leaves, and what it says when something is wrong."""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import threading

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from tests.ports import free_ports
from tests.tfrecords import datasets
from tests.trainer import commands
from tfrecords import command, manifest
from tfrecords.errors import FlagError, UserError
from trainer import (
    checkpoint,
    configs,
    evaluate,
    history,
    mirror,
    model,
    run_dir,
    task,
    train,
    train_state,
    warm_start,
)

# One pass a photo: tracing the network takes most of the time of a run so small.
SETTINGS = [
    *commands.SETTINGS,
    "--config.inference.zoom_passes=0",
    "--config.inference.flip_tta=false",
]
TWO = ["--strategy=mirrored", "--replicas=2"]
COMPILING = "compiling the training step"


def run_task(*flags: str) -> str:
    """Runs the command in this process, and returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        task.main(flags)
    return said.getvalue()


@dataclasses.dataclass(frozen=True)
class Stopped:
    """What a command that Ctrl-C stopped while it compiled left behind.

    Attributes:
        flags: of the command.
        said, complained: standard output, from there on, and standard error.
        exit_code: of the process.
        saved: names of the files of the newest checkpoint.
        locked: what another training in the same folder was told meanwhile.
    """

    flags: list[str]
    said: str
    complained: str
    exit_code: int
    saved: list[str]
    locked: str


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory) -> Stopped:
    """A run on two replicas that Ctrl-C stopped."""
    # In processes of their own: two strategies with several devices in one mix up their messages.
    # TensorFlow globs the paths of checkpoints.
    run = str(tmp_path_factory.mktemp("runs") / "lr[1e-3]")
    flags = [*TWO, f"--data={data}", f"--run={run}", *SETTINGS]
    process = commands.start("trainer.task", *flags)
    while not (line := process.stdout.readline()).startswith(COMPILING):
        assert line, process.communicate()
    with pytest.raises(UserError) as refused, run_dir.locked(run):
        pass
    process.send_signal(signal.SIGINT)
    said, complained = process.stdout.read(), process.stderr.read()
    exit_code = process.wait(timeout=60)
    saved = os.listdir(os.path.join(run, "last"))
    return Stopped(flags, said, complained, exit_code, saved, str(refused.value))


@pytest.fixture(scope="module")
def finished(stopped) -> tuple[str, str]:
    """That run, gone on with to its end, and what it printed."""
    return path_of(stopped), commands.run("trainer.task", *stopped.flags)


def path_of(stopped: Stopped) -> str:
    (run,) = [flag for flag in stopped.flags if flag.startswith("--run=")]
    return run.removeprefix("--run=")


def test_ctrl_c_while_compiling_saves_and_names_the_command_that_goes_on(stopped):
    assert stopped.exit_code == 130
    assert "stopping after this step; Ctrl-C again stops at once" in stopped.complained
    announced, again = stopped.said.split("SIGINT: saved at step 1 in ")[1].strip().splitlines()
    assert announced.startswith(f"{path_of(stopped)}.")
    assert again.endswith(shlex.join(["-m", "trainer.task", *stopped.flags]))
    assert "step-1.index" in stopped.saved
    assert f"another training is at work in {path_of(stopped)}" in stopped.locked


def test_a_run_says_first_what_it_will_do_and_last_where_all_is(finished):
    run, said = finished
    plan, rest = said.split(COMPILING, 1)
    assert "2 replicas on CPU" in plan
    assert "train 22, validation 5, test 7" in plan
    assert rest.startswith(", about half a minute …\n")
    assert "epoch 1/2" in rest
    assert "resuming at step 1 of 10" in plan
    assert "7 photos" in rest
    assert said.rstrip().endswith(f"run: {run}{os.sep}")


def test_a_run_folder_tells_the_whole_story(finished):
    run, _ = finished
    assert {"config.json", "data.json", "metrics.jsonl", "curves.png", "tensorboard"} <= set(
        os.listdir(run)
    )
    with Image.open(os.path.join(run, "curves.png")) as curves:
        assert curves.width > 400
    pictures = os.listdir(os.path.join(run, "pictures-test"))
    assert len(pictures) == 8  # seven photos and the sheet
    with Image.open(os.path.join(run, "pictures-test", "sheet.jpg")) as sheet:
        assert np.asarray(sheet).std() > 10


def test_curves_of_training_and_validation_lie_over_one_another_in_tensorboard(finished):
    folder = os.path.join(finished[0], "tensorboard")
    runs = {}
    for name in os.listdir(folder):
        runs[name] = event_accumulator.EventAccumulator(os.path.join(folder, name)).Reload()
    assert runs.keys() == {"train", "validation", "test"}
    tags = {name: set(events.Tags()["tensors"]) for name, events in runs.items()}
    assert {"loss", "top1", "mean_iou"} <= tags["train"] & tags["validation"] & tags["test"]
    assert {"learning_rate", "speed/wait", "config"} <= tags["train"] - tags["validation"]
    for name in ("train", "validation"):
        assert [event.step for event in runs[name].Tensors("loss")] == [5, 10]


def contents(run: str) -> dict[str, bytes]:
    """Returns the results of a run: files, and the sheets of pictures."""
    found = {}
    for name in os.listdir(run):
        path = os.path.join(run, name)
        path = os.path.join(path, "sheet.jpg") if name.startswith("pictures-") else path
        if name.startswith(("evaluation-", "predictions-", "pictures-")):
            with open(path, "rb") as file:
                found[name] = file.read()
    return found


def test_evaluating_again_on_one_device_finds_the_same(data, finished, capsys):
    then = json.loads(contents(finished[0])["evaluation-test.json"])
    assert then["num_examples"] == 7
    evaluate.main([f"--run={finished[0]}", "--strategy=one"])
    assert "7 photos\n" in capsys.readouterr().out
    now = json.loads(contents(finished[0])["evaluation-test.json"])
    assert now["data"] == then["data"] == data
    assert now.keys() == then.keys()
    numbers = [name for name, value in then.items() if isinstance(value, float | int)]
    assert {"top1", "mean_iou", "loss", "step"} <= set(numbers)
    for name in numbers:
        assert now[name] == pytest.approx(then[name], rel=1e-4), name


def test_evaluating_otherwise_or_other_photos_overwrites_nothing(finished, tmp_path, capsys):
    run, before = finished[0], contents(finished[0])
    evaluate.main([f"--run={run}", "--strategy=one", "--config.inference.zoom_passes=1"])
    assert "7 photos, 1 zoom pass\n" in capsys.readouterr().out
    zoomed = contents(run)
    assert before.items() < zoomed.items()
    assert all("-test-zoom1-noflip" in name for name in zoomed.keys() - before.keys())
    assert json.loads(zoomed["evaluation-test-zoom1-noflip.json"])["zoom_passes"] == 1
    stems = "x" * 251, "é" * 125  # the longest names that there are
    photos = [datasets.record(i, filename=f"test/a/{stem}.jpg") for i, stem in enumerate(stems)]
    datasets.write(str(tmp_path), {"test": [photos]}, name="n" * 255)
    evaluate.main([f"--run={run}", "--strategy=one", f"--data={tmp_path}"])
    assert zoomed.items() < contents(run).items()
    (pictures,) = [name for name in os.listdir(run) if name.startswith("pictures-test-nnn")]
    assert sorted(os.listdir(os.path.join(run, pictures))) == [
        f"00-{'x' * 100}.jpg",
        f"01-{'é' * 50}.jpg",
        "sheet.jpg",
    ]


def test_results_are_told_apart_by_data_and_inference(finished):
    run, _ = finished
    config, data = run_dir.read(run)
    other = dataclasses.replace(data, name="vans", fingerprint="0123456789")
    moved = dataclasses.replace(data, path="/elsewhere")
    flipped = configs.replace(config, {"inference.flip_tta": True})
    found = [
        evaluate.result_suffix(run, data, config) for data, config in
        ((data, config), (moved, config), (other, config), (data, flipped), (other, flipped))
    ]  # fmt: skip
    assert found == ["", "", "-vans-01234567", "-zoom0-flip", "-vans-01234567-zoom0-flip"]


def test_two_workers_reach_the_bits_of_two_replicas_that_were_stopped_and_only_the_chief_speaks(
    data, finished, tmp_path
):
    run = str(tmp_path / "workers")
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    flags = [f"--data={data}", f"--run={run}", "--strategy=multiworker", *SETTINGS]
    workers = [
        commands.start(
            "trainer.task",
            *flags,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}),
        )
        for i in range(2)
    ]
    outputs = [worker.communicate(timeout=280) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "2 replicas" in outputs[0][0]
    # Until they have come together, each may have to say whom it waits for.
    said = outputs[1][0].splitlines()
    assert all(line.startswith("waiting for localhost:") for line in said), said
    # A sum of two is the same in either order, so not even rounding may differ.
    ours, theirs = commands.saved(run), commands.saved(finished[0])
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


class Terminating(io.StringIO):
    """Standard output that sends this process SIGTERM when it says that it compiles."""

    def write(self, text: str) -> int:
        if text.startswith(COMPILING) and COMPILING not in self.getvalue():
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


MINE = """
from trainer import configs

def get_config():
    changed = {"weights": "none", "batch_size": 4, "model.alpha": 0.35, "model.stride": 8,
               "model.box_stride": 8, "model.filters": 8, "model.batch_norm": "frozen",
               "optimizer.learning_rate": 1e-9, "inference.zoom_passes": 0}
    return configs.replace(configs.load("default"), changed)
"""


def test_sigterm_saves_a_run_of_ones_own_config_that_starts_from_another_run(
    data, finished, tmp_path, monkeypatch
):
    assert threading.current_thread() is threading.main_thread()  # others get no signals
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    flags = [f"--data={data}", "--config=mine.py", f"--init_from={finished[0]}"]
    with (
        contextlib.redirect_stdout(Terminating()) as said,
        pytest.raises(SystemExit, check=lambda error: error.code == task.EXIT_PREEMPTED == 75),
    ):
        task.main(["--strategy=one", *flags])
    run = os.path.join("runs", "tiny-mine")
    assert f"SIGTERM: saved at step 1 in {run}." in said.getvalue()
    assert f"arrays from {finished[0]}\n" in said.getvalue()
    assert run_dir.read(run)[0].name == "mine"
    # After one step at a learning rate of nearly nothing.
    ours, theirs = commands.saved(run), commands.saved(finished[0], "best")
    assert ours["step"] == 1
    for name in [name for name in ours if name.startswith("params/")]:
        np.testing.assert_allclose(ours[name], theirs[f"ema_{name}"], atol=1e-7, err_msg=name)


def test_weights_of_a_run_with_other_classes_serve_all_but_the_classifier(finished):
    config, data = run_dir.read(finished[0])
    size = datasets.HEIGHT, datasets.WIDTH
    network = model.build(config, *size, ["Audi", "Ram"], fresh=False)
    fresh = {p: v.numpy() for p, v in train_state.named_variables(network).items()}
    said = warm_start.load(network, finished[0], ["Audi", "Ram"])
    assert said.endswith("; label start anew")
    stored = commands.saved(finished[0], "best")
    for path, variable in train_state.named_variables(network).items():
        if path.startswith("label/"):
            np.testing.assert_array_equal(variable.numpy(), fresh[path])
        elif f"ema_params/{path}" in stored:
            np.testing.assert_array_equal(variable.numpy(), stored[f"ema_params/{path}"])
    wider = configs.replace(config, {"model.alpha": 0.5})
    network = model.build(wider, *size, data.class_names, fresh=False)
    with pytest.raises(UserError, match=r"backbone is another one .*--config.model.alpha=0.35"):
        warm_start.load(network, finished[0], data.class_names)


def test_a_finished_run_goes_on_with_more_epochs_but_not_with_fewer(data, finished, tmp_path):
    run = str(tmp_path / "run")
    shutil.copytree(finished[0], run)
    flags = [f"--data={data}", f"--run={run}", *SETTINGS, "--strategy=one", "--report=none"]
    with pytest.raises(UserError, match="epochs is 1 now and was 2"):
        task.main([*flags, "--epochs=1"])
    assert "resuming at step 10 of 15" in run_task(*flags, "--epochs=3")
    records = history.read(run)
    assert records[:2] == history.read(finished[0])
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert commands.saved(run)["step"] == 15
    assert run_dir.read(run)[0].epochs == 3
    with pytest.raises(UserError, match="epochs is 2 now and was 3"):
        task.main(flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data=nowhere"], "no data set at 'nowhere'"),
        (["--config=nowhere.py"], "--config=nowhere.py: there is no such file"),
        (["--config=defalt"], "Did you mean default?"),
        (["--config.model.input_height=100"], "give both, or neither"),
        (["--batch_size=3", *TWO], "shared evenly by 2 replicas"),
        (["--batch_size=512"], "fewer than one batch"),
        (["--weights=nowhere.h5", "--batch_size=4"], "no such file"),
        (["--init_from=nowhere", "--batch_size=4"], "nowhere: there is no run there"),
        (["--strategy=multiworker"], "TF_CONFIG"),
        (["--strategy=one", "--replicas=2"], "use mirrored"),
        (["--config.loss.box=round", "--batch_size=4"], "round"),
        (["--run=/dev/null/run", "--batch_size=4"], "--run=/dev/null/run: the run cannot be"),
        (["--profile=3", "--batch_size=4"], "--profile=3 is not START:STOP"),
        (["--profile=3:12", "--batch_size=4", "--epochs=2"], "the run has 10 steps"),
        (["--profile=5:6", "--steps_per_call=4", "--batch_size=4", "--epochs=2"], "at least 9"),
    ],
)
def test_a_mistake_is_named_with_its_remedy_and_leaves_no_run(
    data, tmp_path, flags, said, monkeypatch
):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        task.main([f"--data={data}", f"--run={run}", "--weights=none", *flags])
    assert said in str(error.value)
    assert not run.exists()  # it would hold the user to the mistake


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--epoch=3", "unknown flag --epoch=3. Did you mean --epochs?"),
        ("--epochs=many", "--epochs=many: it is not an integer in the range"),
        ("--batch-size=4", "Did you mean --batch_size?"),
        ("--lr=1", "Did you mean --config.optimizer.learning_rate?"),
        ("--config.optimizer.lr=1", "Did you mean --config.optimizer.learning_rate?"),
        ("--config.model.heads=pooled", "Did you mean --config.model.head?"),
        ("--config.seed=-1", "in the range [0, 4294967295]"),
        ("--set=optimizer.ema=0.99", "Write --config.KEY=VALUE; --helpfull shows every KEY"),
        ("--keep=0", "--keep=0"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_right_one(flag, said):
    with pytest.raises(FlagError) as error:
        task.main([flag])
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_full_help_lists_settings_with_default_and_range(capsys):
    with pytest.raises(SystemExit, check=lambda error: error.code == 0):
        task.main(["--helpfull"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--config.augment.context_crop: photos that" in text
    assert (
        "(default: 0.001; baseline 0.0001; sample 0.004) (a number in the range [0, 1000])" in text
    )


@pytest.mark.parametrize("calls", [[(0, 4), (4, 8), (8, 12)], [(6, 7), (7, 8), (8, 9)]])
def test_the_steps_asked_for_are_profiled_from_the_start_or_resumed(data, tmp_path, calls):
    setup = train.Setup(
        strategy=None,
        network=None,
        state=None,
        config=configs.Config(),
        train=None,
        validation=None,
        run=str(tmp_path),
        options=train.Options(),
    )
    described = run_dir.describe_data(data, manifest.read(data))
    hooks = task.make_hooks(setup, described, (3, 8), mirror.Mirror(str(tmp_path), None))
    for before, after in calls:
        hooks.on_steps(before, after)
    assert len(list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["{cluster", '{"cluster": {"worker": ["a:1", "b:1"]}}'])
def test_a_broken_tf_config_is_named(data, monkeypatch, tmp_path, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        task.main([f"--data={data}", f"--run={tmp_path / 'run'}"])


def test_a_run_is_not_continued_as_something_else(data, finished):
    flags = [f"--data={data}", f"--run={finished[0]}", *SETTINGS]
    with pytest.raises(UserError, match=r"optimizer\.ema is 0\.5 now and was 0\.9"):
        task.main([*flags, "--config.optimizer.ema=0.5"])


def test_a_run_is_not_continued_with_other_data(finished, tmp_path):
    datasets.write_default(str(tmp_path))
    flags = [f"--data={tmp_path}", f"--run={finished[0]}", *SETTINGS]
    with pytest.raises(UserError, match="fingerprint is"):
        task.main(flags)


def test_a_run_of_a_version_with_other_names_of_settings_is_refused_in_one_sentence(
    data, finished, tmp_path
):
    config, described = run_dir.read(finished[0])
    run_dir.create(str(tmp_path), config, described)
    values = json.loads((tmp_path / "config.json").read_text())
    values["predict"] = {"looks": 1, "flip": False}  # as version 0.1 wrote
    values["augment"]["crop"] = values["augment"].pop("context_crop")
    del values["inference"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    before = (tmp_path / "config.json").read_bytes()
    for main, flags in (
        (task.main, [f"--data={data}", *SETTINGS]),
        (evaluate.main, []),
        (task.main, [f"--data={data}", "--run=other", f"--init_from={tmp_path}", *SETTINGS[:-2]]),
    ):
        with pytest.raises(UserError) as error:
            main([f"--run={tmp_path}", *flags])
        assert "made by another version of carbox" in str(error.value)
        assert "train anew under another --run" in str(error.value)
        assert str(error.value).count(". ") == 0
        assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_with_other_things_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other things"):
        task.main([f"--data={data}", f"--run={tmp_path}", "--weights=none", "--batch_size=4"])
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_run_goes_on_when_the_weights_that_it_began_with_are_gone(data, tmp_path, monkeypatch):
    weights, run = tmp_path / "mine.weights.h5", str(tmp_path / "run")
    backbone = keras.applications.MobileNetV2(
        (32, 48, 3), alpha=0.35, include_top=False, weights=None
    )
    backbone.save_weights(weights)
    flags = [f"--data={data}", *SETTINGS, f"--weights={weights}"]
    seen = []

    def begin(setup, _):
        checkpoint.save(setup.state, os.path.join(setup.run, run_dir.LAST), 1)
        seen.append({path: value.numpy() for path, value in setup.state.params.items()})
        raise train.InterruptedRunError(signal.SIGTERM)

    def go_on(setup, _):
        checkpoint.restore_newest(setup.state, os.path.join(setup.run, run_dir.LAST))
        seen.append({path: value.numpy() for path, value in setup.state.params.items()})
        raise train.InterruptedRunError(signal.SIGTERM)

    for train_and_evaluate in (begin, go_on):
        monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
        with pytest.raises(SystemExit, match="75"):
            task.main([*flags, f"--run={run}"])
        weights.unlink(missing_ok=True)
    assert seen[0].keys() == seen[1].keys()
    for path, value in seen[0].items():
        np.testing.assert_array_equal(value, seen[1][path], err_msg=path)
    with pytest.raises(UserError, match="no such file"):
        task.main([*flags, f"--run={tmp_path / 'another'}"])


def test_a_second_training_of_a_run_refuses_and_writes_nothing(data, tmp_path):
    run = tmp_path / "run"
    flags = [f"--data={data}", f"--run={run}", *SETTINGS]
    with run_dir.locked(str(run)):
        with pytest.raises(UserError, match=f"another training is at work in {run}"):
            task.main(flags)
        assert os.listdir(run) == [".lock"]


def test_a_tilde_in_a_path_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command.parse(
        task.FLAGS, ["--data=~/cars", "--run=~/runs/a", "--weights=~/w.weights.h5"], usage=""
    )
    assert (task.FLAGS.data, task.FLAGS.run) == ("/home/me/cars", "/home/me/runs/a")
    assert configs.from_flags(task.FLAGS, "default").weights == "/home/me/w.weights.h5"
    with pytest.raises(UserError, match=r"/home/me/none: there is no run there"):
        evaluate.main(["--run=~/none"])


@pytest.mark.parametrize(
    ("name", "sample", "flags", "chosen"),
    [
        ("sample", False, [], "default"),
        ("drawn", False, [], "default"),
        ("cars", True, [], "sample"),
        ("cars", True, ["--config=baseline"], "baseline"),
    ],
)
def test_the_config_goes_by_the_flag_of_the_manifest_and_never_by_a_name(
    tmp_path, monkeypatch, capsys, name, sample, flags, chosen
):
    monkeypatch.chdir(tmp_path)
    datasets.write(str(tmp_path), {"test": [datasets.records(0, 1)]}, name=name, sample=sample)
    with pytest.raises(UserError, match="no train split"):  # said after the plan
        task.main([f"--data={tmp_path}", *flags])
    said = capsys.readouterr().out
    assert f"config:   {chosen}, weights" in said
    assert f"run:      runs/{name}-{chosen}\n" in said


def test_the_run_folder_knows_all_of_its_data_that_evaluation_needs(data, monkeypatch, tmp_path):
    monkeypatch.chdir(os.path.dirname(data))
    described = run_dir.describe_data(os.path.basename(data), manifest.read(data))
    run_dir.create(str(tmp_path), configs.Config(), described)
    monkeypatch.chdir("/")
    stored = run_dir.read(str(tmp_path))[1]
    assert stored.path == data
    assert (stored.height, stored.width, stored.resize) == (32, 48, "stretch")
    assert stored.class_names == datasets.CLASS_NAMES
    described = run_dir.describe_data("gs://bucket/data", manifest.read(data))
    assert described.path == "gs://bucket/data"


def test_a_run_made_before_the_resize_was_stored_is_read_and_continued(data, tmp_path):
    described = run_dir.describe_data(data, manifest.read(data))
    run_dir.create(str(tmp_path), configs.Config(), described)
    values = json.loads((tmp_path / "data.json").read_text())
    del values["resize"]
    (tmp_path / "data.json").write_text(json.dumps(values | {"path": "data/tfrecords"}))
    assert run_dir.read(str(tmp_path))[1].path == "data/tfrecords"
    run_dir.check(str(tmp_path), configs.Config(), described)


def test_photos_resized_in_another_way_do_not_continue_a_run(data, tmp_path):
    described = run_dir.describe_data(data, manifest.read(data))
    run_dir.create(str(tmp_path), configs.Config(), described)
    other = dataclasses.replace(described, resize="letterbox")
    with pytest.raises(UserError, match="resize is 'letterbox' now and was 'stretch'"):
        run_dir.check(str(tmp_path), configs.Config(), other)


def test_a_start_killed_before_its_config_was_written_is_taken_over(data, tmp_path):
    info = run_dir.DatasetInfo(data, "tiny", "0", 32, 48, datasets.CLASS_NAMES)
    run_dir.create(str(tmp_path), configs.Config(), info)
    (tmp_path / "config.json").rename(tmp_path / "config.json.new")
    run_dir.check(str(tmp_path), configs.Config(), info)


def test_a_trained_run_is_not_evaluated_as_another_one(finished):
    with pytest.raises(FlagError, match=r"unknown flag --config\.epochs=9"):
        evaluate.main([f"--run={finished[0]}", "--config.epochs=9"])
    with pytest.raises(FlagError, match="--run is missing"):
        evaluate.main([])


def test_evaluating_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no run there"):
        evaluate.main([f"--run={tmp_path}"])


def test_evaluating_photos_of_another_size_is_named(tmp_path, data):
    info = run_dir.DatasetInfo(data, "tiny", "0", 64, 96, datasets.CLASS_NAMES)
    run = str(tmp_path / "run")
    run_dir.create(run, configs.Config(), info)
    with pytest.raises(UserError, match=r"32x48 .* takes 64x96"):
        evaluate.main([f"--run={run}"])


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_damaged_record_is_named(tmp_path, cache):
    datasets.write_default(str(tmp_path))
    shard = next(tmp_path.glob("train-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    flags = [f"--data={tmp_path}", f"--run={tmp_path / 'run'}", *SETTINGS]
    with pytest.raises(UserError, match=f"{shard.name} is damaged: the record at byte"):
        task.main([*flags, f"--cache={cache}"])


def test_a_cut_off_shard_is_named(data, tmp_path):
    datasets.write_default(str(tmp_path))
    shard = next(tmp_path.glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=shard.name):
        task.main([f"--data={tmp_path}", f"--run={tmp_path / 'run'}", "--weights=none"])
