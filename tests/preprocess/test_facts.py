"""What is counted before any photo is opened, and what stops the job, with the remedy."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import pipeline, storage, survey
from preprocess.facts import Facts, SumFacts, contradiction
from tests.preprocess.test_pipeline import settings_of

NAMES = ("Audi A4", "BMW M3", "Fiat 500")
KINDS = tuple(f"Kind {number:03d}" for number in range(1, 121))


def write(
    root: Path,
    names: tuple[str, ...] = NAMES,
    folders: tuple[str, ...] = NAMES,
    photos: int = 3,
    first: int = 1,
    box: str = "1,2,30,40",
    splits: tuple[str, ...] = ("train", "test"),
) -> Path:
    """Writes photos numbered anew in each folder, in both splits, and rows of some splits.

    No test here opens a photo.
    """
    root.mkdir(exist_ok=True)
    (root / "names.csv").write_text("".join(f"{name}\n" for name in names))
    for split in ("train", "test"):
        rows = []
        for label, folder in enumerate(folders, first):
            (root / split / folder).mkdir(parents=True)
            for number in range(1, photos + 1):
                (root / split / folder / f"{number}.jpg").write_bytes(b"x")
                rows.append(f"{number}.jpg,{box},{label}\n")
        if split in splits:
            (root / f"anno_{split}.csv").write_text("".join(rows))
    return root


def gather(root: Path, **more) -> tuple[Facts, pipeline.Settings]:
    """Counts as the graph does: reads the rows, lists the photos, joins them, adds up."""
    seen = survey.survey(storage.open_source(str(root)))
    of = settings_of(root, seen, root.parent / "out", **more)
    outputs = [*pipeline.ListPhotos(of).process(of.shards.source)]
    photos = [one for one in outputs if isinstance(one, pa.Table)]
    read = [one for csv in seen.csvs for one in pipeline.ReadRows(of).process(csv)]
    rows = [one for one in read if isinstance(one, pa.Table)]
    buckets: dict[int, dict[str, list[pa.Table]]] = {}
    for side, tables in (("rows", rows), ("photos", photos)):
        for table in tables:
            for number, piece in pipeline.partition(table, of.num_buckets):
                buckets.setdefault(number, {"rows": [], "photos": []})[side].append(piece)
    for element in buckets.items():
        outputs += pipeline.Join(of).process(element)
    total = Facts()
    for one in [*read, *outputs]:
        if not isinstance(one, pa.Table) and one.tag == "facts":
            total.add(one.value)
    return total, of


def verdict(root: Path, **more) -> str:
    """What the CSVs and photos of a data set say against each other."""
    facts, of = gather(root, **more)
    return contradiction(facts, of.class_names, of.first_class, of.box_unit)


# Adding


def plain(facts: Facts) -> dict[str, Any]:
    """Its values as such that can be compared; counters without zeros."""
    values = {}
    for name, value in vars(facts).items():
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif isinstance(value, dict):
            value = {
                key: one.tolist() if isinstance(one, np.ndarray) else one
                for key, one in value.items()
                if isinstance(one, np.ndarray) or one
            }
        values[name] = value
    return values


counts = st.integers(0, 9)
rejected_rows = st.tuples(
    st.sampled_from(["anno_test.csv", "anno_train.csv"]), st.integers(1, 99),
    st.sampled_from(["a.jpg", "b.jpg"]), st.sampled_from(["bad_row", "duplicate"]), st.just("why"),
)  # fmt: skip


files = st.sampled_from(["anno_train.csv", "anno_test.csv"])
splits = st.sampled_from(["train", "test"])
pairs = st.tuples(counts, counts).map(np.array)
sums = st.tuples(*[st.integers(0, 2**64 - 1)] * 4).map(lambda four: np.array(four, np.uint64))
few_names = st.lists(st.text("ab", max_size=3), max_size=3).map(sorted)


@st.composite
def some_facts(draw) -> Facts:
    """Facts as one table, or one bucket, might give them."""
    facts = Facts(
        digests=draw(st.sampled_from([{}, {"train": "1f"}, {"test": "2e"}])),
        photos=draw(sums),
        unannotated=draw(counts),
        unannotated_examples=draw(few_names),
        classes=draw(st.dictionaries(st.tuples(splits, st.integers(1, 3)), pairs)),
        folders=draw(st.dictionaries(st.tuples(splits, st.sampled_from("AB")), pairs)),
    )
    for counter in (facts.rows, facts.boxes, facts.fractions):
        counter.update(draw(st.dictionaries(files, counts)))
    facts.shared.update(draw(st.dictionaries(splits, counts)))
    facts.add_rejected(draw(st.lists(rejected_rows, max_size=6)))
    return facts


def added(parts: list[Facts]) -> Facts:
    total = Facts()
    for part in copy.deepcopy(parts):
        total.add(part)
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(some_facts(), max_size=4))
def test_the_order_of_adding_makes_no_difference(parts):
    expected = plain(added(parts))
    for order in itertools.permutations(parts):
        assert plain(added(list(order))) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(some_facts(), max_size=6), st.lists(st.integers(0, 6), max_size=3))
def test_sums_of_sums_are_the_sum(parts, cuts):
    """As runners combine: some of it here, some there, with empty accumulators in between."""
    before = [plain(part) for part in parts]
    combine = SumFacts()
    accumulators = []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(parts)]):
        accumulator = combine.create_accumulator()
        for part in parts[start:end]:
            accumulator = combine.add_input(accumulator, part)
        accumulators.append(accumulator)
    total = combine.extract_output(combine.merge_accumulators(accumulators))
    assert plain(total) == plain(added(parts))
    assert [plain(part) for part in parts] == before  # what was added is as it was


@settings(max_examples=60, deadline=None)
@given(st.lists(rejected_rows, max_size=12), st.integers(0, 12))
def test_rejected_rows_count_alike_in_one_piece_or_two(rows, cut):
    one, two = Facts(), Facts()
    one.add_rejected(rows)
    two.add_rejected(rows[cut:])
    two.add_rejected(rows[:cut])
    assert plain(one) == plain(two)
    assert one.num_rejected == len(rows)
    for reason, examples in one.examples.items():
        assert examples == sorted(row for row in rows if row[3] == reason)[:3]


# No false alarm


@pytest.mark.parametrize("buckets", [1, 7])
def test_a_well_formed_set_is_silent(tmp_path, buckets):
    facts, of = gather(write(tmp_path / "cars"), num_buckets=buckets)
    assert facts.shared == {"train": 3, "test": 3}  # names do repeat
    assert facts.num_rows == 18
    assert facts.num_rejected == facts.unannotated == 0
    assert contradiction(facts, of.class_names, None, None) == ""


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
def test_a_limit_is_silent(tmp_path, limit):
    assert verdict(write(tmp_path / "cars"), limit=limit) == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_without_rows_is_silent_though_it_has_photos(tmp_path, split):
    assert verdict(write(tmp_path / "cars", splits=(split,))) == ""


def test_photos_without_rows_are_silent_where_their_folder_has_others(tmp_path):
    root = write(tmp_path / "cars")
    (root / "train" / NAMES[1] / "more.jpg").write_bytes(b"x")
    assert verdict(root) == ""


def test_a_folder_without_rows_is_silent_where_no_name_repeats(tmp_path):
    root = write(tmp_path / "cars", folders=NAMES[:1], names=NAMES)
    (root / "train" / NAMES[1]).mkdir()
    (root / "train" / NAMES[1] / "7.jpg").write_bytes(b"x")
    assert verdict(root) == ""


def test_a_class_without_folder_and_rows_is_silent(tmp_path):
    assert verdict(write(tmp_path / "cars", names=(*NAMES, "Kia Rio"))) == ""


# their names count as photos, so a text in each class folder stops a set whose photos are all
# named apart.
def test_files_that_are_no_photos_are_silent(tmp_path):
    root = write(tmp_path / "cars", photos=0)
    for number, name in enumerate(NAMES[:2], 1):
        (root / "train" / name / f"{number}.jpg").write_bytes(b"x")
    (root / "anno_train.csv").write_text("1.jpg,1,2,30,40,1\n2.jpg,1,2,30,40,2\n")
    for name in NAMES:
        (root / "train" / name / "license.txt").write_text("free")
    assert verdict(root) == ""


def test_one_box_within_the_first_pixel_is_no_fraction(tmp_path):
    root = write(tmp_path / "cars")
    lines = (root / "anno_train.csv").read_text().splitlines()
    (root / "anno_train.csv").write_text("\n".join(["1.jpg,0,0,1,1,1", *lines[1:]]))
    assert verdict(root) == ""


# Classes from 0


@pytest.mark.parametrize("buckets", [1, 7])
def test_classes_from_0_are_told_with_file_row_count_and_remedy(tmp_path, buckets):
    root = write(tmp_path / "cars", names=KINDS, folders=KINDS, photos=2, first=0)
    text = verdict(root, num_buckets=buckets)
    assert "class ids seem to start at 0: 4 rows have class 0" in text
    assert "the first is anno_test.csv row 1." in text
    assert "--first_class=0 if class 0 is 'Kind 001'" in text


def test_with_first_class_0_classes_from_0_are_right(tmp_path):
    root = write(tmp_path / "cars", first=0)
    facts, of = gather(root, first_class=0)
    assert (facts.num_rejected, facts.unannotated) == (0, 0)
    assert contradiction(facts, of.class_names, 0, None) == ""


# --first_class=1, so one row of class 0 stops a job that nothing can start again.
def test_with_first_class_1_a_row_of_class_0_is_only_a_bad_row(tmp_path):
    root = write(tmp_path / "cars")
    with (root / "anno_train.csv").open("a") as file:
        file.write("9.jpg,1,2,30,40,0\n")
    facts, of = gather(root, first_class=1)
    assert facts.reasons == {"class_zero": 1}
    assert contradiction(facts, of.class_names, 1, None) == ""


# Fractions


@pytest.mark.parametrize("box", ["0.1,0.2,0.5,0.75", "0,0,1,1", "0.25,0,1.0,1"])
def test_boxes_that_are_all_fractions_are_told_with_the_remedies(tmp_path, box):
    root = write(tmp_path / "cars", box=box, splits=("train",))
    text = verdict(root)
    assert text.startswith("anno_train.csv: all 9 boxes lie within [0, 1]")
    assert "--box_unit=fraction" in text
    assert "--box_unit=pixel" in text
    assert "x_center,y_center,width,height" in text
    assert verdict(root, box_unit="fraction") == ""
    assert verdict(root, box_unit="pixel") == ""


def test_each_file_is_judged_for_itself(tmp_path):
    root = write(tmp_path / "cars")
    rows = (root / "anno_test.csv").read_text().replace("1,2,30,40", "0.1,0.2,0.3,0.4")
    (root / "anno_test.csv").write_text(rows)
    assert verdict(root).startswith("anno_test.csv: all 9 boxes")


def test_a_row_without_a_box_does_not_hide_that_the_others_are_fractions(tmp_path):
    root = write(tmp_path / "cars", box="0.1,0.2,0.5,0.75", splits=("train",))
    with (root / "anno_train.csv").open("a") as file:
        file.write("9.jpg,0.1,,0.5,0.75,1\n")
    assert "all 9 boxes" in verdict(root)


# box that rounding put a hair outside hides that all of them are fractions.
@pytest.mark.parametrize("line", ["3.jpg,0.0617,0.5,0.1235,0.5,3", "3.jpg,0.9,0.5,0.2001,0.5,3"])
def test_a_fraction_that_rounding_put_outside_does_not_hide_the_others(tmp_path, line):
    """As YOLO files are: 0.0617 - 0.1235 / 2 is -0.00005, 0.9 + 0.2001 / 2 is 1.00005."""
    root = write(tmp_path / "cars", box="0.5,0.5,0.2,0.2", splits=("train",))
    lines = (root / "anno_train.csv").read_text().splitlines()
    header = "filename,x_center,y_center,width,height,class"
    (root / "anno_train.csv").write_text("\n".join([header, *lines[:-1], line]))
    assert "--box_unit=fraction" in verdict(root)


# Classes that do not fit their folders


def test_an_extra_first_name_is_told_by_what_is_left_over_at_both_ends(tmp_path):
    """Names one line too low: each row finds a photo, but of the class before."""
    root = write(tmp_path / "cars", names=("Kinds of 2012", *KINDS), folders=KINDS, photos=2)
    facts, of = gather(root)
    text = contradiction(facts, of.class_names, None, None)
    assert facts.num_rejected <= 0.01 * facts.num_rows  # nothing else would stop it
    assert text.startswith("the classes of the train rows do not fit its folders")
    assert "class 1 ('Kinds of 2012'): 2 rows and no photo" in text
    assert "folder train/Kind 120: 2 photos and no row" in text
    assert "line n of names.csv is the name of class n" in text
    assert "--first_class=1" in text
    assert contradiction(facts, of.class_names, 1, None) == ""


# folder that fits no class is not counted, so names.csv without its first line is taken in
# silence, and every row gets the photo of the next class.
def test_a_lost_first_name_is_told(tmp_path):
    """Names one line too high: class 120 is unknown, the folder of class 1 has no name."""
    root = write(tmp_path / "cars", names=KINDS[1:], folders=KINDS, photos=2)
    facts, of = gather(root)
    assert facts.reasons == {"unknown_class": 4}  # of 480: within --max_rejected
    text = contradiction(facts, of.class_names, None, None)
    assert "do not fit its folders" in text
    assert "Kind 001" in text
    assert contradiction(facts, of.class_names, 1, None) == ""


def test_a_folder_without_rows_is_told_where_names_repeat(tmp_path):
    root = write(tmp_path / "cars")
    rows = (root / "anno_test.csv").read_text().splitlines(keepends=True)
    (root / "anno_test.csv").write_text("".join(rows[:-3]))
    text = verdict(root)
    assert text.startswith("the classes of the test rows do not fit")
    assert "folder test/Fiat 500: 3 photos and no row" in text
    assert verdict(root, first_class=1) == ""


def test_a_class_whose_folder_is_absent_is_told_where_names_repeat(tmp_path):
    root = write(tmp_path / "cars")
    for photo in (root / "train" / NAMES[2]).iterdir():
        photo.unlink()
    text = verdict(root)
    assert "class 3 ('Fiat 500'): 3 rows and no photo" in text
    assert verdict(root, first_class=1) == ""


def test_no_more_than_a_few_examples_are_named(tmp_path):
    root = write(tmp_path / "cars", names=KINDS, folders=KINDS, photos=1, splits=("train",))
    rows = (root / "anno_train.csv").read_text().splitlines(keepends=True)
    (root / "anno_train.csv").write_text("".join(rows[:60]))
    text = verdict(root)
    assert text.count("photos and no row") == 3
    assert len(text) < 1000


# No row at all


def test_a_file_of_blank_lines_is_told(tmp_path):
    root = write(tmp_path / "cars", splits=("train",))
    (root / "anno_train.csv").write_text("\n \n\n")
    assert "anno_train.csv: no row in it. Each row is: filename" in verdict(root)


def test_where_no_row_can_be_used_the_first_is_shown(tmp_path):
    root = write(tmp_path / "cars", splits=("train",))
    lines = [f"lost {number}.jpg,1,2,30,40,1\n" for number in range(12)]
    (root / "anno_train.csv").write_text("".join(lines))
    text = verdict(root, first_class=1)
    assert "no row can be used, out of 12. The first is anno_train.csv row 1" in text
    assert "'train/Audi A4/lost 0.jpg': missing_photo: no such file" in text


@pytest.mark.parametrize("allowed", [0.0, 1.0])
def test_no_row_at_all_stops_the_job_whatever_may_be_rejected(tmp_path, allowed):
    root = write(tmp_path / "cars", splits=("train",))
    (root / "anno_train.csv").write_text("lost.jpg,1,2,30,40,1\n")
    facts, of = gather(root, max_rejected=allowed, first_class=1)
    assert "no row can be used" in pipeline.judge(facts, of)
