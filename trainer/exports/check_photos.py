"""Whole photos on which exported files are tried, of the kinds that people have.

Cameras turn photos by EXIF, phones take large ones, screens give PNGs, scanners gray. Where there
are no original photos at hand, those of records are brought back to the shape that they had.
"""

import io
import os
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ExifTags, Image

from tfrecords import example, image
from tfrecords.errors import UserError
from trainer import input as inputs

COUNT = 250
_SUFFIXES = (".jpg", ".jpeg", ".png")
_LARGE = 3000  # pixels of the longer side
_LONGEST = 1280  # of what is made out of a record


def from_path(path: str) -> list[bytes]:
    """Returns photos of a folder or zip, a part of them changed to other kinds.

    Raises:
        UserError: there are none.
    """
    read = _open_zip(path) if zipfile.is_zipfile(path) else _open_folder(path)
    names = sorted(name for name in read if name.lower().endswith(_SUFFIXES))
    if not names:
        raise UserError(f"--photos={path}: there is no JPEG or PNG in it.")
    photos = []
    for number, place in enumerate(inputs.spread(len(names), COUNT)):
        data = read[names[place]]()
        try:
            image.read(data, image.ImageOptions(32, 32))
        except image.Rejected:
            continue
        # Every other photo as it is.
        photos.append(data if number % 2 else _vary(_open(data), number // 2))
    if not photos:
        raise UserError(f"--photos={path}: none of the photos can be read.")
    return photos


def from_records(serialized: Sequence[bytes], resize: str) -> list[bytes]:
    """Returns photos made out of records, at about the size and shape that they had.

    Args:
        serialized: records.
        resize: how their photos came to their size.
    """
    photos = []
    for number, place in enumerate(inputs.spread(len(serialized), COUNT)):
        record = example.decode(serialized[place])
        options = image.ImageOptions(record.height, record.width, resize)
        height, width = record.original_height, record.original_width
        photo = image.restore(record.encoded, height, width, options, _LONGEST)
        photos.append(_vary(photo, number))
    return photos


def _vary(photo: Image.Image, number: int) -> bytes:
    """Returns a photo's bytes as a file of the kind of this number."""
    kinds: list[Callable[[], bytes]] = [
        lambda: _encode(photo, "JPEG"),
        *(lambda turn=turn: _turned(photo, "JPEG", turn) for turn in (6, 8, 3)),
        lambda: _encode(photo, "PNG"),
        lambda: _turned(photo, "PNG", 6),
        lambda: _encode(photo.convert("L"), "JPEG"),
        lambda: _encode(photo.convert("L"), "PNG"),
        lambda: _encode(_large(photo), "JPEG"),
        lambda: _turned(_large(photo), "JPEG", 8),
        *(lambda turn=turn: _turned(photo, "JPEG", turn) for turn in (2, 4, 5, 7)),
        lambda: _encode(_with_alpha(photo), "PNG"),
        lambda: _encode(photo.convert("P"), "PNG"),
    ]
    return kinds[number % len(kinds)]()


def _turned(photo: Image.Image, kind: str, orientation: int) -> bytes:
    """Returns a file that a viewer, who follows EXIF, shows as this photo."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    undo |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = photo.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return _encode(stored, kind, exif=exif)


def _with_alpha(photo: Image.Image) -> Image.Image:
    opacity = np.linspace(128, 255, photo.width).astype(np.uint8)
    photo = photo.convert("RGBA")
    photo.putalpha(Image.fromarray(np.tile(opacity, (photo.height, 1))))
    return photo


def _large(photo: Image.Image) -> Image.Image:
    scale = _LARGE / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.BICUBIC)


def _encode(photo: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    if kind == "JPEG":
        options["quality"] = 95
    photo.save(out, kind, **options)
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def _open_folder(path: str) -> dict[str, Callable[[], bytes]]:
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            found[os.path.join(folder, name)] = _reader(os.path.join(folder, name))
    return found


def _reader(path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return read


def _open_zip(path: str) -> dict[str, Callable[[], bytes]]:
    archive = zipfile.ZipFile(path)
    return {name: lambda name=name: archive.read(name) for name in archive.namelist()}  # type: ignore[misc]
