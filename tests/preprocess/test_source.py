"""The CSV parser, the matching of classes with folders, and the join."""

import io
import shutil
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import source, storage
from tests.preprocess import photo_sets
from tfrecords.errors import UserError


def parse(data: bytes, num_classes: int = 3) -> tuple[list[dict], list[dict]]:
    good, bad = source.parse_annotations(io.BytesIO(data), "anno_train.csv", num_classes)
    return good.to_pylist(), bad.to_pylist()


def load(path, **more) -> source.Dataset:
    return source.load(storage.open_source(str(path)), **more)


ROW = {"file": "anno_train.csv", "name": "a.jpg", "xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}


@pytest.mark.parametrize(
    "data",
    [
        b"a.jpg,1,2,30,40,3",
        b"a.jpg,1,2,30,40,3\n",
        b"a.jpg,1,2,30,40,3\r\n",
        b"a.jpg,1,2,30,40,3\r",
        b"\xef\xbb\xbfa.jpg,1,2,30,40,3\n",
        "a.jpg,1,2,30,40,3\n".encode("utf-16"),
        b'"a.jpg","1","2","30","40","3"\n',
        b' "a.jpg" , "1",2,30,40,"3" \n',
        b" a.jpg , 1 ,2\t, 30, 40.0 ,3.0\n",
        b"a.jpg,1.0,+2,3e1,40.000,3\n",
    ],
)
def test_one_row_in_every_dress_is_the_same_row(data):
    assert parse(data) == ([ROW | {"row": 1, "label": 3}], [])


def test_header_and_blank_lines_count_as_lines_but_give_no_rows():
    good, bad = parse(b"filename,xmin,ymin,xmax,ymax,class\n\na.jpg,1,2,30,40,3\n ,,,,, \n\n")
    assert [row["row"] for row in good] == [3]
    assert bad == []


def test_only_the_first_row_can_be_a_header():
    good, bad = parse(b"a.jpg,1,2,30,40,3\nfilename,xmin,ymin,xmax,ymax,class\n")
    assert len(good) == 1
    assert [(row["row"], row["reason"]) for row in bad] == [(2, "bad_row")]


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        ("a.jpg,1,2,30,40", "bad_row", "5 values instead of 6"),
        ("a.jpg,1,2,30,40,3,7", "bad_row", "7 values instead of 6"),
        ("a.jpg;1;2;30;40;3", "bad_row", "1 values instead of 6"),
        ("a.jpg,1,zwei,30,40,3", "bad_row", "'zwei'"),
        (",1,2,30,40,3", "bad_row", "no file name"),
        ("a.jpg,nan,2,30,40,3", "bad_row", "nan"),
        ("a.jpg,1,2,inf,40,3", "bad_row", "inf"),
        ("a.jpg,1,2,30,1e300,3", "bad_row", "1e300"),
        ("a.jpg,1,2,30,40,0", "unknown_class", "class 0 is not in names.csv, which has 1 to 3"),
        ("a.jpg,1,2,30,40,4", "unknown_class", "class 4"),
        ("a.jpg,1,2,30,40,2.5", "unknown_class", "class 2.5"),
        ('"a.jpg,1,2,30,40,3', "bad_row", "1 values instead of 6"),
    ],
)
def test_a_bad_row_is_named_and_costs_no_good_one(line, reason, says):
    good, bad = parse(f"b.jpg,1,2,3,4,1\n{line}\nc.jpg,1,2,3,4,1\n".encode())
    assert [row["name"] for row in good] == ["b.jpg", "c.jpg"]
    assert [(row["row"], row["reason"]) for row in bad] == [(2, reason)]
    assert says in bad[0]["detail"]


