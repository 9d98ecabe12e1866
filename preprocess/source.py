"""The class-folder layout: its CSVs, its photos, and which belongs to which.

`load` finds `anno_train.csv`, `anno_test.csv`, `names.csv` and `…/train|test/<class>/<photo>` at
any depth of a folder, zip or bucket, and joins rows with photos. Rows live in columns, some
hundred bytes each, and no Python object per row outlives its chunk: a driver holds millions.
"""

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from preprocess import storage
from tfrecords.errors import UserError

ANNOTATIONS = {"train": "anno_train.csv", "test": "anno_test.csv"}
NAMES = "names.csv"

ROWS = pa.schema(
    [
        ("file", pa.large_string()),  # the CSV
        ("row", pa.int64()),  # its line, from 1
        ("name", pa.large_string()),  # of the photo's file
        ("xmin", pa.float64()),  # box in pixels of the photo
        ("ymin", pa.float64()),
        ("xmax", pa.float64()),
        ("ymax", pa.float64()),
        ("label", pa.int32()),  # class, from 1
    ]
)
REJECTED = pa.schema(
    [
        ("file", pa.large_string()),
        ("row", pa.int64()),
        ("photo", pa.large_string()),
        ("reason", pa.large_string()),
        ("detail", pa.large_string()),
    ]
)

_COLUMNS = "filename, xmin, ymin, xmax, ymax, class"
_CSV_NAMES = ["name", "xmin", "ymin", "xmax", "ymax", "label"]
_CSV_TYPES = dict.fromkeys(_CSV_NAMES, pa.float64()) | {"name": pa.large_string()}
_MAX_PIXEL = 1e9
_CHUNK_ROWS = 1 << 16
_CHUNK_CHARACTERS = 1 << 22
_MAX_CSV_BYTES = 1 << 30
_UNSAFE_NAME = r"(?s)^/|\\|\x00|^[A-Za-z]:|(^|/)\.\.?(/|$)"
_PHOTO_NAME = r"(?i)\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?)$"
# Characters that one file system or another refuses in a name.
_REFUSED_CHARACTERS = '/\\:*?"<>|'
_HEADER_WORDS = {"name", "names", "class", "class_name", "classname", "class name", "label"}


@dataclass(frozen=True)
class Rows:
    """The usable rows of one annotation file, joined with their photos.

    Attributes:
        table: `ROWS`, without `file`, plus `photo` (int64, position in the listing).
        file: path of the CSV inside the source.
    """

    table: pa.Table
    file: str


@dataclass(frozen=True)
class Dataset:
    """What a source holds.

    Attributes:
        class_names: label = index + 1.
        rows: by the folder that the photos are in, `train` and `test`; a split without an
            annotation file is absent.
        listing: every file of the source.
        rejected: `REJECTED`, the rows that cannot be used, as far as the CSVs and names tell.
        num_rows: rows read, usable or not.
        unannotated: photos that no row names.
        notes: sentences for the log.
        fingerprint: sha256 over CSVs, and paths and sizes of photos: the same for a folder and a
            zip of it, anywhere, at any time.
        stamp: sha256 that changes also when a photo's time or checksum changes.
    """

    class_names: list[str]
    rows: dict[str, Rows]
    listing: storage.Listing
    rejected: pa.Table
    num_rows: int
    unannotated: int
    notes: list[str]
    fingerprint: str
    stamp: str


