"""The graph: its parts one by one, then as a whole, then what it must not import."""

import ast
import collections
import json
import secrets
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.pvalue import AsDict, AsIter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from preprocess import (
    environment,
    join,
    pipeline,
    shard,
    split,
    statistics,
    storage,
    survey,
    tables,
)
from tests.preprocess import photo_sets
from tfrecords import example, image

TestPipeline.__test__ = False  # its name looks like a test's
ROOT = Path(__file__).parents[2]
STAMP = 1_700_000_000_123_456_789  # a modification time in nanoseconds: no float64 holds it
TRAIN_CSV = "anno_train.csv"


def settings_of(source: Path, seen: survey.Survey, folder: Path, **more) -> pipeline.Settings:
    """Settings for small stored photos, with an incomplete folder to write into."""
    run = secrets.token_hex(4)
    for name in ("whole", "partial", "progress", f"rejected-{run}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shards = shard.Settings(
        source=str(source),
        follow_links=False,
        folder=str(folder),
        image=image.ImageOptions(24, 32, "stretch", 90, 10**8, False),
        box_unit="pixel",
        class_names=tuple(seen.class_names),
        fingerprint="0123456789abcdef",
        run=run,
    )
    environment.mark(shards)
    usual = {
        "environment": environment.Environment(str(folder), run),
        "labels": seen.labels, "num_buckets": 3, "seed": 42, "validation_fraction": 0.25,
        "num_shards": {"train": None, "validation": None, "test": None}, "shard_bytes": 1e8,
        "max_rejected": 0.01, "first_class": None, "box_unit": None, "limit": None,
    }  # fmt: skip
    return pipeline.Settings(shards=shards, **(usual | more))


def made_up(folder: Path, **more) -> pipeline.Settings:
    """Settings without a source, for parts that read none."""
    seen = survey.Survey(["A", "B", "C"], {"A": 1, "B": 2, "C": 3}, [], 0, [], [])
    return settings_of(folder / "nowhere", seen, folder, **more)


def run_graph(source: Path, folder: Path, **more) -> statistics.Report:
    """Runs the whole graph on a source, and returns the report that it left in the folder."""
    seen = survey.survey(storage.open_source(str(source)))
    settings = settings_of(source, seen, folder, **more)
    with TestPipeline(runner=FnApiRunner()) as graph:
        reports = pipeline.build(graph, settings, seen.csvs)
        assert_that(reports | beam.Map(lambda one: type(one).__name__), equal_to(["Report"]))
    text = Path(statistics.report_path(str(folder), settings.shards.run)).read_text()
    return statistics.Report.from_json(text)


def records_of(report: statistics.Report, folder: Path) -> dict[str, list[example.Record]]:
    """The records of each split."""
    records = collections.defaultdict(list)
    for name, stored_as in report.totals.stored_as.items():
        with (folder / "whole" / stored_as).open("rb") as file:
            for payload, problem in example.read_frames(file):
                assert not problem
                records[split.split_of(name)].append(example.decode(payload))
    return records


def rejected_of(folder: Path) -> list[dict]:
    """The lines that the graph wrote of rows set aside, in no order."""
    pieces = sorted(folder.glob("rejected-*/*.jsonl"))
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


def rows_table(names: list[str], labels: list[int], file: str = TRAIN_CSV) -> pa.Table:
    """Rows with one box, numbered from 1."""
    count = len(names)
    values = {"file": [file] * count, "row": range(1, count + 1), "name": names, "label": labels,
              "split": [file[5:-4]] * count, "xmin": [1.0] * count, "ymin": [2.0] * count,
              "xmax": [30.0] * count, "ymax": [40.0] * count, "reason": [""] * count,
              "detail": [""] * count}  # fmt: skip
    return pa.table([pa.array(values[f.name], f.type) for f in tables.ROWS], tables.ROWS)


def photos_table(names: list[str], labels: list[int], part: str = "train") -> pa.Table:
    """Photos in the folders A, B, C of labels 1, 2, 3."""
    count = len(names)
    folders = ["ABC"[label - 1] for label in labels]
    paths = [f"{part}/{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    values = {"split": [part] * count, "folder": folders, "label": labels, "name": names,
              "relative": paths, "path": paths, "size": range(100, 100 + count),
              "offset": [0] * count, "stored": range(100, 100 + count),
              "stamp": range(STAMP, STAMP + count), "problem": [""] * count}  # fmt: skip
    return pa.table([pa.array(values[f.name], f.type) for f in tables.PHOTOS], tables.PHOTOS)


