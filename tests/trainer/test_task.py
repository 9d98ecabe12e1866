"""The command as people run it: what it leaves, and what it says when something is wrong."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from tests.tfrecords import datasets
from tests.trainer import commands
from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import checkpoint, evaluate, folder, loop, task
from trainer import config as configs


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[str, str]:
    """A finished run on two replicas, and what it printed."""
    run = str(tmp_path_factory.mktemp("runs") / "two")
    flags = [f"--data={data}", f"--run={run}", *commands.SETTINGS]
    return run, commands.run("trainer.task", "--strategy=mirrored", "--replicas=2", *flags)


def test_a_run_says_first_what_it_will_do_and_last_where_all_is(finished):
    run, said = finished
    assert "2 replicas on CPU" in said.split("epoch 1/")[0]
    assert "train 22, validation 5, test 7" in said.split("epoch 1/")[0]
    assert said.rstrip().endswith(f"run: {run}{os.sep}")
    assert "7 photos" in said


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


def test_evaluating_again_on_one_device_finds_the_same(finished):
    run, _ = finished
    with open(os.path.join(run, "evaluation-test.json")) as file:
        then = json.load(file)
    assert then["num_examples"] == 7
    said = commands.run("trainer.evaluate", f"--run={run}", "--strategy=one")
    assert "7 photos" in said
    with open(os.path.join(run, "evaluation-test.json")) as file:
        now = json.load(file)
    assert now == pytest.approx(then, rel=1e-4)


def test_two_workers_reach_the_weights_of_two_replicas_and_only_the_chief_speaks(
    data, finished, tmp_path
):
    run = str(tmp_path / "workers")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    flags = [f"--data={data}", f"--run={run}", "--strategy=multiworker", *commands.SETTINGS]
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
    assert outputs[1][0] == ""
    ours, theirs = commands.saved(run), commands.saved(finished[0])
    np.testing.assert_allclose(ours["weights"], theirs["weights"], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(ours["ema_weights"], theirs["ema_weights"], rtol=1e-3, atol=2e-5)


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_bits(data, finished, tmp_path):
    run = str(tmp_path / "lr[1e-3]")  # TensorFlow globs the paths of checkpoints
    flags = [f"--data={data}", f"--run={run}", "--strategy=mirrored", "--replicas=2"]
    process = commands.start("trainer.task", *flags, *commands.SETTINGS, "--checkpoint_seconds=0")
    while not os.path.exists(os.path.join(run, "last", "step-2.index")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    if process.returncode:  # it may have been done already
        assert process.returncode == 75
        assert "Start the same command again" in out
    commands.run("trainer.task", *flags, *commands.SETTINGS)
    assert not [name for name in os.listdir(os.path.join(run, "last")) if "damaged" in name]
    ours, theirs = commands.saved(run), commands.saved(finished[0])
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data=nowhere"], "no data set at 'nowhere'"),
        (["--set", "image_height", "100"], "image_height is 100 in the config"),
        (["--set", "model.heads", "pooled"], "Did you mean model.head"),
        (["--epochs=many"], "type int"),
        (["--batch_size=3", "--replicas=2", "--strategy=mirrored"], "shared evenly by 2 replicas"),
        (["--batch_size=512"], "fewer than one batch"),
        (["--weights=nowhere.h5", "--batch_size=4"], "no such file"),
        (["--strategy=multiworker"], "TF_CONFIG"),
        (["--strategy=one", "--replicas=2"], "use mirrored"),
        (["--set", "seed", "-1"], "between 0 and"),
        (["--run=/dev/null/run", "--batch_size=4"], "--run=/dev/null/run: the run cannot be"),
        (["--profile=3:12", "--batch_size=4", "--epochs=2"], "the run has 10 steps"),
        (["--profile=5:6", "--steps_per_call=4", "--batch_size=4", "--epochs=2"], "at least 9"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(data, tmp_path, flags, said, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError) as error:
        task.main([f"--data={data}", f"--run={tmp_path / 'run'}", "--weights=none", *flags])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "mistake", ["--batch_size=512", "--weights=nowhere.h5", "--set=loss.box=round"]
)
def test_a_mistake_leaves_no_run_that_would_hold_to_it(data, tmp_path, mistake):
    run = tmp_path / "run"
    with pytest.raises(UserError):
        task.main([f"--data={data}", f"--run={run}", "--weights=none", "--batch_size=4", mistake])
    assert not run.exists()


@pytest.mark.parametrize("calls", [[(0, 4), (4, 8), (8, 12)], [(6, 7), (7, 8), (8, 9)]])
def test_the_steps_asked_for_are_profiled_from_the_start_or_resumed(data, tmp_path, calls):
    info = manifest.read(data)
    flags = task.parse_flags(["--profile=3:8"])
    described = folder.describe_data(data, info)
    options = task.make_options(flags, described, info, str(tmp_path), chief=True)
    for before, after in calls:
        options.on_steps(before, after)
    assert len(list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) == 1


def test_an_unknown_flag_ends_with_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        task.main(["--epoch=3"])
    assert "unrecognized arguments: --epoch=3" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{cluster", '{"cluster": {"worker": ["a:1", "b:1"]}}'])
def test_a_broken_tf_config_is_named(data, monkeypatch, tmp_path, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        task.main([f"--data={data}", f"--run={tmp_path / 'run'}"])


def test_a_run_is_not_continued_as_something_else(data, finished):
    flags = [f"--data={data}", f"--run={finished[0]}", *commands.SETTINGS]
    with pytest.raises(UserError, match=r"optimizer\.ema is 0\.5 now and was 0\.9"):
        task.main([*flags, "optimizer.ema", "0.5"])


def test_a_run_is_not_continued_with_other_data(finished, tmp_path):
    datasets.write_default(str(tmp_path))
    flags = [f"--data={tmp_path}", f"--run={finished[0]}", *commands.SETTINGS]
    with pytest.raises(UserError, match="fingerprint is"):
        task.main(flags)


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
    flags = [f"--data={data}", *commands.SETTINGS, f"--weights={weights}"]
    seen = []

    def begin(job):
        checkpoint.save(job.state, os.path.join(job.folder, loop.LAST), 1)
        seen.append(job.state.weights.numpy())
        raise loop.PreemptedError

    def go_on(job):
        checkpoint.restore_newest(job.state, os.path.join(job.folder, loop.LAST))
        seen.append(job.state.weights.numpy())
        raise loop.PreemptedError

    for train in (begin, go_on):
        monkeypatch.setattr(loop, "train", train)
        with pytest.raises(SystemExit, match="75"):
            task.main([*flags, f"--run={run}"])
        weights.unlink(missing_ok=True)
    np.testing.assert_array_equal(*seen)
    with pytest.raises(UserError, match="no such file"):
        task.main([*flags, f"--run={tmp_path / 'another'}"])


def test_a_second_training_of_a_run_refuses_and_writes_nothing(data, tmp_path):
    run = tmp_path / "run"
    flags = [f"--data={data}", f"--run={run}", *commands.SETTINGS]
    with folder.locked(str(run)):
        with pytest.raises(UserError, match=f"another training is at work in {run}"):
            task.main(flags)
        assert os.listdir(run) == [".lock"]


def test_the_lock_of_a_run_dies_with_its_process(tmp_path):
    code = "import sys, trainer.folder as f\nwith f.locked(sys.argv[1]): print('in'), input()"
    process = subprocess.Popen(
        [sys.executable, "-uc", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(UserError, match="another training"), folder.locked(str(tmp_path)):
        pass
    process.kill()
    process.communicate()
    with folder.locked(str(tmp_path)):
        pass


def test_a_tilde_in_a_path_is_the_home_of_the_user(monkeypatch, data):
    monkeypatch.setenv("HOME", "/home/me")
    flags = task.parse_flags(["--data=~/cars", "--run=~/runs/a", "--weights=~/w.weights.h5"])
    assert (flags.data, flags.run) == ("/home/me/cars", "/home/me/runs/a")
    assert task.make_config(flags, manifest.read(data)).weights == "/home/me/w.weights.h5"
    with pytest.raises(UserError, match="--run=/home/me/none: there is no run there"):
        evaluate.main(["--run=~/none"])


@pytest.mark.parametrize(("name", "sample"), [("sample", False), ("drawn", False), ("cars", True)])
def test_the_config_goes_by_the_flag_of_the_manifest_and_never_by_a_name(tmp_path, name, sample):
    splits = {"train": [datasets.records(0, 1)]}
    datasets.write(str(tmp_path), splits, name=name, sample=sample)
    info = manifest.read(str(tmp_path))
    chosen = task.make_config(task.parse_flags([]), info)
    assert chosen == configs.named("sample" if sample else "default")
    assert task.make_config(task.parse_flags(["--config=baseline"]), info).name == "baseline"


def test_the_run_folder_knows_all_of_its_data_that_judging_needs(data, monkeypatch, tmp_path):
    monkeypatch.chdir(os.path.dirname(data))
    described = folder.describe_data(os.path.basename(data), manifest.read(data))
    folder.create(str(tmp_path), configs.Config(), described)
    monkeypatch.chdir("/")
    stored = folder.read(str(tmp_path))[1]
    assert stored.path == data
    assert (stored.height, stored.width, stored.resize) == (32, 48, "stretch")
    assert stored.class_names == datasets.CLASS_NAMES
    described = folder.describe_data("gs://bucket/data", manifest.read(data))
    assert described.path == "gs://bucket/data"


def test_a_run_made_before_the_resize_was_stored_is_read_and_continued(data, tmp_path):
    described = folder.describe_data(data, manifest.read(data))
    folder.create(str(tmp_path), configs.Config(), described)
    values = json.loads((tmp_path / "data.json").read_text())
    del values["resize"]
    (tmp_path / "data.json").write_text(json.dumps(values | {"path": "data/tfrecords"}))
    assert folder.read(str(tmp_path))[1].path == "data/tfrecords"
    folder.check(str(tmp_path), configs.Config(), described)


def test_photos_resized_in_another_way_do_not_continue_a_run(data, tmp_path):
    described = folder.describe_data(data, manifest.read(data))
    folder.create(str(tmp_path), configs.Config(), described)
    other = dataclasses.replace(described, resize="letterbox")
    with pytest.raises(UserError, match="resize is 'letterbox' now and was 'stretch'"):
        folder.check(str(tmp_path), configs.Config(), other)


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125])
def test_photos_with_the_longest_names_are_evaluated_and_drawn(finished, tmp_path, stem):
    photos = [datasets.record(seed, filename=f"test/a/{stem}.jpg") for seed in (1, 2)]
    datasets.write(str(tmp_path), {"validation": [photos]}, name="n" * 255)
    evaluate.main([f"--run={finished[0]}", f"--data={tmp_path}", "--split=validation"])
    drawn = sorted(os.listdir(os.path.join(finished[0], "pictures-validation")))
    assert len(drawn) == 3
    assert drawn[0].startswith("00-" + stem[:50])


def test_a_start_killed_before_its_config_was_written_is_taken_over(data, tmp_path):
    info = folder.Data(data, "tiny", "0", 32, 48, datasets.CLASS_NAMES)
    folder.create(str(tmp_path), configs.Config(), info)
    (tmp_path / "config.json").rename(tmp_path / "config.json.new")
    folder.check(str(tmp_path), configs.Config(), info)


def test_a_run_can_be_judged_in_another_way_but_not_as_another_run(finished):
    config, _ = folder.read(finished[0])
    other = evaluate.judge_otherwise(config, ["predict.looks", "2", "predict.flip=false"])
    assert (other.predict.looks, other.predict.flip) == (2, False)
    assert evaluate.judge_otherwise(other, ["predict.looks=3", "predict.flip=true"]) == config
    said = commands.run("trainer.evaluate", f"--run={finished[0]}", "--set", "predict.looks=1")
    assert "7 photos, judged in 1 look, mirrored too" in said
    with pytest.raises(UserError, match="--set epochs: the run is trained already"):
        evaluate.main([f"--run={finished[0]}", "--set", "epochs", "9"])


def test_evaluating_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no run there"):
        evaluate.main([f"--run={tmp_path}"])


def test_evaluating_photos_of_another_size_is_named(tmp_path, data):
    info = folder.Data(data, "tiny", "0", 64, 96, datasets.CLASS_NAMES)
    run = str(tmp_path / "run")
    folder.create(run, configs.Config(), info)
    with pytest.raises(UserError, match=r"32x48 .* takes 64x96"):
        evaluate.main([f"--run={run}"])


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_damaged_record_is_named(tmp_path, cache):
    datasets.write_default(str(tmp_path))
    shard = next(tmp_path.glob("train-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    flags = [f"--data={tmp_path}", f"--run={tmp_path / 'run'}", *commands.SETTINGS]
    with pytest.raises(UserError, match=f"{shard.name} is damaged: the record at byte"):
        task.main([*flags, f"--cache={cache}"])


def test_a_cut_off_shard_is_named(data, tmp_path):
    datasets.write_default(str(tmp_path))
    shard = next(tmp_path.glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=shard.name):
        task.main([f"--data={tmp_path}", f"--run={tmp_path / 'run'}", "--weights=none"])
