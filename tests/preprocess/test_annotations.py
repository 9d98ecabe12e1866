"""names.csv, the layout of an annotation CSV, its rows, and the matching of folders."""

import io
import pickle
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import annotations
from preprocess.annotations import Layout, read_layout, read_rows
from preprocess.folders import match_folders
from preprocess.names import read_names
from tfrecords.errors import UserError

CLASSES = ["Audi A4", "BMW M3, 2012", "Citroën C/4"]
FILE = "anno_train.csv"
HEADER = "filename,xmin,ymin,xmax,ymax,class\n"


def layout_of(data: bytes | str, classes: list[str] = CLASSES, split: str = "train") -> Layout:
    return read_layout(data.encode() if isinstance(data, str) else data, FILE, split, classes)


def frame(data, layout=None, classes=CLASSES, first_class=None, chunk_rows=1 << 16) -> pd.DataFrame:
    data = data.encode() if isinstance(data, str) else data
    layout = layout or layout_of(data, classes)
    frames = list(read_rows(io.BytesIO(data), layout, classes, first_class, chunk_rows))
    assert all(0 < len(some) <= chunk_rows for some in frames)
    empty = pd.DataFrame(columns=annotations.FRAME_COLUMNS)
    return pd.concat(frames, ignore_index=True) if frames else empty


def good(data, **more) -> list[tuple]:
    """The usable rows without reason and detail; there are no others."""
    rows = frame(data, **more)
    assert rows["reason"].tolist() == [""] * len(rows), rows["detail"].tolist()
    return list(rows[annotations.FRAME_COLUMNS[:7]].itertuples(index=False, name=None))


def reasons(data, **more) -> dict[int, tuple[str, str]]:
    rows = frame(data, **more)
    bad = rows[rows["reason"] != ""]
    assert (bad["label"] == 0).all()
    return {row.row: (row.reason, row.detail) for row in bad.itertuples()}


ROW = ("a.jpg", 1, 2, 30, 40, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"a.jpg,1,2,30,40,3",
        b"a.jpg,1,2,30,40,3\n",
        b"a.jpg,1,2,30,40,3\r\n",
        b"a.jpg,1,2,30,40,3\r",
        b"\xef\xbb\xbfa.jpg,1,2,30,40,3\n",
        "a.jpg,1,2,30,40,3\n".encode("utf-16"),
        "a.jpg,1,2,30,40,3\n".encode("utf-16-le"),
        "a.jpg,1,2,30,40,3\n".encode("utf-16-be"),
        b'"a.jpg","1","2","30","40","3"\n',
        b' "a.jpg" , "1",2,30,40,"3" \n',
        b" a.jpg , 1 ,2\t, 30, 40.0 ,3.0\n",
        b"a.jpg,1.0,+2,3e1,40.000,3\n",
        b"a.jpg;1,0;2;30,00;40;3\n",
        b'"a.jpg";"1,0";"2,0";"30,00";"40,0";"3"\n',
        b"a.jpg\t1\t2\t30\t40\t3\n",
        b"a.jpg,1,2,30,40,3,\n",
        "a.jpg,1,2,30,40,Citroën C/4\n".encode(),
        "a.jpg,1,2,30,40,Citroe\u0308n C/4\n".encode(),
        "a.jpg,1,2,30,40,Citroën C/4\n".encode("cp1252"),
        "a.jpg,1,2,30,40,citroën_c-4\n".encode(),
        b"C:\\Users\\me\\a.jpg,1,2,30,40,3\n",
        b"/home/me/photos/a.jpg,1,2,30,40,3\n",
        b"../photos/a.jpg,1,2,30,40,3\n",
        b"./a.jpg,1,2,30,40,3\n",
        "car_data/train/Citroën C-4/a.jpg,1,2,30,40,3\n".encode(),
    ],
)
def test_one_row_in_every_dress_is_the_same_row(data):
    assert good(data) == [(1, *ROW)]


