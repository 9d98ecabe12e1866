"""Real runs of a small MobileNetV2 on CPU devices, held against each other bit by bit."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import checkpoint, history, loop, model, state
from trainer.config import Augment, Config, Loss, Model, Optimizer

CONFIG = Config(
    weights="none",
    epochs=2,
    batch_size=4,
    seed=5,
    model=Model(alpha=0.35, head="spatial", filters=8, dropout=0.2),
    augment=Augment(crop=0.5, colour=0.2),
    optimizer=Optimizer(learning_rate=1e-3, warmup_epochs=0.5, ema=0.9),
)
STEPS = 10  # two epochs of 22 // 4


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    tf.config.experimental.enable_op_determinism()


def make_job(source, folder, config=CONFIG, strategy=None, **options) -> loop.Job:
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    network = model.build(config, datasets.HEIGHT, datasets.WIDTH, datasets.CLASS_NAMES)
    return loop.Job(
        strategy=strategy,
        model=network,
        state=state.create(strategy, network, config),
        config=config,
        training=source("train"),
        validation=source("validation"),
        folder=str(folder),
        options=loop.Options(**options),
    )


def values(job: loop.Job) -> dict[str, np.ndarray]:
    return {name: tf.convert_to_tensor(v).numpy() for name, v in job.state.variables().items()}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> loop.Job:
    job = make_job(source, tmp_path_factory.mktemp("undisturbed"))
    loop.train(job)
    return job


class KilledError(Exception):
    """Stands for SIGKILL, which test_kill.py sends to whole processes."""


def kill_after(step: int):
    def on_steps(before: int, after: int) -> None:
        if after == step:
            raise KilledError

    return on_steps


def test_a_run_moves_its_weights_and_tells_every_epoch(undisturbed):
    found = values(undisturbed)
    start = state.create(undisturbed.strategy, undisturbed.model, CONFIG)
    assert found["step"] == STEPS
    assert np.abs(found["weights"] - start.weights.numpy()).max() > 1e-3
    records = history.read(undisturbed.folder)
    assert [record["epoch"] for record in records] == [1, 2]
    assert all(record["num_examples"] == 20 for record in records)
    assert all(record["val_num_examples"] == 5 for record in records)
    assert all(np.isfinite(list(record.values())).all() for record in records)


@pytest.mark.parametrize("killed_after", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_a_killed_run_ends_with_the_same_bits(undisturbed, source, tmp_path, killed_after):
    often = {"checkpoint_seconds": 0.0}
    with pytest.raises(KilledError):
        loop.train(make_job(source, tmp_path, on_steps=kill_after(killed_after), **often))
    job = make_job(source, tmp_path, **often)
    loop.train(job)
    assert_equal(values(job), values(undisturbed))
    assert history.read(job.folder) == history.read(undisturbed.folder)


def test_several_steps_in_one_call_end_with_the_same_bits(undisturbed, source, tmp_path):
    job = make_job(source, tmp_path, steps_per_call=3)
    loop.train(job)
    assert_equal(values(job), values(undisturbed))


def test_a_finished_run_does_nothing_more(undisturbed, source):
    job = make_job(source, undisturbed.folder, on_steps=kill_after(1))
    assert len(loop.train(job)) == 2
    assert_equal(values(job), values(undisturbed))


def test_a_damaged_newest_checkpoint_is_set_aside(undisturbed, source, tmp_path, capsys):
    job = make_job(source, tmp_path, checkpoint_seconds=0.0, keep=3, on_steps=kill_after(8))
    with pytest.raises(KilledError):
        loop.train(job)
    newest = checkpoint.newest(str(tmp_path / "last"))
    assert newest.endswith("step-7")
    with open(newest + ".data-00000-of-00001", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 64)
    job = make_job(source, tmp_path)
    loop.train(job)
    said = capsys.readouterr().out
    assert "step-7 is damaged" in said
    assert "resuming at step 6" in said
    assert_equal(values(job), values(undisturbed))


FROZEN = dataclasses.replace(
    CONFIG,
    epochs=1,
    model=dataclasses.replace(CONFIG.model, dropout=0.0, batch_norm="frozen"),
)


@pytest.fixture(scope="module")
def frozen(source, tmp_path_factory) -> loop.Job:
    job = make_job(source, tmp_path_factory.mktemp("frozen"), FROZEN)
    loop.train(job)
    return job


def test_two_replicas_reach_the_weights_of_one_device(frozen, source, tmp_path):
    two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    job = make_job(source, tmp_path, FROZEN, two)
    loop.train(job)
    found, expected = values(job), values(frozen)
    for name in ("weights", "ema_weights", "first"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(found["second"], expected["second"], rtol=1e-2, atol=1e-6)
    theirs, ours = (history.read(j.folder)[0] for j in (frozen, job))
    for name in ("num_examples", "val_num_examples"):
        assert ours[name] == theirs[name]
    for name in ("loss", "mean_iou", "val_loss", "val_mean_iou"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    replicas = [v.numpy() for v in two.experimental_local_results(job.state.weights)]
    np.testing.assert_array_equal(*replicas)


def test_gradients_of_parts_add_up_to_those_of_the_batch(frozen, source, tmp_path):
    parts = dataclasses.replace(
        FROZEN, optimizer=dataclasses.replace(FROZEN.optimizer, accumulate=2)
    )
    job = make_job(source, tmp_path, parts)
    loop.train(job)
    np.testing.assert_allclose(
        values(job)["weights"], values(frozen)["weights"], rtol=1e-3, atol=2e-5
    )


def test_xla_reaches_the_same_weights(frozen, source, tmp_path):
    job = make_job(source, tmp_path, dataclasses.replace(FROZEN, jit="on"))
    loop.train(job)
    np.testing.assert_allclose(
        values(job)["weights"], values(frozen)["weights"], rtol=1e-3, atol=5e-5
    )


@pytest.mark.parametrize("held", [{"freeze_epochs": 1.0}, {"backbone_rate": 0.0}])
def test_a_frozen_backbone_stays_while_the_heads_learn(source, tmp_path, held):
    config = dataclasses.replace(
        CONFIG, epochs=1, optimizer=dataclasses.replace(CONFIG.optimizer, **held)
    )
    job = make_job(source, tmp_path, config)
    before = values(job)["weights"]
    loop.train(job)
    moved = before != values(job)["weights"]
    plan = state.layouts(job.model)
    in_backbone = plan.weights.spread(plan.in_backbone) > 0
    assert not moved[in_backbone].any()
    assert moved[~in_backbone].mean() > 0.5


def test_a_loss_that_is_not_finite_stops_at_its_step_and_names_the_photos(source, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        loss=Loss(box="squared_error"),
        optimizer=Optimizer(learning_rate=1e3, schedule="constant", warmup_epochs=0),
        model=dataclasses.replace(CONFIG.model, batch_norm="frozen"),
        epochs=20,
    )
    job = make_job(source, tmp_path, config, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match=r"not finite at step \d+") as error:
        loop.train(job)
    step = int(values(job)["bad_step"])
    assert str(error.value).count(".jpg") == CONFIG.batch_size
    assert np.isfinite(values(job)["weights"]).all()
    kept = checkpoint.newest(str(tmp_path / "last"))
    assert kept is None or int(kept.rsplit("-", 1)[1]) <= step


def test_half_precision_finds_its_loss_scale_while_the_tasks_find_their_weights(source, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        epochs=6,  # long enough for the scale to have come down for good
        precision="mixed_float16",
        loss=Loss(weighting="uncertainty"),
        augment=Augment(mixup=0.2),
        optimizer=dataclasses.replace(CONFIG.optimizer, clip_norm=1.0),
    )
    job = make_job(source, tmp_path, config)
    # So large that the first gradients must overflow: steps are skipped until it has come down.
    job.state.loss_scale.assign(2.0**14)
    start = values(job)
    record = loop.train(job)[0]
    found = values(job)
    assert found["step"] == 3 * STEPS
    assert found["bad_step"] == -1
    assert 1 <= found["loss_scale"] < 2.0**14
    assert np.isfinite(found["weights"]).all()
    assert np.isfinite(record["val_loss"])
    assert record["num_examples"] == 20
    assert found["good_steps"] > 0
    assert (found["weights"] != start["weights"]).any()


def test_xla_can_mix_photos(source, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, jit="on", augment=Augment(mixup=0.2))
    records = loop.train(make_job(source, tmp_path, config))
    assert np.isfinite(records[0]["val_loss"])


def test_learned_task_weights_move_and_bfloat16_trains(source, tmp_path):
    config = dataclasses.replace(
        CONFIG, epochs=1, precision="mixed_bfloat16", loss=Loss(weighting="uncertainty")
    )
    job = make_job(source, tmp_path, config)
    loop.train(job)
    log_variances = values(job)["weights"][-2:]
    assert (np.abs(log_variances) > 1e-4).all()
    outputs = job.model(tf.zeros([1, datasets.HEIGHT, datasets.WIDTH, 3], tf.uint8))
    assert outputs["bbox"].dtype == outputs["logits"].dtype == tf.float32


def test_the_learning_rate_falls_on_a_plateau(source, tmp_path):
    flat = Optimizer(
        learning_rate=1e-9, schedule="plateau", plateau_epochs=1, warmup_epochs=0, weight_decay=0
    )
    config = dataclasses.replace(
        CONFIG,
        epochs=4,
        optimizer=flat,
        augment=Augment(flip=False, crop=0, colour=0),
        model=dataclasses.replace(CONFIG.model, batch_norm="frozen", dropout=0.0),
    )
    rates = [record["learning_rate"] for record in loop.train(make_job(source, tmp_path, config))]
    assert rates[0] == pytest.approx(1e-9)
    assert rates[-1] < 0.2e-9