def test_names_in_an_old_encoding_are_read():
    good, _ = parse("Citroën.jpg,1,2,3,4,1\nb.jpg,1,2,3,4,1\n".encode("cp1252"))
    assert [row["name"] for row in good] == ["Citroën.jpg", "b.jpg"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_rows_or_reasons_and_no_error(data):
    try:
        good, bad = parse(data)
    except UserError:
        assert data[:2] in (b"\xff\xfe", b"\xfe\xff")  # it says UTF-16 and is not
        return
    lines = [row["row"] for row in good + bad]
    assert len(lines) == len(set(lines))
    assert all(1 <= row["label"] <= 3 and row["name"] for row in good)
    assert all(row["detail"] for row in bad)


plain_name = st.text("abcdefgXYZ 0123456789._-ëß", min_size=1, max_size=12).filter(str.strip)
number = st.one_of(st.integers(-5000, 5000), st.decimals(-5000, 5000, places=3)).map(str)
good_line = st.tuples(plain_name, number, number, number, number, st.integers(1, 3).map(str))
ragged_line = st.lists(st.text("ab1,;\t\" .'", max_size=6), max_size=9).map(",".join)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(good_line, ragged_line), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_good_rows_survive_whatever_stands_between_them(lines, end, quoted, mark):
    """A header-like first line aside, each good line gives its row, with its number."""
    lines = [("first.jpg", "1", "2", "3", "4", "1"), *lines]
    texts = [
        ",".join(f'"{value}"' if quoted else value for value in line)
        if isinstance(line, tuple)
        else line
        for line in lines
    ]
    data = end.join(texts).encode("utf-8-sig" if mark else "utf-8")
    good, _ = parse(data)
    found = {row["row"]: row for row in good}
    for position, line in enumerate(lines, 1):
        if isinstance(line, tuple):
            row = found[position]
            assert row["name"] == line[0].strip()
            assert [row[side] for side in ("xmin", "ymin", "xmax", "ymax")] == [
                float(value) for value in line[1:5]
            ]
            assert row["label"] == int(line[5])


def test_rows_keep_their_numbers_across_chunks(monkeypatch):
    monkeypatch.setattr(source, "_CHUNK_CHARACTERS", 30)
    good, bad = parse(b"".join(b"%d.jpg,1,2,3,4,%d\n" % (i, i % 4) for i in range(1, 12)))
    assert [(row["row"], row["name"]) for row in good] == [
        (i, f"{i}.jpg") for i in range(1, 12) if i % 4
    ]
    assert [row["row"] for row in bad] == [4, 8]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(good_line.map(",".join), ragged_line), min_size=1, max_size=6))
def test_the_fast_way_through_the_parser_gives_what_the_slow_one_does(lines):
    data = "\n".join(lines).encode()
    fast = parse(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_parse_ordinary", lambda *_: None)
        assert parse(data) == fast


def test_plain_rows_take_the_fast_way(monkeypatch):
    monkeypatch.setattr(source, "_parse_row", lambda *_: pytest.fail("the slow way"))
    assert len(parse(b"a.jpg,1,2.5,30,40,3\nb.jpg, 1,-2,30,40,1.0")[0]) == 2


def test_names_may_hold_commas_with_or_without_quotes():
    data = b'\xef\xbb\xbf"BMW M3, 2012"\r\n\r\nAudi, TT\r\n"Say ""Ah"" 2012"\r\n'
    assert source.parse_names(data, "names.csv") == ["BMW M3, 2012", "Audi, TT", 'Say "Ah" 2012']


def test_a_header_in_names_is_no_class():
    assert source.parse_names(b"class_name\nAudi\n", "names.csv") == ["Audi"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "names.csv is empty"),
        (b"A\nB\nA\n", "names.csv row 3: class name 'A' is that of row 1"),
    ],
)
def test_unusable_names_are_refused(data, says):
    with pytest.raises(UserError, match=says):
        source.parse_names(data, "names.csv")


@pytest.mark.parametrize(
    "folder",
    ["Ram C/V Van", "Ram C-V Van", "Ram C_V Van", "Ram CV Van", "Ram C V Van", "Ram C%2FV Van",
     "Ram C∕V Van", "ram c-v van", "Ram C-V Van "],
)  # fmt: skip
def test_a_folder_is_found_however_a_file_system_spelled_it(folder):
    assert source.match_folders(["Audi", "Ram C/V Van"], [folder]) == {folder: 2}


