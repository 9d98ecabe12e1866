"""What the page of a data set needs of its records: some numbers of each, some of them with photos.

Two passes read the records: the first keeps less than 100 bytes of each, and looks at each photo;
the second makes thumbnails of those that are shown.
"""

import collections
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tfrecords import example, findings, manifest, near, pages, scan
from tfrecords.errors import extra

with extra("preprocess"):
    import simplejpeg

    from tfrecords import image

_THUMBNAIL = 160  # pixels of its longer side
SEED = 0  # of the sample
_BATCH = 512  # records whose photos are looked at together

ROW = np.dtype(
    [
        ("split", "u1"),  # position in `manifest.SPLITS`
        ("label", "i4"),
        ("box", "f4", 4),  # fractions of the photo, not of its stored form
        ("height", "i4"),  # of the original, pixels
        ("width", "i4"),
        ("sha256", "u8"),  # its first 64 bits
        ("look", "u8"),  # `near.look`
        ("tint", "u1", (4, 4, 3)),  # `near.tint`
    ]
)


class Shown(NamedTuple):
    """What is shown of a record: its thumbnail, path, split, class, and the photo's own size."""

    photo: pages.Photo
    filename: str
    split: str
    text: str
    size: str


def read_rows(info: manifest.Manifest, directory: str) -> np.ndarray:
    """Returns a row of `ROW` for each record, in stored order.

    Raises:
        UserError: a record cannot be read.
    """
    records = scan.records(info, directory)
    batches = iter(lambda: list(itertools.islice(records, _BATCH)), [])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [
            np.array(list(pool.map(lambda one: _row(info, *one), batch)), ROW) for batch in batches
        ]
    return np.concatenate(rows) if rows else np.empty(0, ROW)


def choose_sample(rows: np.ndarray, count: int) -> list[int]:
    """Returns positions of records, evenly over classes and splits, the same each time.

    Args:
        rows: as `read_rows` returns them.
        count: at most so many.

    Returns:
        Positions sorted by class and split.
    """
    random = np.random.default_rng(SEED).permutation(len(rows))
    taken: collections.Counter[tuple[int, int]] = collections.Counter()
    turns = np.empty(len(rows), np.int64)  # 0 for the first of each class and split
    for position in random:
        group = int(rows["label"][position]), int(rows["split"][position])
        turns[position] = taken[group]
        taken[group] += 1
    chosen = random[np.argsort(turns[random], kind="stable")][:count]
    order = np.lexsort((chosen, rows["split"][chosen], rows["label"][chosen]))
    return [int(position) for position in chosen[order]]


def find_alike(rows: np.ndarray) -> list[near.Pair]:
    """Returns the photos that are or look like one of an earlier split; the same file has -1 bits.

    Args:
        rows: as `read_rows` returns them.
    """
    same = {
        pair.photo: pair._replace(bits=-1)
        for pair in near.pairs(rows["sha256"], rows["split"], within=0)
    }
    tints = rows["tint"]
    looks = [
        pair
        for pair in near.pairs(rows["look"], rows["split"])
        if pair.photo not in same and near.same_tint(tints[pair.photo], tints[pair.earlier])
    ]
    return [*same.values(), *looks]


def read_shown(info: manifest.Manifest, directory: str, wanted: set[int]) -> dict[int, Shown]:
    """Returns what is shown of some records, by their position.

    Raises:
        UserError: a record cannot be read.
    """
    return {
        position: _shown(info, split, record)
        for position, (split, record) in enumerate(scan.records(info, directory))
        if position in wanted
    }


def _row(info: manifest.Manifest, split: str, record: example.Record) -> tuple[Any, ...]:
    content, options = _content(info, record)
    return (
        manifest.SPLITS.index(split),
        record.label,
        _photo_box(record, content, options),
        record.original_height,
        record.original_width,
        findings.digest_prefix(record),
        *_look(record, content),
    )


def _look(
    record: example.Record, content: tuple[int, int, int, int]
) -> tuple[int, np.ndarray | int]:
    try:
        pixels = simplejpeg.decode_jpeg(record.encoded, "RGB", fastdct=True, fastupsample=True)
        top, left, height, width = content
        pixels = pixels[top : top + height, left : left + width]
        return near.look(pixels), near.tint(pixels)
    except (ValueError, image.cv2.error):
        return 0, 0  # no photo, or none of that size: `--verify` names it


def _content(
    info: manifest.Manifest, record: example.Record
) -> tuple[tuple[int, int, int, int], image.ImageOptions]:
    """Returns where the photo stands in its stored form: (top, left, height, width), pixels."""
    options = image.ImageOptions(info.image.height, info.image.width, info.image.resize)
    height, width = max(record.original_height, 1), max(record.original_width, 1)
    return image.content_size(height, width, options), options


def _photo_box(
    record: example.Record, content: tuple[int, int, int, int], options: image.ImageOptions
) -> image.Box:
    sides = tuple(float(side) for side in np.nan_to_num(record.bbox))
    return image.photo_box(sides, content, options)  # type: ignore[arg-type]


def _shown(info: manifest.Manifest, split: str, record: example.Record) -> Shown:
    content, options = _content(info, record)
    height, width = max(record.original_height, 1), max(record.original_width, 1)
    box = _photo_box(record, content, options)
    photo = pages.Photo(
        src=_thumbnail(record, height, width, options),
        width=width,
        height=height,
        alt=f"{record.text}, with its box",
        boxes=[pages.Box([round(side, 4) for side in box])],
    )
    return Shown(photo, record.filename, split, record.text, f"{width:,} × {height:,}")


def _thumbnail(record: example.Record, height: int, width: int, options: image.ImageOptions) -> str:
    try:
        photo = image.restore(record.encoded, height, width, options, _THUMBNAIL)
    except ValueError:
        return pages.jpeg_uri(np.full((8, 8, 3), 128, np.uint8), _THUMBNAIL)
    return pages.jpeg_uri(photo, _THUMBNAIL, quality=75)
