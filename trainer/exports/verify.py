"""Compares what an exported file says with what the run itself says.

The file is loaded in a fresh process, by its own runtime alone and where this project cannot be
imported, and judges records of the test split and whole photos.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrecords import image
from trainer import boxes, inference
from trainer.configs import Inference
from trainer.exports import runtimes
from trainer.run_dir import Trained

RECORDS = 1000
_BATCH = 32
_SECONDS = 1800
_LATENCY_RUNS = 20

# What a file of floats may differ by from the run.
_NAMES, _BOX = 0.995, 1e-3
# Either of two names is right that the run itself finds so nearly equally probable: any rounding,
# also that of another processor, may turn them round.
_TIE = 0.01
_PHOTO_NAMES, _PHOTO_BOX = 0.99, 0.003  # through another decoder
# What a file of 8-bit integers may lose.
_TOP1_LOSS, _IOU_LOSS = 0.02, 0.02


@dataclass(frozen=True)
class Examples:
    """What is judged.

    Attributes:
        images: uint8 [n, h, w, 3], of records.
        bbox: float32 [n, 4], true boxes, fractions.
        labels: int [n], from 0.
        photos: files' bytes.
    """

    images: np.ndarray
    bbox: np.ndarray
    labels: np.ndarray
    photos: list[bytes]


@dataclass(frozen=True)
class Verdicts:
    """What was found.

    Attributes:
        bbox: float32 [n, 4], of records, fractions.
        probabilities: float32 [n, classes], of records.
        photo_bbox: float [m, 4], of whole photos, fractions of the photo.
        photo_names: int [m], the most probable class.
        photo_probabilities: float32 [m, classes]; of the run only.
        latency: seconds for one photo of the size of the records.
    """

    bbox: np.ndarray
    probabilities: np.ndarray
    photo_bbox: np.ndarray
    photo_names: np.ndarray
    latency: float
    photo_probabilities: np.ndarray | None = None

    @property
    def names(self) -> np.ndarray:
        """Int [n], of records: the most probable class."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Result:
    """How one file compares with the run.

    Attributes:
        name: of the format.
        all_passes: whether it holds all passes; otherwise it is compared with one pass of the run.
        megabytes: its size.
        latency_ms: for one photo of the size of the records.
        top1, mean_iou: on the records.
        original_top1, original_mean_iou: of the run, judging as the file does.
        names_agree, box_mean, box_max: on the records; boxes as fractions of the side.
        photo_names_agree, photo_box_mean, photo_box_max: on whole photos.
        names_fit, photo_names_fit: as `names_agree`, with names as good that the run itself finds
            as probable as its best within 0.01.
        problem: why it may not be published; empty where it may.
    """

    name: str
    all_passes: bool
    megabytes: float
    latency_ms: float
    top1: float
    mean_iou: float
    original_top1: float
    original_mean_iou: float
    names_agree: float
    box_mean: float
    box_max: float
    photo_names_agree: float
    photo_box_mean: float
    photo_box_max: float
    names_fit: float
    photo_names_fit: float
    problem: str = ""