def load(source: storage.Source, limit: int | None = None) -> Dataset:
    """Reads the annotations of a source and joins them with its photos.

    Args:
        source: where they are.
        limit: only the first so many rows of each annotation file.

    Raises:
        UserError: there is nothing that could be used, and why.
    """
    listing = source.listing()
    notes = list(listing.notes)
    names_entry = _find(listing, NAMES)
    if names_entry is None:
        raise UserError(
            f"{NAMES} is missing: it gives the class names, one a line, line 1 for class 1."
        )
    names_bytes = _read(source, names_entry)
    class_names = parse_names(names_bytes, names_entry.path)
    photos = _Photos(listing, class_names, notes)
    digest = hashlib.sha256(names_bytes)
    rows: dict[str, Rows] = {}
    rejected = []
    num_rows = 0
    for split, csv_name in ANNOTATIONS.items():
        entry = _find(listing, csv_name)
        if entry is None or not entry.size:
            digest.update(b"\0absent\0")
            notes.append(f"{csv_name} is {'empty' if entry else 'missing'}: no {split} photos")
            continue
        data = _read(source, entry)
        digest.update(hashlib.sha256(data).digest())
        parsed, unusable = parse_annotations(io.BytesIO(data), entry.path, len(class_names))
        del data
        joined, unjoined = photos.join(parsed, split)
        unusable = pa.concat_tables([unusable, unjoined])
        if limit is not None:
            joined, unusable = _first_rows(joined, unusable, limit)
        num_rows += len(joined) + len(unusable)
        rejected.append(unusable)
        rows[split] = Rows(joined, entry.path)
    _require_rows(rows, rejected, photos)
    notes += photos.describe_unannotated()
    digest.update(photos.digest())
    return Dataset(
        class_names=class_names,
        rows=rows,
        listing=listing,
        rejected=pa.concat_tables(rejected),
        num_rows=num_rows,
        unannotated=len(photos.unannotated()),
        notes=notes,
        fingerprint=digest.hexdigest(),
        stamp=hashlib.sha256(digest.digest() + photos.stamp()).hexdigest(),
    )


def _read(source: storage.Source, entry: storage.Entry) -> bytes:
    try:
        return source.read(entry)
    except ValueError as error:
        raise UserError(f"{entry.path} cannot be read: {error}.") from None


def parse_names(data: bytes, file: str) -> list[str]:
    """Parses `names.csv`: one class name a line; blank lines are skipped.

    Args:
        data: the file's bytes, in any encoding that spreadsheets write.
        file: its name, for messages.

    Raises:
        UserError: it names no class, or two classes the same.
    """
    names: list[str] = []
    first_line: dict[str, int] = {}
    lines = (line for _, some in _line_chunks(io.BytesIO(data)) for line in some)
    for number, line in enumerate(map(_to_text, lines), 1):
        # A name without quotes may hold a comma too: there is no second column to confuse it with.
        name = _fields(line.rstrip())[0].strip() if line.lstrip().startswith('"') else line.strip()
        if not name or (not names and name.lower() in _HEADER_WORDS):
            continue
        if name in first_line:
            raise UserError(
                f"{file} row {number}: class name {name!r} is that of row {first_line[name]} too."
                " Each class needs its own name."
            )
        first_line[name] = number
        names.append(name)
    if not names:
        raise UserError(f"{file} is empty: it gives the class names, one a line.")
    return names


def parse_annotations(stream: BinaryIO, file: str, num_classes: int) -> tuple[pa.Table, pa.Table]:
    """Parses one annotation file, row by row: a bad row never costs a good one.

    Byte order marks, any line ends, a header row, quotes, blank lines, decimals, spaces and
    encodings other than UTF-8 are taken as they come. A quoted value ends where its line ends.

    Args:
        stream: of the file's bytes.
        file: its name, for the `file` columns.
        num_classes: classes are 1 to this.

    Returns:
        The good rows (`ROWS`, in file order) and the others (`REJECTED`: `bad_row`,
        `unknown_class`).
    """
    good, bad = [ROWS.empty_table()], [REJECTED.empty_table()]
    for start, lines in _line_chunks(stream):
        ordinary = _parse_ordinary(lines, start, file, num_classes)
        if ordinary is not None:
            good.append(ordinary)
            continue
        values: list[tuple] = []
        unusable: list[tuple] = []
        for number, line in enumerate(map(_to_text, lines), start):
            if not line.strip(' ,;\t\n"'):
                continue
            try:
                values.append((file, number, *_parse_row(line.rstrip("\n"), num_classes)))
            except _BadRow as why:
                header = not (len(good) > 1 or values or unusable) and _is_header(line)
                if not header:
                    unusable.append((file, number, why.photo, why.reason, str(why)))
        good.append(_table(values, ROWS))
        bad.append(_table(unusable, REJECTED))
    return pa.concat_tables(good), pa.concat_tables(bad)


