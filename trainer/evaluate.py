"""Evaluates a run's best epoch on a split, and draws its predictions.

    python -m trainer.evaluate --run=runs/NAME [--data=DIR] [--split=test]
        [--config.inference.zoom_passes=0 --config.inference.flip_tta=false]

Prints top-1, top-5, mean IoU and the shares of good boxes, and writes them and a folder of photos
with both boxes and both names into the run folder. Other data or other inference settings get files
of their own; no evaluation overwrites another. The run's page, report.html, shows all of them; with
--baseline=RUN beside those of another run.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords import command, example, manifest, remote
from tfrecords.errors import UserError, extra

with extra("train"):
    import keras
    import tensorflow as tf
    from PIL import Image

    from tfrecords import image, reader
    from tfrecords.progress import Progress
    from trainer import (
        boxes,
        checkpoint,
        configs,
        inference,
        losses,
        metrics,
        model,
        pictures,
        predictions,
        run_dir,
        strategy,
        train_state,
    )
    from trainer import input as inputs
    from trainer import report as run_page
    from trainer.configs import Config
    from trainer.predictions import Predictions
    from trainer.train_state import LOG_VARIANCES, TrainState

FLAGS = flags.FlagValues()
command.DEFINE_path("run", None, "folder of the run", flag_values=FLAGS)
command.DEFINE_path("data", None, "data set; the run's own if absent", flag_values=FLAGS)
flags.DEFINE_enum("split", "test", manifest.SPLITS, "photos to evaluate", flag_values=FLAGS)
command.DEFINE_path(
    "baseline", None, "run whose figures the page shows beside the run's", flag_values=FLAGS
)
remote.define_cache_flag(FLAGS)
strategy.define_flags(FLAGS)
configs.define_flags(FLAGS, sections=["inference"])

_PICTURES = 24


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: there is no run or data set, or they do not fit.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    run = remote.model(command.required(FLAGS, "run"), "run", FLAGS.data_cache)
    config, data = run_dir.read(run)
    baseline = FLAGS.baseline and remote.model(FLAGS.baseline, "baseline", FLAGS.data_cache)
    if baseline:
        run_dir.read(baseline)  # not only after the evaluation
    directory = FLAGS.data or data.path
    info = manifest.read(remote.dataset(directory, "data", FLAGS.data_cache))
    check_same_shape(info, data, directory)
    here = run_dir.describe_data(directory, info)
    config = configs.apply(FLAGS, config)
    devices = strategy.make(FLAGS.strategy, FLAGS.replicas, allow_cpu=FLAGS.allow_cpu)
    split = open_split(here, FLAGS.split, config)
    network = model.build(config, split.height, split.width, data.class_names, fresh=False)
    state = train_state.create(devices, network, config)
    best = run_dir.best_checkpoint(run)
    checkpoint.restore(state, best)
    print(f"evaluating {best}", flush=True)
    found, predicted = make_evaluate(devices, network, state, config, split, FLAGS.split)()
    if strategy.worker(devices)[0] > 0:
        return
    with remote.copied_back(FLAGS.run, run, "run"):
        suffix = result_suffix(run, here, config)
        report(network, state, config, split, here, f"{FLAGS.split}{suffix}", found, predicted, run)
        print(f"report: {run_page.write(run, baseline)}")


def make_evaluate(
    devices: tf.distribute.Strategy,
    network: keras.Model,
    state: TrainState,
    config: Config,
    split: inputs.Split,
    name: str,
) -> Callable[[], tuple[dict[str, float], Predictions]]:
    """Returns the function that evaluates a split: every example once, whatever the replicas.

    It gives the metrics and what the model said of each photo. All workers take part in it and get
    the same result.

    Args:
        devices: to evaluate on.
        network: the network; its values are in `state`.
        state: its `eval_params` and `eval_batch_stats` are read whenever the function is called.
        config: inference settings, and which losses are reported.
        split: what to evaluate.
        name: of the split, for the progress line.
    """
    batches = inputs.evaluation_batches(devices, split, config.batch_size)
    predict = inference.make_predict(network, config)

    top = min(predictions.TOP, network.output["logits"].shape[-1])

    def on_replica(batch: inputs.Example) -> tuple[tf.Tensor, inputs.Example]:
        params, batch_stats = state.eval_values()
        outputs = predict(params, batch_stats, batch["image"])
        target = tf.one_hot(batch["label"], outputs["logits"].shape[-1])
        found = losses.example_losses(
            config.loss,
            config.batch_size,
            batch["bbox"],
            target,
            outputs,
            params.get(LOG_VARIANCES),
        )
        probabilities, labels = tf.math.top_k(tf.nn.softmax(outputs["logits"]), top)
        each = {"bbox": outputs["bbox"], "labels": labels, "probabilities": probabilities}
        # -1 is padding; booleans cannot be gathered.
        each["position"] = tf.where(batch["mask"], batch["position"], -1)
        return metrics.epoch_sums(found, batch, outputs), each

    @tf.function(reduce_retracing=True, autograph=False)
    def on_batch(group: inputs.Example) -> tuple[tf.Tensor, inputs.Example]:
        sums, each = devices.run(
            lambda batch: on_replica({k: v[0] for k, v in batch.items()}), (group,)
        )
        gathered = {name: strategy.gather(devices, value) for name, value in each.items()}
        return devices.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None), gathered

    def evaluate() -> tuple[dict[str, float], Predictions]:
        sums = np.zeros(len(metrics.SUMS))
        predicted = predictions.empty(split.size, top)
        shown = Progress(f"evaluating {name}", split.size, "images", brief=True)
        with inputs.reading(), shown as progress:
            for group in batches:
                found, each = on_batch(group)
                sums += found.numpy()
                position = each.pop("position").numpy()
                real = position >= 0
                for field, values in each.items():
                    getattr(predicted, field)[position[real]] = values.numpy()[real]
                progress.update(int(real.sum()))
        return metrics.epoch_means(sums), predicted

    return evaluate


def check_same_shape(info: manifest.Manifest, data: run_dir.DatasetInfo, directory: str) -> None:
    """Checks that a run's model fits a data set.

    Raises:
        UserError: photos of another size, resized otherwise, or other classes.
    """
    if (info.image.height, info.image.width) != (data.height, data.width):
        raise UserError(
            f"the photos of {directory} are {info.image.height}x{info.image.width} (height x"
            f" width), the run's model takes {data.height}x{data.width}. Run `python -m"
            f" preprocess.run --image_height={data.height} --image_width={data.width}`."
        )
    if data.resize and info.image.resize != data.resize:
        raise UserError(
            f"the photos of {directory} were resized by {info.image.resize}, those that the run"
            f" was trained on by {data.resize}. Run `python -m preprocess.run"
            f" --resize={data.resize}`."
        )
    if info.class_names != data.class_names:
        raise UserError(f"the classes of {directory} are not those that the run was trained on.")


def open_split(
    data: run_dir.DatasetInfo, split: str, config: Config, cache: str = "none"
) -> inputs.Split:
    """Returns a split of a data set, ready to be fetched."""
    records = reader.Records(data.path, split)
    return inputs.open_split(records, data.height, data.width, cache, config.downscale)


def result_suffix(run: str, data: run_dir.DatasetInfo, config: Config) -> str:
    """Returns a suffix for results on other data or with other settings than the run's own."""
    own_config, own_data = run_dir.read(run)
    suffix = ""
    if data.fingerprint != own_data.fingerprint:
        suffix += f"-{run_dir.shortened(data.name)}-{data.fingerprint[:8]}"
    if config.inference != own_config.inference:
        flip = "flip" if config.inference.flip_tta else "noflip"
        suffix += f"-zoom{config.inference.zoom_passes}-{flip}"
        if config.inference.zoom_margin != own_config.inference.zoom_margin:
            suffix += f"-margin{config.inference.zoom_margin:g}"
        if config.inference.margin_tta != own_config.inference.margin_tta:
            suffix += f"-spread{config.inference.margin_tta:g}"
    return suffix


