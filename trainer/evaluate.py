"""Judges a run on a split, and draws what it sees.

    python -m trainer.evaluate --run=runs/NAME [--data=DIR] [--split=test]
        [--set predict.looks 1 predict.flip false]

Prints top-1, top-5, mean IoU and the shares of good boxes; writes `evaluation-SPLIT.json` and a
folder of photos with both boxes and both names into the run folder.
"""

import argparse
import dataclasses
import os
import shutil

import numpy as np

from tfrecords import example, manifest
from tfrecords.errors import UserError, extra, run_command

with extra("train"):
    import tensorflow as tf
    from PIL import Image

    from tfrecords import reader
    from trainer import checkpoint, folder, looks, loop, model, pictures, state, strategy
    from trainer import config as configs
    from trainer import input as inputs
    from trainer.config import Config
    from trainer.history import Record

_PICTURES = 24


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate", allow_abbrev=False, description="Judges a run."
    )
    path = os.path.expanduser
    parser.add_argument("--run", type=path, required=True, help="folder of the run")
    parser.add_argument("--data", type=path, help="data set; the run's own by default")
    parser.add_argument("--split", default="test", choices=manifest.SPLITS)
    parser.add_argument("--strategy", default="auto", choices=strategy.NAMES)
    parser.add_argument("--replicas", type=int, help="logical CPU devices instead of GPUs")
    parser.add_argument("--allow_cpu", action="store_true", help=strategy.ALLOW_CPU)
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar="KEY VALUE", help="predict.*"
    )
    flags = parser.parse_args(argv)
    config, data = folder.read(flags.run)
    config = judge_otherwise(config, [word for words in flags.set for word in words])
    directory = flags.data or data.path
    check_same_shape(manifest.read(directory), data, directory)
    devices = strategy.make(flags.strategy, flags.replicas, allow_cpu=flags.allow_cpu)
    data = dataclasses.replace(data, path=directory)
    source = open_split(data, flags.split, config)
    network = model.build(config, source.height, source.width, data.class_names, fresh=False)
    values = state.create(devices, network, config)
    best = best_checkpoint(flags.run)
    checkpoint.restore(values, best)
    print(f"evaluating {best}")
    chief = strategy.worker(devices)[0] == 0
    options = loop.Options(chief=chief)
    job = loop.Job(devices, network, values, config, source, None, flags.run, options)
    report(job, data, flags.split)


def judge_otherwise(config: Config, words: list[str]) -> Config:
    """Returns the config of a run with other settings of how photos are judged.

    Raises:
        UserError: a setting decides how the run was trained, or is not usable.
    """
    if not words:
        return config
    settings = configs.parse_settings(words)
    for key in settings:
        if not key.startswith("predict."):
            raise UserError(
                f"--set {key}: the run is trained already; only predict.looks and predict.flip can"
                " be chosen when judging."
            )
    return configs.apply_settings(config, settings)


def best_checkpoint(run: str) -> str:
    """Returns the path of a run's best checkpoint.

    Raises:
        UserError: it has none yet.
    """
    path = checkpoint.newest(os.path.join(run, loop.BEST))
    if path is None:
        raise UserError(f"the run {run} has not finished its first epoch: nothing to evaluate yet.")
    return path


def check_same_shape(info: manifest.Manifest, data: folder.Data, directory: str) -> None:
    """Checks that a run's model fits a data set.

    Raises:
        UserError: photos of another size, or other classes.
    """
    if (info.image.height, info.image.width) != (data.height, data.width):
        raise UserError(
            f"the photos of {directory} are {info.image.height}x{info.image.width} (height x"
            f" width), the run's model takes {data.height}x{data.width}. Run `python -m"
            f" preprocess.run --image_height={data.height} --image_width={data.width}`."
        )
    if info.class_names != data.class_names:
        raise UserError(f"the classes of {directory} are not those that the run was trained on.")


def open_split(data: folder.Data, split: str, config: Config, cache: str = "none") -> inputs.Source:
    """Returns the source of a split's examples."""
    records = reader.Records(data.path, split)
    return inputs.open_source(records, data.height, data.width, cache, config.downscale)