def match_folders(class_names: list[str], folders: Iterable[str]) -> dict[str, int]:
    """Finds the class of each folder.

    A folder carries its class's name, exactly, or with each character that a file system refuses
    replaced by another one, percent-encoded, or left out; then, if nothing matches so, the same
    without regard to case and spaces at the ends.

    Args:
        class_names: label = index + 1.
        folders: names of class folders.

    Returns:
        The label of each folder that has one.

    Raises:
        UserError: a folder's name fits two classes.
    """
    exact = {unicodedata.normalize("NFC", name): i + 1 for i, name in enumerate(class_names)}
    patterns = [(_folder_pattern(name), label) for name, label in exact.items()]
    labels = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder)
        label = exact.get(name)
        for flags in (0, re.IGNORECASE):
            if label is not None:
                break
            fitting = [number for text, number in patterns if re.fullmatch(text, name, flags)]
            if len(fitting) > 1:
                one, other = (class_names[number - 1] for number in fitting[:2])
                raise UserError(
                    f"the folder {folder!r} fits two classes of {NAMES}: {one!r} and {other!r}."
                    " Rename it to fit one."
                )
            label = fitting[0] if fitting else None
        if label is not None:
            labels[folder] = label
    return labels


def relative_paths(paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """Cuts photo paths down to `train|test/<class folder>/<file>`."""
    parts = [pa.array([], pa.large_string())]
    for start in range(0, len(paths), _CHUNK_ROWS):
        some = paths.slice(start, _CHUNK_ROWS).to_pylist()
        parts.append(pa.array(["/".join(path.rsplit("/", 3)[-3:]) for path in some], parts[0].type))
    return pa.concat_arrays(parts)


class _BadRow(ValueError):  # noqa: N818 - said of the row, not of this code
    def __init__(self, reason: str, photo: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.photo = photo


class _Photos:
    """The photos of a listing, with what finds them: split, class and file name."""

    def __init__(self, listing: storage.Listing, class_names: list[str], notes: list[str]):
        parts = pc.extract_regex(
            listing.path, r"(?:^|/)(?P<split>train|test)/(?P<folder>[^/]+)/(?P<file>[^/]+)$"
        )
        found = pc.is_valid(parts)
        self._listing = listing
        self._class_names = class_names
        self._position = np.flatnonzero(found.to_numpy(zero_copy_only=False))
        parts = parts.filter(found)
        self._split = pc.struct_field(parts, "split")
        self._file = pc.struct_field(parts, "file").cast(pa.large_string())
        folders = pc.struct_field(parts, "folder").dictionary_encode()
        labels = match_folders(class_names, folders.dictionary.to_pylist())
        label_of = np.array(
            [labels.get(name, 0) for name in folders.dictionary.to_pylist()], np.int32
        )
        self._label = label_of[folders.indices.to_numpy()] if len(folders) else label_of
        self._is_photo = pc.match_substring_regex(self._file, _PHOTO_NAME).to_numpy(
            zero_copy_only=False
        )
        self._is_named = np.zeros(len(self._position), bool)
        self.count = int(self._is_photo.sum())
        strange = sorted(set(folders.dictionary.to_pylist()) - labels.keys())
        if strange:
            notes.append(
                f"{len(strange)} folders fit no class of {NAMES}, their photos are left out:"
                f" {', '.join(strange[:3])}{' …' if len(strange) > 3 else ''}"
            )

    def join(self, rows: pa.Table, split: str) -> tuple[pa.Table, pa.Table]:
        """Finds the photo of each row.

        Returns:
            The rows that have one to themselves, with its position in the listing as `photo`;
            the others, as `REJECTED`.
        """
        here = np.flatnonzero(pc.equal(self._split, split).to_numpy(zero_copy_only=False))
        file_names = self._file.take(pa.array(here))
        keys = _keys(self._label[here], file_names)
        match = pc.index_in(_keys(rows["label"].to_numpy(), rows["name"]), value_set=keys)
        where = _filled(match)
        self._is_named[here[where[where >= 0]]] = True
        position, twin = (
            np.where(where >= 0, values[where] if len(here) else -1, -1)
            for values in (self._position[here], self._twins(keys, here))
        )
        keep, rejected = self._usable(rows, position, twin, split, file_names, here)
        joined = rows.drop_columns(["file"]).append_column("photo", pa.array(position))
        return joined.filter(pa.array(keep)), rejected

    def _twins(self, keys: pa.Array, here: np.ndarray) -> np.ndarray:
        """Returns where in the listing another photo with the same key is; -1 where none is."""
        key = keys.dictionary_encode().indices.to_numpy()
        order = np.argsort(key, kind="stable")
        same = key[order[1:]] == key[order[:-1]]
        twins = np.full(len(key), -1)
        twins[order[:-1][same]] = self._position[here][order[1:][same]]
        return twins

    def unannotated(self) -> np.ndarray:
        """Returns the positions, in the listing, of photos that no row names."""
        return self._position[self._is_photo & ~self._is_named]

    def describe_unannotated(self) -> list[str]:
        """Returns a sentence about photos that no row names, if there are any."""
        positions = self.unannotated()
        if not len(positions):
            return []
        some = ", ".join(self._path(position) for position in positions[:3])
        more = " …" if len(positions) > 3 else ""
        return [f"{len(positions):,} photos have no row and are left out: {some}{more}"]

    def _usable(
        self,
        rows: pa.Table,
        position: np.ndarray,
        twin: np.ndarray,
        split: str,
        file_names: pa.LargeStringArray,
        here: np.ndarray,
    ) -> tuple[np.ndarray, pa.Table]:
        """Returns which rows can be used, and the others with their reasons."""
        unsafe = _filled(pc.match_substring_regex(rows["name"], _UNSAFE_NAME).cast("int8")) > 0
        xmin, ymin, xmax, ymax = (
            rows[side].to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")
        )
        inverted = ~((xmin < xmax) & (ymin < ymax))
        found = (position >= 0) & ~unsafe
        refused = found & np.isin(position, list(self._listing.refused))
        alone = found & ~refused & ~inverted & (twin < 0)
        first_of = _first_rows_of(position, alone, rows["row"].to_numpy())
        by_name = np.full(len(rows), -1)
        missing = np.flatnonzero(position < 0)
        names = rows["name"].take(pa.array(missing))
        by_name[missing] = _filled(pc.index_in(names, value_set=file_names))

        def why(i: int, row: dict) -> tuple[str, str, str]:
            """Returns the photo's path as far as it is known, reason and detail."""
            label, box = row["label"], (row["xmin"], row["ymin"], row["xmax"], row["ymax"])
            wanted = f"{self._class_names[label - 1]!r}, class {label}"
            path = f"{split}/{self._class_names[label - 1]}/{row['name']}"
            if unsafe[i]:
                return row["name"], "unsafe_path", "the file name leads out of its class folder"
            if found[i]:
                path = self._path(position[i])
            if refused[i]:
                return path, "unsafe_path", self._listing.refused[int(position[i])]
            if twin[i] >= 0:
                one, other = (self._listing.path[int(at[i])].as_py() for at in (position, twin))
                return path, "ambiguous", f"two photos may be meant: {one} and {other}"
            if inverted[i]:
                numbers = ", ".join(f"{value:g}" for value in box)
                return path, "box_inverted", f"box ({numbers}): xmin < xmax, ymin < ymax must hold"
            if first_of[i]:
                return path, "duplicate", f"row {first_of[i]} has a box for this photo already"
            if by_name[i] >= 0:
                other = self._path(self._position[here[by_name[i]]])
                return path, "wrong_folder", f"the row says {wanted}, the photo is at {other}"
            return path, "missing_photo", f"no such file in a {split} folder of {wanted}"

        keep = alone & (first_of == 0)
        tables = [REJECTED.empty_table()]
        bad = np.flatnonzero(~keep)
        for start in range(0, len(bad), _CHUNK_ROWS):
            chunk = bad[start : start + _CHUNK_ROWS]
            some = zip(chunk, rows.take(pa.array(chunk)).to_pylist(), strict=True)
            values = [(row["file"], row["row"], *why(int(i), row)) for i, row in some]
            tables.append(_table(values, REJECTED))
        return keep, pa.concat_tables(tables)

    def _path(self, position: int) -> str:
        return "/".join(self._listing.path[int(position)].as_py().split("/")[-3:])

    def stamp(self) -> bytes:
        """Returns a hash of what changes with the photos' bytes, in order of path."""
        some = pa.array(self._position)
        return _hash_columns(self._listing.path.take(some), self._listing.stamp[self._position])

    def digest(self) -> bytes:
        """Returns a hash of the photos' relative paths and sizes, in order of path."""
        paths = relative_paths(self._listing.path.take(pa.array(self._position)))
        order = pc.sort_indices(paths)
        return _hash_columns(
            paths.take(order), self._listing.size[self._position][order.to_numpy()]
        )


def _parse_row(line: str, num_classes: int) -> tuple:
    fields = _fields(line)
    photo = fields[0].strip()
    if len(fields) != 6:
        raise _BadRow(
            "bad_row", photo, f"{len(fields)} values instead of 6 ({_COLUMNS}): {line[:200]!r}"
        )
    try:
        numbers = [float(value) for value in fields[1:]]
    except ValueError as error:
        raise _BadRow("bad_row", photo, f"{error}: {line[:200]!r}") from None
    if not photo:
        raise _BadRow("bad_row", photo, f"no file name: {line[:200]!r}")
    *box, label = numbers
    if not all(abs(value) < _MAX_PIXEL for value in box):
        raise _BadRow("bad_row", photo, f"a box value is out of all range: {line[:200]!r}")
    if not (1 <= label <= num_classes and label == int(label)):
        raise _BadRow(
            "unknown_class", photo,
            f"class {fields[5].strip()} is not in {NAMES}, which has 1 to {num_classes}",
        )  # fmt: skip
    return (photo, *box, int(label))


def _fields(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], skipinitialspace=True), [""]) or [""]
    except csv.Error:
        return [line]