def joined_table(paths: list[str], labels: list[int], seed: int = 42) -> pa.Table:
    """Rows that have found their photos, as the join gives them."""
    count = len(paths)
    values = {"file": [TRAIN_CSV] * count, "row": range(1, count + 1), "relative": paths,
              "path": paths, "label": labels, "split": [path.split("/")[0] for path in paths],
              "key": split.hashes(pa.array(paths), seed)}  # fmt: skip
    columns = [pa.array(values.get(f.name, [1] * count), f.type) for f in tables.JOINED]
    return pa.table(columns, tables.JOINED)


def rows_and_photos() -> tuple[list[pa.Table], list[pa.Table]]:
    """Two tables of rows and two of photos that have something of everything."""
    names = [f"{i:03d}.jpg" for i in range(60)]
    labels = [1 + i % 3 for i in range(60)]
    photos = [
        photos_table(names[:40], labels[:40]),
        photos_table(names[20:30], labels[20:30], "test"),
    ]
    rows = [
        rows_table([*names, names[1], "003.JPG"], [*labels, labels[1], labels[3]]),
        rows_table(names[20:30], [*labels[20:29], 2], "anno_test.csv"),
    ]
    return rows, photos


def as_tuples(table: pa.Table) -> list[tuple]:
    return [tuple(row.values()) for row in table.to_pylist()]


# Parts


@pytest.mark.parametrize("buckets", [2, 5, 16])
def test_the_join_gives_the_same_rows_in_any_number_of_buckets(tmp_path, buckets):
    """PartitionRows and PartitionPhotos, GroupByBucket, Join: as in `build`."""
    rows, photos = rows_and_photos()
    settings = made_up(tmp_path)
    whole = {"rows": rows, "photos": photos}
    expected, rejected = [], []
    for out in pipeline.Join(settings).process((0, whole)):
        if isinstance(out, pa.Table):
            expected += as_tuples(out)
        elif out.tag == "rejected":
            rejected += as_tuples(out.value)
    assert collections.Counter(reason for *_, reason, _ in rejected) == {
        "missing_photo": 21, "duplicate": 1, "wrong_folder": 1,
    }  # fmt: skip
    with TestPipeline(runner=FnApiRunner()) as graph:
        sides = {
            side: graph
            | f"{side}" >> beam.Create(tables)
            | f"{side}InBuckets" >> beam.FlatMap(pipeline.partition, buckets)
            for side, tables in whole.items()
        }
        joined = (
            sides
            | beam.CoGroupByKey()
            | beam.ParDo(pipeline.Join(settings)).with_outputs("rejected", "facts", main="good")
        )
        found = joined.good | "GoodRows" >> beam.FlatMap(as_tuples)
        others = joined.rejected | "RejectedRows" >> beam.FlatMap(as_tuples)
        assert_that(others, equal_to(rejected), label="the same rejected")
        assert_that(found, equal_to(expected), label="the same good")


similar_names = st.tuples(
    st.sampled_from(["photo", "Photo", "PHOTO", "straße", "STRASSE", "ë", "Ë", "a.b", ".jpg", "1"]),
    st.sampled_from(["", ".jpg", ".JPG", ".jpeg", ".png"]),
).map("".join)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(similar_names, min_size=2, max_size=12), st.integers(1, 50))
def test_names_that_could_be_taken_for_each_other_land_in_one_bucket(names, buckets):
    table = rows_table(names, [1] * len(names))
    found, bucket_of = [], {}
    for number, piece in pipeline.partition(table, buckets):
        assert 0 <= number < buckets
        found += piece["row"].to_pylist()
        for name in piece["name"].to_pylist():
            assert bucket_of.setdefault(join.bucket_key(name), number) == number
    assert sorted(found) == table["row"].to_pylist()