@pytest.mark.parametrize(
    "data",
    [
        HEADER + "a.jpg,1,2,30,40,3\n",
        "fname,bbox_x1,bbox_y1,bbox_x2,bbox_y2,class\na.jpg,1,2,30,40,3\n",
        "bbox_x1,bbox_y1,bbox_x2,bbox_y2,class,fname\n1,2,30,40,3,a.jpg\n",
        "Image Name,X-Min,Y_MIN,'xmax',\"y max\",Class ID\na.jpg,1,2,30,40,3\n",
        "filename,ymin,xmin,ymax,xmax,class\na.jpg,2,1,40,30,3\n",
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,3,1,2,30,40\n",
        ",filename,xmin,ymin,xmax,ymax,class\n7,a.jpg,1,2,30,40,3\n",
        "Unnamed: 0,file,left,top,right,bottom,label\n0,a.jpg,1,2,30,40,3\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,90,80,3,1,2,30,40\n",
        "filename,x,y,width,height,class\na.jpg,1,2,29,38,3\n",
        "filename,xmin,ymin,w,h,class\na.jpg,1,2,29,38,3\n",
        "filename,width,height,x,y,bbox_w,bbox_h,class\na.jpg,90,80,1,2,29,38,3\n",
        "filename,x_center,y_center,width,height,class\na.jpg,15.5,21,29,38,3\n",
        "image,x0,y0,x1,y1,class\na.jpg,1,2,30,40,3\n",
        "name,xmin,ymin,xmax,ymax,class\na.jpg,1,2,30,40,3\n",
        "filename,xmin,ymin,xmax,ymax,name\na.jpg,1,2,30,40,Citroën C/4\n",
        "filename,xmin,ymin,xmax,ymax,class,class_name\na.jpg,1,2,30,40,9,Citroën C/4\n",
        "filename;xmin;ymin;xmax;ymax;class\na.jpg;1,0;2,0;30,0;40,0;3\n",
        "filename\txmin\tymin\txmax\tymax\tclass\na.jpg\t1\t2\t30\t40\t3\n",
        "0,1,2,3,4,5\na.jpg,1,2,30,40,3\n",
        ",0,1,2,3,4,5\n0,a.jpg,1,2,30,40,3\n",
    ],
)
def test_columns_go_by_their_header(data):
    assert good(data) == [(2, *ROW)]


BELOW = ["a.jpg,1,2,30,40,3\n", "x,ymin,xmin,ymax,xmax,class\nx,2,1,4,3,1\n"]


@pytest.mark.parametrize(
    ("first", "rest"),
    [(first, rest) for first in ("# made by a tool, 1.2", "My cars", "sep=;") for rest in BELOW]
    + [("a.jpg,1,2,,4,1", BELOW[1])],
)
def test_a_first_line_that_is_neither_header_nor_row_is_refused(first, rest):
    with pytest.raises(UserError, match=r"row 1: .*(names no column|Add a first line)"):
        layout_of(f"{first}\n{rest}")


def test_values_that_no_header_names_are_bad_rows():
    rows = HEADER + "1,a.jpg,1,2,30,40,3\n2,b.jpg,1,2,30,40,3\n"  # as R writes row names
    assert [reason for reason, _ in reasons(rows).values()] == ["bad_row", "bad_row"]
    with pytest.raises(UserError, match=r"7 values instead of 6.*Add a first line"):
        layout_of("4,a.jpg,1,2,30,40,1\n5,b.jpg,1,2,30,40,2\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("filename,xmin,ymin,xmax,class\na.jpg,1,2,3,1\n", "no column for ymax.*Understood are"),
        ("foto,links,oben,rechts,unten,art\na.jpg,1,2,3,4,1\n", "row 1: .*no column for filename"),
        ("filename,xmin,x1,ymin,xmax,ymax,class\n", "two columns for xmin, 'xmin' and 'x1'"),
        (f"{HEADER.strip()},label\n", "two columns for class, 'class' and 'label'"),
        ("Audi A4,a.jpg,1,2,3,4\n", "no header, and by the order .* the first row does not fit"),
        ("1,2,30,40,3,a.jpg\n", "no header, and by the order .* the first row does not fit"),
        ("a.jpg,90,80,Audi A4,1,2,30,40\n", "8 values instead of 6"),
        ("a.jpg,1,2\n", "row 1: .*3 values instead of 6"),
        ("a.jpg,2,1,5,60,88\n" * 4, "no class is one of names.csv, which has 1 to 3"),
        ("a.jpg,0.5,0.6,0.2,0.3,1\n" * 4, "4 of the first 4 boxes have xmin >= xmax"),
        ("filename,x,y,width,height,class\na.jpg,0.5,0.6,0.2,0.3,1\n", "corner or its center"),
    ],
)  # fmt: skip
def test_what_fits_nothing_or_two_things_is_refused_with_the_remedy(data, says):
    with pytest.raises(UserError, match=f"{FILE}.*{says}"):
        layout_of(data)