def report(
    network: keras.Model,
    state: TrainState,
    config: Config,
    split: inputs.Split,
    data: run_dir.DatasetInfo,
    name: str,
    found: dict[str, float],
    predicted: Predictions,
    run: str,
) -> None:
    """Prints the metrics of a split, and writes them, all predictions and pictures into the folder.

    Where there are zoom passes, what each of them found in the drawn photos is written too.

    Args:
        network, state, config: the model and its inference settings.
        split, data: what was evaluated.
        name: of the split, with `result_suffix`.
        found, predicted: from `make_evaluate`.
        run: the run's folder.
    """
    path = run_dir.write_json(
        run,
        f"evaluation-{name}.json",
        found
        | {"data": data.path, "data_name": data.name, "fingerprint": data.fingerprint}
        | {"split": name.partition("-")[0], "step": int(state.step.numpy())}
        | dataclasses.asdict(config.inference),
    )
    where = os.path.join(run, f"pictures-{name}")
    passes: list[inference.Outputs] = []
    write_pictures(draw(network, state, config, split, data, _PICTURES, passes), where)
    if config.inference.zoom_passes:
        positions = inputs.spread(split.size, _PICTURES)
        described = describe_passes(passes, positions, split, data)
        run_dir.write_json(run, f"zoom-{name}.json", described)
    print(f"{name} split of {data.path}: {summary(found, config)}")
    table = os.path.join(run, f"predictions-{name}.csv")
    predictions.write(table, predicted, split, data)
    print(f"pictures: {where}{os.sep}\npredictions: {table}\nmetrics: {path}")


