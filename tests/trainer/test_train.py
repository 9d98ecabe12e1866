"""Real runs of a small MobileNetV2 on CPU devices, held against each other bit by bit."""

import dataclasses
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import checkpoint, configs, history, model, train, train_state
from trainer.configs import Augment, Config, Inference, Loss, Model, Optimizer
from trainer.train_state import BACKBONE, LOG_VARIANCES

CONFIG = Config(
    weights="none",
    epochs=2,
    batch_size=4,
    seed=5,
    model=Model(alpha=0.35, stride=8, box_stride=8, head="spatial", filters=8, dropout=0.2),
    augment=Augment(context_crop=0.5, color_jitter=0.2),
    optimizer=Optimizer(learning_rate=1e-3, warmup_epochs=0.5, ema=0.9),
    inference=Inference(zoom_passes=0, flip_tta=False),
)
STEPS = 10  # two epochs of 22 // 4


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    tf.config.experimental.enable_op_determinism()


def make_setup(open_split, run, config=CONFIG, strategy=None, **options) -> train.Setup:
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    network = model.build(config, datasets.HEIGHT, datasets.WIDTH, datasets.CLASS_NAMES)
    return train.Setup(
        strategy=strategy,
        network=network,
        state=train_state.create(strategy, network, config),
        config=config,
        train=open_split("train"),
        validation=open_split("validation"),
        run=str(run),
        options=train.Options(**options),
    )