def test_photos_and_rows_of_a_name_land_in_one_bucket_and_names_are_spread():
    names = [f"{i:05d}.jpg" for i in range(3000)]
    places = [
        {name: number for number, piece in pipeline.partition(table, 10)
         for name in piece["name"].to_pylist()}
        for table in (rows_table(names, [1] * 3000), photos_table(names, [1] * 3000, "test"))
    ]  # fmt: skip
    assert places[0] == places[1]
    counts = collections.Counter(places[0].values())
    assert len(counts) == 10
    assert min(counts.values()) > 200


def test_buckets_are_as_many_as_rows_or_photos_need():
    assert pipeline.num_buckets(0, 0) == 1
    assert pipeline.num_buckets(16_000, 400_000) == 1
    assert pipeline.num_buckets(10 << 15, 0) == 10
    assert pipeline.num_buckets(0, 25 * (10 << 15)) == 10


def test_no_table_outgrows_its_size(tmp_path):
    """150,000 rows, half of them without a photo, through partition, Join and the shards."""
    count, most = 150_000, tables.ROWS_AT_MOST
    names = [f"{i:06d}.jpg" for i in range(count)]
    rows = [rows_table(some, [1] * len(some)) for some in cut(names, most)]
    photos = [photos_table(some, [1] * len(some)) for some in cut(names[::2], most)]
    pieces = [piece for table in rows for _, piece in pipeline.partition(table, 2)]
    assert sum(map(len, pieces)) == count
    assert max(map(len, pieces)) <= most
    # One bucket, as full as names that are all alike would make it.
    settings = made_up(tmp_path)
    good, rejected = [], []
    for out in pipeline.Join(settings).process((0, {"rows": rows, "photos": photos})):
        if isinstance(out, pa.Table):
            good.append(out)
        elif out.tag == "rejected":
            rejected.append(out.value)
    for some in (good, rejected):
        assert sum(map(len, some)) == count // 2
        assert max(map(len, some)) <= most
        assert len(some) == 2
    draws = {1: split.draw([table["key"].to_numpy().tobytes() for table in good], 0, 0.2)}
    parts = [part for table in good for _, part in pipeline.assign_shards(table, settings, draws)]
    parts += [part for table in rejected for _, part in pipeline.cut_rejected(table, [TRAIN_CSV])]
    assert sum(map(len, parts)) == count
    assert max(map(len, parts)) <= most


def cut(values: list, size: int) -> list[list]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def test_hashes_of_classes_tell_train_photos_and_count_test_photos():
    paths = ["train/A/1.jpg", "train/B/2.jpg", "test/B/3.jpg", "train/A/4.jpg", "test/C/5.jpg"]
    table = joined_table(paths, [1, 2, 2, 1, 3])
    keys = table["key"].to_numpy()
    found = {label: (np.frombuffer(some, np.uint64).tolist(), test)
             for label, (some, test) in pipeline.hashes_of_classes(table)}  # fmt: skip
    assert found == {
        1: ([keys[0], keys[3]], 0),
        2: ([keys[1]], 1),
        3: ([], 1),
    }


def test_validation_is_drawn_of_each_class_whatever_tables_its_rows_came_in(tmp_path):
    settings = made_up(tmp_path)
    paths = [f"{'test' if i % 5 == 0 else 'train'}/X/{i}.jpg" for i in range(200)]
    labels = [1 + i % 3 for i in range(200)]
    table = joined_table(paths, labels)
    whole = dict(
        pipeline.draw_validation((label, [part]), settings)
        for label, part in pipeline.hashes_of_classes(table)
    )
    with TestPipeline(runner=FnApiRunner()) as graph:
        draws = (
            graph
            | beam.Create([table.slice(120), table.slice(0, 7), table.slice(7, 113)])
            | beam.FlatMap(pipeline.hashes_of_classes)
            | beam.GroupByKey()
            | beam.Map(pipeline.draw_validation, settings)
            | beam.Map(lambda element: (element[0], tuple(element[1])))
        )
        assert_that(draws, equal_to([(label, tuple(one)) for label, one in whole.items()]))
    for label, one in whole.items():
        mine = [path for path, of in zip(paths, labels, strict=True) if of == label]
        train = sum(path.startswith("train") for path in mine)
        assert one.validation == int(train * 0.25 + 0.5)
        assert (one.train + one.validation, one.test) == (train, len(mine) - train)


