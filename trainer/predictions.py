"""What a model said of every photo of a split: `predictions-SPLIT.csv` in the run folder.

One row a photo, in the order of the records: the photo's path, its true name and box, the most
probable names and the predicted box. Boxes are in pixels of the photo as people see it.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tfrecords import example, image
from tfrecords.errors import UserError
from trainer import boxes
from trainer import input as inputs
from trainer.run_dir import DatasetInfo

TOP = 5
"""Names that are kept of each photo."""

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Predictions:
    """What a model said of n photos, in the order of the records.

    Attributes:
        bbox: float32 [n, 4], fractions of the stored photo.
        labels: int64 [n, k], from 0, the most probable first.
        probabilities: float32 [n, k].
    """

    bbox: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def empty(size: int, top: int) -> Predictions:
    """Returns predictions of n photos to be filled in, k names each."""
    return Predictions(
        np.full((size, 4), np.nan, np.float32),
        np.zeros((size, top), np.int64),
        np.zeros((size, top), np.float32),
    )


def write(path: str, predictions: Predictions, split: inputs.Split, data: DatasetInfo) -> None:
    """Writes the predictions of a split as CSV with a header; the file is whole or absent."""
    with open(path + ".new", "w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(predictions, split, data):
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
    os.replace(path + ".new", path)


@dataclass(frozen=True)
class Judged:
    """The rows of such a file, as columns of n photos.

    Attributes:
        photo, true_name: object [n] of str.
        size: int [n, 2], width and height of the photo in pixels.
        true_box, box: float64 [n, 4], in pixels of the photo.
        names: object [n, k] of str, the most probable first.
        probabilities: float64 [n, k].
        right: bool [n], whether the first name is the true one.
        iou: float64 [n], of both boxes; 0 where the predicted one is not finite.
    """

    photo: np.ndarray
    true_name: np.ndarray
    size: np.ndarray
    true_box: np.ndarray
    box: np.ndarray
    names: np.ndarray
    probabilities: np.ndarray
    right: np.ndarray
    iou: np.ndarray

    def __len__(self) -> int:
        return len(self.photo)


def read(path: str) -> Judged:
    """Reads what `write` has written.

    Raises:
        UserError: there is no such file, or it holds no predictions.
    """
    try:
        with open(path, newline="") as file:
            header, *lines = csv.reader(file)
        column = dict(zip(header, zip(*lines, strict=True), strict=True))
        count = sum(name.startswith("name_") for name in header)
        names, probabilities = (
            [column[f"{what}_{k + 1}"] for k in range(count)] for what in ("name", "probability")
        )
        return Judged(
            photo=np.array(column["photo"], object),
            true_name=np.array(column["true_name"], object),
            size=np.array([column["width"], column["height"]], int).T,
            true_box=np.array([column[f"true_{side}"] for side in _SIDES], float).T,
            box=np.array([column[side] for side in _SIDES], float).T,
            names=np.array(names, object).T,
            probabilities=np.array(probabilities, float).T,
            right=np.array(column["right"], int).astype(bool),
            iou=np.nan_to_num(np.array(column["iou"], float)),
        )
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing. `python -m trainer.evaluate` writes it; --help shows how."
        ) from None
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as predictions ({error!r}). Evaluate the run again."
        ) from None


def rows(
    predictions: Predictions, split: inputs.Split, data: DatasetInfo
) -> Iterator[dict[str, str | int | float]]:
    """Yields a row for each photo: see the module's docstring."""
    options = image.ImageOptions(data.height, data.width, data.resize or "stretch")
    for start in range(0, split.size, 256):
        part = slice(start, min(start + 256, split.size))
        serialized = split.records.read(np.arange(part.start, part.stop))
        records = [example.decode(one) for one in serialized]
        true = np.array([record.bbox for record in records], np.float32)
        iou = boxes.iou(true, predictions.bbox[part]).numpy()
        for i, record in enumerate(records):
            height, width = record.original_height, record.original_width
            content = image.content_size(height, width, options)
            row: dict[str, str | int | float] = {
                "photo": record.filename,
                "width": width,
                "height": height,
                "true_name": record.text,
            }
            row |= _in_pixels("true_", record.bbox, content, options, height, width)
            labels = predictions.labels[start + i]
            for k, label in enumerate(labels):
                row[f"name_{k + 1}"] = data.class_names[label]
                row[f"probability_{k + 1}"] = round(
                    float(predictions.probabilities[start + i, k]), 6
                )
            found = tuple(float(side) for side in predictions.bbox[start + i])
            row |= _in_pixels("", found, content, options, height, width)
            row["right"] = int(labels[0] == record.label - 1)
            row["iou"] = round(float(iou[i]), 6)
            yield row


def _in_pixels(
    prefix: str,
    bbox: tuple[float, ...],
    content: tuple[int, int, int, int],
    options: image.ImageOptions,
    height: int,
    width: int,
) -> dict[str, str | int | float]:
    xmin, ymin, xmax, ymax = image.photo_box((bbox[0], bbox[1], bbox[2], bbox[3]), content, options)
    sides = (xmin * width, ymin * height, xmax * width, ymax * height)
    return {f"{prefix}{side}": round(value, 2) for side, value in zip(_SIDES, sides, strict=True)}
