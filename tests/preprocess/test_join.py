"""A bucket of rows and photos: each row comes out once, good or with what is wrong with it."""

import time

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocess import tables
from preprocess.join import Joined, bucket_key, join, normalized

CLASSES = ["Audi", "BMW", "Fiat"]
LABELS = {"Audi": 1, "audi": 1, "BMW": 2, "Fiat": 3}  # "strange" fits no class
STAMP = 1_700_000_000_123_456_789  # a modification time in nanoseconds: no float64 holds it


def frame(values: list[dict], schema: pa.Schema) -> pd.DataFrame:
    """Has the types that the pipeline gives to `join`."""
    return pa.Table.from_pylist(values, schema).to_pandas()


def rows_of(*lines: dict, file: str = "anno_train.csv") -> pd.DataFrame:
    """Rows, numbered from 1 where they do not say otherwise."""
    usual = {"split": "train", "name": "1.jpg", "label": 1, "reason": "", "detail": ""}
    box = {"xmin": 1.0, "ymin": 2.0, "xmax": 30.0, "ymax": 40.0}
    return frame(
        [usual | box | {"file": file, "row": i} | line for i, line in enumerate(lines, 1)],
        tables.ROWS,
    )


def photos_of(*paths: str, **more) -> pd.DataFrame:
    """Photos at `…/split/folder/name`."""
    values = []
    for number, path in enumerate(paths):
        split, folder, name = path.split("/")[-3:]
        values.append(
            {"split": split, "folder": folder, "label": LABELS.get(folder, 0), "name": name,
             "relative": f"{split}/{folder}/{name}", "path": path, "size": 100 + number,
             "offset": 0, "stored": 100 + number, "stamp": STAMP + number, "problem": ""} | more
        )  # fmt: skip
    return frame(values, tables.PHOTOS)


def rejected(joined: Joined) -> list[tuple[int, str, str, str]]:
    """(row, reason, photo, detail) of each row set aside, by row."""
    columns = ["row", "reason", "photo", "detail"]
    return sorted(joined.rejected[columns].itertuples(index=False, name=None))


def only(joined: Joined) -> tuple[str, str, str]:
    """Reason, photo and detail of the one row, which is set aside."""
    assert not len(joined.good)
    ((_, *facts),) = rejected(joined)
    return tuple(facts)


def test_a_row_finds_its_photo_by_split_class_and_name():
    joined = join(
        rows_of(
            {"name": "1.jpg", "label": 2},
            {"name": "2.jpg", "label": 2},
            {"name": "1.jpg", "label": 1},
            {"name": "1.jpg", "label": 1, "split": "test", "file": "anno_test.csv"},
        ),
        photos_of(
            "cars/train/BMW/1.jpg", "cars/train/BMW/2.jpg", "cars/train/Audi/1.jpg",
            "cars/test/Audi/1.jpg",
        ),
        CLASSES,
    )  # fmt: skip
    assert not rejected(joined)
    found = joined.good.set_index(["file", "row"])
    assert found["path"].to_dict() == {
        ("anno_train.csv", 1): "cars/train/BMW/1.jpg",
        ("anno_train.csv", 2): "cars/train/BMW/2.jpg",
        ("anno_train.csv", 3): "cars/train/Audi/1.jpg",
        ("anno_test.csv", 4): "cars/test/Audi/1.jpg",
    }
    assert found["relative"].tolist() == [path[5:] for path in found["path"]]
    assert joined.unannotated == []


# float64 as soon as one row of the bucket finds no photo, and rounds them.
def test_what_is_known_of_a_photo_comes_through_whole_though_another_row_finds_none():
    photos = photos_of("train/Audi/1.jpg", "train/Audi/2.jpg", offset=2**53 + 1)
    joined = join(rows_of({"name": "1.jpg"}, {"name": "lost.jpg"}), photos, CLASSES)
    (good,) = joined.good[["size", "offset", "stored", "stamp"]].astype("int64").to_numpy().tolist()
    assert good == [100, 2**53 + 1, 100, STAMP]


