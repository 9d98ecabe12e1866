"""The Beam graph: reads the CSVs, lists the photos, joins them, splits, writes shards, counts.

    ReadRows ───┐                         ┌ rejected ───────────────────┐
                ├ GroupByBucket ─ Join ───┼ facts ─ SumFacts ─ Judge ·····│····┐
    ListPhotos ─┘                         └ good ─┬─────── AssignShards ──┤    :
                                                  └ GroupByClass ···:·· NameShards
                                                                          │    :
                           WriteReport ─ SumTotals ─ WriteFiles ─ GroupByFile ·┘

(dotted: side inputs). Elements are Arrow tables of at most 65,536 rows, so that the join is as fast
as columns in one process, and spills on a cluster: no step holds all rows. Rows move, pixels do
not: a photo is opened only by the worker that writes its shard. One report holds the results.
"""

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsDict, AsIter, AsSingleton, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from preprocess import (
    annotations,
    environment,
    join,
    photos,
    shard,
    split,
    statistics,
    storage,
    tables,
)
from preprocess.facts import Facts, SumFacts, contradiction
from preprocess.survey import PHOTO_PATH, Annotations

LISTED: dict[str, list[pa.Table]] = {}
"""By run, the files of its source (`tables.FILES`), if the driver has listed them and they are few:
a worker in the driver's process need not list them again."""

_REJECTED = "rejected-"  # begins the names of pieces of `rejected.jsonl`; a shard has its split's
BEYOND_LIMIT = "beyond_limit"
"""Reason of rows that `--limit` leaves out."""

_ASSIGNED_ROWS = 1 << 19  # cut into shards at once
_BUCKET_ROWS = 1 << 15  # aimed at: a bucket of twice as many is still one table


@dataclass(frozen=True)
class Settings:
    """What the graph needs to know.

    Attributes:
        shards: what the workers that write shards need to know.
        environment: what each worker must share with the driver.
        labels: class folder to label.
        num_buckets: of the join.
        seed: of the split and the order.
        validation_fraction: of each class of the train photos.
        num_shards: by split, as the user chose it, or None.
        shard_bytes: size of a shard, at most about.
        max_rejected: fraction of the rows.
        first_class, box_unit: how the user describes the CSVs, or None.
        limit: only the first so many rows of each CSV, or None.
    """

    shards: photos.Settings
    environment: environment.Environment
    labels: dict[str, int]
    num_buckets: int
    seed: int
    validation_fraction: float
    num_shards: dict[str, int | None]
    shard_bytes: float
    max_rejected: float
    first_class: int | None
    box_unit: str | None
    limit: int | None

    def begin(self) -> None:
        """Does what each step does first: checks the worker, and shows that it is alive."""
        environment.require_shared(self.shards, self.environment)
        environment.heartbeat(self.shards)

    @property
    def class_names(self) -> list[str]:
        """Label = index + 1."""
        return list(self.shards.class_names)