def test_every_row_gets_its_shard_and_empty_shards_are_named(tmp_path):
    """AssignShards and NameShards, grouped by file as in `build`."""
    paths = [f"train/A/{i}.jpg" for i in range(20)] + [f"test/A/{i}.jpg" for i in range(6)]
    table = joined_table(paths, [1] * len(paths))
    settings = made_up(tmp_path, num_shards={"train": 15, "validation": 3, "test": 99})
    draws = [pipeline.draw_validation((label, [part]), settings)
             for label, part in pipeline.hashes_of_classes(table)]  # fmt: skip
    keys = {path: int(key) for path, key in
            zip(paths, table["key"].to_numpy(), strict=True)}  # fmt: skip
    validation = sorted(paths[:20], key=keys.get)[:5]
    # Never more shards than photos: 6 of test, not 99.
    expected = {split.shard_name(name, i, n): []
                for name, n in (("train", 15), ("validation", 3), ("test", 6))
                for i in range(n)}  # fmt: skip
    for path in paths:
        name = (
            "test" if path.startswith("test") else "validation" if path in validation else "train"
        )
        count = {"train": 15, "validation": 3, "test": 6}[name]
        number = (keys[path] & 0xFFFFFFFF) * count >> 32
        expected[split.shard_name(name, number, count)].append(path)
    assert any(not some for some in expected.values())
    with TestPipeline(runner=FnApiRunner()) as graph:
        drawn = graph | "Draws" >> beam.Create(draws)
        shards = (
            graph
            | "Rows" >> beam.Create([table.slice(0, 11), table.slice(11)])
            | beam.FlatMap(pipeline.assign_shards, settings, AsDict(drawn))
        )
        empty = (
            graph
            | "Once" >> beam.Create([None])
            | beam.FlatMap(pipeline.name_shards, settings, AsIter(drawn))
        )
        files = (
            (shards, empty)
            | beam.Flatten()
            | beam.GroupByKey()
            | beam.MapTuple(
                lambda name, tables: (name, sorted(pa.concat_tables(tables)["path"].to_pylist()))
            )
        )
        assert_that(files, equal_to([(name, sorted(some)) for name, some in expected.items()]))


def test_a_split_without_photos_has_no_shards(tmp_path):
    settings = made_up(tmp_path, num_shards={"train": 2, "validation": 2, "test": 2})
    draws = {1: split.draw([split.hashes(pa.array(["a", "b", "c"]), 1).tobytes()], 0, 0.0)}
    assert pipeline.counts_of_shards(draws.values(), settings) == {"train": 2}
    names = [name for name, _ in pipeline.name_shards(None, settings, draws.items())]
    assert names == [split.shard_name("train", i, 2) for i in range(2)]