def test_a_photo_that_is_nowhere_is_missing_and_its_place_is_named():
    reason, photo, detail = only(join(rows_of({"name": "9.jpg"}), photos_of(), CLASSES))
    assert (reason, photo) == ("missing_photo", "train/Audi/9.jpg")
    assert detail == "no such file in a train folder of 'Audi', class 1"


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("00001.jpg", "00001.jpeg"),
        ("00001.jpg", "00001.JPG"),
        ("00001.jpg", "00001.png"),
        ("IMG_1.jpg", "img_1.jpg"),
        ("straße.jpg", "STRASSE.JPG"),
        ("00001", "00001.jpg"),
    ],
)
def test_a_near_miss_is_named(name, there):
    photos = photos_of(f"cars/train/Audi/{there}", f"cars/train/BMW/{there}")
    reason, photo, detail = only(join(rows_of({"name": name}), photos, CLASSES))
    assert (reason, photo) == ("missing_photo", f"train/Audi/{name}")
    assert f"train/Audi/{there} is there" in detail
    assert "ending" in detail


@pytest.mark.parametrize("there", ["train/BMW/1.jpg", "train/strange/1.jpg"])
def test_a_photo_in_the_folder_of_another_class_is_named_with_both_classes(there):
    reason, photo, detail = only(join(rows_of({}), photos_of(there), CLASSES))
    assert (reason, photo) == ("wrong_folder", "train/Audi/1.jpg")
    assert "'Audi', class 1" in detail
    assert there in detail


def test_the_other_split_has_other_photos():
    reason, _, detail = only(join(rows_of({}), photos_of("test/Audi/1.jpg"), CLASSES))
    assert reason == "missing_photo"
    assert "train folder" in detail


def test_a_row_that_two_photos_fit_is_set_aside_with_both_and_neither_is_unannotated():
    photos = photos_of("a/train/Audi/1.jpg", "b/train/audi/1.jpg", "a/train/Audi/2.jpg")
    joined = join(rows_of({"name": "1.jpg"}, {"name": "2.jpg"}), photos, CLASSES)
    ((row, reason, photo, detail),) = rejected(joined)
    assert (row, reason, photo) == (1, "ambiguous", "train/Audi/1.jpg")
    assert "a/train/Audi/1.jpg and b/train/audi/1.jpg" in detail
    assert joined.good["row"].tolist() == [2]
    assert joined.unannotated == []


def test_the_first_of_two_rows_for_a_photo_is_kept_whatever_the_order_of_arrival():
    rows = rows_of({"xmin": 5.0}, {"xmin": 6.0}, {"xmin": 7.0})
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        joined = join(rows.iloc[order], photos_of("train/Audi/1.jpg"), CLASSES)
        assert joined.good[["row", "xmin"]].to_numpy().tolist() == [[1, 5.0]]
        assert [(row, reason) for row, reason, *_ in rejected(joined)] == [
            (2, "duplicate"),
            (3, "duplicate"),
        ]
        assert all("row 1 has a box" in detail for *_, detail in rejected(joined))


def test_a_row_that_cannot_be_used_takes_no_photo_away():
    inverted = {"xmin": 30.0, "xmax": 1.0}
    joined = join(rows_of(inverted, {}, {}), photos_of("train/Audi/1.jpg"), CLASSES)
    assert joined.good["row"].tolist() == [2]
    (first, third) = rejected(joined)
    assert first[:2] == (1, "box_inverted")
    assert third[:2] == (3, "duplicate")
    assert "row 2 has a box" in third[3]


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((30, 2, 1, 40), "(30, 2, 1, 40)"),
        ((1, 40, 30, 2), "(1, 40, 30, 2)"),
        ((1.5, 2, 1.5, 40), "(1.5, 2, 1.5, 40)"),
        ((1, 2, 30, 2), "(1, 2, 30, 2)"),
    ],
)
def test_an_inverted_or_empty_box_is_shown(box, says):
    line = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True))
    reason, photo, detail = only(join(rows_of(line), photos_of("train/Audi/1.jpg"), CLASSES))
    assert (reason, photo) == ("box_inverted", "train/Audi/1.jpg")
    assert says in detail


def test_a_photo_that_the_source_refuses_costs_its_row_and_says_why():
    photos = photos_of("train/Audi/1.jpg", problem="a symbolic link that leads out, to /etc")
    assert only(join(rows_of({}), photos, CLASSES)) == (
        "unsafe_path", "train/Audi/1.jpg", "a symbolic link that leads out, to /etc",
    )  # fmt: skip