class TableCoder(beam.coders.Coder):
    """A table as an Arrow stream."""

    def encode(self, value: pa.Table) -> bytes:
        """Returns the stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.Table:
        """Reads the stream."""
        return pa.ipc.open_stream(encoded).read_all()

    def estimate_size(self, value: pa.Table) -> int:
        """Returns the size in memory: Beam asks often, and would encode to know."""
        return value.nbytes

    def is_deterministic(self) -> bool:
        """Whether equal tables always give equal streams."""
        return False

    def to_type_hint(self) -> type:
        """Returns what it encodes."""
        return pa.Table


beam.coders.registry.register_coder(pa.Table, TableCoder)
_ByNumber = beam.typehints.Tuple[int, pa.Table]
_ByName = beam.typehints.Tuple[str, pa.Table]


def num_buckets(num_files: int, csv_bytes: int) -> int:
    """Chooses the number of buckets, so that each holds about 32,768 rows or photos."""
    rows = max(num_files, csv_bytes // 25)  # a short row: `00001.jpg,1,2,30,40,5`
    return max(1, -(-rows // _BUCKET_ROWS))


def build(pipeline: beam.Pipeline, settings: Settings, csvs: list[Annotations]) -> beam.PCollection:
    """Adds the graph to a pipeline.

    Args:
        pipeline: to add to.
        settings: what the graph needs to know.
        csvs: the CSVs to read.

    Returns:
        The one `statistics.Report`, which the graph also writes into the incomplete folder.
    """
    rows = (
        pipeline
        | "NameCsvs" >> beam.Create(csvs, reshuffle=False)
        | "ReadRows" >> beam.ParDo(ReadRows(settings)).with_outputs("facts", main="rows")
    )
    listed = (
        pipeline
        | "NameSource" >> beam.Create([settings.shards.source], reshuffle=False)
        | "ListPhotos" >> beam.ParDo(ListPhotos(settings)).with_outputs("facts", main="photos")
    )
    joined = (
        {
            "rows": rows.rows | "PartitionRows" >> _partition(settings.num_buckets),
            "photos": listed.photos | "PartitionPhotos" >> _partition(settings.num_buckets),
        }
        | "GroupByBucket" >> beam.CoGroupByKey()
        | "Join" >> beam.ParDo(Join(settings)).with_outputs("rejected", "facts", main="good")
    )
    facts = (
        (rows.facts, listed.facts, joined.facts)
        | "AllFacts" >> beam.Flatten()
        | "SumFacts" >> beam.CombineGlobally(SumFacts())
    )
    verdict = facts | "Judge" >> beam.Map(judge, settings)
    draws = (
        joined.good
        | "HashesOfClasses" >> beam.FlatMap(hashes_of_classes)
        | "GroupByClass" >> beam.GroupByKey()
        | "DrawValidation" >> beam.Map(draw_validation, settings)
    )
    shards = joined.good | "AssignShards" >> beam.ParDo(
        AssignShards(settings), AsDict(draws)
    ).with_output_types(_ByName)
    empty = (
        pipeline
        | "Once" >> beam.Create([None], reshuffle=False)
        | "NameShards"
        >> beam.FlatMap(name_shards, settings, AsIter(draws)).with_output_types(_ByName)
    )
    files = sorted(csv.layout.file for csv in csvs)
    rejected = joined.rejected | "CutRejected" >> beam.FlatMap(
        cut_rejected, files
    ).with_output_types(_ByName)
    totals = (
        (shards, empty, rejected)
        | "AllFiles" >> beam.Flatten()
        | "GroupByFile" >> beam.GroupByKey()
        | "WriteFiles" >> beam.ParDo(WriteFiles(settings), AsSingleton(verdict))
        | "SumTotals" >> beam.CombineGlobally(statistics.SumTotals())
    )
    return totals | "WriteReport" >> beam.Map(
        write_report, settings, AsSingleton(facts), AsSingleton(verdict)
    )


class ReadRows(beam.DoFn):
    """Reads a CSV into tables of rows (`tables.ROWS`), bad ones among them, and `Facts`."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def process(self, csv: Annotations) -> Iterator[Any]:
        """Reads one CSV."""
        settings, layout = self._settings, csv.layout
        settings.begin()
        with shard.naming(layout.file):
            data = settings.shards.open_source().read(csv.entry)
        facts = Facts(digests={layout.split: hashlib.sha256(data).hexdigest()})
        facts.rows[layout.file] = 0
        frames = annotations.read_rows(
            io.BytesIO(data), layout, settings.class_names, settings.first_class
        )
        done = 0
        for frame in frames:
            environment.heartbeat(settings.shards)
            _count_rows(facts, frame, layout.file)
            if settings.limit is not None:
                # They are joined too: a contradiction may show only further down.
                beyond = done + np.arange(len(frame)) >= settings.limit
                frame = frame.assign(reason=frame["reason"].mask(beyond, BEYOND_LIMIT))
                facts.rows[layout.file] -= int(beyond.sum())
                done += len(frame)
            frame = frame.assign(file=layout.file, split=layout.split)
            for table in tables.from_frame(frame, tables.ROWS):
                at = tables.ROWS.get_field_index("name")
                yield table.set_column(at, "name", _composed(table["name"]))
        yield TaggedOutput("facts", facts)


def _count_rows(facts: Facts, frame: pd.DataFrame, file: str) -> None:
    facts.rows[file] += len(frame)
    numbers = frame[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float)
    facts.boxes[file] += int(np.isfinite(numbers).all(axis=1).sum())
    # Slightly outside counts too: the corners may have been rounded.
    within = (numbers >= -0.01) & (numbers <= 1.01)
    facts.fractions[file] += int(within.all(axis=1).sum())
    zeros = frame.loc[frame["reason"].eq("class_zero"), "row"]
    if len(zeros):
        facts.zeros[file] += len(zeros)
        facts.first_zeros.setdefault(file, int(zeros.iloc[0]))


