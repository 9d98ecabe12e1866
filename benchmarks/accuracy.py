"""What each ingredient of the recipe gives: trains, one after another, and compares.

    python -m benchmarks.accuracy --data=data/cars [--weights=imagenet] [--epochs=3] [--seeds=1,2]
        [--only=NAME,...]

Two tables, evaluated on the validation split; the test split is not opened. The first goes from the
baseline to the default, one ingredient after another. The second takes the default and changes one
thing. Rows that differ only in their inference share one training. Evaluated is its best epoch, by
the validation loss of a single pass. Finished runs are kept in `--runs`: the same command goes on
where it was stopped. `training_seconds` is the wall time of `trainer.task`, its start and the
validation of each epoch by a single pass included.
"""

import dataclasses
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from tfrecords import command, manifest
from tfrecords.errors import UserError
from trainer import configs, evaluate, run_dir
from trainer.history import EpochMetrics

FLAGS = flags.FlagValues()
command.DEFINE_path("data", None, "data set to learn from", flag_values=FLAGS)
command.DEFINE_path("weights", "imagenet", "as of trainer.task", flag_values=FLAGS)
flags.DEFINE_integer("epochs", 3, "of each training", 1, flag_values=FLAGS)
flags.DEFINE_list("seeds", ["1", "2"], "of the trainings of each row", flag_values=FLAGS)
command.DEFINE_path("runs", "runs/accuracy", "folder of the runs", flag_values=FLAGS)
flags.DEFINE_list("only", [], "names of rows; all by default", flag_values=FLAGS)

Settings = dict[str, Any]
"""Values by dotted name, as `configs.replace` takes them."""

# Each adds to the one before, and the last is the default.
STEPS: dict[str, Settings] = {
    "baseline": {},
    "BatchNorm momentum 0.9": {"model.batch_norm_momentum": 0.9},
    "shuffled and AdamW with warm-up and cosine": {
        "shuffle": True,
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 1.0,
        "optimizer.weight_decay": 0.05,
    },
    "batches of 32": {"batch_size": 32},
    "dropout 0.2": {"model.dropout": 0.2},
    "label smoothing": {"loss.label_smoothing": 0.1},
    "L1 and GIoU": {"loss.box": "5*l1+2*giou", "loss.box_reduction": "mean"},
    "spatial head": {"model.head": "spatial", "model.box_stride": 32},
    "flip": {"augment.flip": True},
    "context crop": {"augment.context_crop": 0.4},
    "color jitter": {"augment.color_jitter": 0.3},
    "word-shared classifier": {"model.word_shared_classifier": True},
    "flip TTA": {"inference.flip_tta": True},
    "object crop": {"augment.object_crop": 0.75},
    "two zoom passes": {"inference.zoom_passes": 2},
    "soft-argmax head": {"model.head": "soft_argmax"},
    "box from earlier features": {"model.box_stride": 16},
    "no dropout again": {"model.dropout": 0.0},
    "last stride 1": {"model.last_stride": 1},
    "weight decay 0.5": {"optimizer.weight_decay": 0.5},
}

# Each is the default, which heads this table too, but for this. `--replicas` is a flag of
# `trainer.task`: so many logical devices of the CPU, even where there are GPUs.
CHANGES: dict[str, Settings] = {
    "BatchNorm momentum 0.99": {"model.batch_norm_momentum": 0.99},
    "BatchNorm momentum 0.999": {"model.batch_norm_momentum": 0.999},
    "BatchNorm frozen": {"model.batch_norm": "frozen"},
    "two replicas": {"--replicas": 2},
    "two replicas with synchronized BatchNorm": {
        "--replicas": 2,
        "model.batch_norm": "synchronized",
    },
    "batches of 64": {"batch_size": 64},
    "learning rate 5e-4": {"optimizer.learning_rate": 5e-4},
    "learning rate 2e-3": {"optimizer.learning_rate": 2e-3},
    "warm-up of 0.4 epochs": {"optimizer.warmup_epochs": 0.4},
    "constant learning rate": {"optimizer.schedule": "constant"},
    "weight decay 0": {"optimizer.weight_decay": 0.0},
    "weight decay 0.05": {"optimizer.weight_decay": 0.05},
    "weight decay 2": {"optimizer.weight_decay": 2.0},
    "no flip": {"augment.flip": False},
    "no context crop": {"augment.context_crop": 0.0},
    "context crop 0.8": {"augment.context_crop": 0.8},
    "no color jitter": {"augment.color_jitter": 0.0},
    "no object crop and no zoom pass": {"augment.object_crop": 0.0, "inference.zoom_passes": 0},
    "object crop 0.5": {"augment.object_crop": 0.5},
    "margins vary less": {"augment.object_crop_jitter": 0.1},
    "margins vary more": {"augment.object_crop_jitter": 0.25},
    "no zoom pass": {"inference.zoom_passes": 0},
    "one zoom pass": {"inference.zoom_passes": 1},
    "three zoom passes": {"inference.zoom_passes": 3},
    "zoom margin 0.1": {"inference.zoom_margin": 0.1},
    "no flip TTA": {"inference.flip_tta": False},
    "no margin TTA": {"inference.margin_tta": 0.0},
    "no word-shared classifier": {"model.word_shared_classifier": False},
    "mixup 0.2": {"augment.mixup": 0.2},
    "no label smoothing": {"loss.label_smoothing": 0.0},
    "squared error": {"loss.box": "20*squared_error"},
    "smooth L1": {"loss.box": "5*smooth_l1"},
    "GIoU": {"loss.box": "2*giou"},
    "DIoU": {"loss.box": "2*diou"},
    "CIoU": {"loss.box": "2*ciou"},
    "names weigh twice as much": {"loss.label_weight": 2.0},
    "learned task weights": {"loss.weighting": "uncertainty"},
    "pooled head": {"model.head": "pooled"},
    "spatial head without soft-argmax": {"model.head": "spatial"},
    "box from the last features": {"model.box_stride": 32},
    "name from earlier features too": {"model.stride": 16},
    "backbone frozen for an epoch": {"optimizer.freeze_epochs": 1.0},
    "EMA 0.98": {"optimizer.ema": 0.98},
    "with dropout 0.2": {"model.dropout": 0.2},
    "dropout 0.5": {"model.dropout": 0.5},
}

