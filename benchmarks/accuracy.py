"""What each ingredient of the recipe gives: trains, one after another, and compares.

    python -m benchmarks.accuracy --data=data/cars [--weights=imagenet] [--epochs=3] [--seeds=1,2]
        [--only=NAME,...]

Two tables, judged on the validation split; the test split is not opened. The first goes from the
baseline to the default, one ingredient after another. The second takes the default and changes one
thing. Rows that differ only in how they judge share one training. Judged is its best epoch, by the
validation loss of a single look. Finished runs are kept in `--runs`: the same command goes on where
it was stopped. `training_seconds` is the wall time of `trainer.task`, its start and the validation
of each epoch by a single look included.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time

from tfrecords import manifest
from tfrecords.errors import UserError, run_command
from trainer import config as configs
from trainer import folder
from trainer.history import Record

# Each adds to the one before, and the last is the default.
STEPS: dict[str, dict[str, str]] = {
    "baseline": {},
    "BatchNorm momentum 0.9": {"model.batch_norm_momentum": "0.9"},
    "shuffled and AdamW with warm-up and cosine": {
        "shuffle": "true",
        "optimizer.learning_rate": "1e-3",
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": "1",
        "optimizer.weight_decay": "0.05",
    },
    "batches of 32": {"batch_size": "32"},
    "dropout 0.2": {"model.dropout": "0.2"},
    "label smoothing": {"loss.label_smoothing": "0.1"},
    "L1 and GIoU": {"loss.box": "5*l1+2*giou", "loss.box_reduction": "mean"},
    "spatial head": {"model.head": "spatial", "model.box_stride": "32"},
    "flip": {"augment.flip": "true"},
    "crop": {"augment.crop": "0.4"},
    "colour": {"augment.colour": "0.3"},
    "names share words": {"model.shared_words": "true"},
    "mirrored too when judging": {"predict.flip": "true"},
    "shown from near": {"augment.zoom": "0.75"},
    "three looks": {"predict.looks": "3"},
    "soft-argmax head": {"model.head": "soft_argmax"},
    "box from earlier features": {"model.box_stride": "16"},
    "no dropout again": {"model.dropout": "0"},
}

# Each is the default, which heads this table too, but for this. `--replicas` is a flag of
# `trainer.task`: so many logical devices of the CPU, even where there are GPUs.
CHANGES: dict[str, dict[str, str]] = {
    "BatchNorm momentum 0.99": {"model.batch_norm_momentum": "0.99"},
    "BatchNorm momentum 0.999": {"model.batch_norm_momentum": "0.999"},
    "BatchNorm frozen": {"model.batch_norm": "frozen"},
    "two replicas": {"--replicas": "2"},
    "two replicas with synchronized BatchNorm": {
        "--replicas": "2",
        "model.batch_norm": "synchronized",
    },
    "batches of 64": {"batch_size": "64"},
    "learning rate 5e-4": {"optimizer.learning_rate": "5e-4"},
    "learning rate 2e-3": {"optimizer.learning_rate": "2e-3"},
    "warm-up of 0.4 epochs": {"optimizer.warmup_epochs": "0.4"},
    "constant learning rate": {"optimizer.schedule": "constant"},
    "weight decay 0": {"optimizer.weight_decay": "0"},
    "no flip": {"augment.flip": "false"},
    "no crop": {"augment.crop": "0"},
    "crop 0.8": {"augment.crop": "0.8"},
    "no colour": {"augment.colour": "0"},
    "nothing from near and one look": {"augment.zoom": "0", "predict.looks": "1"},
    "half shown from near": {"augment.zoom": "0.5"},
    "margins vary less": {"augment.jitter": "0.1"},
    "margins vary more": {"augment.jitter": "0.25"},
    "one look": {"predict.looks": "1"},
    "two looks": {"predict.looks": "2"},
    "four looks": {"predict.looks": "4"},
    "not mirrored when judging": {"predict.flip": "false"},
    "names share nothing": {"model.shared_words": "false"},
    "mixup 0.2": {"augment.mixup": "0.2"},
    "no label smoothing": {"loss.label_smoothing": "0"},
    "squared error": {"loss.box": "20*squared_error"},
    "smooth L1": {"loss.box": "5*smooth_l1"},
    "GIoU": {"loss.box": "2*giou"},
    "DIoU": {"loss.box": "2*diou"},
    "CIoU": {"loss.box": "2*ciou"},
    "names weigh twice as much": {"loss.label_weight": "2"},
    "learned task weights": {"loss.weighting": "uncertainty"},
    "pooled head": {"model.head": "pooled"},
    "spatial head without soft-argmax": {"model.head": "spatial"},
    "box from the last features": {"model.box_stride": "32"},
    "name from earlier features too": {"model.stride": "16"},
    "backbone frozen for an epoch": {"optimizer.freeze_epochs": "1"},
    "EMA 0.98": {"optimizer.ema": "0.98"},
    "with dropout 0.2": {"model.dropout": "0.2"},
    "dropout 0.5": {"model.dropout": "0.5"},
}

JUDGED = ("top1", "top5", "mean_iou", "iou_70", "training_seconds")
_ONE_LOOK = {"predict.looks": "1", "predict.flip": "false"}


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--runs", default="runs/accuracy")
    parser.add_argument("--only", help="names of rows, separated by commas; all by default")
    flags = parser.parse_args(argv)
    only = flags.only.split(",") if flags.only else [*STEPS, *CHANGES]
    unknown = set(only) - {*STEPS, *CHANGES}
    if unknown:
        raise UserError(f"--only: there is no {unknown}; there are {[*STEPS, *CHANGES]}.")
    if "validation" not in manifest.read(flags.data).splits:
        raise UserError(f"the data set at {flags.data!r} has no validation split to judge on.")
    found: dict[str, list[Record]] = {}
    for name, config, settings in recipes():
        if name in only:
            seeds = flags.seeds.split(",")
            found[name] = [judge(flags, config, settings | {"seed": seed}) for seed in seeds]
            print(describe(name, found[name]), flush=True)
    print(f"\n{flags.epochs} epochs, {flags.data}, seeds {flags.seeds}, validation split\n")
    for names in (list(STEPS), [list(STEPS)[-1], *CHANGES]):
        print(f"| | {' | '.join(JUDGED)} |\n|{'---|' * (len(JUDGED) + 1)}")
        print("\n".join(describe(name, found[name]) for name in names if name in found), end="\n\n")


def recipes() -> list[tuple[str, str, dict[str, str]]]:
    """Returns (name, config to start from, settings) of every row."""
    found: list[tuple[str, str, dict[str, str]]] = []
    settings: dict[str, str] = {}
    for name, more in STEPS.items():
        settings = settings | more
        found.append((name, "baseline", settings))
    return found + [(name, "default", settings) for name, settings in CHANGES.items()]


def judge(flags: argparse.Namespace, config: str, settings: dict[str, str]) -> Record:
    """Trains and judges, unless it is done already.

    Returns:
        The metrics, and the seconds that training took: NaN if it was interrupted.

    Raises:
        UserError: a command failed; it has said why.
    """
    # One name, so that recipes that are the same are so wherever they started from.
    settings = settings | {"weights": flags.weights, "epochs": str(flags.epochs), "name": "row"}
    replicas = settings.pop("--replicas", "1")
    whole = configs.apply_settings(configs.named(config), settings)
    recipe = configs.to_json(configs.apply_settings(whole, _ONE_LOOK))
    data = folder.describe_data(flags.data, manifest.read(flags.data))
    digest = hashlib.sha256(f"{recipe} {replicas} {data.fingerprint}".encode())
    run = os.path.join(flags.runs, digest.hexdigest()[:12])
    path = os.path.join(run, f"judged-{whole.predict.looks}-{whole.predict.flip}.json")
    if not os.path.exists(path):
        strategy = ["--strategy=mirrored", f"--replicas={replicas}"] if replicas != "1" else []
        training = [f"--data={flags.data}", f"--config={config}", "--report=none", *strategy]
        seconds = _train(run, [*training, *_set(settings | _ONE_LOOK)])
        predict = {key: str(configs.flatten(whole)[key]) for key in _ONE_LOOK}
        judging = [f"--run={run}", f"--data={flags.data}", "--split=validation"]
        _command("trainer.evaluate", [*judging, *_set(predict)])
        with open(os.path.join(run, "evaluation-validation.json")) as file:
            folder.write_json(
                run, os.path.basename(path), json.load(file) | {"training_seconds": seconds}
            )
    with open(path) as file:
        return json.load(file)


def _train(run: str, arguments: list[str]) -> float:
    path = os.path.join(run, "seconds.json")
    if not os.path.exists(path):
        fresh, started = not os.path.exists(run), time.monotonic()
        _command("trainer.task", [f"--run={run}", *arguments])
        folder.write_json(run, "seconds.json", time.monotonic() - started if fresh else math.nan)
    with open(path) as file:
        return json.load(file)


def _set(settings: dict[str, str]) -> list[str]:
    return ["--set", *(f"{key}={value}" for key, value in settings.items())]


def _command(module: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", module, *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"this failed (see above): {' '.join(command)}")


def describe(name: str, records: list[Record]) -> str:
    """Returns a row of the table: mean and range over the seeds."""
    cells = []
    for key in JUDGED:
        # Seconds are not known of a training that was interrupted.
        values = [record[key] for record in records if not math.isnan(record[key])] or [math.nan]
        digits = 0 if key == "training_seconds" else 3
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        mean = f"{statistics.mean(values):.{digits}f}"
        cells.append(f"{mean} ({spread})" if len(records) > 1 else mean)
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run_command(main)