def test_an_exact_name_wins_over_a_similar_one():
    names = ["A/B", "A-B", "a-b"]
    found = source.match_folders(names, ["A-B", "A_B", "a-b", "AB", "other"])
    assert found == {"A-B": 2, "A_B": 1, "a-b": 3, "AB": 1}


def test_accents_match_in_either_unicode_form():
    assert source.match_folders(["Citroën"], ["Citroe\u0308n"]) == {"Citroe\u0308n": 1}


def test_a_folder_that_fits_two_classes_is_refused():
    with pytest.raises(UserError, match=r"'A_B' fits two classes of .*'A/B' and 'A:B'"):
        source.match_folders(["A/B", "A:B"], ["A_B"])


def test_the_join_finds_every_photo(tmp_path):
    dataset = load(photo_sets.write(tmp_path / "cars"))
    assert {name: len(rows.table) for name, rows in dataset.rows.items()} == {
        "train": 24,
        "test": 6,
    }
    assert (dataset.num_rows, dataset.unannotated, len(dataset.rejected)) == (30, 0, 0)
    for split, rows in dataset.rows.items():
        for row in rows.table.to_pylist():
            path = dataset.listing.path[row["photo"]].as_py()
            assert path == f"car_data/{split}/{photo_sets.FOLDERS[row['label'] - 1]}/{row['name']}"


