"""A survey of the source before Beam starts: it reports at once what the user can correct.

The files are scanned in tables and not kept, so millions of them cost time, not memory. Of
the annotation CSVs only the beginning is read: it decides how the rest is read.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from preprocess import annotations, folders, names, storage, tables
from tfrecords.errors import UserError

PHOTO_PATH = r"(?:^|/)(?P<split>train|test)/(?P<folder>[^/]+)/(?P<name>[^/]+)$"
"""Where photos are: `…/train|test/<class folder>/<file>`."""

_HEAD_BYTES = 1 << 18  # of an annotation CSV, to see how it is to be read
_MAX_NAMES_BYTES = 1 << 26
_MAX_CSV_BYTES = 1 << 30
_SHOWN = 3  # examples that one sentence names
_NEAR_CSV = r"(?i)(^|/)anno[_-](train|test)(\.csv|\.txt|\.csv\.txt)?$"
_ROOT = r"^(?P<root>|.*/)(?:train|test)/[^/]+/[^/]+$"
_PACKED = r"(?i)\.(zip|tgz|tar|tar\.\w+|7z|rar)$"


@dataclass(frozen=True)
class Annotations:
    """One annotation CSV: how it is read, and where it lies."""

    layout: annotations.Layout
    entry: storage.Entry


@dataclass(frozen=True)
class Survey:
    """What is known before rows and photos are joined.

    Attributes:
        class_names: label = index + 1.
        labels: class folder to label; folders that fit no class are absent.
        csvs: the annotation CSVs that have rows.
        num_files: files of the source.
        tables: those files (`tables.FILES`), where they fit into one table, else nothing.
        notes: sentences for the user.
    """

    class_names: list[str]
    labels: dict[str, int]
    csvs: list[Annotations]
    num_files: int
    tables: list[pa.Table]
    notes: list[str]


def survey(source: storage.Source) -> Survey:
    """Finds the CSVs and class folders of a source and how they are to be read.

    Raises:
        UserError: something is missing or cannot be understood; the message says what to do.
    """
    seen = _Seen()
    few: list[pa.Table] = []
    for table in source.scan():
        seen.add(table)
        few = [*few, table] if seen.num_files <= tables.ROWS_AT_MOST else []
    class_folders = sorted(seen.class_folders)
    names_entry = seen.csv(annotations.NAMES)
    if names_entry is None:
        raise UserError(seen.nothing_found())
    if names_entry.size > _MAX_NAMES_BYTES:
        raise UserError(f"{names_entry.path} is larger than {_MAX_NAMES_BYTES >> 20} MiB.")
    data = _read(source, names_entry)
    class_names, note = names.read_names(data, names_entry.path, class_folders)
    labels = folders.match_folders(class_names, class_folders)
    seen.require_one_data_set()
    notes = [*seen.notes(labels), note]
    csvs = []
    for split, name in annotations.ANNOTATIONS.items():
        entry = seen.csv(name)
        if entry is None or not entry.size:
            notes.append(seen.without_rows(split, name, "empty" if entry else "missing"))
            continue
        if entry.size > _MAX_CSV_BYTES:
            raise UserError(f"{entry.path} is larger than {_MAX_CSV_BYTES >> 30} GiB: no CSV.")
        head = _read_head(source, entry)
        layout = annotations.read_layout(head, entry.path, split, class_names)
        csvs.append(Annotations(layout, entry))
        notes.append(layout.describe())
    if not csvs:
        raise UserError(
            "there are no annotations: anno_train.csv and anno_test.csv are missing or empty."
            " Each row is: filename, xmin, ymin, xmax, ymax, class."
        )
    if not seen.folders:
        raise UserError(
            "there are no photos: none at train/<class folder>/<file> or test/<class folder>/<file>"
            f" at any depth.{seen.hint()}"
        )
    return Survey(class_names, labels, csvs, seen.num_files, few, notes)


@dataclass
class _Seen:
    """What has been seen of a source's files so far."""

    num_files: int = 0
    class_folders: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)  # folders that hold `train` or `test`
    near_csvs: list[str] = field(default_factory=list)
    folders: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, folder) to files
    csvs: dict[str, list[storage.Entry]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        """Adds a table of files."""
        self.num_files += len(table)
        good = pc.equal(table["problem"], "")
        for row in table.filter(pc.invert(good)).to_pylist():
            kind = row["problem"].split(", to ")[0]
            self.problems[kind] += 1
            examples = self.examples.setdefault(kind, [])
            if len(examples) < _SHOWN:
                examples.append(row["path"])
        self.class_folders |= {folder for (_, folder), _ in _class_folders(table)}
        table = table.filter(good)
        for key, count in _class_folders(table):
            self.folders[key] += count
        for name in (annotations.NAMES, *annotations.ANNOTATIONS.values()):
            for row in table.filter(pc.ends_with(table["path"], name)).to_pylist():
                if row["path"].split("/")[-1] == name:
                    entry = storage.Entry(row["path"], row["size"], row["offset"], row["stored"])
                    self.csvs.setdefault(name, []).append(entry)
        near = table.filter(pc.match_substring_regex(table["path"], _NEAR_CSV))
        self.near_csvs += near["path"].to_pylist()[:_SHOWN]
        roots = pc.struct_field(pc.extract_regex(table["path"], _ROOT), "root")
        self.roots |= set(roots.drop_null().unique().to_pylist())
        if len(self.packed) < _SHOWN:
            packed = table.filter(pc.match_substring_regex(table["path"], _PACKED))
            self.packed += packed["path"].to_pylist()[:_SHOWN]

    def csv(self, name: str) -> storage.Entry | None:
        """Finds a CSV: the one nearest to the top.

        Raises:
            UserError: two are equally near.
        """
        entries = sorted(self.csvs.get(name, []), key=lambda one: (one.path.count("/"), one.path))
        if len(entries) > 1 and entries[0].path.count("/") == entries[1].path.count("/"):
            raise UserError(
                f"two files could be {name}: {entries[0].path} and {entries[1].path}."
                " Name the folder of one data set as --input."
            )
        return entries[0] if entries else None

    def without_rows(self, split: str, name: str, how: str) -> str:
        """Returns a sentence for a split without rows.

        Raises:
            UserError: a file of nearly that name is there.
        """
        near = [path for path in self.near_csvs if _plain(path) == _plain(name)]
        if near and how == "missing":
            raise UserError(f"{name} is missing, but {near[0]} is there. Rename it to {name}.")
        photos = sum(count for (where, _), count in self.folders.items() if where == split)
        left_out = f", and {photos:,} files in {split} folders are left out" if photos else ""
        return f"{name} is {how}: no {split} photos{left_out}"

    def require_one_data_set(self) -> None:
        """Checks that there is no other data set further down.

        Raises:
            UserError: there is one, with photos of its own.
        """
        for name, entries in self.csvs.items():
            used = self.csv(name)
            for entry in entries:
                folder = entry.path.removesuffix(name)
                if entry != used and any(root.startswith(folder) for root in self.roots):
                    raise UserError(
                        f"there are two data sets: {used.path if used else name} and {entry.path},"
                        f" with photos in {folder}. Name the folder of one as --input."
                    )

    def nothing_found(self) -> str:
        """Returns a sentence for a source without names.csv."""
        return (
            f"{annotations.NAMES} is missing: it gives the class names, one a line, line 1 for"
            f" class 1.{self.hint()}"
        )

    def hint(self) -> str:
        """Returns a hint why there is no data set."""
        for kind, count in self.problems.items():
            if "leads out" in kind:
                return (
                    f" But {count:,} files are links that lead out of the data set, for example"
                    f" {self.examples[kind][0]}. Copy it with `cp -rL`, or pass --follow_links."
                )
        if self.packed:
            what = self.packed[0]
            return f" But {what} is there: name it as --input, or unpack it."
        return ""

    def notes(self, labels: dict[str, int]) -> Iterator[str]:
        """Yields a sentence for each kind of thing that is left out."""
        for kind, count in sorted(self.problems.items()):
            some = ", ".join(self.examples[kind]) + (" …" if count > _SHOWN else "")
            advice = ". Pass --follow_links to read them" if "leads out" in kind else ""
            yield f"refused, {kind}: {some} ({count:,} in all){advice}"
        strange = sorted({folder for _, folder in self.folders} - labels.keys())
        if strange:
            yield (
                f"{len(strange)} folders fit no class of {annotations.NAMES}, their photos are"
                f" left out: {', '.join(strange[:_SHOWN])}{' …' if len(strange) > _SHOWN else ''}"
            )


def _plain(path: str) -> str:
    return path.split("/")[-1].lower().replace("-", "_").removesuffix(".txt").removesuffix(".csv")


def _class_folders(table: pa.Table) -> Iterator[tuple[tuple[str, str], int]]:
    """Yields each (split, class folder) of a table of files with its number of files."""
    parts = pc.extract_regex(table["path"], PHOTO_PATH)
    columns = {name: pc.struct_field(parts, name) for name in ("split", "folder")}
    counted = (
        pa.table(columns).drop_null().group_by(["split", "folder"]).aggregate([([], "count_all")])
    )
    for row in counted.to_pylist():
        yield (row["split"], row["folder"]), row["count_all"]


def _read(source: storage.Source, entry: storage.Entry) -> bytes:
    try:
        return source.read(entry)
    except (ValueError, OSError) as error:
        raise UserError(f"{entry.path} cannot be read: {error}.") from None


def _read_head(source: storage.Source, entry: storage.Entry) -> bytes:
    return _read(source, entry)[:_HEAD_BYTES]
