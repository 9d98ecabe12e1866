"""The annotation CSVs as pandas frames that keep file and line.

The driver calls `read_layout` on the beginning of each file; workers call `read_rows` with that
layout. How a file is read is decided once, from its header or from its first rows; a file that
could be read in two ways is refused, and the message says what to do. After that, a bad row never
affects a good one: it stays in the frame with its reason.
"""

import functools
import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from preprocess import text
from preprocess.folders import class_finder
from preprocess.names import NAMES, UNNAMED
from tfrecords.errors import UserError

__all__ = ["ANNOTATIONS", "FRAME_COLUMNS", "NAMES", "Layout", "read_layout",
           "read_rows"]  # fmt: skip

ANNOTATIONS = {"train": "anno_train.csv", "test": "anno_test.csv"}
FRAME_COLUMNS = ["row", "name", "xmin", "ymin", "xmax", "ymax", "label", "reason", "detail"]

_PLACES = ("filename", "xmin", "ymin", "xmax", "ymax", "class")
_BOXES = (_PLACES[1:5], ("xmin", "ymin", "width", "height"),
          ("xcenter", "ycenter", "width", "height"))  # fmt: skip
# Header words by what they mean, as `text.column_word` leaves them. Words of an earlier group are
# preferred; two words of one group contradict each other.
_CLASS_NAME = "classname labelname categoryname"
_CLASS_NUMBER = "classid classnumber classindex labelid categoryid"
_WORDS = {
    "filename": ("filename fname filenames imagename imagefile imgname", "file image img photo",
                 "path filepath imagepath relativeimpath", "imageid", "name"),
    "class": (_CLASS_NAME, _CLASS_NUMBER, "class classes label labels category target", "name"),
    "xmin": ("xmin x1 left minx bboxx1 bboxxmin boxxmin xtl", "x bboxx boxx"),
    "ymin": ("ymin y1 top miny bboxy1 bboxymin boxymin ytl", "y bboxy boxy"),
    "xmax": ("xmax x2 right maxx bboxx2 bboxxmax boxxmax xbr",),
    "ymax": ("ymax y2 bottom maxy bboxy2 bboxymax boxymax ybr",),
    "xcenter": ("xcenter centerx xcentre centrex cx xc bboxxcenter",),
    "ycenter": ("ycenter centery ycentre centrey cy yc bboxycenter",),
    "width": ("bboxwidth boxwidth bboxw boxw bw", "w", "width"),
    "height": ("bboxheight boxheight bboxh boxh bh", "h", "height"),
}  # fmt: skip
_UNDERSTOOD = (
    "Understood are columns such as filename (or fname, image), xmin, ymin, xmax, ymax (or x1,"
    " bbox_x1, left; or x, y, width, height; or x_center, y_center, width, height) and class (or"
    " class_id, class_name)"
)
_PHOTO = re.compile(r"(?i)\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?)\b")
_NUMBER = {
    ".": r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*",
    ",": r"[ \t]*[+-]?[0-9]+(,[0-9]*)?[ \t]*",
}
_MAX_PIXEL = 1e9
_BOX = ["box0", "box1", "box2", "box3"]
_HEAD_ROWS = 1000


@dataclass(frozen=True)
class Layout:
    """How one annotation CSV is read.

    Attributes:
        file: its path, for messages.
        split: `train` or `test`.
        encoding: a Python codec.
        delimiter: between values: a comma, a semicolon or a tab.
        columns: what each column holds: `filename`, `xmin`, … `class`, or "" where it is ignored.
        header: the columns' own names; empty without a header, where columns go by their place.
        decimal: the decimal point, `.` or `,`.
        first_line: the line of the first row, from 1; lines before it are the header.
        by_name: whether the class is given by its name; else by its number.
    """

    file: str
    split: str
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    columns: tuple[str, ...] = _PLACES
    header: tuple[str, ...] = ()
    decimal: str = "."
    first_line: int = 1
    by_name: bool = False

    @property
    def box(self) -> tuple[str, ...]:
        """The four columns that give the box."""
        return next(box for box in _BOXES if set(box) <= set(self.columns))

    def describe(self) -> str:
        """Returns a sentence that says how the file is read."""
        named = list(zip(self.header or self.columns, self.columns, strict=True))
        used = ", ".join(name for name, role in named if role)
        ignored = ", ".join(name or "an unnamed column" for name, role in named if not role)
        parts = [
            f"columns by {'header' if self.header else 'place'} ({used})",
            f"ignored: {ignored}" if ignored else "",
            f"box from {', '.join(self.box)}" if self.box != _BOXES[0] else "",
            f"class by {'name' if self.by_name else 'number'}",
            f"values separated by {text.DELIMITERS[self.delimiter]}" * (self.delimiter != ","),
            "decimal commas" if self.decimal == "," else "",
            f"read as {self.encoding}" if self.encoding != "utf-8-sig" else "",
        ]
        return f"{self.file}: {', '.join(filter(None, parts))}"