class ListPhotos(beam.DoFn):
    """Lists a source's photos as tables (`tables.PHOTOS`), and `Facts` of them."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def process(self, _: str) -> Iterator[Any]:
        """Lists the source, unless this process has done so already."""
        settings = self._settings
        settings.begin()
        facts = Facts()
        known = LISTED.pop(settings.shards.run, None)
        for table in known or settings.shards.open_source().scan():
            environment.heartbeat(settings.shards)
            parts = pc.extract_regex(table["path"], PHOTO_PATH)
            found = pc.is_valid(parts)
            parts, table = parts.filter(found), table.filter(found)
            if not len(table):
                continue
            columns = {name: pc.struct_field(parts, name) for name in ("split", "folder", "name")}
            relative = pc.binary_join_element_wise(*columns.values(), "/")
            facts.photos = facts.photos + _hash_photos(relative, table["size"])
            folders = columns["folder"].combine_chunks().dictionary_encode()
            labels = [settings.labels.get(name, 0) for name in folders.dictionary.to_pylist()]
            columns |= {name: table[name] for name in tables.FILES.names}
            columns |= {
                "name": _composed(columns["name"]),
                "relative": relative,
                "label": pa.array(np.array(labels, np.int32)[folders.indices.to_numpy()]),
            }
            yield pa.table([columns[name] for name in tables.PHOTOS.names], schema=tables.PHOTOS)
        yield TaggedOutput("facts", facts)


def _composed(names: pa.ChunkedArray) -> pa.ChunkedArray:
    # Not by `pc.utf8_normalize`: in pyarrow 25 its NFC leaves names decomposed.
    return pa.chunked_array([[join.normalized(name) for name in names.to_pylist()]], pa.string())


def _hash_photos(relative: pa.ChunkedArray, sizes: pa.ChunkedArray) -> np.ndarray:
    """Returns uint64 [4], the sum of a hash of each path and size: the same in any order."""
    digests = b"".join(
        hashlib.blake2b(b"%d %s" % (size, path.encode()), digest_size=32).digest()
        for path, size in zip(relative.to_pylist(), sizes.to_pylist(), strict=True)
    )
    return np.frombuffer(digests, "<u8").reshape(-1, 4).sum(axis=0, dtype=np.uint64)


def _partition(buckets: int) -> beam.PTransform:
    return beam.FlatMap(partition, buckets).with_output_types(_ByNumber)


def partition(table: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Cuts a table into buckets: names that could be confused are in the same bucket.

    Args:
        table: with a column `name`.
        buckets: their number.
    """
    if buckets == 1:
        yield 0, table
        return
    keys = np.array([join.bucket_key(name) for name in table["name"].to_pylist()], object)
    numbers = pd.util.hash_array(keys, categorize=False) % np.uint64(buckets)
    yield from tables.cut(table, numbers.astype(np.int64))


def _in_global_window(element: Any) -> WindowedValue:
    """Returns what a DoFn yields at the end of a bundle, where no element gives the window."""
    window = GlobalWindow()
    return WindowedValue(element, window.max_timestamp(), [window])