def test_a_row_that_has_a_reason_already_keeps_it_even_where_its_photo_exists():
    rows = rows_of(
        {"name": "1.jpg", "label": 0, "reason": "unknown_class", "detail": "class 9 is not in it"},
        {"name": "s.jpg", "label": 0, "reason": "bad_row", "detail": "5 values", "xmin": None},
    )
    joined = join(rows, photos_of("train/Audi/1.jpg", "train/strange/s.jpg"), CLASSES)
    assert rejected(joined) == [
        (1, "unknown_class", "1.jpg", "class 9 is not in it"),
        (2, "bad_row", "s.jpg", "5 values"),
    ]
    assert joined.unannotated == ["train/Audi/1.jpg", "train/strange/s.jpg"]


def test_names_in_two_unicode_forms_are_one_name_once_they_are_normalized():
    composed, decomposed = "Citroën.jpg", "Citroe\u0308n.jpg"
    assert composed != decomposed
    assert normalized(composed) == normalized(decomposed)
    assert bucket_key(normalized(composed)) == bucket_key(normalized(decomposed))
    photos = photos_of(f"train/Audi/{decomposed}")
    photos["name"] = photos["name"].map(normalized)
    joined = join(rows_of({"name": normalized(composed)}), photos, CLASSES)
    assert joined.good["path"].tolist() == [f"train/Audi/{decomposed}"]


def test_a_photo_that_no_row_names_is_unannotated_and_other_files_are_not():
    photos = photos_of(
        "train/Audi/1.jpg", "train/Audi/2.JPEG", "train/Audi/3.png", "train/Audi/notes.txt",
        "train/strange/4.webp", "train/Audi/jpg",
    )  # fmt: skip
    joined = join(rows_of({}), photos, CLASSES)
    assert joined.unannotated == ["train/Audi/2.JPEG", "train/Audi/3.png", "train/strange/4.webp"]


def test_classes_count_rows_that_have_a_class_and_those_that_found_a_photo():
    rows = rows_of(
        {"name": "1.jpg"},
        {"name": "2.jpg"},
        {"name": "1.jpg", "label": 2},
        {"name": "1.jpg", "split": "test", "file": "anno_test.csv"},
        {"name": "1.jpg", "label": 0, "reason": "unknown_class", "detail": "class 9"},
    )
    joined = join(rows, photos_of("train/Audi/1.jpg", "test/Audi/1.jpg"), CLASSES)
    assert sorted(joined.classes.itertuples(index=False, name=None)) == [
        ("test", 1, 1, 1),
        ("train", 1, 2, 1),
        ("train", 2, 1, 0),
    ]


def test_folders_count_photos_and_those_that_a_row_names():
    photos = photos_of(
        "a/train/Audi/1.jpg", "a/train/Audi/2.jpg", "a/train/BMW/1.jpg", "b/train/BMW/1.jpg",
        "a/train/strange/1.jpg", "a/test/Audi/1.jpg",
    )  # fmt: skip
    rows = rows_of({"name": "1.jpg"}, {"name": "1.jpg", "label": 2})
    joined = join(rows, photos, CLASSES)
    assert sorted(joined.folders.itertuples(index=False, name=None)) == [
        ("test", "Audi", 1, 1, 0),
        ("train", "Audi", 1, 2, 1),
        ("train", "BMW", 2, 2, 2),  # both photos of the row that two fit
        ("train", "strange", 0, 1, 0),
    ]


def test_shared_counts_names_that_stand_in_several_folders_of_a_split():
    photos = photos_of(
        "train/Audi/1.jpg", "train/BMW/1.jpg", "train/Fiat/1.jpg",  # one name, three folders
        "train/Audi/2.jpg", "test/Audi/2.jpg",  # two splits
        "train/Audi/3.jpg", "copy/train/Audi/3.jpg",  # one folder
        "test/Audi/4.jpg", "test/BMW/4.jpg",
    )  # fmt: skip
    assert join(rows_of(), photos, CLASSES).shared == {"train": 1, "test": 1}


def test_a_bucket_may_lack_rows_or_photos_or_both():
    nothing = join(rows_of(), photos_of(), CLASSES)
    assert not len(nothing.good)
    assert not len(nothing.rejected)
    assert nothing.unannotated == []
    assert join(rows_of(), photos_of("train/Audi/1.jpg"), CLASSES).unannotated
    assert len(join(rows_of({}, {"name": "2.jpg"}), photos_of(), CLASSES).rejected) == 2