def judge_by_run(trained: Trained, how: Inference, examples: Examples) -> Verdicts:
    """Returns what the run itself finds."""
    network, data = trained.network, trained.data
    size = (network.input.shape[1], network.input.shape[2])

    any_number = tf.TensorSpec([None, *examples.images.shape[1:]], tf.uint8)

    @tf.function(input_signature=[any_number])
    def judge(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return inference.judge(lambda shown: network(shown, training=False), images, how, size)

    def batches(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [judge(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]
        bbox = np.concatenate([part["bbox"] for part in parts])
        logits = np.concatenate([part["logits"] for part in parts])
        return bbox, tf.nn.softmax(logits).numpy()

    bbox, probabilities = batches(examples.images)
    height, width = examples.images.shape[1:3]
    options = image.ImageOptions(height, width, data.resize or "stretch")
    photos = [image.read(photo, options) for photo in examples.photos]
    photo_bbox, photo_probabilities = batches(np.stack([photo.image for photo in photos]))
    whole = [
        image.photo_box(tuple(box.tolist()), photo.content, options)
        for box, photo in zip(photo_bbox, photos, strict=True)
    ]
    times = []
    for _ in range(_LATENCY_RUNS + 3):
        start = time.perf_counter()
        judge(examples.images[:1])["bbox"].numpy()
        times.append(time.perf_counter() - start)
    return Verdicts(
        bbox,
        probabilities,
        np.array(whole),
        photo_probabilities.argmax(axis=1),
        float(np.median(times[3:])),
        photo_probabilities,
    )


def judge_by_file(folder: str, name: str, examples: Examples) -> Verdicts:
    """Returns what an exported file finds, in a process of its own.

    Args:
        folder: of the export; holds `carbox.json`.
        name: of the format.
        examples: to judge.

    Raises:
        RuntimeError: the file cannot be loaded or run; says why.
    """
    with tempfile.TemporaryDirectory() as place:
        # A copy: beside the original, the project could be imported.
        script = os.path.join(place, "judge.py")
        shutil.copyfile(runtimes.__file__, script)
        records, output = os.path.join(place, "records.npy"), os.path.join(place, "found.npz")
        photos = [os.path.join(place, f"{i:03}") for i in range(len(examples.photos))]
        job = {
            "folder": os.path.abspath(folder),
            "name": name,
            "records": records,
            "photos": photos,
            "output": output,
        }
        np.save(records, examples.images)
        for path, photo in zip(photos, examples.photos, strict=True):
            with open(path, "wb") as file:
                file.write(photo)
        with open(os.path.join(place, "job.json"), "w") as file:
            json.dump(job, file)
        done = subprocess.run(
            [sys.executable, "-I", script, "job.json"],
            cwd=place,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        with np.load(output) as found:
            sizes = [_size(photo) for photo in examples.photos]
            return Verdicts(
                found["bbox"],
                found["probabilities"],
                found["photo_boxes"] / [[width, height] * 2 for height, width in sizes],
                found["photo_labels"],
                float(found["latency"]),
            )


def compare(
    name: str,
    all_passes: bool,
    size: int,
    found: Verdicts,
    original: Verdicts,
    examples: Examples,
) -> Result:
    """Returns how a file compares with the run, and whether it may be published.

    Args:
        name: of the format.
        all_passes: whether the file, and so `original`, holds all passes.
        size: of the file, in bytes.
        found: by the file.
        original: by the run.
        examples: that were judged.
    """
    difference = np.abs(found.bbox - original.bbox)
    photo_difference = np.abs(found.photo_bbox - original.photo_bbox)
    top1, mean_iou = accuracy(found, examples)
    original_top1, original_mean_iou = accuracy(original, examples)
    values = {
        "top1": top1,
        "mean_iou": mean_iou,
        "original_top1": original_top1,
        "original_mean_iou": original_mean_iou,
        "names_agree": float((found.names == original.names).mean()),
        "box_mean": float(difference.mean()),
        "box_max": float(difference.max()),
        "photo_names_agree": float((found.photo_names == original.photo_names).mean()),
        "photo_box_mean": float(photo_difference.mean()),
        "photo_box_max": float(photo_difference.max()),
        "names_fit": _fit(found.names, original.probabilities),
        "photo_names_fit": _fit(found.photo_names, original.photo_probabilities),
    }
    problem = _problem_of_integers(values) if "int8" in name else _problem_of_floats(values)
    return Result(name, all_passes, size / 1e6, 1000 * found.latency, **values, problem=problem)


def accuracy(verdicts: Verdicts, examples: Examples) -> tuple[float, float]:
    """Returns top-1 accuracy and mean IoU on the records."""
    right = verdicts.names == examples.labels
    return float(right.mean()), float(record_ious(verdicts, examples).mean())


def record_ious(verdicts: Verdicts, examples: Examples) -> np.ndarray:
    """Returns the IoU of each record's box with its true one: float32 [n]."""
    return boxes.iou(tf.constant(examples.bbox), tf.constant(verdicts.bbox)).numpy()


def _fit(names: np.ndarray, probabilities: np.ndarray | None) -> float:
    """Returns the share of names that the run finds as probable as its best, but for a tie."""
    assert probabilities is not None
    theirs = np.take_along_axis(probabilities, names[:, np.newaxis], axis=1)[:, 0]
    return float((probabilities.max(axis=1) - theirs < _TIE).mean())


def _problem_of_floats(values: dict[str, float]) -> str:
    limits = [
        ("names_fit", "names agree on {:.2%} of the records", _NAMES, True),
        ("box_mean", "boxes of the records differ by {:.5f} in the mean", _BOX, False),
        ("photo_names_fit", "names agree on {:.2%} of the photos", _PHOTO_NAMES, True),
        ("photo_box_mean", "boxes of the photos differ by {:.5f} in the mean", _PHOTO_BOX, False),
    ]
    wrong = []
    for key, text, limit, at_least in limits:
        # NaN compares false: it is never good.
        if not (values[key] >= limit if at_least else values[key] < limit):
            wanted = f"at least {limit:.1%}" if at_least else f"less than {limit:g}"
            wrong.append(f"{text.format(values[key])} ({wanted} is wanted)")
    return "; ".join(wrong)


def _problem_of_integers(values: dict[str, float]) -> str:
    wrong = []
    for key, text, limit in (("top1", "top-1", _TOP1_LOSS), ("mean_iou", "mean IoU", _IOU_LOSS)):
        loss = values[f"original_{key}"] - values[key]
        if not loss <= limit:
            wrong.append(f"{text} falls by {loss:.4f} (at most {limit:g} is wanted)")
    return "; ".join(wrong)


def _size(photo: bytes) -> tuple[int, int]:
    """Returns height and width of a photo as people see it, in pixels."""
    pixels = image.read(photo, image.ImageOptions(8, 8))
    return pixels.original_height, pixels.original_width