def test_the_layout_says_how_the_file_is_read_and_travels():
    layout = layout_of("fname;note;x;y;w;h;class_name\na.jpg;old;1,5;2;3;4;Audi A4\n")
    assert layout.describe() == (
        "anno_train.csv: columns by header (fname, x, y, w, h, class_name), ignored: note, box from"
        " xmin, ymin, width, height, class by name, values separated by semicolons, decimal commas"
    )
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert layout_of("a.jpg,1,2,3,4,1\n").describe() == (
        "anno_train.csv: columns by place (filename, xmin, ymin, xmax, ymax, class),"
        " class by number"
    )


def test_header_and_blank_lines_count_as_lines_but_give_no_rows():
    assert good("\n" + HEADER + "\na.jpg,1,2,30,40,3\n ,,,,, \n\n") == [(4, *ROW)]


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"\xff\xfe", HEADER.encode()])
def test_a_file_without_rows_gives_no_frames(data):
    assert len(frame(data)) == 0


def test_only_the_first_row_can_be_a_header():
    assert reasons("a.jpg,1,2,30,40,3\n" + HEADER)[2][0] == "bad_row"


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        ("a.jpg,1,2,30,40", "bad_row", "5 values instead of 6"),
        ("a.jpg,1,2,30,40,3,7", "bad_row", "7 values instead of 6"),
        ("a.jpg;1;2;30;40;3", "bad_row", "1 values instead of 6"),
        ("a.jpg,1,zwei,30,40,3", "bad_row", "'zwei'"),
        ("a.jpg,1,1_000,30,40,3", "bad_row", "'1_000' is not a number"),
        (",1,2,30,40,3", "bad_row", "no file name"),
        ("photos/..,1,2,30,40,3", "bad_row", "no file name"),
        ("train/Audi A4/,1,2,30,40,1", "bad_row", "no file name"),
        ("a\0.jpg,1,2,30,40,3", "bad_row", "no file name"),
        ("a.jpg,1,2,30,40,", "bad_row", "no class"),
        ("a.jpg,nan,2,30,40,3", "bad_row", "nan"),
        ("a.jpg,1,2,inf,40,3", "bad_row", "inf"),
        ("a.jpg,1,2,30,1e300,3", "bad_row", "1e300"),
        ("a.jpg,1,2,30,40,0", "class_zero", "class 0 is not in names.csv, which has 1 to 3"),
        ("a.jpg,1,2,30,40,4", "unknown_class", "class 4"),
        ("a.jpg,1,2,30,40,-1", "unknown_class", "class -1"),
        ("a.jpg,1,2,30,40,2.5", "unknown_class", "class 2.5"),
        ("a.jpg,1,2,30,40,1e999", "unknown_class", "class 1e999"),
        ("a.jpg,1,2,30,40,Audi A4", "unknown_class", "'Audi A4' is not a number"),
        ("train/Audi A4/a.jpg,1,2,30,40,2", "bad_row", "class 'BMW M3, 2012', .* 'Audi A4'"),
        ("C:\\test\\Audi A4\\a.jpg,1,2,30,40,1", "bad_row", "path says test, .* of train"),
        ("../test/a.jpg,1,2,30,40,1", "bad_row", "path says test, .* of train"),
        ('"a.jpg,1,2,30,40,3', "bad_row", "1 values instead of 6"),
        ('"a.jpg"x,1,2,"30"3",40,3', "bad_row", "is not a number|values instead"),
    ],
)
def test_a_bad_row_is_named_and_costs_no_good_one(line, reason, says):
    rows = frame(f"b.jpg,1,2,3,4,1\n{line}\nc.jpg,1,2,3,4,1\n")
    assert rows["name"].iloc[[0, 2]].tolist() == ["b.jpg", "c.jpg"]
    assert rows["reason"].tolist() == ["", reason, ""]
    assert rows["label"].tolist() == [1, 0, 1]
    assert pd.Series(rows["detail"][1:2]).str.contains(says).all(), rows["detail"][1]
    assert rows["xmin"].isna().tolist() == [False, reason == "bad_row", False]


