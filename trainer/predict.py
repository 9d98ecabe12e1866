"""Names the object on photos and draws its box, with a trained run or an export.

    python -m trainer.predict --model=RUN PHOTO|FOLDER|ZIP|- ... [--output=DIR]
        [--format=jsonl|csv] [--top=5] [--batch_size=N]

Standard output has a line for each photo, in the order of the arguments; everything else goes to
standard error. In folders and zips, files that are no photos are skipped; `-` is one photo from
standard input. Exit code 3 when a photo could not be read: its line says why.
"""

import contextlib
import csv
import functools
import io
import itertools
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from absl import flags

from tfrecords import command, remote
from tfrecords.errors import UserError, extra
from tfrecords.progress import Progress

with extra("train"):
    from tfrecords import image
    from trainer import pictures, predictor

EXIT_SOME_FAILED = 3

FLAGS = flags.FlagValues()
command.DEFINE_path("model", None, "folder of a run or of an export", flag_values=FLAGS)
command.DEFINE_path(
    "output", None, "folder for copies of the photos with box and name drawn", flag_values=FLAGS
)
flags.DEFINE_enum("format", "jsonl", ["jsonl", "csv"], "of the lines", flag_values=FLAGS)
flags.DEFINE_integer("top", 5, "names for each photo", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "batch_size",
    predictor.BATCH_SIZE,
    "photos that the network judges at a time",
    lower_bound=1,
    flag_values=FLAGS,
)

# HEIC is not read, but whoever has such photos should hear of it.
_PHOTO = re.compile(
    r"\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?|avif|jp2|j2k|hei[cf])$", re.IGNORECASE
)
# Left behind by file managers and version control.
_JUNK = re.compile(r"\.|__MACOSX$|Thumbs\.db$|desktop\.ini$")
_DRAWN_SIDE = 1600  # pixels, the longer side of a drawn copy at most


Outcome = predictor.Prediction | predictor.Unreadable


@dataclass(frozen=True)
class Photo:
    """A photo to judge: what to call it, and what returns its bytes as `read_file` does."""

    name: str
    read: Callable[[], bytes]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: flags and photos; those of the command line if absent.

    Raises:
        UserError: there is no model, no photo at all, or nothing can be drawn there.
        SystemExit: with `EXIT_SOME_FAILED` when a photo could not be read.
    """
    arguments = command.parse(FLAGS, argv, usage=__doc__, positional="PHOTO ...")
    path = command.required(FLAGS, "model")
    if FLAGS.output:
        _make_folder(FLAGS.output)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that are not UTF-8 are escaped
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the lines alone
        model = predictor.load(remote.model(path, "model"))
        print(f"model: {path}, {model.description}", flush=True)
    top = min(FLAGS.top, len(model.class_names))
    write_line = _csv_writer(top) if FLAGS.format == "csv" else _write_json
    photos = find_photos(arguments, skip=FLAGS.output)
    found = model.stream(photos, lambda photo: photo.read(), top=top, batch_size=FLAGS.batch_size)
    done = failed = 0
    with _progress() as progress:
        for photo, outcome in found:
            done += 1
            failed += isinstance(outcome, predictor.Unreadable)
            write_line(photo.name, outcome)
            if FLAGS.output and isinstance(outcome, predictor.Prediction):
                _draw(photo, outcome, done, FLAGS.output)
            if done % FLAGS.batch_size == 0:
                sys.stdout.flush()
            progress.update(1)
    sys.stdout.flush()
    if not done:
        raise UserError(f"no photo was found in {', '.join(arguments)}.")
    if FLAGS.output:
        print(f"drawn: {FLAGS.output}{os.sep}", file=sys.stderr)
    if failed:
        print(
            f"{failed:,} of {done:,} photos could not be read; their lines say why", file=sys.stderr
        )
        sys.exit(EXIT_SOME_FAILED)


def find_photos(arguments: Sequence[str], skip: str | None = None) -> Iterator[Photo]:
    """Yields the photos that arguments name, in their order; those in folders and zips sorted.

    Args:
        arguments: files, folders, zips, and `-` for standard input.
        skip: a folder that is not looked into.
    """
    for argument in arguments:
        if argument == "-":
            yield _read_now(argument, lambda: predictor.read_all(sys.stdin.buffer))
        elif os.path.isdir(argument):
            yield from _in_folder(argument, {os.path.realpath(skip)} if skip else set())
        elif not os.path.isfile(argument) and os.path.exists(argument):
            # A pipe can be read only once, and drawing reads a second time.
            yield _read_now(argument, functools.partial(predictor.read_file, argument))
        elif _begins_like_zip(argument):
            yield from _in_zip(argument)
        else:
            yield Photo(argument, functools.partial(predictor.read_file, argument))


def _in_folder(folder: str, seen: set[str]) -> Iterator[Photo]:
    real = os.path.realpath(folder)
    if real in seen:  # links may lead in circles
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield _unreadable(folder, error.strerror or str(error))
        return
    for entry in entries:
        if _JUNK.match(entry.name):
            continue
        if entry.is_dir():
            yield from _in_folder(entry.path, seen)
        elif _PHOTO.search(entry.name):
            yield Photo(entry.path, functools.partial(predictor.read_file, entry.path))


def _in_zip(path: str) -> Iterator[Photo]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        yield _unreadable(path, f"no whole zip file: {error}")
        return
    # The order of the folder that was packed.
    for member in sorted(archive.infolist(), key=lambda member: member.filename.split("/")):
        is_junk = any(map(_JUNK.match, member.filename.split("/")))
        if _PHOTO.search(member.filename) and not is_junk:
            yield Photo(
                f"{path}/{member.filename}", functools.partial(_read_member, archive, member)
            )


def _begins_like_zip(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Returns the bytes of a zip's member.

    Raises:
        image.Rejected: it is damaged, encrypted, or too large for a photo.
    """
    try:
        with archive.open(member) as file:
            return predictor.read_all(file)
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise image.Rejected("unreadable", f"damaged or locked in the zip: {error}") from None