SHOWN = ("top1", "top5", "mean_iou", "iou_70", "training_seconds")
_SINGLE_PASS = {
    "inference.zoom_passes": 0,
    "inference.zoom_margin": 0.0,  # plays no part in it, nor does the next
    "inference.margin_tta": 0.0,
    "inference.flip_tta": False,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: there is no such row or data set, or a command failed.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    data = command.required(FLAGS, "data")
    only = FLAGS.only or [*STEPS, *CHANGES]
    if unknown := [name for name in only if name not in {*STEPS, *CHANGES}]:
        raise UserError(f"--only: there is no {unknown}; there are {[*STEPS, *CHANGES]}.")
    if not all(seed.isdigit() for seed in FLAGS.seeds):
        raise UserError(f"--seeds={','.join(FLAGS.seeds)}: integers, separated by commas, please.")
    if "validation" not in manifest.read(data).splits:
        raise UserError(f"the data set at {data!r} has no validation split to evaluate.")
    found: dict[str, list[EpochMetrics]] = {}
    for name, config, settings in recipes():
        if name in only:
            found[name] = [measure(config, settings | {"seed": int(seed)}) for seed in FLAGS.seeds]
            print(describe(name, found[name]), flush=True)
    print(f"\n{FLAGS.epochs} epochs, {data}, seeds {', '.join(FLAGS.seeds)}, validation split\n")
    for names in (list(STEPS), [list(STEPS)[-1], *CHANGES]):
        print(f"| | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")
        print("\n".join(describe(name, found[name]) for name in names if name in found), end="\n\n")


def recipes() -> list[tuple[str, str, Settings]]:
    """Returns (name, config to start from, settings) of every row."""
    found: list[tuple[str, str, Settings]] = []
    settings: Settings = {}
    for name, more in STEPS.items():
        settings = settings | more
        found.append((name, "baseline", settings))
    return found + [(name, "default", settings) for name, settings in CHANGES.items()]


def measure(name: str, settings: Mapping[str, Any]) -> EpochMetrics:
    """Trains and evaluates, unless it is done already.

    Args:
        name: of the config to start from.
        settings: what to change in it; `--replicas` is no setting of a config, and may be there.

    Returns:
        The metrics, and the seconds that training took: NaN if it was interrupted.

    Raises:
        UserError: a command failed; it has said why.
    """
    settings = {**settings, "weights": FLAGS.weights, "epochs": FLAGS.epochs}
    replicas = settings.pop("--replicas", 1)
    config = configs.replace(configs.load(name), settings)
    trained = configs.replace(config, _SINGLE_PASS)
    data = run_dir.describe_data(FLAGS.data, manifest.read(FLAGS.data))
    # One name, so that recipes that are the same are so wherever they started from.
    recipe = configs.to_json(dataclasses.replace(trained, name="row"))
    digest = hashlib.sha256(f"{recipe} {replicas} {data.fingerprint}".encode())
    run = os.path.join(FLAGS.runs, digest.hexdigest()[:12])
    devices = ["--strategy=mirrored", f"--replicas={replicas}"] if replicas > 1 else []
    training = [f"--data={FLAGS.data}", f"--config={name}", "--report=none", *devices]
    seconds = _train(run, [*training, *_flags(settings | _SINGLE_PASS)])
    suffix = evaluate.result_suffix(run, data, config)
    path = os.path.join(run, f"evaluation-validation{suffix}.json")
    if not os.path.exists(path):
        inference = {key: configs.flatten(config)[key] for key in _SINGLE_PASS}
        evaluating = [f"--run={run}", f"--data={FLAGS.data}", "--split=validation"]
        _command("trainer.evaluate", [*evaluating, *_flags(inference)])
    with open(path) as file:
        return json.load(file) | {"training_seconds": seconds}


def _train(run: str, arguments: list[str]) -> float:
    path = os.path.join(run, "seconds.json")
    if not os.path.exists(path):
        fresh, started = not os.path.exists(run), time.monotonic()
        _command("trainer.task", [f"--run={run}", *arguments])
        run_dir.write_json(run, "seconds.json", time.monotonic() - started if fresh else math.nan)
    with open(path) as file:
        return json.load(file)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in settings.items()]


def _command(module: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", module, *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"this failed (see above): {' '.join(command)}")


def describe(name: str, records: list[EpochMetrics]) -> str:
    """Returns a row of the table: mean and range over the seeds."""
    cells = []
    for key in SHOWN:
        # Seconds are not known of a training that was interrupted.
        values = [record[key] for record in records if not math.isnan(record[key])] or [math.nan]
        digits = 0 if key == "training_seconds" else 3
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        mean = f"{statistics.mean(values):.{digits}f}"
        cells.append(f"{mean} ({spread})" if len(records) > 1 else mean)
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    command.run(main)