def test_numbers_from_zero_are_shifted_when_the_user_says_so():
    data = "a.jpg,1,2,30,40,0\nb.jpg,1,2,30,40,2\nc.jpg,1,2,30,40,3\n"
    assert reasons(data, first_class=1)[1][0] == reasons(data)[1][0] == "class_zero"
    assert frame(data, first_class=0)["label"].tolist() == [1, 3, 0]
    assert reasons(data, first_class=0)[3][1] == "class 3 is not in names.csv, which has 0 to 2"


def test_by_name_a_number_and_an_ambiguous_name_are_set_aside():
    classes = ["A/B", "A:B", "Audi"]
    data = "a.jpg,1,2,3,4,Audi\nb.jpg,1,2,3,4,audi\nc.jpg,1,2,3,4,1\nd.jpg,1,2,3,4,A_B\n"
    rows = frame(data, classes=classes)
    assert rows["label"].tolist() == [3, 3, 0, 0]
    assert "has classes by name" in rows["detail"][2]
    assert "'A/B' and 'A:B'" in rows["detail"][3]


def test_classes_called_by_numbers_need_a_header_where_it_matters():
    digits = [str(i) for i in range(10)]
    data = "a.jpg,1,2,3,4,5\nb.jpg,1,2,3,4,0\n"
    with pytest.raises(UserError, match=r"class 0 may be the number.*class_id or class_name"):
        layout_of(data, digits)
    header = "filename,xmin,ymin,xmax,ymax,"
    assert frame(f"{header}class_name\n{data}", classes=digits)["label"].tolist() == [6, 1]
    assert frame(f"{header}class_id\n{data}", classes=digits)["label"].tolist() == [5, 0]
    assert frame(data, classes=["0", "911", "5"])["label"].tolist() == [3, 1]
    assert frame(data.replace(",0\n", ",1\n"), classes=list("12345"))["label"].tolist() == [5, 1]


def test_names_that_are_numbers_are_told_by_all_classes_not_by_the_first_rows():
    rows = "a.jpg,1,2,3,4,1\nb.jpg,1,2,3,4,2\n"  # both readings agree on these
    with pytest.raises(UserError, match=r"class 4 may be the number.*class_id or class_name"):
        layout_of(rows, ["1", "2", "4", "3"])
    rows = "".join(f"{i}.jpg,1,2,3,4,{500 if i % 2 else 911}\n" for i in range(6))
    assert set(frame(rows, classes=["911", "500"])["label"]) == {1, 2}
    rows = "a.jpg,1,2,3,4,2\nb.jpg,1,2,3,4,2\nc.jpg,1,2,3,4,Audi\n"
    assert frame(rows, classes=["2", "Audi"])["label"].tolist() == [1, 1, 2]


def test_a_quote_out_of_place_costs_the_row():
    assert reasons('b.jpg,1,2,3,4,1\na.jpg,1,2,"30"3,40,3\n')[2][0] == "bad_row"


def test_a_name_with_broken_bytes_in_a_utf8_file_is_a_bad_row():
    data = "ä.jpg,1,2,3,4,1\nö.jpg,1,2,3,4,1\n".encode() + b"b\xff.jpg,1,2,3,4,1\n"
    assert [(row, reason) for row, (reason, _) in reasons(data).items()] == [(3, "bad_row")]