def read_layout(head: bytes, file: str, split: str, class_names: list[str]) -> Layout:
    """Decides how an annotation file is read. Its first line must be a header or a good row.

    Args:
        head: the file's beginning, a few hundred lines of it or all.
        file: its path, for messages.
        split: `train` or `test`.
        class_names: label = index + 1.

    Raises:
        UserError: the header or the rows fit nothing that is understood, or more than one thing.
    """
    layout = Layout(file, split, text.unicode_encoding(head) or _old_encoding(class_names))
    lines = next(text.line_chunks(io.BytesIO(head), layout.encoding, _HEAD_ROWS), [])
    if len(lines) > 20 and not lines[-1].endswith("\n"):
        lines.pop()  # It may be cut.
    start = next((number for number, line in enumerate(lines) if not text.is_blank(line)), None)
    if start is None:
        return layout
    # With as many commas as semicolons, the semicolons are the delimiters: they are listed first.
    delimiter = max(text.DELIMITERS, key=lines[start].count)
    values = (value for line in lines for value in text.split_values(line.strip(), delimiter))
    has_comma = delimiter != "," and any("," in v and _is_number(v, ",") for v in values)
    decimal = "," if has_comma else "."
    layout = replace(layout, delimiter=delimiter, decimal=decimal, first_line=start + 1)
    layout = _read_header(lines[start], layout)
    rows = _parse_lines(lines[layout.first_line - 1 :], layout.first_line, layout)
    if len(rows) and not layout.header:
        _check_places(rows, layout, class_names)
    good = rows[rows["detail"] == ""]
    _check_fractions(good, layout)
    return replace(layout, by_name=_is_by_name(good["class"].tolist(), layout, class_names))


def read_rows(
    stream: BinaryIO,
    layout: Layout,
    class_names: list[str],
    first_class: int | None = None,
    chunk_rows: int = 1 << 16,
) -> Iterator[pd.DataFrame]:
    """Reads the rows of one annotation file.

    A path in place of a file name is understood: its last part is the name, and what it says of
    class folder and split must not contradict the row. A name therefore never holds a slash, and
    can only be looked up among the photos of its class.

    Args:
        stream: of the whole file's bytes.
        layout: how to read them.
        class_names: label = index + 1.
        first_class: the number of the first class in the file, 0 or 1; None is 1.
        chunk_rows: the most rows of a frame.

    Yields:
        Frames of `FRAME_COLUMNS`: `row` (int64) is the line in the file, from 1; `name` the photo's
        file name; the box (float64) in the file's own unit, pixels or fractions, NaN in a bad row;
        `label` (int32) is 0 in every row with a reason. `reason` is "" for a usable row, else
        `bad_row`, `unknown_class` or `class_zero`; `detail` explains it to the user.
    """
    judge_class = _class_judge(layout, class_names, 1 if first_class is None else first_class)
    judge_path = _path_judge(layout, class_names)
    start = 1
    for lines in text.line_chunks(stream, layout.encoding, chunk_rows):
        skip = max(0, layout.first_line - start)
        rows = _parse_lines(lines[skip:], start + skip, layout)
        start += len(lines)
        if len(rows):
            yield _judge(rows, layout, judge_class, judge_path)


# Layout


def _old_encoding(class_names: list[str]) -> str:
    """Returns the encoding of a CSV that is not Unicode, guessed by the script of the classes."""
    scripts = {unicodedata.name(letter, "").split(" ")[0] for letter in "".join(class_names)}
    western, chinese, japanese = text.OLD_ENCODINGS
    if scripts & {"HIRAGANA", "KATAKANA"}:
        return japanese
    return chinese if "CJK" in scripts else western