def summary(found: dict[str, float], config: Config) -> str:
    """Returns the metrics as text for the user."""
    passes = config.inference.zoom_passes
    zoomed = f", {passes} zoom pass{'es' * (passes > 1)}" if passes else ""
    flipped = ", averaged with the flipped photo" if config.inference.flip_tta else ""
    lines = [
        f"{int(found['num_examples'])} photos{zoomed}{flipped}",
        f"top-1 {found['top1']:.1%}, top-5 {found['top5']:.1%}",
        f"mean IoU {found['mean_iou']:.4f}; IoU >= 0.5: {found['iou_50']:.1%},"
        f" >= 0.7: {found['iou_70']:.1%}, >= 0.9: {found['iou_90']:.1%}",
        f"right name and IoU >= 0.5: {found['top1_iou_50']:.1%}",
    ]
    return "\n".join(lines)


def draw(
    network: keras.Model,
    state: TrainState,
    config: Config,
    split: inputs.Split,
    data: run_dir.DatasetInfo,
    count: int,
    passes: list[inference.Outputs] | None = None,
) -> dict[str, Image.Image]:
    """Draws true and predicted boxes and names on photos spread over a split, in their own shape.

    Args:
        network, state, config: the model and its inference settings.
        split, data: where the photos come from.
        count: of photos, at most.
        passes: where given, what each pass found is added to it; see `inference.judge`.

    Returns:
        The pictures, by a file name for each, without its ending.
    """
    chosen = inputs.spread(split.size, count)
    predict = inference.make_predict(network, config)
    outputs = predict(*state.eval_values(), split.fetch(tf.constant(chosen))["image"], passes)
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    drawn = {}
    options = image.ImageOptions(data.height, data.width, data.resize or "stretch")
    for number, serialized in enumerate(split.records.read(chosen)):
        record = example.decode(serialized)
        height, width = record.original_height, record.original_width
        content = image.content_size(height, width, options)
        xmin, ymin, xmax, ymax = outputs["bbox"][number].numpy().tolist()
        label = int(np.argmax(probabilities[number]))
        name, _ = os.path.splitext(os.path.basename(record.filename))
        drawn[f"{number:02}-{run_dir.shortened(name)}"] = pictures.draw_boxes(
            image.restore(record.encoded, height, width, options),
            (image.photo_box(record.bbox, content, options), record.text),
            (
                image.photo_box((xmin, ymin, xmax, ymax), content, options),
                data.class_names[label],
                float(probabilities[number, label]),
            ),
        )
    return drawn


def describe_passes(
    passes: Sequence[inference.Outputs],
    positions: np.ndarray,
    split: inputs.Split,
    data: run_dir.DatasetInfo,
) -> list[dict[str, Any]]:
    """Returns what each pass was shown and found in some photos, as JSON can hold it.

    Args:
        passes: see `inference.judge`.
        positions: of the photos in their split.
        split, data: where the photos come from.

    Returns:
        For each photo its `position` and `passes`: `crop` and `bbox` as fractions of the stored
        photo, the `iou` with the true box, the most probable `name` and its `probability`.
    """
    true = np.array([example.decode(one).bbox for one in split.records.read(positions)], np.float32)
    described: list[dict[str, Any]] = [
        {"position": int(position), "passes": []} for position in positions
    ]
    for found in passes:
        probabilities = tf.nn.softmax(found["logits"]).numpy()
        iou = boxes.iou(true, found["bbox"]).numpy()
        for i, photo in enumerate(described):
            label = int(np.argmax(probabilities[i]))
            photo["passes"].append(
                {
                    "crop": found["crop"][i].numpy().tolist(),
                    "bbox": found["bbox"][i].numpy().tolist(),
                    "iou": float(iou[i]),
                    "name": data.class_names[label],
                    "probability": float(probabilities[i, label]),
                }
            )
    return described


def write_pictures(drawn: dict[str, Image.Image], where: str) -> None:
    """Writes pictures, and `sheet.jpg` with all of them, into a folder, replaced if it exists."""
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    for name, picture in drawn.items():
        picture.convert("RGB").save(os.path.join(where, name + ".jpg"), quality=90)
    sheet = pictures.gallery(list(drawn.values()), columns=4)
    sheet.save(os.path.join(where, "sheet.jpg"), quality=85)


if __name__ == "__main__":
    command.run(main)
