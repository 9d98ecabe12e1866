"""Runs as an evaluation leaves them, from real records and made-up predictions: no model."""

import dataclasses
import json
import os

import numpy as np

from tests.tfrecords import datasets
from tfrecords import manifest
from trainer import configs, evaluate, figures, predictions, run_dir
from trainer.predictions import Judged

CONFIG = configs.load("sample")


def write_data(
    directory: str, class_names: list[str], photos: int, **changes
) -> run_dir.DatasetInfo:
    """Writes a test split whose classes take turns, and describes it."""
    records = []
    for number in range(photos):
        label = number % len(class_names) + 1
        name = class_names[label - 1]
        text = {"label": label, "text": name, "filename": f"test/{name}/{number:05}.jpg"}
        records.append(datasets.record(number, **text))
    os.makedirs(directory, exist_ok=True)
    counts = [sum(one.label == label + 1 for one in records) for label in range(len(class_names))]
    datasets.write(directory, {"test": [records]})
    info = manifest.read(directory)
    split = dataclasses.replace(info.splits["test"], class_counts=counts)
    changed = {"class_names": class_names, "splits": {"test": split}, "name": "cars", **changes}
    info = dataclasses.replace(info, **changed)
    with open(os.path.join(directory, manifest.FILE_NAME), "w") as file:
        file.write(info.to_json())
    return run_dir.describe_data(directory, info)


def write_run(
    run: str, data: run_dir.DatasetInfo, seed: int, config: configs.Config = CONFIG
) -> Judged:
    """Writes a run of three epochs that was evaluated on test, and returns what was said."""
    generator = np.random.default_rng(seed)
    split = evaluate.open_split(data, "test", config)
    classes = len(data.class_names)
    top = min(predictions.TOP, classes)
    said = predictions.empty(split.size, top)
    for position in range(split.size):
        order = generator.permutation(classes)
        if generator.random() < 0.6:
            true = position % classes
            order = np.concatenate([[true], order[order != true]])
        said.labels[position] = order[:top]
        said.probabilities[position] = np.sort(generator.dirichlet(np.ones(top)))[::-1]
    said.bbox[:] = np.clip(
        np.array([0.125, 0.25, 0.75, 0.875]) + generator.normal(0, 0.08, said.bbox.shape), 0, 1
    )
    run_dir.create(run, config, data)
    path = os.path.join(run, "predictions-test.csv")
    predictions.write(path, said, split, data)
    judged = predictions.read(path)
    values = figures.of_photos(judged)
    found = {name: float(value.mean()) for name, value in values.items()}
    more = {"data": data.path, "step": 3, **dataclasses.asdict(config.inference)}
    run_dir.write_json(run, "evaluation-test.json", found | {"num_examples": len(judged)} | more)
    with open(os.path.join(run, "metrics.jsonl"), "w") as file:
        for epoch in (1, 2, 3):
            values = {"loss": 1 / epoch, "top1": 0.3 * epoch, "mean_iou": 0.2 * epoch}
            line = {"epoch": epoch, "step": epoch, "learning_rate": 0.1**epoch, **values}
            line |= {f"val_{name}": 0.9 * value for name, value in values.items()}
            file.write(json.dumps(line) + "\n")
    return judged
