"""What a user would write instead of a job: a pool of processes, OpenCV, and a tar of the results.

    python -m benchmarks.opencv_pool INPUT OUTPUT.tar PROCESSES

INPUT is a zip or a folder. Every `.jpg` in it is decoded, resized to 256x320 (height x width) by
linear interpolation and encoded at quality 95. Nothing is checked, joined with rows, split or
counted, and no box is carried along. `benchmarks.preprocess` times it beside the job.
"""

import io
import multiprocessing
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np

_HEIGHT, _WIDTH, _QUALITY = 256, 320, 95
_PHOTOS_AT_ONCE = 64

_read: Callable[[str], bytes]


def main(place: str, output: str, processes: int) -> None:
    """Writes the tar and prints the number of photos in it."""
    names = sorted(name for name in _names(place) if name.endswith(".jpg"))
    parts = [names[i : i + _PHOTOS_AT_ONCE] for i in range(0, len(names), _PHOTOS_AT_ONCE)]
    with tarfile.open(output, "w") as tar, multiprocessing.Pool(processes, _open, [place]) as pool:
        for photos in pool.imap(_prepare, parts):
            for name, photo in photos:
                info = tarfile.TarInfo(name)
                info.size = len(photo)
                tar.addfile(info, io.BytesIO(photo))
    print(len(names))


def _names(place: str) -> Iterator[str]:
    if os.path.isfile(place):
        yield from zipfile.ZipFile(place).namelist()
        return
    for folder, _, names in os.walk(place):
        yield from (os.path.relpath(os.path.join(folder, name), place) for name in names)


def _open(place: str) -> None:
    """Gives a process of the pool its own way to read photos."""
    global _read
    cv2.setNumThreads(1)
    if os.path.isfile(place):
        _read = zipfile.ZipFile(place).read
    else:
        _read = lambda name: _read_file(os.path.join(place, name))  # noqa: E731


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _prepare(names: list[str]) -> list[tuple[str, bytes]]:
    return [(name, small_photo(_read(name))) for name in names]


def small_photo(data: bytes) -> bytes:
    """Decodes, resizes and encodes a photo by OpenCV alone."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("OpenCV cannot read a photo")
    pixels = cv2.resize(pixels, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
