"""Draws the built-in sample: photos of ten kinds of vehicles, to try carbox without a download.

python -m preprocess.sample [--output=data/sample]

Only the shape of the body distinguishes the kinds: colors, places, sizes and backgrounds have the
same distributions for all. The layout is that of a real class-folder data set with its quirks: a
class name that a folder cannot have, the same file names in train and test, a few grayscale photos,
and one that is upright only by its EXIF tag.
"""

import csv
import functools
import json
import math
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from absl import flags

from tfrecords import command
from tfrecords.errors import UserError, extra

with extra("preprocess"):
    from PIL import Image

    from preprocess.sample_scene import cast_shadow, landscape
    from preprocess.sample_vehicle import KINDS, Kind, paint, pose

DEFAULT_DIRECTORY = "data/sample"
PHOTOS_PER_CLASS = {"train": 180, "test": 15}

FLAGS = flags.FlagValues()
command.DEFINE_path("output", DEFAULT_DIRECTORY, "folder to draw it into", flag_values=FLAGS)

_VERSION = 3  # raise it whenever a change here changes a byte of the drawn data set
_MARKER = "sample.json"
_SIZES = (  # width and height of a photo, pixels
    *((480, 360), (500, 375), (600, 480), (640, 427), (640, 480), (720, 480), (800, 600)),
    *((853, 480), (1024, 768)),
)
_AREA = (0.34, 0.75)  # of the photo, that the box of a vehicle covers where its shape allows it
_GRAYSCALE_EVERY = 40  # photos
_TURNED = ("train", 10)  # split and number of the photo that is stored on its side
_ORIENTATION_TAG, _TURNED_RIGHT = 0x0112, 6


def draw(directory: str, *, seed: int = 42) -> None:
    """Draws the sample data set, unless it is there already.

    The folder appears under its name only when it is complete. The same seed gives the same bytes.

    Args:
        directory: local folder to make. It then holds `anno_train.csv`, `anno_test.csv`,
            `names.csv`, and the photos at `car_data/car_data/<split>/<class folder>/`.
        seed: of everything random.

    Raises:
        UserError: the folder exists and is not this sample, or cannot be written.
    """
    marker = {"drawn_by": "carbox", "version": _VERSION, "seed": seed, "photos": PHOTOS_PER_CLASS}
    if _is_whole(directory, marker):
        return
    if os.path.lexists(directory) and not (os.path.isdir(directory) and not os.listdir(directory)):
        raise UserError(
            f"{directory!r} exists and is not the whole sample of this version and seed."
            " Remove it or name another folder."
        )
    incomplete = directory.rstrip("/") + ".incomplete"
    if os.path.lexists(incomplete) and not os.path.exists(os.path.join(incomplete, _MARKER)):
        raise UserError(
            f"{incomplete!r} is in the way: the sample is drawn there first. Remove it."
        )
    try:
        shutil.rmtree(incomplete, ignore_errors=True)
        os.makedirs(incomplete)
        with open(os.path.join(incomplete, _MARKER), "w", encoding="utf-8") as file:
            json.dump(marker, file)
        _draw_all(incomplete, seed)
        os.rename(incomplete, directory)
    except OSError as error:
        raise UserError(f"cannot draw the sample into {directory!r}: {error}") from None


def _is_whole(directory: str, marker: dict) -> bool:
    try:
        with open(os.path.join(directory, _MARKER), encoding="utf-8") as file:
            if json.load(file) != marker:
                return False
        for split, per_class in PHOTOS_PER_CLASS.items():
            with open(os.path.join(directory, f"anno_{split}.csv"), encoding="utf-8") as file:
                rows = list(csv.reader(file))
            folders = [_folder(KINDS[int(row[5]) - 1].name) for row in rows]
            photos = [
                os.path.join(directory, "car_data", "car_data", split, folder, row[0])
                for folder, row in zip(folders, rows, strict=True)
            ]
            if len(rows) != per_class * len(KINDS) or not all(map(os.path.isfile, photos)):
                return False
        return os.path.isfile(os.path.join(directory, "names.csv"))
    except (OSError, ValueError, IndexError):
        return False


def _draw_all(directory: str, seed: int) -> None:
    _write_csv(os.path.join(directory, "names.csv"), ([kind.name] for kind in KINDS))
    for split, per_class in PHOTOS_PER_CLASS.items():
        labels = [label for label in range(1, len(KINDS) + 1) for _ in range(per_class)]
        random.Random(f"{seed} {split}").shuffle(labels)
        photos = os.path.join(directory, "car_data", "car_data", split)
        for kind in KINDS:
            os.makedirs(os.path.join(photos, _folder(kind.name)))
        draw_one = functools.partial(_draw_one, photos, split, seed)
        # A fresh process for each core: one that has TensorFlow's threads must not be forked.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(draw_one, range(1, len(labels) + 1), labels, chunksize=16))
        _write_csv(os.path.join(directory, f"anno_{split}.csv"), rows)


def _draw_one(photos: str, split: str, seed: int, number: int, label: int) -> list:
    """Draws one photo and returns its row of the CSV."""
    kind, name = KINDS[label - 1], f"{number:05d}.jpg"
    rng = random.Random(f"{seed} {split} {number}")
    photo, box = _draw_photo(kind, rng)
    path = os.path.join(photos, _folder(kind.name), name)
    _save(photo, path, split, number, quality=rng.randint(80, 92))
    return [name, *box, label]


def _folder(class_name: str) -> str:
    return class_name.replace("/", "-")


def _write_csv(path: str, rows: Iterable[list]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _save(photo: Image.Image, path: str, split: str, number: int, quality: int) -> None:
    exif = Image.Exif()
    if number % _GRAYSCALE_EVERY == 0:
        photo = photo.convert("L")
    if (split, number) == _TURNED:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[_ORIENTATION_TAG] = _TURNED_RIGHT
    photo.save(path, quality=quality, exif=exif)


def _draw_photo(kind: Kind, rng: random.Random) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Returns a photo and its box (xmin, ymin, xmax, ymax), pixels, tight around the vehicle."""
    width, height = rng.choice(_SIZES)
    shapes = pose(kind, rng)
    corners = np.concatenate([points for _, points in shapes])
    origin, size = corners.min(axis=0), np.ptp(corners, axis=0)
    area = width * height * math.exp(rng.uniform(*map(math.log, _AREA)))
    scale = min(math.sqrt(area / size.prod()), 0.95 * width / size[0], 0.85 * height / size[1])
    box_width, box_height = (math.ceil(side) for side in scale * size)
    left = rng.randint(2, width - box_width - 2)
    # Wheels belong in the lower part, where the ground is.
    bottom = rng.randint(max(box_height + 2, int(0.6 * height)), height - 4)
    top = bottom - box_height
    # Half the size is enough for what lies behind: a camera would leave it out of focus too.
    scenery, light = landscape(rng, width // 2, height // 2, bottom // 2, box_height // 2)
    photo = scenery.resize((width, height), Image.Resampling.BILINEAR)
    cast_shadow(photo, left, bottom, box_width, box_height)
    pixels = [(tone, (points - origin) * scale + (left, top)) for tone, points in shapes]
    paint(photo, pixels, rng, light)
    return photo, (left, top, left + box_width, bottom)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: flags; those of the command line if absent.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    draw(FLAGS.output)
    photos = sum(PHOTOS_PER_CLASS.values()) * len(KINDS)
    print(f"{photos} photos of {len(KINDS)} kinds of vehicles in {FLAGS.output}")


if __name__ == "__main__":
    command.run(main)