def _read_now(name: str, read: Callable[[], bytes]) -> Photo:
    try:
        data = read()
    except OSError as error:
        return _unreadable(name, error.strerror or str(error))
    except image.Rejected as rejected:
        return _unreadable(name, rejected.detail, rejected.reason)
    return Photo(name, lambda: data)


def _unreadable(name: str, detail: str, reason: str = "unreadable") -> Photo:
    def fail() -> bytes:
        raise image.Rejected(reason, detail)

    return Photo(name, fail)


def _write_json(photo: str, outcome: Outcome) -> None:
    line = json.dumps({"photo": photo, **outcome.to_dict()}, ensure_ascii=False)
    sys.stdout.write(line + "\n")


def _csv_writer(top: int) -> Callable[[str, Outcome], None]:
    """Writes the line of column names, and returns what writes a line for a photo."""
    sides = ["xmin", "ymin", "xmax", "ymax"]
    ranks = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("name", "probability")]
    columns = ["photo", "width", "height", *sides, *ranks, "error", "detail"]
    table = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    table.writeheader()

    def write(photo: str, outcome: Outcome) -> None:
        found = outcome.to_dict()
        row = {"photo": photo, "width": found.get("width"), "height": found.get("height")}
        row |= found.get("box", {})
        for rank, one in enumerate(found.get("names", []), 1):
            row |= {f"name_{rank}": one["name"], f"probability_{rank}": one["probability"]}
        error = found.get("error", {})
        table.writerow(row | {"error": error.get("reason"), "detail": error.get("detail")})

    return write


def _progress() -> Progress:
    """Returns the progress of the command, which must not come between lines on a terminal."""
    shown = io.StringIO() if sys.stdout.isatty() else sys.stderr
    return Progress("predict", None, "photos", file=shown)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={path}: the folder cannot be made: {error.strerror}.") from None


def _draw(photo: Photo, found: predictor.Prediction, number: int, folder: str) -> None:
    """Draws what was found on a copy of the photo, a JPEG named after the line and the photo.

    Raises:
        UserError: the photo can no longer be read, or the copy not be written.
    """
    scale = min(1.0, _DRAWN_SIDE / max(found.width, found.height))
    height, width = (max(1, round(side * scale)) for side in (found.height, found.width))
    box = found.box
    sides = (
        box.xmin / found.width,
        box.ymin / found.height,
        box.xmax / found.width,
        box.ymax / found.height,
    )
    out = io.BytesIO()
    try:
        pixels = image.read(photo.read(), image.ImageOptions(height, width)).image
        picture = pictures.draw_boxes(pixels, predicted=(sides, found.name, found.probability))
        picture.save(out, "JPEG", quality=90)
        with _create(os.path.join(folder, f"{number:06}-{_stem(photo.name)}")) as file:
            file.write(out.getvalue())
    except (OSError, image.Rejected) as error:
        raise UserError(f"{photo.name} cannot be drawn into {folder}: {error}.") from None


def _create(path: str) -> BinaryIO:
    """Creates `path.jpg`, or where that exists `path-2.jpg` ...: nothing is replaced."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            return open(f"{path}-{number}.jpg" if number > 1 else f"{path}.jpg", "xb")
    raise AssertionError("unreachable")


def _stem(name: str) -> str:
    stem, _ = os.path.splitext(os.path.basename(name))
    return "stdin" if name == "-" else stem[:50]  # a name of a file has at most 255 bytes


if __name__ == "__main__":
    command.run(main)