def test_names_in_an_old_encoding_are_read():
    rows = good("Citroën.jpg,1,2,3,4,1\nb.jpg,1,2,3,4,1\n".encode("cp1252"))
    assert [row[1] for row in rows] == ["Citroën.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["gb18030", "cp932"])
def test_the_classes_tell_the_encoding_of_an_annotation_file(encoding):
    name = {"cp932": "トヨタ"}.get(encoding, "大眾")
    data = f"a.jpg,1,2,3,4,{name}\nb.jpg,1,2,3,4,Audi\n".encode(encoding)
    layout = layout_of(data, ["Audi", name])
    assert encoding in layout.describe()
    assert frame(data, classes=["Audi", name])["label"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("encoding", "name"), [("cp1251", "Лада Веста"), ("big5", "大眾"), ("utf-32", "Audi A4")]
)
def test_a_class_in_another_encoding_is_refused_or_set_aside(encoding, name):
    data = f"a.jpg,1,2,3,4,{name}\nb.jpg,1,2,3,4,{name}\n".encode(encoding)
    try:
        rows = frame(data, classes=["Audi", name])
    except UserError:
        return
    assert set(rows["reason"]) <= {"unknown_class", "bad_row"}


def test_the_script_of_the_classes_tells_the_encoding_of_file_names():
    data = "照片.jpg,1,2,3,4,1\nb.jpg,1,2,3,4,2\n".encode("gb18030")
    assert frame(data, classes=["大众", "Audi"])["name"][0] == "照片.jpg"


def test_beside_decimal_commas_a_point_is_not_read():
    data = "a.jpg;1,5;2;30;40;3\nb.jpg;1.234;2;30;40;3\n"
    assert reasons(data)[2][1].startswith("'1.234' is not a number")


def test_a_byte_that_fits_no_encoding_costs_one_row_at_most():
    layout = layout_of("a.jpg,1,2,3,4,1\n")
    data = b"a.jpg,1,2,3,4,1\nb\xff\x81.jpg,1,2,3,4,1\nc.jpg,1,2,3,4,1\n"
    for encoding in ("utf-8-sig", "gb18030", "cp932", "cp1252"):
        rows = frame(data, layout=Layout(**(layout.__dict__ | {"encoding": encoding})))
        assert rows["name"][0] == "a.jpg"
        assert rows["name"][2] == "c.jpg"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_give_rows_or_reasons_and_no_error(data, decided_elsewhere):
    try:
        rows = frame(data, layout=layout_of("a.jpg,1,2,3,4,1\n") if decided_elsewhere else None)
    except UserError:
        assert not decided_elsewhere
        return
    assert rows["row"].is_unique
    usable = rows[rows["reason"] == ""]
    assert usable["label"].between(1, 3).all()
    assert (usable["name"] != "").all()
    assert (rows[rows["reason"] != ""]["detail"] != "").all()
    assert not rows["name"][rows["reason"] == ""].str.contains(r"[/\\]").any()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.lists(st.text(max_size=5), max_size=3))
def test_any_bytes_give_class_names_or_a_refusal(data, folders):
    try:
        names, how = read_names(data, "names.csv", folders)
    except UserError:
        return
    assert names
    assert len(set(names)) == len(names)
    assert "names.csv" in how


plain_name = st.text("abcdefgXYZ 0123456789._-ëß", min_size=1, max_size=12).filter(
    lambda name: name.strip() not in ("", ".", "..")
)
number = st.one_of(st.integers(-5000, 5000), st.decimals(-5000, 5000, places=3)).map(str)
good_line = st.tuples(plain_name, number, number, number, number, st.integers(1, 3).map(str))
ragged_line = st.lists(st.text("ab1,;\t\" .'", max_size=6), max_size=9).map(",".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(good_line, ragged_line), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_good_rows_survive_whatever_stands_between_them(lines, end, quoted, mark):
    texts = [
        ",".join(f'"{value}"' if quoted else value for value in line)
        if isinstance(line, tuple)
        else line
        for line in lines
    ]
    data = end.join([HEADER.strip(), *texts]).encode("utf-8-sig" if mark else "utf-8")
    rows = frame(data, layout=layout_of(HEADER)).set_index("row")
    for position, line in enumerate(lines, 2):
        if isinstance(line, tuple):
            row = rows.loc[position]
            assert row["name"] == line[0].strip()
            assert row["reason"] == ""
            assert row[["xmin", "ymin", "xmax", "ymax"]].tolist() == [float(v) for v in line[1:5]]
            assert row["label"] == int(line[5])


@settings(max_examples=60, deadline=None)
@given(st.lists(good_line.map(",".join), min_size=1, max_size=6))
def test_the_fast_way_through_the_parser_gives_what_the_slow_one_does(lines):
    """A comma at its end keeps a line from the fast way and means nothing."""
    layout = layout_of("a.jpg,1,2,3,4,1\n")
    fast = frame("\n".join(lines), layout=layout)
    slow = frame(",\n".join([*lines, ""]), layout=layout)
    pd.testing.assert_frame_equal(fast, slow)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(good_line.map(",".join), ragged_line), min_size=1, max_size=6))