def report(job: loop.Job, data: folder.Data, split: str) -> None:
    """Evaluates a split; prints the metrics, and writes them and pictures into the run folder.

    All workers take part in the evaluation; the chief reports.
    """
    found = loop.make_evaluate(job, open_split(data, split, job.config))()
    if not job.options.chief:
        return
    found |= {"looks": job.config.predict.looks, "flip": job.config.predict.flip}
    path = folder.write_json(job.folder, f"evaluation-{split}.json", found)
    where = os.path.join(job.folder, f"pictures-{split}")
    write_pictures(draw(job, data, split, _PICTURES), where)
    print(f"{split} split of {data.path}: {summary(found)}")
    print(f"metrics: {path}\npictures: {where}{os.sep}")


def summary(found: Record) -> str:
    """Returns the metrics for people, in one block."""
    lines = [
        f"{int(found['num_examples'])} photos, judged in {int(found['looks'])} look"
        f"{'s' * (found['looks'] > 1)}{', mirrored too' * bool(found['flip'])}",
        f"top-1 {found['top1']:.1%}, top-5 {found['top5']:.1%}",
        f"mean IoU {found['mean_iou']:.4f}; IoU >= 0.5: {found['iou_50']:.1%},"
        f" >= 0.7: {found['iou_70']:.1%}, >= 0.9: {found['iou_90']:.1%}",
        f"right name and IoU >= 0.5: {found['top1_iou_50']:.1%}",
    ]
    return "\n".join(lines)


def draw(job: loop.Job, data: folder.Data, split: str, count: int) -> dict[str, Image.Image]:
    """Draws true and predicted boxes and names on photos spread over a split.

    Args:
        job: what predicts, with the values that are judged.
        data, split: of the photos.
        count: of photos, at most.

    Returns:
        The pictures, by what a file of them may be called.
    """
    records = reader.Records(data.path, split)
    chosen = np.unique(np.linspace(0, len(records) - 1, count).astype(int))
    examples = [example.parse(serialized) for serialized in records.read(chosen)]
    stretched = manifest.read(data.path).image.resize == "stretch"
    ratio = job.config.downscale
    small = [tf.io.decode_jpeg(one["encoded"], channels=3, ratio=ratio) for one in examples]
    weights, statistics = (tf.convert_to_tensor(value) for value in state.judged(job.state))
    predict = looks.make_predict(job.model, job.config, jit=False)
    outputs = predict(weights, statistics, tf.stack(small))
    drawn = {}
    for number, fields in enumerate(examples):
        chances = tf.nn.softmax(outputs["logits"][number]).numpy()
        guess = int(np.argmax(chances))
        name, _ = os.path.splitext(os.path.basename(fields["filename"].numpy().decode()))
        drawn[f"{number:02}-{folder.shortened(name)}"] = pictures.draw_boxes(
            _as_seen(fields, stretched),
            (fields["bbox"].numpy(), fields["text"].numpy().decode()),
            (outputs["bbox"][number].numpy(), data.class_names[guess], float(chances[guess])),
        )
    return drawn


def write_pictures(drawn: dict[str, Image.Image], where: str) -> None:
    """Writes pictures, and `sheet.jpg` with all of them, into a folder, replaced if it exists."""
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    for name, picture in drawn.items():
        picture.convert("RGB").save(os.path.join(where, name + ".jpg"), quality=90)
    sheet = pictures.gallery(list(drawn.values()), columns=4)
    sheet.save(os.path.join(where, "sheet.jpg"), quality=85)


def _as_seen(fields: dict[str, tf.Tensor], stretched: bool) -> Image.Image:
    """Undoes the stretch, if any, so that the photo looks as it was taken."""
    pixels = tf.io.decode_jpeg(fields["encoded"], channels=3).numpy()
    if not stretched:
        return Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    aspect = int(fields["original_width"]) / int(fields["original_height"])
    wider = aspect > width / height
    size = (round(height * aspect), height) if wider else (width, round(width / aspect))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    run_command(main)
