"""What each ingredient of the recipe gives: trains, one after another, and compares.

    python -m benchmarks.accuracy --data=data/cars [--weights=imagenet] [--epochs=3] [--seeds=1,2]
        [--only=NAME,...]

Two tables, judged on the validation split; the test split is not opened. The first goes from the
baseline to the default, one ingredient after another. The second takes the default and changes one
thing. Finished runs are kept in `--runs`: the same command goes on where it was stopped.
"""

import argparse
import os
import statistics
import subprocess
import sys

from tfrecords import manifest
from tfrecords.errors import UserError, run_command
from trainer import config as configs
from trainer import folder, history

# Each adds to the one before, and the last is the default.
STEPS: dict[str, dict[str, str]] = {
    "baseline": {},
    "BatchNorm momentum 0.9": {"model.batch_norm_momentum": "0.9"},
    "shuffled": {"shuffle": "true"},
    "AdamW with warm-up and cosine": {
        "optimizer.learning_rate": "1e-3",
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": "1",
        "optimizer.weight_decay": "0.05",
    },
    "batches of 32": {"batch_size": "32"},
    "dropout 0.2": {"model.dropout": "0.2"},
    "label smoothing": {"loss.label_smoothing": "0.1"},
    "L1 and GIoU": {"loss.box": "5*l1+2*giou", "loss.box_reduction": "mean"},
    "spatial head": {"model.head": "spatial"},
    "flip": {"augment.flip": "true"},
    "crop": {"augment.crop": "0.4"},
    "colour": {"augment.colour": "0.3"},
    "names share words": {"model.shared_words": "true"},
    "mirrored too when judging": {"predict.flip": "true"},
    "shown from near": {"augment.zoom": "0.75"},
    "three looks": {"predict.looks": "3"},
}

# Each is the default, which heads this table too, but for this.
CHANGES: dict[str, dict[str, str]] = {
    "BatchNorm momentum 0.99": {"model.batch_norm_momentum": "0.99"},
    "BatchNorm momentum 0.999": {"model.batch_norm_momentum": "0.999"},
    "BatchNorm frozen": {"model.batch_norm": "frozen"},
    "batches of 64": {"batch_size": "64"},
    "learning rate 5e-4": {"optimizer.learning_rate": "5e-4"},
    "learning rate 2e-3": {"optimizer.learning_rate": "2e-3"},
    "constant learning rate": {"optimizer.schedule": "constant"},
    "weight decay 0": {"optimizer.weight_decay": "0"},
    "no flip": {"augment.flip": "false"},
    "no crop": {"augment.crop": "0"},
    "crop 0.8": {"augment.crop": "0.8"},
    "no colour": {"augment.colour": "0"},
    "nothing from near and one look": {"augment.zoom": "0", "predict.looks": "1"},
    "half shown from near": {"augment.zoom": "0.5"},
    "margins vary less": {"augment.jitter": "0.1"},
    "one look": {"predict.looks": "1"},
    "two looks": {"predict.looks": "2"},
    "not mirrored when judging": {"predict.flip": "false"},
    "names share nothing": {"model.shared_words": "false"},
    "mixup 0.2": {"augment.mixup": "0.2"},
    "no label smoothing": {"loss.label_smoothing": "0"},
    "squared error": {"loss.box": "20*squared_error"},
    "smooth L1": {"loss.box": "5*smooth_l1"},
    "GIoU": {"loss.box": "2*giou"},
    "DIoU": {"loss.box": "2*diou"},
    "CIoU": {"loss.box": "2*ciou"},
    "learned task weights": {"loss.weighting": "uncertainty"},
    "pooled head": {"model.head": "pooled"},
    "earlier features": {"model.stride": "16"},
    "backbone frozen for an epoch": {"optimizer.freeze_epochs": "1"},
    "EMA 0.98": {"optimizer.ema": "0.98"},
    "no dropout": {"model.dropout": "0"},
    "dropout 0.5": {"model.dropout": "0.5"},
}

JUDGED = ("val_top1", "val_top5", "val_mean_iou", "val_iou_70")


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--runs", default="runs/accuracy")
    parser.add_argument("--only", help="names of rows, separated by commas; all by default")
    parser.add_argument("--strategy", default="auto")
    flags = parser.parse_args(argv)
    only = flags.only.split(",") if flags.only else [*STEPS, *CHANGES]
    unknown = set(only) - {*STEPS, *CHANGES}
    if unknown:
        raise UserError(f"--only: there is no {unknown}; there are {[*STEPS, *CHANGES]}.")
    if "validation" not in manifest.read(flags.data).splits:
        raise UserError(f"the data set at {flags.data!r} has no validation split to judge on.")
    rows = [row for row in recipes() if row[0] in only]
    found: dict[str, list[history.Record]] = {row[0]: [] for row in rows}
    for seed in flags.seeds.split(","):
        for row in rows:
            found[row[0]].append(train(flags, *row, seed))
            print(describe(row[0], found[row[0]]), flush=True)
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


def train(
    flags: argparse.Namespace, name: str, config: str, settings: dict[str, str], seed: str
) -> history.Record:
    """Trains, unless it is done already, and returns the last epoch's record."""
    run = os.path.join(flags.runs, f"{config}-{name.replace(' ', '_')}-{flags.epochs}-{seed}")
    settings = settings | {"seed": seed}
    words = [word for pair in settings.items() for word in pair]
    command = [sys.executable, "-m", "trainer.task", f"--data={flags.data}", f"--run={run}"]
    command += [f"--weights={flags.weights}", f"--epochs={flags.epochs}", f"--config={config}"]
    command += [f"--strategy={flags.strategy}", "--report=none", "--set", *words]
    always = {"weights": flags.weights, "epochs": str(flags.epochs)}
    wanted = configs.apply_settings(configs.named(config), settings | always)
    # A run of another recipe under the same name is an error, as it is to `trainer.task`.
    folder.check(run, wanted, folder.describe_data(flags.data, manifest.read(flags.data)))
    done = os.path.exists(run) and len(history.read(run)) == flags.epochs
    if not done and subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{name} failed (see above). The command was: {' '.join(command)}")
    return history.read(run)[-1]


def describe(name: str, records: list[history.Record]) -> str:
    """Returns a row of the table: mean and range over the seeds."""
    cells = []
    for key in JUDGED:
        values = [record[key] for record in records]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run_command(main)