def test_a_row_reads_the_same_alone_and_among_others(lines):
    layout = layout_of("a.jpg,1,2,3,4,1\n")
    together = frame("\n".join(lines), layout=layout)
    alone = frame("\n".join(lines), layout=layout, chunk_rows=1)
    pd.testing.assert_frame_equal(together, alone.astype(together.dtypes))


def test_rows_keep_their_numbers_across_chunks():
    data = HEADER + "".join(f"{i}.jpg,1,2,3,4,{i % 4}\n" for i in range(1, 12))
    rows = frame(data, chunk_rows=3)
    assert rows["row"].tolist() == list(range(2, 13))
    assert rows["name"].tolist() == [f"{i}.jpg" for i in range(1, 12)]
    assert rows["reason"].tolist() == ["" if i % 4 else "class_zero" for i in range(1, 12)]


def test_frames_have_the_promised_types():
    for data in ("a.jpg,1,2,3,4,1\n", "a.jpg,1,2,3,4,1\nb.jpg,x\n"):
        types = frame(data).dtypes.astype(str).to_dict()
        assert list(types) == annotations.FRAME_COLUMNS
        assert set(types.values()) == {"int64", "str", "float64", "int32"}
        assert (types["row"], types["label"], types["reason"]) == ("int64", "int32", "str")


def test_many_plain_rows_are_read_quickly():
    data = "".join(
        f"{i:07}.jpg,{i % 90},5.25,{i % 90 + 99},77,{i % 3 + 1}\n" for i in range(200_000)
    )
    layout, stream = layout_of(data[:20_000]), io.BytesIO(data.encode())
    start = time.process_time()
    assert sum(len(some) for some in read_rows(stream, layout, CLASSES)) == 200_000
    assert (
        time.process_time() - start < 3
    )  # 0.3 s on a quiet core; row by row it takes ten times as long


def test_the_parser_needs_no_heavy_library():
    code = (
        "import sys, preprocess.annotations\n"
        "print({'tensorflow', 'apache_beam', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# names.csv


def names_of(data, folders=()) -> list[str]:
    data = data.encode() if isinstance(data, str) else data
    return read_names(data, "names.csv", folders)[0]


def test_names_may_hold_commas_with_or_without_quotes():
    data = b'\xef\xbb\xbf"BMW M3, 2012"\r\nAudi, TT\r\n"Say ""Ah"" 2012"\r\n\r\n'
    assert names_of(data) == ["BMW M3, 2012", "Audi, TT", 'Say "Ah" 2012']


@pytest.mark.parametrize(
    "data",
    [
        "Audi\nBMW M3, 2012\nFiat\n",
        "class_name\nAudi\nBMW M3, 2012\nFiat\n",
        "0\nAudi\nBMW M3, 2012\nFiat\n",
        '""\nAudi\n"BMW M3, 2012"\nFiat\n',
        ',0\n0,Audi\n1,"BMW M3, 2012"\n2,Fiat\n',
        ',class\n0,Audi\n1,"BMW M3, 2012"\n2,Fiat\n',
        'id,name\n1,Audi\n2,"BMW M3, 2012"\n3,Fiat\n',
        'class_id,class_name\n3,Fiat\n1,Audi\n2,"BMW M3, 2012"\n',
        'class_name,class_id\nAudi,1\n"BMW M3, 2012",2\nFiat,3\n',
        "1,Audi\n2,BMW M3, 2012\n3,Fiat\n",
        "3,Fiat\n1,Audi\n2,BMW M3, 2012\n",
        "0;Audi\n1;BMW M3, 2012\n2;Fiat\n",
        "1\tAudi\n2\tBMW M3, 2012\n3\tFiat\n",
        '0,1\n1,Audi\n2,"BMW M3, 2012"\n3,Fiat\n',
        '"1","Audi"\n"2","BMW M3, 2012"\n"3","Fiat"\n',
        "Audi\r\r\nBMW M3, 2012\r\r\nFiat\r\r\n",
    ],
)  # fmt: skip
def test_headers_and_index_columns_are_no_part_of_the_names(data):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        assert names_of(data.encode(encoding)) == ["Audi", "BMW M3, 2012", "Fiat"]


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(10)],
        ["2012 Audi", "2011 BMW"],
        ["Golf, 7", "Golf, 8"],
        ["1 Series", "3 Series", "911"],
        ["Series 1", "Series 2"],
        ["Class A", "Name B"],
    ],
)
def test_numbers_inside_names_are_no_index_column(names):
    assert names_of("".join(f"{name}\n" for name in names)) == names