class Join(beam.DoFn):
    """Joins the rows and the photos of a bucket: `tables.JOINED`, `rejected` rows, and `Facts`."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def process(self, element: tuple[int, dict[str, Iterable[pa.Table]]]) -> Iterator[Any]:
        """Joins one bucket."""
        settings, (_, sides) = self._settings, element
        environment.heartbeat(settings.shards)
        rows, photos = (
            pa.concat_tables([schema.empty_table(), *sides[side]]).to_pandas()
            for side, schema in (("rows", tables.ROWS), ("photos", tables.PHOTOS))
        )
        joined = join.join(rows, photos, settings.class_names)
        facts = Facts(shared=Counter(joined.shared))
        rejected = joined.rejected[joined.rejected["reason"].ne(BEYOND_LIMIT)]
        for table in tables.from_frame(rejected, tables.REJECTED):
            facts.add_rejected(zip(*(column.to_pylist() for column in table.columns), strict=True))
            yield TaggedOutput("rejected", table)
        for _, name, label, total, found in joined.classes.itertuples():
            facts.classes[name, label] = np.array([total, found])
        facts.unannotated = len(joined.unannotated)
        facts.unannotated_examples = sorted(joined.unannotated)[:3]
        for _, name, folder, label, total, found in joined.folders.itertuples():
            if label:
                facts.folders[name, folder] = np.array([total, found])
            else:
                facts.strange[name, folder] += total
        yield TaggedOutput("facts", facts)
        good = joined.good.astype(dict.fromkeys(("size", "offset", "stored", "stamp"), "int64"))
        good["key"] = split.hashes(pa.array(good["relative"]), settings.seed)
        yield from tables.from_frame(good, tables.JOINED)


def judge(facts: Facts, settings: Settings) -> str:
    """Returns why no photo is to be opened, for the user, or "".

    Also writes the number of rows to come, for the progress line.
    """
    refusal = contradiction(
        facts, settings.class_names, settings.first_class, settings.box_unit
    ) or too_many_rejected(facts.num_rows, facts.num_rejected, settings.max_rejected)
    if not refusal:
        total = json.dumps(facts.num_rows - facts.num_rejected).encode()
        path = f"{settings.shards.folder}/progress/total-{settings.shards.run}"
        with contextlib.suppress(OSError):  # without it there is less to see
            storage.write(path, total, sync=False)
    return refusal


def too_many_rejected(rows: int, rejected: int, allowed: float) -> str:
    """Returns a sentence where more rows are rejected than allowed, else ""."""
    if rejected <= allowed * rows:
        return ""
    return (
        f"{rejected:,} of {rows:,} rows ({rejected / rows:.1%}) are rejected, and"
        f" --max_rejected={allowed:g} allows {allowed:.1%}"
    )


def hashes_of_classes(table: pa.Table) -> Iterator[tuple[int, tuple[bytes, int]]]:
    """Yields for each class its train photos' hashes and the number of its test photos."""
    is_train = pc.equal(table["split"], "train").to_numpy()
    labels, keys = table["label"].to_numpy(), table["key"].to_numpy()
    for label in np.unique(labels).tolist():
        mine = labels == label
        yield label, (keys[mine & is_train].tobytes(), int((mine & ~is_train).sum()))


def draw_validation(
    element: tuple[int, Iterable[tuple[bytes, int]]], settings: Settings
) -> tuple[int, split.Draw]:
    """Draws the validation photos of a class."""
    label, parts = element
    train, test = zip(*parts, strict=True)
    return label, split.draw(train, sum(test), settings.validation_fraction)


def counts_of_shards(draws: Iterable[split.Draw], settings: Settings) -> dict[str, int]:
    """Returns the number of shards of each split that has photos."""
    size = split.photo_bytes(
        settings.shards.image.height, settings.shards.image.width, settings.shards.image.quality
    )
    draws = list(draws)
    counts = {}
    for name in ("train", "validation", "test"):
        if photos := sum(getattr(one, name) for one in draws):
            wanted = settings.num_shards[name]
            counts[name] = (
                min(photos, wanted)
                if wanted
                else split.num_shards(photos, size, settings.shard_bytes)
            )
    return counts