def _is_header(line: str) -> bool:
    """Whether no value of a line but the first looks like a number."""
    values = _fields(line)[1:]
    return bool(values) and not any(
        re.search(r"\d", value) and _is_number(value) for value in values
    )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _line_chunks(stream: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Yields lines, a few megabytes at a time, and the number of their first, from 1.

    Bytes that are not UTF-8 come as surrogates, see `_to_text`.
    """
    head = stream.read(2)
    stream.seek(0)
    encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline=None)
    start = 1
    try:
        while lines := text.readlines(_CHUNK_CHARACTERS):
            yield start, lines
            start += len(lines)
    except UnicodeDecodeError as error:
        raise UserError(f"a CSV begins like UTF-16 but is not: {error}.") from None


def _parse_ordinary(lines: list[str], start: int, file: str, num_classes: int) -> pa.Table | None:
    """Parses lines that are all plain good rows, ten times as fast; None if any is not."""
    text = "".join(lines)
    if '"' in text or "\0" in text:
        return None
    try:
        table = pa_csv.read_csv(
            io.BytesIO(text.encode()),
            pa_csv.ReadOptions(column_names=_CSV_NAMES, block_size=len(text) * 4 + 64),
            pa_csv.ParseOptions(quote_char=False),
            pa_csv.ConvertOptions(column_types=_CSV_TYPES, null_values=[]),
        )
    except (pa.ArrowInvalid, UnicodeEncodeError):
        return None
    name = table["name"]
    label = table["label"].to_numpy()
    box = [table[side].to_numpy() for side in _CSV_NAMES[1:5]]
    is_plain = (
        len(table) == len(lines)
        and all((np.abs(side) < _MAX_PIXEL).all() for side in box)
        and ((label >= 1) & (label <= num_classes) & (label == np.floor(label))).all()
        and pc.all(pc.equal(name, pc.utf8_trim_whitespace(name))).as_py()
        and pc.min(pc.binary_length(name)).as_py() > 0
    )
    if not is_plain:
        return None
    columns = [pa.repeat(pa.scalar(file, pa.large_string()), len(table)),
               pa.array(np.arange(start, start + len(table))),
               name, *box, pa.array(label.astype(np.int32))]  # fmt: skip
    return pa.table(columns, schema=ROWS)


def _to_text(line: str) -> str:
    """Decodes what is not UTF-8 as Windows-1252, which is what spreadsheets wrote before it."""
    if line.isascii():
        return line
    try:
        line.encode()
        return line
    except UnicodeEncodeError:
        data = line.encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _find(listing: storage.Listing, name: str) -> storage.Entry | None:
    """Finds a CSV, the one nearest to the top.

    Raises:
        UserError: two are equally near, or it is too large to be one.
    """
    positions = np.flatnonzero(pc.ends_with(listing.path, name).to_numpy(zero_copy_only=False))
    found = (listing.entry(int(i)) for i in positions if int(i) not in listing.refused)
    entries = sorted(
        (entry for entry in found if entry.path.split("/")[-1] == name),
        key=lambda entry: entry.path.count("/"),
    )
    if not entries:
        return None
    if len(entries) > 1 and entries[0].path.count("/") == entries[1].path.count("/"):
        raise UserError(
            f"two files could be {name}: {entries[0].path} and {entries[1].path}."
            " Name the folder of one data set as --input."
        )
    if entries[0].size > _MAX_CSV_BYTES:
        raise UserError(f"{entries[0].path} is larger than {_MAX_CSV_BYTES >> 30} GiB: no CSV.")
    return entries[0]


def _folder_pattern(name: str) -> str:
    """Returns a regular expression for the folder names that a class name may have become."""
    parts = [
        "(?:.|%[0-9A-Fa-f]{2})?" if character in _REFUSED_CHARACTERS else re.escape(character)
        for character in name.strip(" .")
    ]
    return "[ .]*" + "".join(parts) + "[ .]*"


def _keys(labels: np.ndarray, names: pa.LargeStringArray | pa.ChunkedArray) -> pa.Array:
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    # One and the same accent is written in two ways, by the file systems of Apple in the longer.
    names = pc.utf8_normalize(names, "NFC")
    return pc.binary_join_element_wise(
        pa.array(labels).cast(pa.large_string()), names, pa.scalar("/", pa.large_string())
    )


def _filled(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns integers with -1 where there is none."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.fill_null(-1).to_numpy(zero_copy_only=False)


def _first_rows_of(position: np.ndarray, usable: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns int64 [n]: where an earlier usable row has the same photo, that row's number."""
    chosen = np.flatnonzero(usable)
    _, first, inverse = np.unique(position[chosen], return_index=True, return_inverse=True)
    earliest = chosen[first[inverse]]
    result = np.zeros(len(position), np.int64)
    result[chosen] = np.where(earliest == chosen, 0, row[earliest])
    return result


def _first_rows(joined: pa.Table, rejected: pa.Table, limit: int) -> tuple[pa.Table, pa.Table]:
    lines = np.concatenate([joined["row"].to_numpy(), rejected["row"].to_numpy()])
    if len(lines) <= limit:
        return joined, rejected
    last = np.partition(lines, limit - 1)[limit - 1]
    return tuple(
        table.filter(pc.less_equal(table["row"], int(last))) for table in (joined, rejected)
    )


def _require_rows(rows: dict[str, Rows], rejected: list[pa.Table], photos: _Photos) -> None:
    if not rows:
        raise UserError(
            "there are no annotations: anno_train.csv and anno_test.csv are missing or empty."
            f" Each row is: {_COLUMNS}."
        )
    if not photos.count:
        raise UserError(
            "there are no photos: none at train/<class folder>/<file> or test/<class folder>/<file>"
            " at any depth."
        )
    if any(len(split.table) for split in rows.values()):
        return
    bad = pa.concat_tables(rejected)
    if not len(bad):
        files = ", ".join(split.file for split in rows.values())
        raise UserError(f"{files}: no row in it. Each row is: {_COLUMNS}.")
    first = bad.slice(0, 1).to_pylist()[0]
    raise UserError(
        f"no row can be used, out of {len(bad)}. The first is {first['file']} row"
        f" {first['row']}, {first['photo']!r}: {first['reason']}: {first['detail']}."
    )


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _hash_columns(paths: pa.Array, *columns: np.ndarray) -> bytes:
    """Hashes strings with their lengths, and numbers, a chunk of rows at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(paths), _CHUNK_ROWS):
        some = paths.slice(start, _CHUNK_ROWS)
        digest.update(pc.binary_length(some).to_numpy().astype("<i8").tobytes())
        digest.update("".join(some.to_pylist()).encode())
        for column in columns:
            digest.update(column[start : start + _CHUNK_ROWS].astype("<i8").tobytes())
    return digest.digest()