@pytest.mark.parametrize("line", ["{}\n", "{} \n", '"{}"\n'])
def test_a_zero_above_numbers_is_a_name_and_above_names_a_header(line):
    assert names_of("".join(map(line.format, "0123"))) == ["0", "1", "2", "3"]
    assert names_of("".join(map(line.format, ["0", "Audi", "911"]))) == ["Audi", "911"]


def test_how_the_names_were_read_is_said():
    how = read_names(b",0\n0,Audi\n1,BMW\n", "names.csv", [])[1]
    assert how == "names.csv: 2 classes, one a line, header ',0' and index column dropped"
    assert read_names(b"Audi\nBMW\n", "names.csv", [])[1] == "names.csv: 2 classes, one a line"


def test_one_class_is_said_in_the_singular():
    assert read_names(b"Audi\n", "names.csv", ["Audi"])[1] == "names.csv: 1 class, one a line"


@pytest.mark.parametrize(
    "data",
    [
        "1 Audi\n2 BMW\n",
        "Audi,1\nBMW,2\n",
        "class_id,maker,class_name\n1,VW,Audi\n2,BMW,BMW\n",
        "name,country\nAudi,Germany\nBMW,Germany\n",
        '"Audi","Germany"\n"BMW","Germany"\n',
        ",0,1\n0,1,Audi\n1,2,BMW\n",
    ],
)
def test_names_that_fit_no_folder_are_refused(data):
    with pytest.raises(
        UserError, match=r"names\.csv: none of its names fits a class folder.*Write one"
    ):
        names_of(data, ["Audi", "BMW"])


def test_an_empty_line_keeps_the_numbers_of_later_lines():
    names, how = read_names(b"Audi\n\nFiat\n", "names.csv", [])
    assert names == ["Audi", "class 2 (unnamed)", "Fiat"]
    assert "1 of them without a name" in how
    rows = frame("a.jpg,1,2,3,4,3\nb.jpg,1,2,3,4,2\n", classes=names)
    assert rows["label"].tolist() == [3, 0]
    assert rows["detail"][1] == "class 2 has no name: its line in names.csv is empty"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "names.csv is empty"),
        (" \n\n", "names.csv is empty"),
        ("name\n", "names.csv is empty"),
        ("A\nB\nA\n", "names.csv row 3: class name 'A' is that of row 1"),
        ("Citroën\nCitroe\u0308n\n", "row 2: class name"),
        ("\nA\nB\n", "row 1 is empty, and line n names class n"),
        ("A\n\nB\n\nC\n", "row 2 is empty, and line n names class n"),
        ("1,A\n2,B\n4,C\n", "are not 1 to 3: see 4"),
        ("1,A\n1,B\n", "are not 1 to 2: see 1"),
        ("id,name\n1,A\nx,B\n", "row 3: 'x,B' is not a class number and a name"),
        (b"\xff\xfeA", "begins like utf-16 but is not"),
        ("Citroën\n".encode("cp1252"), "not UTF-8.*Save it as UTF-8"),
    ],
)
def test_unusable_names_are_refused_with_the_remedy(data, says):
    with pytest.raises(UserError, match=says):
        names_of(data)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("cp1252", "Citroën"), ("gb18030", "大众 帕萨特"), ("cp932", "トヨタ"),
     ("cp932", "日産")],
)  # fmt: skip
def test_the_folders_tell_the_encoding_of_the_names(encoding, name):
    data = f"Audi\n{name}/4\n".encode(encoding)
    names, how = read_names(data, "names.csv", {"Audi", f"{name}_4", "größe"})
    assert names == ["Audi", f"{name}/4"]
    assert how.endswith(f"read as {encoding}")


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp949", ["Audi", "현대"]),
        ("big5", ["Audi", "福特"]),
        ("cp1251", ["Audi", "Лада"]),
        ("cp1250", ["Citroën", "Dvořák"]),  # in cp1252 the first of them would fit
        ("utf-32", ["Audi", "Citroën"]),
        ("utf-32-be", ["Audi", "BMW"]),
    ],
)
def test_names_in_another_encoding_are_refused(encoding, names):
    with pytest.raises(UserError, match="Save it as UTF-8"):
        names_of("\n".join(names).encode(encoding), names)