names = st.sampled_from(["1.jpg", "1.JPG", "1.jpeg", "ë.jpg", "notes.txt", "1"])
splits = st.sampled_from(["train", "test"])
row_lines = st.fixed_dictionaries(
    {"name": names, "split": splits, "xmin": st.sampled_from([1.0, 30.0, 50.0])},
    optional={"reason": st.sampled_from(["unknown_class", "bad_row", "class_zero"])},
).flatmap(
    lambda line: (
        st.just(line | {"label": 0, "detail": "why"})
        if "reason" in line
        else st.integers(1, 3).map(lambda label: line | {"label": label})
    )
)
photo_paths = st.tuples(
    st.sampled_from(["", "a/"]), splits, st.sampled_from([*LABELS, "strange"]), names
).map(lambda parts: f"{parts[0]}{parts[1]}/{parts[2]}/{parts[3]}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(row_lines, max_size=8),
    st.lists(photo_paths, max_size=10, unique=True),
    st.sets(st.integers(0, 9), max_size=2),
    st.randoms(use_true_random=False),
)
@example([{"name": "1.jpg", "split": "train", "xmin": 1.0, "label": 1}], [], set(), None)
def test_every_row_comes_out_exactly_once(lines, paths, refused, random):
    rows = rows_of(*lines)
    photos = photos_of(*paths)
    photos.loc[[i for i in refused if i < len(paths)], "problem"] = "refused"
    order = list(range(len(rows)))
    if random:
        random.shuffle(order)
    joined = join(rows.iloc[order], photos, CLASSES)

    assert sorted([*joined.good["row"], *joined.rejected["row"]]) == rows["row"].tolist()
    assert joined.rejected["reason"].ne("").all()
    assert joined.rejected["detail"].ne("").all()
    assert joined.rejected["photo"].ne("").all()
    # A good row has a photo of its own, of its split, class and name, and a box.
    assert joined.good["path"].is_unique
    assert joined.good["problem"].eq("").all()
    assert (joined.good["xmin"] < joined.good["xmax"]).all()
    for good in joined.good.itertuples():
        split, folder, name = good.path.split("/")[-3:]
        asked = lines[good.row - 1]
        assert (split, LABELS[folder], name) == (asked["split"], asked["label"], asked["name"])
    # A reason that was there stays; a row without a photo is never good.
    given_reasons = {i: line["reason"] for i, line in enumerate(lines, 1) if "reason" in line}
    found = dict(zip(joined.rejected["row"], joined.rejected["reason"], strict=True))
    assert given_reasons.items() <= found.items()
    # Every row with a class is counted once, and every photo.
    assert joined.classes["total"].sum() == len(lines) - len(given_reasons)
    num_photos = sum(path.lower().endswith(("jpg", "jpeg")) for path in paths)
    assert num_photos <= joined.folders["total"].sum() <= len(paths)
    assert not set(joined.unannotated) & set(joined.good["relative"])
    # And the order of arrival makes no difference.
    again = join(rows, photos.iloc[::-1], CLASSES)
    pd.testing.assert_frame_equal(again.good, joined.good)
    pd.testing.assert_frame_equal(again.rejected, joined.rejected)
    assert again.unannotated == joined.unannotated


@pytest.mark.parametrize("kind", ["missing", "near", "wrong_folder", "duplicate", "inverted",
                                  "ambiguous", "unsafe"])  # fmt: skip
def test_many_rejected_rows_take_little_time(kind):
    count = 20_000
    lines = [{"name": f"{i}.jpg"} for i in range(count)]
    root, folder, more = "", "Audi", {}
    if kind == "missing":
        folder, lines = "Audi", [{"name": f"other {i}.jpg"} for i in range(count)]
    elif kind == "near":
        lines = [{"name": f"{i}.JPG"} for i in range(count)]
    elif kind == "wrong_folder":
        folder = "BMW"
    elif kind == "duplicate":
        lines = [{"name": f"{i // 2}.jpg"} for i in range(2 * count)]
    elif kind == "inverted":
        lines = [line | {"xmin": 99.0} for line in lines]
    elif kind == "unsafe":
        more = {"problem": "refused"}
    paths = [f"{root}train/{folder}/{i}.jpg" for i in range(count)]
    if kind == "ambiguous":
        paths += [f"b/{path}" for path in paths]
    rows, photos = rows_of(*lines), photos_of(*paths, **more)
    started = time.process_time()
    joined = join(rows, photos, CLASSES)
    assert time.process_time() - started < 2
    assert len(joined.rejected) == count