def _read_header(line: str, layout: Layout) -> Layout:
    """Returns the layout with the columns of its header, if the first line is one."""
    values = text.split_values(line.rstrip(f"\n{layout.delimiter}"), layout.delimiter)
    words, below = [text.column_word(value) for value in values], layout.first_line + 1
    has_index = words[0] == ""
    if words[has_index:] == ["0", "1", "2", "3", "4", "5"]:  # pandas, where columns have no names
        return replace(layout, columns=("",) * has_index + _PLACES, first_line=below)
    num_numbers = sum(_is_number(value, layout.decimal) for value in values)
    if num_numbers >= 4 or any(map(_PHOTO.search, values)):
        return layout
    if {"x0", "x1"} <= set(words) and "x2" not in words:
        words = [{"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}.get(word, word) for word in words]
    columns = [""] * len(words)

    def candidates(role: str) -> list[int]:
        free = [at for at, column in enumerate(columns) if not column]
        groups = ([at for at in free if words[at] in group.split()] for group in _WORDS[role])
        return next(filter(None, groups), [])

    where = f"{layout.file} row {layout.first_line}: the header {line.strip()[:200]!r}"
    box = next((box for box in _BOXES if all(map(candidates, box))), _BOXES[0])
    for role in ("filename", "class", *box):
        found = candidates(role)
        if not found:
            raise UserError(f"{where} names no column for {role}. {_UNDERSTOOD}.")
        if len(found) > 1:
            two = " and ".join(repr(values[at].strip()) for at in found[:2])
            raise UserError(f"{where} has two columns for {role}, {two}. Rename the one that is"
                            " not meant.")  # fmt: skip
        columns[found[0]] = role
    header = tuple(value.strip() for value in values)
    return replace(layout, columns=tuple(columns), header=header, first_line=below)


def _check_places(rows: pd.DataFrame, layout: Layout, class_names: list[str]) -> None:
    """Raises UserError where rows without a header plainly have another order."""
    first, good = rows.iloc[0], rows[rows["detail"] == ""]
    boxes, classes = good[_BOX].to_numpy(), good["class"].tolist()
    num_inverted = (boxes[:, :2] >= boxes[:, 2:]).any(axis=1).sum()
    known, last, problem = set(class_names), len(class_names), ""

    def may_be_class(value: str) -> bool:
        is_number = value not in known and _is_number(value, layout.decimal)
        return not is_number or 0 <= _to_float(value) <= last

    # A row that names a photo is no header: if other rows fit, it is just a bad row.
    bad_names = rows.loc[rows["detail"] != "", "name"]
    is_bad_row = len(good) and all(map(_PHOTO.search, bad_names))
    other_order = _PHOTO.search(first["class"]) and not _PHOTO.search(first["name"])
    if other_order or (first["detail"] and not is_bad_row):
        problem = f"the first row does not fit: {first['detail'] or first['class']}"
    elif len(good) >= 4 and num_inverted * 4 > len(good):
        problem = f"{num_inverted} of the first {len(good)} boxes have xmin >= xmax or ymin >= ymax"
    elif len(good) >= 4 and not any(map(may_be_class, classes)):
        problem = f"no class is one of {NAMES}, which has 1 to {last}: {classes[0]}"
    if problem:
        raise UserError(
            f"{layout.file} row {first['row']}: there is no header, and by the order"
            f" {', '.join(_PLACES)}, {problem}. Add a first line that names the columns, for"
            f" example {','.join(_PLACES)}, or with x,y,width,height or"
            " x_center,y_center,width,height."
        )


def _check_fractions(rows: pd.DataFrame, layout: Layout) -> None:
    """Raises UserError where fractions may be of a corner or of a center."""
    boxes = rows[_BOX].to_numpy()
    is_fraction = (boxes <= 1).all() and ((boxes > 0) & (boxes < 1)).any()
    words = set(map(text.column_word, layout.header))
    is_vague = any({f"{box}x", f"{box}y"} <= words for box in ("", "box", "bbox"))
    if is_fraction and is_vague and "width" in layout.columns:
        raise UserError(
            f"{layout.file} row {layout.first_line - 1}: x and y beside fractions may be the box's"
            " corner or its center. Rename them in the header to xmin,ymin or x_center,y_center."
        )


def _is_by_name(classes: list[str], layout: Layout, class_names: list[str]) -> bool:
    """Whether the class column holds names. Raises UserError where it may be either."""
    word = text.column_word(layout.header[layout.columns.index("class")]) if layout.header else ""
    says_name, says_number = word in (*_CLASS_NAME.split(), "name"), word in _CLASS_NUMBER.split()
    known = set(class_names)
    if says_name and (not classes or known & set(classes)):
        return True
    numeric = [value for value in classes if _is_number(value, layout.decimal)]
    num_names = len(classes) - len(numeric)
    # A number that is also the name of a class decides nothing, unless the header does.
    num_numbers = sum(says_number or value not in known for value in numeric)
    if num_names or num_numbers or not numeric:
        return num_names > num_numbers
    other = [name for number, name in enumerate(class_names, 1)
             if _is_number(name, layout.decimal) and name != str(number)]  # fmt: skip
    if other and all(0 <= _to_float(value) <= len(class_names) for value in numeric):
        raise UserError(
            f"{layout.file}: class {other[0]} may be the number of a class or its name, for {NAMES}"
            " has names that are numbers. Name the column class_id or class_name in a header."
        )
    return bool(other)


# Rows


def _parse_lines(lines: list[str], start: int, layout: Layout) -> pd.DataFrame:
    """Returns row, name, class, the four values of the box, and detail ("" if good), unchecked."""
    name, *box, value = _columns(lines, layout)
    boxes = np.column_stack([_floats(column, layout.decimal) for column in box])
    is_bad = ~(np.abs(boxes) < _MAX_PIXEL).all(axis=1)
    boxes[is_bad] = np.nan
    frame = pd.DataFrame({"row": np.arange(start, start + len(lines))})
    frame["name"], frame["class"] = (column.to_pandas().str.strip() for column in (name, value))
    frame[_BOX], detail = boxes, np.full(len(lines), "", object)
    detail[is_bad] = [_problem(lines[at], layout) for at in np.flatnonzero(is_bad)]
    blank = [at for at in np.flatnonzero(is_bad) if text.is_blank(lines[at])]
    return frame.assign(detail=detail).drop(index=blank)


def _columns(lines: list[str], layout: Layout) -> list[pa.Array]:
    """Returns the values of name, box and class; of a line of another width only the name."""
    delimiter, width = layout.delimiter, len(layout.columns)
    array = pc.ascii_rtrim(pa.array(lines, pa.string()), "\n")
    has_width = pc.equal(pc.count_substring(array, delimiter), width - 1)
    is_odd = pc.or_(pc.invert(has_width), pc.match_substring(array, '"'))
    odd = []
    for line in array.filter(is_odd).to_pylist():
        values = _split_line(line, layout)
        if len(values) != width:  # Only the name is used, to say which photo it is.
            name_at = layout.columns.index("filename")
            name = "".join(values[name_at : name_at + 1])
            values = [name if at == name_at else "" for at in range(width)]
        odd.append("\n".join(values))
    # No line holds a line end, so it can stand between values.
    array = pc.replace_substring(array, delimiter, "\n")
    values = pc.split_pattern(pc.replace_with_mask(array, is_odd, pa.array(odd, pa.string())), "\n")
    roles = ("filename", *layout.box, "class")
    return [pc.list_element(values, layout.columns.index(role)) for role in roles]


def _split_line(line: str, layout: Layout) -> list[str]:
    values = text.split_values(line.rstrip("\n"), layout.delimiter)
    while len(values) > len(layout.columns) and not values[-1].strip():
        values.pop()
    return values


def _floats(column: pa.Array, decimal: str) -> np.ndarray:
    """Returns the numbers of a column, NaN for what is none."""
    trimmed = pc.ascii_trim(column, " \t")
    if decimal == ".":
        with suppress(pa.ArrowInvalid):  # not all are numbers
            return pc.cast(trimmed, pa.float64()).to_numpy()
    is_number = pc.match_substring_regex(column, f"^(?:{_NUMBER[decimal]})$")
    trimmed = pc.replace_substring(pc.ascii_ltrim(trimmed, "+"), ",", ".")
    return pc.cast(pc.if_else(is_number, trimmed, "nan"), pa.float64()).to_numpy()


def _problem(line: str, layout: Layout) -> str:
    """Returns what is wrong with a line whose box cannot be read."""
    values, shown = _split_line(line, layout), repr(line.strip()[:200])
    if len(values) != len(layout.columns):
        columns = ", ".join(layout.header or layout.columns)
        return f"{len(values)} values instead of {len(layout.columns)} ({columns}): {shown}"
    for role in layout.box:
        value = values[layout.columns.index(role)].strip(" ")
        if not _is_number(value, layout.decimal):
            return f"{value!r} is not a number: {shown}"
    return f"a box value is out of all range: {shown}"


def _judge(
    rows: pd.DataFrame,
    layout: Layout,
    judge_class: Callable[[str], tuple[int, str, str]],
    judge_path: Callable[[str, int], str],
) -> pd.DataFrame:
    """Makes the frame that `read_rows` gives of one that `_parse_lines` gave."""
    codes, classes = pd.factorize(rows["class"])
    judged = pd.DataFrame(map(judge_class, classes), columns=["label", "reason", "detail"])
    label, reason, detail = (judged[column].to_numpy()[codes] for column in judged)
    name, bad = rows["name"], rows["detail"].to_numpy()
    if name.str.contains(r"[/\\]|^[A-Za-z]:", regex=True).any():
        folder = name.str.replace(r"^[A-Za-z]:|[^/\\]*$", "", regex=True)
        name = name.str.replace(r"^.*[/\\]|^[A-Za-z]:", "", regex=True)
        bad = np.where(bad == "", [*map(judge_path, folder.tolist(), label.tolist())], bad)
    is_name = ~name.isin(["", ".", ".."]) & ~name.str.contains("[\0\ufffd]")
    bad = np.where(is_name | (bad != ""), bad, "no file name")
    reason = np.where(bad != "", "bad_row", reason)
    detail = np.where(bad != "", bad, detail)
    label = np.where(reason != "", 0, label).astype(np.int32)
    box = _corners(rows[_BOX].to_numpy(), layout)
    box[reason == "bad_row"] = np.nan
    columns = [rows["row"].to_numpy(), name.to_numpy(), *box.T, label, reason, detail]
    frame = pd.DataFrame(dict(zip(FRAME_COLUMNS, columns, strict=True)))
    return frame.astype({"name": "str", "reason": "str", "detail": "str"})


def _corners(box: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns float64 [n, 4]: xmin, ymin, xmax, ymax."""
    start, size = box[:, :2], box[:, 2:]
    if layout.box == _BOXES[0]:
        return box.copy()
    if layout.box == _BOXES[2]:
        start = start - size / 2
    return np.hstack([start, start + size])


def _class_judge(
    layout: Layout, class_names: list[str], first: int
) -> Callable[[str], tuple[int, str, str]]:
    """Returns a function from the text of a class to label, reason and detail."""
    find = class_finder(class_names)
    range_text = f"{NAMES}, which has {first} to {len(class_names) - 1 + first}"

    def judge(value: str) -> tuple[int, str, str]:
        found: list[int] = []
        if not value:
            return 0, "bad_row", "no class"
        if layout.by_name:
            found = find(value)
            problem = f"{value!r} is not in {NAMES} (this file has classes by name)"
        elif _is_number(value, layout.decimal):
            label = _to_float(value) - first + 1
            problem = f"{value} is not in {range_text}"
            if label == 0 < first:
                return 0, "class_zero", f"class {problem}; do the numbers start at 0?"
            found = [int(label)] if label.is_integer() and 1 <= label <= len(class_names) else []
        else:
            problem = f"{value!r} is not a number (this file has classes by number)"
        if len(found) > 1:
            names = " and ".join(repr(class_names[label - 1]) for label in found[:2])
            problem = f"{value!r} fits two names of {NAMES}: {names}"
        elif found and class_names[found[0] - 1] == UNNAMED.format(found[0]):
            problem = f"{value} has no name: its line in {NAMES} is empty"
        elif found:
            return found[0], "", ""
        return 0, "unknown_class", f"class {problem}"

    return judge


def _path_judge(layout: Layout, class_names: list[str]) -> Callable[[str, int], str]:
    """Returns a function from folder and label to a contradiction with the row ("" if none)."""
    find = class_finder(class_names)

    @functools.lru_cache(1 << 16)
    def judge(folder: str, label: int) -> str:
        *_, parent, last = ["", *folder.replace("\\", "/").rstrip("/").split("/")]
        for part in (parent, last):
            if part.lower() in ANNOTATIONS and part.lower() != layout.split:
                return f"the path says {part}, this is the file of {layout.split}: {folder!r}"
        found = find(last)
        if label and found and label not in found:
            said, other = class_names[label - 1], class_names[found[0] - 1]
            return f"the row says class {said!r}, the path says {other!r}: {folder!r}"
        return ""

    return judge


def _is_number(value: str, decimal: str) -> bool:
    return re.fullmatch(_NUMBER[decimal], value) is not None


def _to_float(value: str) -> float:
    return float(value.replace(",", "."))