class AssignShards(beam.DoFn):
    """Cuts tables of joined rows into shards, several tables at once.

    Each bucket holds rows of every shard, so cutting buckets one by one would give as many tables
    as there are buckets times shards.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def start_bundle(self) -> None:
        """Starts with no tables."""
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._draws: dict[int, split.Draw] = {}

    def process(
        self, table: pa.Table, draws: dict[int, split.Draw]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Takes a table."""
        environment.heartbeat(self._settings.shards)
        self._draws = draws
        self._tables.append(table)
        self._rows += len(table)
        if self._rows >= _ASSIGNED_ROWS:
            yield from self._cut()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Cuts the remaining tables."""
        yield from map(_in_global_window, self._cut())

    def _cut(self) -> Iterator[tuple[str, pa.Table]]:
        if self._tables:
            table = pa.concat_tables(self._tables)
            self._tables, self._rows = [], 0
            yield from assign_shards(table, self._settings, self._draws)


def assign_shards(
    table: pa.Table, settings: Settings, draws: dict[int, split.Draw]
) -> Iterator[tuple[str, pa.Table]]:
    """Cuts joined rows into shards, in tables of at most 65,536 rows."""
    counts = counts_of_shards(draws.values(), settings)
    keys, labels = table["key"].to_numpy(), table["label"].to_numpy()
    is_train = pc.equal(table["split"], "train").to_numpy()
    is_validation = is_train & split.is_validation(labels, keys, draws)
    for name, mine in (
        ("train", is_train & ~is_validation),
        ("validation", is_validation),
        ("test", ~is_train),
    ):
        if mine.any():
            numbers = split.shard_numbers(keys[mine], counts[name])
            for number, rows in tables.cut(table.filter(pa.array(mine)), numbers):
                for piece in tables.bounded(rows):
                    yield split.shard_name(name, number, counts[name]), piece


def name_shards(
    _: None, settings: Settings, draws: Iterable[tuple[int, split.Draw]]
) -> Iterator[tuple[str, pa.Table]]:
    """Names every shard once, with no rows: a shard without rows is a file too."""
    for name, count in counts_of_shards((one for _, one in draws), settings).items():
        for number in range(count):
            yield split.shard_name(name, number, count), tables.JOINED.empty_table()


def cut_rejected(table: pa.Table, files: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Cuts rejected rows into pieces of `rejected.jsonl`, by CSV and line.

    Args:
        table: `tables.REJECTED`.
        files: the CSVs in the order that they have in the list.
    """
    blocks = table["row"].to_numpy() // tables.ROWS_AT_MOST
    places = pc.index_in(table["file"], value_set=pa.array(files)).to_numpy()
    for number, rows in tables.cut(table, blocks * len(files) + places):
        block, place = divmod(number, len(files))
        yield f"{_REJECTED}{place:02d}-{block:08d}", rows


class WriteFiles(beam.DoFn):
    """Writes the shards and the pieces of `rejected.jsonl` that it is given.

    Yields the `shard.Result` of each shard. If the job is refused, no photo is opened.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def start_bundle(self) -> None:
        """Starts one queue for all shards of the bundle."""
        self._writer = shard.ShardWriter(self._settings.shards)

    def process(
        self, element: tuple[str, Iterable[pa.Table]], refusal: str
    ) -> Iterator[shard.Result]:
        """Takes one file."""
        name, tables = element
        rows = pa.concat_tables(tables)
        if name.startswith(_REJECTED):
            self._write_rejected(name, rows)
        elif not refusal:
            self._settings.begin()
            yield from _counted(self._writer.add(name, rows))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Waits for the shards of the bundle."""
        yield from map(_in_global_window, _counted(self._writer.finish()))

    def _write_rejected(self, name: str, rows: pa.Table) -> None:
        lines = (
            json.dumps(row, ensure_ascii=False) + "\n" for row in rows.sort_by("row").to_pylist()
        )
        settings = self._settings.shards
        path = f"{settings.folder}/rejected-{settings.run}/{name}.jsonl"
        with shard.naming(path):
            storage.write(path, "".join(lines).encode(), sync=False)


def _counted(results: list[shard.Result]) -> list[shard.Result]:
    """Counts photos in Beam's metrics."""
    for result in results:
        Metrics.counter("carbox", "written").inc(result.num_examples)
        for row in result.rejected:
            Metrics.counter("carbox", f"rejected_{row['reason']}").inc()
    return results


def write_report(
    totals: statistics.Totals, settings: Settings, facts: Facts, refusal: str
) -> statistics.Report:
    """Writes the results of the job, for the driver."""
    texts = [settings.class_names, sorted(facts.digests.items())]
    digest = hashlib.sha256(json.dumps(texts).encode())
    digest.update(facts.photos.astype("<u8").tobytes())
    report = statistics.Report(
        refusal=refusal,
        rows=dict(facts.rows),
        rejected=dict(facts.reasons),
        examples=sorted(list(one) for some in facts.examples.values() for one in some),
        unannotated=facts.unannotated,
        unannotated_examples=facts.unannotated_examples,
        source_fingerprint=digest.hexdigest(),
        totals=totals,
    )
    path = statistics.report_path(settings.shards.folder, settings.shards.run)
    with shard.naming(path):
        storage.write(path, report.to_json().encode(), sync=False)
    return report