def changed(config: Config, **values) -> Config:
    """Returns the config with other values; `__` stands for the dot in their names."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return configs.replace(config, named)


def values(setup: train.Setup) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in setup.state.variables().items()}


def below(found: dict[str, np.ndarray], *prefixes: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in found.items() if name.startswith(prefixes)}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def assert_close(found: dict, expected: dict, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def undisturbed(open_split, tmp_path_factory) -> train.Setup:
    setup = make_setup(open_split, tmp_path_factory.mktemp("undisturbed"))
    train.train_and_evaluate(setup)
    return setup


class KilledError(Exception):
    """Stands for SIGKILL, which test_kill.py sends to whole processes."""


def kill_after(step: int) -> train.Hooks:
    def on_steps(before: int, after: int) -> None:
        if after == step:
            raise KilledError

    return train.Hooks(on_steps=on_steps)


def test_a_run_moves_its_weights_and_tells_every_epoch(undisturbed):
    found = values(undisturbed)
    start = train_state.create(undisturbed.strategy, undisturbed.network, CONFIG)
    assert found["step"] == STEPS
    moved = [np.abs(found[f"params/{path}"] - start.params[path]).max() for path in start.params]
    assert np.max(moved) > 1e-3
    records = history.read(undisturbed.run)
    assert [record["epoch"] for record in records] == [1, 2]
    assert all(record["num_examples"] == 20 for record in records)
    assert all(record["val_num_examples"] == 5 for record in records)
    assert all(np.isfinite(list(record.values())).all() for record in records)


# Of the version before the state had names, with these settings and data. Nothing is cropped: a
# rounding of one pixel is enough for Adam to go another way where a gradient is nearly 0.
PINNED = Config(
    weights="none",
    epochs=2,
    batch_size=4,
    seed=5,
    model=dataclasses.replace(CONFIG.model, stride=16, box_stride=16, batch_norm_momentum=0.5),
    augment=Augment(flip=False, context_crop=0, object_crop=0, color_jitter=0.2, mixup=0.2),
    # The backbone begins to learn within the second call of three steps.
    optimizer=Optimizer(
        learning_rate=3e-4, warmup_epochs=0.5, weight_decay=0.05, ema=0.9, freeze_epochs=0.8
    ),
    inference=Inference(zoom_passes=1, zoom_margin=0.1, flip_tta=True, margin_tta=0.0),
)
PINNED_LOSSES = ("box_loss", "label_loss", "val_box_loss", "val_label_loss")
GOLDEN = {  # of each epoch
    "one_device": [(2.7374, 1.0595, 3.5203, 1.1060), (1.8459, 1.0966, 3.1366, 1.1365)],
    "two_replicas": [(2.6266, 1.0725, 3.5250, 1.1099), (1.7188, 1.0697, 3.2142, 1.1413)],
}


@pytest.mark.timeout(900)  # four or more graphs of the network
@pytest.mark.parametrize(
    "devices", ["one_device", pytest.param("two_replicas", marks=pytest.mark.slow)]
)
def test_the_losses_are_those_that_they_always_were(open_split, tmp_path, devices, request):
    strategy = request.getfixturevalue(devices)
    setup = make_setup(open_split, tmp_path, PINNED, strategy, steps_per_call=3)
    records = train.train_and_evaluate(setup)
    for record, golden in zip(records, GOLDEN[devices], strict=True):
        assert [record[name] for name in PINNED_LOSSES] == pytest.approx(golden, rel=1e-3)


@pytest.mark.slow  # the fast test of a damaged checkpoint kills a run too
@pytest.mark.parametrize("killed_after", [2, 7])
def test_a_killed_run_ends_with_the_same_bits(undisturbed, open_split, tmp_path, killed_after):
    often = {"checkpoint_seconds": 0.0}
    with pytest.raises(KilledError):
        train.train_and_evaluate(
            make_setup(open_split, tmp_path, **often), kill_after(killed_after)
        )
    setup = make_setup(open_split, tmp_path, **often)
    train.train_and_evaluate(setup)
    assert_equal(values(setup), values(undisturbed))
    assert history.read(setup.run) == history.read(undisturbed.run)


def test_a_run_killed_between_an_epochs_record_and_its_checkpoint_ends_with_the_same_history(
    undisturbed, open_split, tmp_path, monkeypatch
):
    really = history.History.append

    def append(self, record) -> None:
        really(self, record)
        raise KilledError

    often = {"checkpoint_seconds": 0.0}
    with monkeypatch.context() as killed:
        killed.setattr(history.History, "append", append)
        with pytest.raises(KilledError):
            train.train_and_evaluate(make_setup(open_split, tmp_path, **often))
    setup = make_setup(open_split, tmp_path, **often)
    train.train_and_evaluate(setup)
    assert_equal(values(setup), values(undisturbed))
    assert history.read(setup.run) == history.read(undisturbed.run)


@pytest.mark.slow  # the golden losses are of three steps in a call
def test_several_steps_in_one_call_end_with_the_same_bits(undisturbed, open_split, tmp_path):
    setup = make_setup(open_split, tmp_path, steps_per_call=3)
    train.train_and_evaluate(setup)
    assert_equal(values(setup), values(undisturbed))


def test_a_finished_run_does_nothing_more(undisturbed, open_split):
    setup = make_setup(open_split, undisturbed.run)
    assert len(train.train_and_evaluate(setup, kill_after(1))) == 2
    assert_equal(values(setup), values(undisturbed))


def send_after(step: int, *numbers: signal.Signals) -> train.Hooks:
    def on_steps(before: int, after: int) -> None:
        if after == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return train.Hooks(on_steps=on_steps)


def test_a_run_stopped_at_once_ends_with_the_same_bits_although_its_newest_checkpoint_is_damaged(
    undisturbed, open_split, tmp_path, capsys
):
    setup = make_setup(open_split, tmp_path, checkpoint_seconds=0.0, keep=3)
    with pytest.raises(KeyboardInterrupt):  # a second Ctrl-C does not wait for the step to be saved
        train.train_and_evaluate(setup, send_after(8, signal.SIGINT, signal.SIGINT))
    newest = checkpoint.newest(str(tmp_path / "last"))
    assert newest.endswith("step-7")
    with open(newest + ".data-00000-of-00001", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 64)
    setup = make_setup(open_split, tmp_path)
    train.train_and_evaluate(setup)
    said = capsys.readouterr().out
    assert "step-7 is damaged" in said
    assert "resuming at step 6" in said
    assert_equal(values(setup), values(undisturbed))
    assert history.read(setup.run) == history.read(undisturbed.run)


@pytest.mark.slow  # the command is tested for both
def test_a_finished_run_goes_on_when_it_is_told_more_epochs_and_ctrl_c_saves_it(
    undisturbed, open_split, tmp_path, capfd
):
    shutil.copytree(undisturbed.run, tmp_path, dirs_exist_ok=True)
    setup = make_setup(open_split, tmp_path, changed(CONFIG, epochs=3))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(train.InterruptedRunError) as error:
        train.train_and_evaluate(setup, send_after(STEPS + 1, signal.SIGINT))
    assert error.value.signal == signal.SIGINT
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert checkpoint.newest(str(tmp_path / "last")).endswith(f"step-{STEPS + 1}")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    records = train.train_and_evaluate(setup)
    assert records[:2] == history.read(undisturbed.run)
    assert [record["step"] for record in records] == [5, 10, 15]
    assert records[2]["num_examples"] == 20
    assert values(setup)["step"] == 15


FROZEN = changed(CONFIG, epochs=1, model__dropout=0.0, model__batch_norm="frozen")


@pytest.fixture(scope="module")
def frozen(open_split, tmp_path_factory) -> train.Setup:
    setup = make_setup(open_split, tmp_path_factory.mktemp("frozen"), FROZEN)
    train.train_and_evaluate(setup)
    return setup


def test_two_replicas_reach_the_weights_of_one_device(frozen, open_split, tmp_path, two_replicas):
    setup = make_setup(open_split, tmp_path, FROZEN, two_replicas)
    train.train_and_evaluate(setup)
    found, expected = values(setup), values(frozen)
    for name in ("params/", "ema_params/", "m/"):
        assert_close(below(found, name), below(expected, name), rtol=1e-3, atol=2e-5)
    assert_close(below(found, "v/"), below(expected, "v/"), rtol=1e-2, atol=1e-6)
    theirs, ours = (history.read(run.run)[0] for run in (frozen, setup))
    for name in ("num_examples", "val_num_examples"):
        assert ours[name] == theirs[name]
    for name in ("loss", "mean_iou", "val_loss", "val_mean_iou"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    for variable in setup.state.params.values():
        replicas = [one.numpy() for one in two_replicas.experimental_local_results(variable)]
        np.testing.assert_array_equal(*replicas)


def assert_same_params(setup: train.Setup, expected: train.Setup, atol: float) -> None:
    found = (below(values(run), "params/") for run in (setup, expected))
    assert_close(*found, rtol=1e-3, atol=atol)


def test_gradients_of_parts_add_up_to_those_of_the_batch(frozen, open_split, tmp_path):
    config = changed(FROZEN, optimizer__accumulation_steps=2)
    setup = make_setup(open_split, tmp_path, config)
    train.train_and_evaluate(setup)
    assert_same_params(setup, frozen, atol=2e-5)


def test_xla_reaches_the_same_weights(frozen, open_split, tmp_path):
    setup = make_setup(open_split, tmp_path, changed(FROZEN, jit="on"))
    train.train_and_evaluate(setup)
    assert_same_params(setup, frozen, atol=5e-5)


@pytest.mark.parametrize(
    "held",
    [{"freeze_epochs": 1.0}, pytest.param({"backbone_lr_scale": 0.0}, marks=pytest.mark.slow)],
)
def test_a_frozen_backbone_stays_while_the_heads_learn(open_split, tmp_path, held):
    config = dataclasses.replace(
        changed(CONFIG, epochs=1), optimizer=dataclasses.replace(CONFIG.optimizer, **held)
    )
    setup = make_setup(open_split, tmp_path, config)
    before = values(setup)
    train.train_and_evaluate(setup)
    after = values(setup)
    of_backbone = [f"{name}/{BACKBONE}" for name in ("params", "ema_params")]
    assert_equal(below(after, *of_backbone), below(before, *of_backbone))
    heads = [f"params/{path}" for path in setup.state.params if not path.startswith(BACKBONE)]
    moved = np.concatenate([(after[name] != before[name]).ravel() for name in heads])
    assert moved.mean() > 0.5


def test_a_loss_that_is_not_finite_stops_at_its_step_and_names_the_photos(open_split, tmp_path):
    config = dataclasses.replace(
        changed(CONFIG, epochs=20, model__batch_norm="frozen"),
        loss=Loss(box="squared_error"),
        optimizer=Optimizer(learning_rate=1e3, schedule="constant", warmup_epochs=0),
    )
    setup = make_setup(open_split, tmp_path, config, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match=r"not finite at step \d+") as error:
        train.train_and_evaluate(setup)
    found = values(setup)
    assert str(error.value).count(".jpg") == CONFIG.batch_size
    assert all(np.isfinite(value).all() for value in below(found, "params/").values())
    kept = checkpoint.newest(str(tmp_path / "last"))
    step = int(found["first_nonfinite_step"])
    assert kept is None or int(kept.rsplit("-", 1)[1]) <= step


def test_half_precision_finds_its_loss_scale_while_the_tasks_find_their_weights(
    open_split, tmp_path
):
    config = dataclasses.replace(
        CONFIG,
        epochs=6,  # long enough for the scale to have come down for good
        precision="mixed_float16",
        loss=Loss(weighting="uncertainty"),
        augment=Augment(mixup=0.2),
        optimizer=dataclasses.replace(CONFIG.optimizer, clip_norm=1.0),
    )
    setup = make_setup(open_split, tmp_path, config)
    # So large that the first gradients must overflow: steps are skipped until it has come down.
    setup.state.loss_scale.assign(2.0**14)
    start = values(setup)
    record = train.train_and_evaluate(setup)[0]
    found = values(setup)
    assert found["step"] == 3 * STEPS
    assert found["first_nonfinite_step"] == -1
    assert 1 <= found["loss_scale"] < 2.0**14
    params = below(found, "params/")
    assert all(np.isfinite(value).all() for value in params.values())
    assert np.isfinite(record["val_loss"])
    assert record["num_examples"] == 20
    assert found["good_steps"] > 0
    assert any((value != start[name]).any() for name, value in params.items())


@pytest.mark.slow
def test_xla_can_mix_photos(open_split, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, jit="on", augment=Augment(mixup=0.2))
    records = train.train_and_evaluate(make_setup(open_split, tmp_path, config))
    assert np.isfinite(records[0]["val_loss"])


@pytest.mark.slow  # float16 and learned task weights are tested above
def test_learned_task_weights_move_and_bfloat16_trains(open_split, tmp_path):
    config = dataclasses.replace(
        CONFIG, epochs=1, precision="mixed_bfloat16", loss=Loss(weighting="uncertainty")
    )
    setup = make_setup(open_split, tmp_path, config)
    train.train_and_evaluate(setup)
    assert (np.abs(setup.state.params[LOG_VARIANCES].numpy()) > 1e-4).all()
    outputs = setup.network(tf.zeros([1, datasets.HEIGHT, datasets.WIDTH, 3], tf.uint8))
    assert outputs["bbox"].dtype == outputs["logits"].dtype == tf.float32


def test_the_learning_rate_falls_on_a_plateau(open_split, tmp_path):
    flat = Optimizer(
        learning_rate=1e-9, schedule="plateau", plateau_epochs=1, warmup_epochs=0, weight_decay=0
    )
    config = dataclasses.replace(
        changed(CONFIG, epochs=4, model__batch_norm="frozen", model__dropout=0.0),
        optimizer=flat,
        augment=Augment(flip=False, context_crop=0, object_crop=0, color_jitter=0),
    )
    setup = make_setup(open_split, tmp_path, config)
    rates = [record["learning_rate"] for record in train.train_and_evaluate(setup)]
    assert rates[0] == pytest.approx(1e-9)
    assert rates[-1] < 0.2e-9