def test_rejected_rows_are_cut_into_pieces_that_come_in_order():
    """By file and row, if their names are sorted, and each small enough for one worker."""
    rows = [0, 1, tables.ROWS_AT_MOST - 1, tables.ROWS_AT_MOST, 3 * tables.ROWS_AT_MOST + 5]
    files = ["anno_test.csv", TRAIN_CSV]
    values = [
        {"file": file, "row": row, "photo": "p", "reason": "r", "detail": "d"}
        for row in rows
        for file in files
    ]
    pieces = []
    for some in (values[:3], values[3:]):  # as two buckets of the join may give them
        pieces += pipeline.cut_rejected(pa.Table.from_pylist(some, tables.REJECTED), files)
    grouped = collections.defaultdict(list)
    for key, piece in pieces:
        grouped[key] += zip(piece["file"].to_pylist(), piece["row"].to_pylist(), strict=True)
    assert len(grouped) == 2 * 3
    for found in grouped.values():
        assert len({(file, row // tables.ROWS_AT_MOST) for file, row in found}) == 1
    in_order = [row for key in sorted(grouped) for row in sorted(grouped[key])]
    assert in_order == sorted((file, row) for file in files for row in rows)


def test_with_a_refusal_no_photo_is_opened(tmp_path):
    settings = made_up(tmp_path)  # its source does not exist: to open it is to fail
    table = joined_table(["train/A/1.jpg"], [1])
    bad = pa.Table.from_pylist(
        [{"file": TRAIN_CSV, "row": row, "photo": "ë", "reason": "r", "detail": "d"}
         for row in (7, 5)],
        tables.REJECTED,
    )  # fmt: skip
    ((piece, bad),) = pipeline.cut_rejected(bad, [TRAIN_CSV])
    with TestPipeline(runner=FnApiRunner()) as graph:
        results = (
            graph
            | beam.Create([("train-00000-of-00001.tfrecord", [table]), (piece, [bad])])
            | beam.ParDo(pipeline.WriteFiles(settings), "too many are rejected")
        )
        assert_that(results, equal_to([]))
    assert not list((tmp_path / "whole").iterdir())
    # But the user can read which rows they are.
    assert [row["row"] for row in rejected_of(tmp_path)] == [5, 7]
    with pytest.raises(Exception, match="does not exist"):  # without it, the photo is opened
        list(run_writer(settings, table))


def run_writer(settings: pipeline.Settings, table: pa.Table) -> list:
    writer = pipeline.WriteFiles(settings)
    writer.start_bundle()
    done = list(writer.process(("train-00000-of-00001.tfrecord", [table]), ""))
    return [*done, *(value.value for value in writer.finish_bundle())]


@pytest.mark.parametrize(
    ("rows", "rejected", "allowed", "refused"),
    [(100, 1, 0.01, False), (100, 2, 0.01, True), (100, 0, 0.0, False), (3, 1, 0.0, True),
     (3, 3, 1.0, False), (0, 0, 0.0, False)],
)  # fmt: skip
def test_more_rejected_rows_than_allowed_are_refused_with_their_share(
    rows, rejected, allowed, refused
):
    text = pipeline.too_many_rejected(rows, rejected, allowed)
    assert bool(text) == refused
    if refused:
        assert f"{rejected} of {rows} rows" in text
        assert f"--max_rejected={allowed:g}" in text


@pytest.mark.parametrize("limit", [None, 1, 3, 1000])
def test_rows_are_read_as_tables_and_counted(tmp_path, limit):
    root = tmp_path / "cars"
    photo_sets.write(root, train=6, test=3)
    photo_sets.replace_row(root / TRAIN_CSV, 2, "broken")
    seen = survey.survey(storage.open_source(str(root)))
    settings = settings_of(root, seen, tmp_path / "out", limit=limit)
    *parts, tagged = pipeline.ReadRows(settings).process(seen.csvs[0])
    assert all(table.schema == tables.ROWS for table in parts)
    rows = [row for table in parts for row in table.to_pylist()]
    count = min(6, limit or 6)
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    beyond = [row["row"] for row in rows if row["reason"] == pipeline.BEYOND_LIMIT]
    assert beyond == [1, 2, 3, 4, 5, 6][count:]
    assert [row["row"] for row in rows if row["reason"] == "bad_row"] == [2][: count - 1]
    assert tagged.tag == "facts"
    assert tagged.value.rows == {TRAIN_CSV: count}
    assert tagged.value.boxes == {TRAIN_CSV: 5}  # of all rows: a small set is judged as the whole
    assert tagged.value.fractions.total() == 0


# decomposes and does not compose again, so `name` is NFD, and rejected.jsonl shows a name that the
# CSV does not hold.
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_rows_and_photos_are_composed(tmp_path, form):
    root = photo_sets.write(tmp_path / "cars", train=3, test=0)
    name = unicodedata.normalize(form, "Citroën Ấ.jpg")
    path = photo_sets.path_of(root, "train", 1)
    path.rename(path.with_name(name))
    photo_sets.replace_row(root / TRAIN_CSV, 1, f"{name},1,2,30,40,2")
    seen = survey.survey(storage.open_source(str(root)))
    settings = settings_of(root, seen, tmp_path / "out")
    (rows, _), (photos, _) = (
        pipeline.ReadRows(settings).process(seen.csvs[0]),
        pipeline.ListPhotos(settings).process(settings.shards.source),
    )
    for table in (rows, photos):
        names = table["name"].to_pylist()
        assert unicodedata.normalize("NFC", name) in names


def test_photos_are_listed_with_their_classes(tmp_path):
    root = photo_sets.write(tmp_path / "cars", train=3, test=0)
    decomposed = unicodedata.normalize("NFD", "ë.jpg")
    folder = root / "car_data" / "train"
    (folder / photo_sets.FOLDERS[0] / decomposed).write_bytes(b"x")
    (folder / "strange").mkdir()
    (folder / "strange" / "a.jpg").write_bytes(b"x")
    seen = survey.survey(storage.open_source(str(root)))
    settings = settings_of(root, seen, tmp_path / "out")
    listed = {}
    for known in ([], seen.tables):  # listed anew, and as the driver left it
        pipeline.LISTED[settings.shards.run] = known
        *parts, tagged = pipeline.ListPhotos(settings).process(settings.shards.source)
        assert all(table.schema == tables.PHOTOS for table in parts)
        rows = [row for table in parts for row in table.to_pylist()]
        listed[len(listed)] = sorted(row["path"] for row in rows), tagged.value.photos.tolist()
        labels = {(row["folder"], join.normalized(row["name"])): row["label"] for row in rows}
        assert labels[photo_sets.FOLDERS[0], "ë.jpg"] == 1
        assert labels["strange", "a.jpg"] == 0
        assert len(rows) == 5
    assert listed[0] == listed[1]
    assert settings.shards.run not in pipeline.LISTED


# The whole graph


def test_the_whole_graph_gives_every_photo_its_record(tmp_path):
    source = photo_sets.write(tmp_path / "cars", train=24, test=6)
    report = run_graph(source, tmp_path / "out")
    assert report.refusal == ""
    assert report.rows == {TRAIN_CSV: 24, "anno_test.csv": 6}
    assert (report.rejected, report.unannotated) == ({}, 0)
    records = records_of(report, tmp_path / "out")
    assert {name: len(some) for name, some in records.items()} == {
        "train": 18, "validation": 6, "test": 6,
    }  # fmt: skip
    found = {(one.filename.split("/")[0], one.filename.split("/")[2]): one
             for some in records.values() for one in some}  # fmt: skip
    assert len(found) == 30
    for part, count in (("train", 24), ("test", 6)):
        for number in range(1, count + 1):
            record = found[part, f"{number:05d}.jpg"]
            label = number % 3
            assert record.filename == f"{part}/{photo_sets.FOLDERS[label]}/{number:05d}.jpg"
            assert (record.label, record.text) == (label + 1, photo_sets.CLASSES[label])
            expected = [(number % 9 + 1) / 80, 5 / 60, 70 / 80, 54.5 / 60]
            assert record.bbox == pytest.approx(expected, abs=1e-6)
    splits = report.totals.splits(3)
    assert {name: part.class_counts for name, part in splits.items()} == {
        "train": [6, 6, 6], "validation": [2, 2, 2], "test": [2, 2, 2],
    }  # fmt: skip


def test_any_number_of_buckets_gives_the_same_bytes(tmp_path):
    source = photo_sets.write(tmp_path / "cars", train=18, test=3)
    photo_sets.replace_row(source / TRAIN_CSV, 4, "lost.jpg,1,2,30,40,1")
    hashes = []
    for buckets in (1, 4):
        report = run_graph(source, tmp_path / f"{buckets}", num_buckets=buckets, max_rejected=0.1)
        hashes.append((report.totals.shards, report.rejected, report.source_fingerprint))
    assert hashes[0] == hashes[1]
    assert hashes[0][1] == {"missing_photo": 1}


def test_each_row_that_cannot_be_used_says_why(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    csv = root / TRAIN_CSV
    photo_sets.replace_row(csv, 4, "99999.jpg,1,2,30,40,2")
    photo_sets.replace_row(csv, 5, "00005.jpg,1,2,30,40,1")
    photo_sets.replace_row(csv, 6, "00006.jpg,30,2,1,40,1")
    photo_sets.replace_row(csv, 7, "00001.jpg,1,2,30,40,2")
    photo_sets.replace_row(csv, 8, "00008.jpg,1,2")
    photo_sets.replace_row(csv, 9, "00009.jpg,1,2,30,40,7")
    report = run_graph(root, tmp_path / "out", max_rejected=0.5)
    found = {row["row"]: row for row in rejected_of(tmp_path / "out")}
    assert {row: why["reason"] for row, why in found.items()} == {
        4: "missing_photo", 5: "wrong_folder", 6: "box_inverted", 7: "duplicate", 8: "bad_row",
        9: "unknown_class",
    }  # fmt: skip
    assert report.rejected == dict.fromkeys(
        ["missing_photo", "wrong_folder", "box_inverted", "duplicate", "bad_row", "unknown_class"],
        1,
    )
    assert "'Audi TTS Coupe 2012', class 1" in found[5]["detail"]
    assert "train/BMW M3, 2012/00005.jpg" in found[5]["detail"]
    assert "(30, 2, 1, 40)" in found[6]["detail"]
    assert found[6]["photo"] == "train/Audi TTS Coupe 2012/00006.jpg"
    assert "row 1 " in found[7]["detail"]
    assert [example[1] for example in sorted(report.examples, key=lambda one: one[1])] == [
        4, 5, 6, 7, 8, 9,
    ]  # fmt: skip
    # The photos of rows 4, 5, 7, 8 and 9: no usable row names them.
    assert report.unannotated == 5
    assert len(report.unannotated_examples) == 3
    assert report.totals.num_examples == 24


def test_a_copy_of_a_photo_elsewhere_makes_its_row_ambiguous(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    copied = f"train/{photo_sets.FOLDERS[1]}/00004.jpg"
    (root / "thumbnails" / copied).parent.mkdir(parents=True)
    (root / "thumbnails" / copied).write_bytes(photo_sets.photo(6, 8))
    report = run_graph(root, tmp_path / "out", max_rejected=0.5)
    (row,) = rejected_of(tmp_path / "out")
    assert (row["row"], row["reason"]) == (4, "ambiguous")
    assert f"car_data/{copied} and thumbnails/{copied}" in row["detail"]
    assert report.totals.num_examples == 29


def test_file_names_match_in_either_unicode_form(tmp_path):
    root = photo_sets.write(tmp_path / "cars", train=6, test=0)
    for number, (on_disk, in_csv) in enumerate((("NFD", "NFC"), ("NFC", "NFD")), 4):
        path = photo_sets.path_of(root, "train", number)
        name = f"Citroën {number}.jpg"
        path.rename(path.with_name(unicodedata.normalize(on_disk, name)))
        line = f"{unicodedata.normalize(in_csv, name)},1,2,30,40,{number % 3 + 1}"
        photo_sets.replace_row(root / TRAIN_CSV, number, line)
    report = run_graph(root, tmp_path / "out")
    assert (report.rejected, report.unannotated, report.totals.num_examples) == ({}, 0, 6)


def test_limit_takes_the_first_rows_of_each_file(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    photo_sets.replace_row(root / TRAIN_CSV, 2, "broken")
    report = run_graph(root, tmp_path / "out", limit=4, max_rejected=0.5)
    names = sorted(one.filename for some in records_of(report, tmp_path / "out").values()
                   for one in some)  # fmt: skip
    assert sorted(name[-9:-4] for name in names if name.startswith("train")) == [
        "00001", "00003", "00004",
    ]  # fmt: skip
    assert sum(name.startswith("test") for name in names) == 4
    assert report.rows == {TRAIN_CSV: 4, "anno_test.csv": 4}
    assert report.unannotated == 1  # 00002, whose row is broken; others have rows further down


def test_the_fingerprint_is_that_of_the_data_wherever_it_lies(tmp_path):
    root = photo_sets.write(tmp_path / "cars", train=6, test=3)

    def fingerprint(source: Path) -> str:
        return run_graph(source, tmp_path / secrets.token_hex(4)).source_fingerprint

    first = fingerprint(root)
    copy = shutil.copytree(root, tmp_path / "deep" / "copy", copy_function=shutil.copyfile)
    assert fingerprint(photo_sets.zipped(root, tmp_path / "some.zip")) == first
    assert fingerprint(copy) == first
    path = photo_sets.path_of(root, "train", 3)
    path.write_bytes(path.read_bytes() + b"longer")
    assert fingerprint(root) != first
    photo_sets.replace_row(copy / "anno_test.csv", 1, "00001.jpg,1,2,30,40,2")
    assert fingerprint(copy) != first


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("99999.jpg,1,2,30,40,1", "9 of 24 rows (37.5%) are rejected, and --max_rejected=0.1"),
        ("00001.jpg,1,2,30,40,0", "class ids seem to start at 0: 9 rows have class 0"),
    ],
)
def test_a_refused_job_opens_no_photo(tmp_path, spoil, says):
    root = photo_sets.write(tmp_path / "cars", train=24, test=0)
    for row in range(2, 11):
        photo_sets.replace_row(root / TRAIN_CSV, row, spoil)
    for photo in root.glob("car_data/train/*/*.jpg"):
        photo.write_bytes(b"whoever opened this photo would reject it")
    report = run_graph(root, tmp_path / "out", max_rejected=0.1)
    assert says in report.refusal
    assert report.totals.num_examples == 0
    assert not report.totals.rejected
    assert not report.totals.stored_as
    assert not list((tmp_path / "out" / "whole").iterdir())
    assert len(rejected_of(tmp_path / "out")) == 9


def test_a_shard_that_gets_no_row_is_a_file_too(tmp_path):
    source = photo_sets.write(tmp_path / "cars", train=12, test=0)
    wanted = {"train": 9, "validation": 3, "test": None}
    report = run_graph(source, tmp_path / "out", num_shards=wanted)
    counts = {name: facts[0] for name, facts in report.totals.shards.items()}
    assert sorted(counts) == [
        split.shard_name(name, number, wanted[name])
        for name in ("train", "validation")
        for number in range(wanted[name])
    ]
    assert sum(counts.values()) == 12
    empty = [name for name, count in counts.items() if not count]
    assert empty
    for name in empty:
        assert (tmp_path / "out" / "whole" / report.totals.stored_as[name]).stat().st_size == 0


def test_a_job_without_one_good_row_still_reports(tmp_path):
    root = photo_sets.write(tmp_path / "cars", train=3, test=0)
    (root / TRAIN_CSV).write_text("lost.jpg,1,2,30,40,1\n")
    report = run_graph(root, tmp_path / "out", max_rejected=1.0)
    assert "no row can be used, out of 1. The first is anno_train.csv row 1" in report.refusal
    assert report.rejected == {"missing_photo": 1}
    assert report.totals.num_examples == 0
    assert [row["row"] for row in rejected_of(tmp_path / "out")] == [1]


# What it must not import


def imported_by(package: str) -> dict[str, set[str]]:
    """The top-level packages that each file of a package imports, anywhere in it."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        names = found[str(path.relative_to(ROOT))] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                # A relative import stays in its package, unless it climbs out of it.
                depth = len(path.relative_to(ROOT).parts) - 1
                assert node.level <= depth, path
                names.add(package if node.level else node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                names |= {str(one.value).split(".")[0] for one in node.args
                          if isinstance(one, ast.Constant)}  # fmt: skip
    assert len(found) > 3
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("preprocess", {"trainer", "tensorflow", "keras", "tests", "benchmarks"}),
        ("trainer", {"preprocess", "apache_beam", "tests", "benchmarks"}),
        ("tfrecords", {"preprocess", "trainer", "apache_beam", "tests", "benchmarks"}),
    ],
)
def test_the_packages_import_each_other_in_one_direction(package, forbidden):
    wrong = {path: names & forbidden for path, names in imported_by(package).items()}
    assert not {path: names for path, names in wrong.items() if names}


def test_preprocess_runs_where_tensorflow_cannot_be_imported(tmp_path):
    """Every module of it is imported, and a small job is run to its end."""
    photo_sets.write(tmp_path / "cars", train=6, test=3)
    code = """
import importlib, pkgutil, sys
for name in ("tensorflow", "keras", "tensorboard", "trainer"):
    sys.modules[name] = None  # an import of it raises ImportError
import preprocess
names = sorted(one.name for one in pkgutil.walk_packages(preprocess.__path__, "preprocess."))
for name in names:
    importlib.import_module(name)
from preprocess import run
run.main(sys.argv[1:])
assert len(names) > 10
assert not [name for name in sys.modules if name.startswith(("tensorflow.", "keras."))]
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *photo_sets.flags(tmp_path / "cars", tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "dataset.json").exists()