def test_each_row_that_cannot_be_used_says_why(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    csv = root / "anno_train.csv"
    photo_sets.replace_row(csv, 2, "../../x.jpg,1,2,30,40,3")
    photo_sets.replace_row(csv, 3, "/etc/passwd,1,2,30,40,1")
    photo_sets.replace_row(csv, 4, "99999.jpg,1,2,30,40,2")
    photo_sets.replace_row(csv, 5, "00005.jpg,1,2,30,40,1")
    photo_sets.replace_row(csv, 6, "00006.jpg,30,2,1,40,1")
    photo_sets.replace_row(csv, 7, "00001.jpg,1,2,30,40,2")
    photo_sets.replace_row(csv, 8, "C:\\x.jpg,1,2,30,40,2")
    dataset = load(root)
    reasons = {row["row"]: (row["reason"], row["photo"], row["detail"])
               for row in dataset.rejected.to_pylist()}  # fmt: skip
    assert {row: why[0] for row, why in reasons.items()} == {
        2: "unsafe_path",
        3: "unsafe_path",
        4: "missing_photo",
        5: "wrong_folder",
        6: "box_inverted",
        7: "duplicate",
        8: "unsafe_path",
    }
    assert "'Audi TTS Coupe 2012', class 1" in reasons[5][2]
    assert "train/BMW M3, 2012/00005.jpg" in reasons[5][2]
    assert "box (30, 2, 1, 40)" in reasons[6][2]
    assert reasons[6][1] == "train/Audi TTS Coupe 2012/00006.jpg"
    assert "row 1 " in reasons[7][2]
    # The photos of rows 2, 3, 4, 5, 7 and 8: no usable row names them.
    assert dataset.unannotated == 6
    assert dataset.num_rows == 30


def test_a_row_that_two_photos_fit_is_set_aside_with_both(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    copied = f"train/{photo_sets.FOLDERS[1]}/00004.jpg"
    (root / "thumbnails" / copied).parent.mkdir(parents=True)
    (root / "thumbnails" / copied).write_bytes(photo_sets.photo(6, 8))
    dataset = load(root)
    (rejected,) = dataset.rejected.to_pylist()
    assert (rejected["row"], rejected["reason"]) == (4, "ambiguous")
    assert f"car_data/{copied} and thumbnails/{copied}" in rejected["detail"]
    assert len(dataset.rows["train"].table) == 23


def test_file_names_match_in_either_unicode_form(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    path = photo_sets.path_of(root, "train", 4)
    path.rename(path.with_name("Citroe\u0308n.jpg"))
    photo_sets.replace_row(root / "anno_train.csv", 4, "Citroën.jpg,1,2,30,40,2")
    dataset = load(root)
    assert (len(dataset.rejected), dataset.unannotated) == (0, 0)


def test_photos_without_a_row_are_counted_and_other_files_are_not(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    folder = root / "car_data" / "train" / photo_sets.FOLDERS[0]
    (folder / "extra.jpg").write_bytes(photo_sets.photo())
    (folder / "notes.txt").write_text("no photo")
    (folder / ".DS_Store").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "anno_train.csv").write_bytes(b"x")
    dataset = load(root)
    assert dataset.unannotated == 1
    assert len(dataset.rejected) == 0


def test_limit_takes_the_first_rows_of_each_file(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    photo_sets.replace_row(root / "anno_train.csv", 2, "broken")
    dataset = load(root, limit=4)
    assert dataset.rows["train"].table["row"].to_pylist() == [1, 3, 4]
    assert dataset.rows["test"].table["row"].to_pylist() == [1, 2, 3, 4]
    assert dataset.num_rows == 8
    assert dataset.unannotated == 1


def test_the_fingerprint_is_that_of_the_data_wherever_it_lies(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    first = load(root)
    zipped = load(photo_sets.zipped(root, tmp_path / "some.zip"))
    copy = load(shutil.copytree(root, tmp_path / "deep" / "copy", copy_function=shutil.copyfile))
    assert first.fingerprint == zipped.fingerprint == copy.fingerprint
    assert first.stamp != copy.stamp  # other times: no proof that nothing changed
    photo_sets.path_of(root, "train", 3).write_bytes(photo_sets.photo(seed=77) + b"longer")
    assert load(root).fingerprint != first.fingerprint
    photo_sets.replace_row(copy_csv := tmp_path / "deep/copy/anno_test.csv", 1, "x")
    assert load(copy_csv.parent).fingerprint != first.fingerprint


def write_annotations(root, text):
    for split in ("train", "test"):
        (root / f"anno_{split}.csv").write_text(text)


def two_data_sets(root):
    shutil.copytree(root, root.parent / "one")
    shutil.rmtree(root)
    shutil.copytree(root.parent / "one", root / "a")
    shutil.copytree(root.parent / "one", root / "b")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "names.csv").unlink(), "names.csv is missing"),
        (lambda root: (root / "names.csv").write_text(" \n"), "names.csv is empty"),
        (
            lambda root: [(root / f"anno_{split}.csv").unlink() for split in ("train", "test")],
            "anno_train.csv and anno_test.csv are missing or empty",
        ),
        (
            lambda root: write_annotations(root, ""),
            "anno_train.csv and anno_test.csv are missing or empty",
        ),
        (lambda root: write_annotations(root, "\n\n"), "no row in it"),
        (
            lambda root: write_annotations(root, "a.jpg,1,2\n"),
            "anno_train.csv row 1, 'a.jpg': bad_row: 3 values instead of 6",
        ),
        (lambda root: shutil.rmtree(root / "car_data"), "there are no photos"),
        (two_data_sets, "two files could be names.csv: a/names.csv and b/names.csv"),
    ],
)
def test_an_unusable_data_set_is_refused_with_what_to_do(tmp_path, spoil, says):
    root = photo_sets.write(tmp_path / "cars")
    spoil(root)
    with pytest.raises(UserError, match=says):
        load(root)


def test_a_csv_that_its_zip_cannot_give_is_named(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    zipped = photo_sets.zipped(root, tmp_path / "cars.zip", zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"names\.csv cannot be read: .*method 14"):
        source.load(storage.open_source(str(zipped)))


def test_one_annotation_file_is_enough(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    (root / "anno_test.csv").write_text("")
    dataset = load(root)
    assert list(dataset.rows) == ["train"]
    assert any("anno_test.csv is empty" in note for note in dataset.notes)