# Folders


@pytest.mark.parametrize(
    "folder",
    ["Ram C/V Van", "Ram C-V Van", "Ram C_V Van", "Ram CV Van", "Ram C V Van", "Ram C%2FV Van",
     "Ram C∕V Van", "Ram C+V Van", "ram c-v van", "Ram C-V Van ", "RAM_C_V_VAN", "ram-c-v-van",
     "ram_cv_van", "Ram%20C%2FV%20Van", ".Ram C-V Van", "Ram C-V Van."],
)  # fmt: skip
def test_a_folder_is_found_however_a_file_system_spelled_it(folder):
    assert match_folders(["Audi", "Ram C/V Van"], [folder]) == {folder: 2}


def test_an_exact_name_wins_over_a_similar_one():
    names = ["A/B", "A-B", "a-b"]
    found = match_folders(names, ["A-B", "A_B", "a-b", "AB", "other"])
    assert found == {"A-B": 2, "A_B": 1, "a-b": 3, "AB": 1}


def test_a_name_that_begins_with_a_dot_is_found_with_and_without_it():
    assert match_folders([".38 Special"], [".38 Special", "38 Special"]) == {
        ".38 Special": 1, "38 Special": 1,
    }  # fmt: skip


def test_other_punctuation_tells_classes_apart():
    assert match_folders(["A4+", "A4-", "A4"], ["a4+", "A4-", "a4", "A4!"]) == {
        "a4+": 1, "A4-": 2, "a4": 3,
    }  # fmt: skip


def test_accents_match_in_either_unicode_form():
    assert match_folders(["Citroën"], ["Citroe\u0308n"]) == {"Citroe\u0308n": 1}
    assert match_folders(["Citroën"], ["CITROE\u0308N"]) == {"CITROE\u0308N": 1}


@pytest.mark.parametrize(
    ("names", "folder"),
    [(["A/B", "A:B"], "A_B"), (["Audi", "AUDI"], "audi"), (["A B", "A_B"], "a-b")],
)
def test_a_folder_that_fits_two_classes_is_refused(names, folder):
    with pytest.raises(
        UserError, match=f"{folder!r} fits two classes .*{names[0]!r} and {names[1]!r}"
    ):
        match_folders(names, [folder])


@pytest.mark.parametrize(
    "spell", [str.lower, lambda name: name.replace(" ", "_").replace("/", "-")]
)
def test_many_classes_and_folders_are_matched_in_linear_time(spell):
    names = [f"Maker {i % 97} Model {i} C/V {1990 + i % 30}" for i in range(10_000)]
    folders = [spell(name) for name in names] + [f"{spell(name)} x" for name in names]
    start = time.process_time()
    found = match_folders(names, folders)
    assert time.process_time() - start < 5  # 0.4 s on a quiet core
    assert list(found.values()) == list(np.arange(1, 10_001))


def test_a_bad_first_row_costs_no_other_though_there_is_no_header():
    good = [f"{i}.jpg,1,2,30,40,1\n" for i in range(1, 9)]
    data = "".join(["A1.jpg,,,,,1\n", *good]).encode()
    layout = annotations.read_layout(data, "anno_train.csv", "train", ["A"])
    (frame,) = annotations.read_rows(io.BytesIO(data), layout, ["A"])
    assert frame["reason"].tolist() == ["bad_row"] + [""] * 8
    data = "".join(["# boxes of cars\n", *good]).encode()
    with pytest.raises(UserError, match="row 1"):
        annotations.read_layout(data, "anno_train.csv", "train", ["A"])


@pytest.mark.parametrize("box", ["x,y,w,h", "bbox_x,bbox_y,bbox_w,bbox_h", "box_x,box_y,w,h"])
def test_fractions_under_x_and_y_may_be_corner_or_center_and_are_refused(box):
    data = f"filename,{box},class\n1.jpg,0.5,0.5,0.2,0.2,1\n".encode()
    with pytest.raises(UserError, match=r"corner or its center\. Rename them in the header"):
        annotations.read_layout(data, "anno_train.csv", "train", ["A"])
