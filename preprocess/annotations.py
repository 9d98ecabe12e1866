"""names.csv and the annotation CSVs, as pandas frames that keep file and line.

The driver calls `read_names` and, on the beginning of each annotation file, `read_layout`. Workers
call `read_rows` with that layout. What a file means is decided once, from its header or from its
first rows; a file that could mean two things is refused with what to do about it. After that, one
bad row never costs a good one: it stays in the frame with its reason.
"""

import codecs
import csv
import functools
import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import pandas as pd

from preprocess.folders import class_finder, match_folders
from tfrecords.errors import UserError

__all__ = ["ANNOTATIONS", "FRAME_COLUMNS", "NAMES", "Layout", "match_folders", "read_layout",
           "read_names", "read_rows"]  # fmt: skip

ANNOTATIONS = {"train": "anno_train.csv", "test": "anno_test.csv"}
NAMES = "names.csv"
FRAME_COLUMNS = ["row", "name", "xmin", "ymin", "xmax", "ymax", "label", "reason", "detail"]

_PLACES = ("filename", "xmin", "ymin", "xmax", "ymax", "class")
# Header words by what they mean, as `_word` leaves them. Words of an earlier group are preferred;
# two words of one group contradict each other.
_WORDS = {
    "filename": ("filename fname filenames imagename imagefile imagefilename imgname photoname",
                 "file image img photo picture", "path filepath imagepath imgpath relativeimpath",
                 "imageid", "name"),
    "xmin": ("xmin x1 left minx bboxx1 bboxxmin boxxmin bboxleft xtl", "x bboxx boxx"),
    "ymin": ("ymin y1 top miny bboxy1 bboxymin boxymin bboxtop ytl", "y bboxy boxy"),
    "xmax": ("xmax x2 right maxx bboxx2 bboxxmax boxxmax bboxright xbr",),
    "ymax": ("ymax y2 bottom maxy bboxy2 bboxymax boxymax bboxbottom ybr",),
    "xcenter": ("xcenter centerx xcentre centrex cx xc bboxxcenter bboxcenterx",),
    "ycenter": ("ycenter centery ycentre centrey cy yc bboxycenter bboxcentery",),
    "width": ("bboxwidth boxwidth bboxw boxw bw", "w", "width"),
    "height": ("bboxheight boxheight bboxh boxh bh", "h", "height"),
    "class": ("classname labelname categoryname",
              "classid classnumber classindex labelid categoryid",
              "class classes label labels category target", "name"),
}  # fmt: skip
_GROUPS = {role: [group.split() for group in groups] for role, groups in _WORDS.items()}
_KNOWN = {word for groups in _GROUPS.values() for group in groups for word in group}
_NUMBER_WORDS, _NAME_WORDS = set(_GROUPS["class"][1]), {*_GROUPS["class"][0], "name"}
_BOXES = (_PLACES[1:5], ("xmin", "ymin", "width", "height"),
          ("xcenter", "ycenter", "width", "height"))  # fmt: skip
_UNDERSTOOD = (
    "Understood are columns such as filename (or fname, image), xmin, ymin, xmax, ymax (or x1,"
    " bbox_x1, left; or x, y, width, height; or x_center, y_center, width, height) and class (or"
    " class_id, class_name)"
)
_ADD_HEADER = f"Add a first line that names the columns, for example {','.join(_PLACES)}"
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_PHOTO = re.compile(r"(?i)\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?)\s*$")
_MAX_PIXEL = 1e9
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_HEAD_ROWS = 1000
_PARSED = ["row", "name", "box0", "box1", "box2", "box3", "class", "detail"]
_PARSED_TYPES = dict.fromkeys(_PARSED, "float64") | {"row": "int64", "name": "str", "class": "str",
                                                     "detail": "str"}  # fmt: skip

_TITLE_WORDS = ["classname", "labelname", "categoryname", "name", "names", "class", "classes",
                "label", "labels", "category", "0"]  # fmt: skip
_ID_WORDS = {"", "id", "ids", "index", "idx", "no", "number", "unnamed0", "class", "label"}
_ID_WORDS |= _NUMBER_WORDS
_UNNAMED = "class {} (unnamed)"

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32",
                     codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
# The encodings of old spreadsheets, the most used first.
_OLD_ENCODINGS = ("cp1252", "gb18030", "cp932", "big5", "cp949", "cp1251", "cp1250", "latin-1")
_SAVE_AS_UTF8 = "Save it as UTF-8 (in Excel: 'CSV UTF-8')"


@dataclass(frozen=True)
class Layout:
    """How one annotation CSV is read.

    Attributes:
        file: its path, for messages.
        split: `train` or `test`.
        encoding: a Python codec.
        delimiter: between values: a comma, a semicolon or a tab.
        columns: what each column holds: `filename`, `xmin`, … `class`, or "" where it is ignored.
        has_header: whether the columns go by a header; else they go by their place.
        decimal: the decimal point, `.` or `,`.
        first_line: the line of the first row, from 1; lines before it are the header.
        by_name: whether the class is given by its name; else by its number.
        header: the columns' own names; empty without a header.
    """

    file: str
    split: str
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    columns: tuple[str, ...] = _PLACES
    has_header: bool = False
    decimal: str = "."
    first_line: int = 1
    by_name: bool = False
    header: tuple[str, ...] = ()

    @property
    def box(self) -> tuple[str, ...]:
        """The four columns that give the box."""
        return next(box for box in _BOXES if set(box) <= set(self.columns))

    def describe(self) -> str:
        """Returns a sentence that says how the file is read."""
        names = self.header or self.columns
        used = [name for name, role in zip(names, self.columns, strict=True) if role]
        ignored = [name for name, role in zip(names, self.columns, strict=True) if not role]
        parts = [f"columns by {'header' if self.has_header else 'place'} ({', '.join(used)})"]
        if ignored:
            parts.append(f"ignored: {', '.join(name or 'an unnamed column' for name in ignored)}")
        if self.box != _PLACES[1:5]:
            parts.append(f"box from {', '.join(self.box)}")
        parts.append(f"class by {'name' if self.by_name else 'number'}")
        if self.delimiter != ",":
            parts.append(f"values separated by {_DELIMITERS[self.delimiter]}")
        if self.decimal == ",":
            parts.append("decimal commas")
        if self.encoding != "utf-8-sig":
            parts.append(f"read as {self.encoding}")
        return f"{self.file}: {', '.join(parts)}"


def read_names(data: bytes, file: str, folders: Collection[str]) -> tuple[list[str], str]:
    """Reads `names.csv`: line n names class n, empty lines counted.

    A header and a column of class numbers are recognized; where there are numbers, they decide.
    An empty line between names stands for a class that no row may use, called "class n (unnamed)":
    so the lines after it keep their numbers.

    Args:
        data: the file's bytes.
        file: its path, for messages.
        folders: names of the class folders. They choose among old encodings.

    Returns:
        The class names (label = index + 1), and a sentence that says how they were read.

    Raises:
        UserError: it names no class, or two classes the same, or could mean two things.
    """
    encoding = _unicode_encoding(data)
    if encoding is None:
        return _read_old_names(data, file, folders)
    try:
        names, how = _parse_names(data.decode(encoding), file)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} begins like {encoding} but is not: {error}. {_SAVE_AS_UTF8}."
        ) from None
    return names, how if encoding == "utf-8-sig" else f"{how}, read as {encoding}"


def read_layout(head: bytes, file: str, split: str, class_names: list[str]) -> Layout:
    """Decides how an annotation file is read.

    Args:
        head: the file's beginning, a few hundred lines of it or all.
        file: its path, for messages.
        split: `train` or `test`.
        class_names: label = index + 1.

    Raises:
        UserError: the header or the rows fit nothing that is understood, or more than one thing.
    """
    encoding = _unicode_encoding(head) or _guess_encoding(head, class_names)
    all_lines = next(_line_chunks(io.BytesIO(head), encoding, _HEAD_ROWS), [])
    if len(all_lines) > 20 and not all_lines[-1].endswith("\n"):
        all_lines.pop()  # It may be cut.
    lines = [
        (number, _mend(line)) for number, line in enumerate(all_lines, 1) if not _is_blank(line)
    ]
    layout = Layout(file, split, encoding)
    if lines and (hint := re.fullmatch(r'\s*"?sep=([,;\t])"?\s*', lines[0][1])):
        layout = replace(layout, delimiter=hint[1], first_line=lines.pop(0)[0] + 1)
    elif lines:
        layout = replace(layout, delimiter=_guess_delimiter([line for _, line in lines]))
    if not lines:
        return layout
    rows = [_fields(line.rstrip(f"\n{layout.delimiter}"), layout.delimiter) for _, line in lines]
    values = (value for row in rows for value in row)
    if layout.delimiter != "," and any("," in value and _is_number(value, ",") for value in values):
        layout = replace(layout, decimal=",")
    at = _header_at(rows, layout.decimal)
    by_header = _read_header(rows[at], layout, lines[at][0])
    if by_header is not None:
        layout = by_header
        del rows[: at + 1], lines[: at + 1]
    layout = _with_index_column(layout, rows)
    if not layout.has_header and rows:
        _check_places(layout, rows, lines[0], len(class_names))
    fitting = [row for row in rows if _fits(row, layout)]
    _check_boxes(layout, fitting, layout.first_line - 1)
    return replace(layout, by_name=_is_by_name(layout, fitting, class_names))


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
        `bad_row`, `unknown_class` or `class_zero`; `detail` says it to people.
    """
    judge_class = _class_judge(layout, class_names, first_class)
    judge_path = _path_judge(layout, class_names)
    start = 1
    for lines in _line_chunks(stream, layout.encoding, chunk_rows):
        parsed = _parse_lines(lines, start, layout)
        start += len(lines)
        if len(parsed):
            yield _judge(parsed, layout, judge_class, judge_path)


# names.csv


def _read_old_names(data: bytes, file: str, folders: Collection[str]) -> tuple[list[str], str]:
    """Reads names that are not Unicode, in the encoding with which most folders have a class."""
    foreign = [folder for folder in folders if not folder.isascii()]
    best, most = None, 0
    for encoding in _OLD_ENCODINGS:
        with suppress(UnicodeDecodeError, UserError):
            names, how = _parse_names(data.decode(encoding), file)
            find = class_finder([name for name in names if not name.isascii()])
            fitting = sum(1 for folder in foreign if find(folder))
            if fitting > most:
                best, most = (names, f"{how}, read as {encoding}"), fitting
    if best is None:
        raise UserError(f"{file} is not UTF-8, and no other encoding makes its names fit the class"
                        f" folders. {_SAVE_AS_UTF8}.")  # fmt: skip
    return best


def _parse_names(text: str, file: str) -> tuple[list[str], str]:
    # Python on Windows ends lines with \r\r\n where a file was opened without newline="".
    lines = re.split(r"\r\r\n|\r\n|\n|\r", text.removeprefix("\ufeff"))
    while lines and _is_blank(lines[-1]):
        lines.pop()
    delimiter, id_at, name_at, is_header = _names_header(lines)
    body = list(enumerate(lines, 1))[is_header:]
    if not body:
        raise UserError(
            f"{file} is empty: it gives the class names, one a line, line 1 for class 1."
        )
    how = f"header {lines[0]!r}" if is_header else ""
    if id_at is None and name_at is None:
        delimiter, id_at, name_at = _guess_id_column([line for _, line in body])
    if id_at is not None:
        how = " and ".join(filter(None, [how, "index column"]))
    if name_at is None:
        _check_blank_lines(body, file)
        named = [
            (number, _whole_name(line) or _UNNAMED.format(i))
            for i, (number, line) in enumerate(body, 1)
        ]
    else:
        named = _names_of_table(body, file, delimiter, id_at, name_at)
    first: dict[str, int] = {}
    for number, name in sorted(named):
        earlier = first.setdefault(unicodedata.normalize("NFC", name), number)
        if earlier != number:
            raise UserError(
                f"{file} row {number}: class name {name!r} is that of row {earlier} too."
                " Each class needs its own name."
            )
    names = [name for _, name in named]
    unnamed = sum(1 for i, name in enumerate(names, 1) if name == _UNNAMED.format(i))
    return names, (f"{file}: {len(names)} classes, one a line" + (f", {how} dropped" if how else "")
                   + (f", {unnamed} of them without a name" if unnamed else ""))  # fmt: skip


def _names_header(lines: list[str]) -> tuple[str, int | None, int | None, bool]:
    """Returns delimiter, column of numbers, column of names, and whether there is a header."""
    if not lines:
        return ",", None, None, False
    first, rest = lines[0].strip(), [line.strip() for line in lines[1:] if not _is_blank(line)]
    # pandas writes 0 over a column without a name; classes may be called 0 to 9 as well.
    is_zero = _word(first) == "0" and (not all(map(str.isdigit, rest)) or "0" in rest)
    if first == '""' or is_zero or _word(first) in _TITLE_WORDS[:-1]:
        return ",", None, None, True
    for delimiter in _DELIMITERS:
        words = [_word(value) for value in _fields(first, delimiter)]
        titles = [word for word in _TITLE_WORDS if word in words]
        if len(words) < 2 or not titles:
            continue
        name_at = words.index(titles[0])
        ids = [at for at, word in enumerate(words) if word in _ID_WORDS and at != name_at]
        if ids:
            return delimiter, ids[0], name_at, True
    return ",", None, None, False


def _guess_id_column(lines: list[str]) -> tuple[str, int | None, int | None]:
    """Finds class numbers before or after each name: delimiter, their column, that of names."""
    lines = [line for line in lines if not _is_blank(line)]
    for id_at, delimiter in [*itertools.product((0, 1), _DELIMITERS), (0, " ")]:
        pairs = [_pair(line, delimiter, 1 - id_at) for line in lines]
        texts = [pair[id_at].strip() for pair in pairs if len(pair) == 2]
        if len(texts) < len(lines) or not all(re.fullmatch("[0-9]{1,9}", text) for text in texts):
            continue
        ids = [int(text) for text in texts]
        counted = list(range(min(ids), min(ids) + len(ids)))
        is_count = min(ids) <= 1 and sorted(ids) == counted
        if id_at == 0 and delimiter != " ":
            if is_count or len(ids) > 1:
                return delimiter, id_at, 1
        # A space, or a number at the end, stands inside names too: "2012 Audi", "Golf, 7".
        elif is_count and len(ids) > 1 and (ids == counted or delimiter != " "):
            names = {pair[1 - id_at] for pair in pairs}
            if len(names) == len(ids):
                return delimiter, id_at, 1 - id_at
    return ",", None, None


def _names_of_table(
    body: list[tuple[int, str]], file: str, delimiter: str, id_at: int | None, name_at: int
) -> list[tuple[int, str]]:
    """Returns line and name of each class, in the order of the class numbers."""
    found = []
    for number, line in body:
        if _is_blank(line):
            continue
        is_pair = {id_at, name_at} == {0, 1}
        pair = _pair(line, delimiter, name_at) if is_pair else _fields(line, delimiter)
        try:
            found.append((int(pair[id_at or 0]), number, pair[name_at].strip()))
        except (ValueError, IndexError):
            found.append((-1, number, ""))
        if found[-1][0] < 0 or not found[-1][2]:
            raise UserError(
                f"{file} row {number}: {line.strip()!r} is not a class number and a name, as other"
                " lines are. Write one name a line, line 1 for class 1."
            )
    found.sort()
    ids = [class_id for class_id, _, _ in found]
    if ids[0] > 1 or ids != list(range(ids[0], ids[0] + len(ids))):
        wrong = next((b for a, b in itertools.pairwise(ids) if b != a + 1), ids[0])
        raise UserError(
            f"{file}: the numbers beside the names are not 1 to {len(ids)}: see {wrong}. Number"
            " every class once, or write one name a line, line n for class n, in double quotes"
            " where a name begins with a number and a comma."
        )
    return [(number, name) for _, number, name in found]


def _check_blank_lines(body: list[tuple[int, str]], file: str) -> None:
    blank = [number for number, line in body if _is_blank(line)]
    named = len(body) - len(blank)
    if blank and (blank[0] == body[0][0] or (named >= 3 and len(blank) >= named - 1)):
        raise UserError(
            f"{file} row {blank[0]} is empty, and line n names class n. Delete the empty lines, or"
            " write a name into each line that stands for a class."
        )


def _pair(line: str, delimiter: str, name_at: int) -> list[str]:
    """Splits off a first or last value; the other part may hold the delimiter too."""
    fields = _fields(line.strip(), delimiter)
    if len(fields) < 2:
        return fields
    if name_at == 1:
        first = fields[0].rstrip(".:)") if delimiter == " " else fields[0]
        return [first, delimiter.join(fields[1:])]
    return [delimiter.join(fields[:-1]), fields[-1]]


def _whole_name(line: str) -> str:
    # Without quotes a name may hold a comma: there is no second column to confuse it with.
    return _fields(line.rstrip(), ",")[0].strip() if line.lstrip().startswith('"') else line.strip()


# Layout


def _header_at(rows: list[list[str]], decimal: str) -> int:
    """Returns where the header is, if there is one: 0, or below lines that tools write over it."""
    for at, row in enumerate(rows[:20]):
        if sum(_is_number(value, decimal) for value in row) >= 4:
            break
        if sum(_word(value) in _KNOWN for value in row) >= 5:
            return at
    return 0


def _read_header(fields: list[str], layout: Layout, line: int) -> Layout | None:
    """Returns the layout that a header gives, or None where the first line is a row."""
    words = [_word(value) for value in fields]
    has_index = words[0] == ""
    if words[has_index:] == ["0", "1", "2", "3", "4", "5"]:  # pandas, where columns have no names
        columns = ("",) * has_index + _PLACES
        return replace(layout, columns=columns, first_line=line + 1)
    if {"x0", "x1"} <= set(words) and "x2" not in words:
        from_zero = {"x0": "xmin", "y0": "ymin", "x1": "xmax", "y1": "ymax"}
        words = [from_zero.get(word, word) for word in words]
    numbers = sum(_is_number(value, layout.decimal) for value in fields)
    is_wordy = len(fields) > 1 and not numbers and not any(map(_PHOTO.search, fields))
    if numbers >= 4 or (sum(word in _KNOWN for word in words) < 2 and not is_wordy):
        return None
    where = f"{layout.file} row {line}: the header {layout.delimiter.join(fields)[:200]!r}"
    columns = _columns_of(words, fields, where)
    return replace(
        layout, columns=columns, has_header=True, first_line=line + 1,
        header=tuple(value.strip() for value in fields),
    )  # fmt: skip


def _columns_of(words: list[str], fields: list[str], where: str) -> tuple[str, ...]:
    """Returns what each column of a header holds."""
    columns = [""] * len(words)

    def candidates(role: str) -> list[int]:
        free = [at for at, column in enumerate(columns) if not column]
        groups = ([at for at in free if words[at] in group] for group in _GROUPS[role])
        return next(filter(None, groups), [])

    def assign(role: str) -> None:
        found = candidates(role)
        if not found:
            raise UserError(f"{where} names no column for {role}. {_UNDERSTOOD}.")
        if len(found) > 1:
            one, other = (fields[at].strip() for at in found[:2])
            raise UserError(f"{where} has two columns for {role}, {one!r} and {other!r}. Rename the"
                            " one that is not meant.")  # fmt: skip
        columns[found[0]] = role

    assign("filename")
    assign("class")
    box = next((box for box in _BOXES if all(map(candidates, box))), _BOXES[0])
    for role in box:
        assign(role)
    return tuple(columns)


def _with_index_column(layout: Layout, rows: list[list[str]]) -> Layout:
    """Adds a column to ignore where rows begin with a count that no header names."""
    header = ("", *layout.header) if layout.header else ()
    wider = replace(layout, columns=("", *layout.columns), header=header)
    wide = [row for row in rows if _fits(row, wider)]
    numbers = [int(row[0]) for row in wide if re.fullmatch(r"\s*[0-9]{1,9}\s*", row[0])]
    counted = bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(wide)))
    return wider if counted and len(wide) > sum(_fits(row, layout) for row in rows) else layout


def _check_places(
    layout: Layout, rows: list[list[str]], first: tuple[int, str], num_classes: int
) -> None:
    """Raises UserError where rows without a header plainly have another order."""
    fitting = [row for row in rows if _fits(row, layout)]
    other = [row for row in rows if len(row) >= 6 and not _fits(row, layout)
             and sum(_is_number(value, layout.decimal) for value in row) >= 4]  # fmt: skip
    order = f"the order {', '.join(_PLACES)}"
    if rows and (not fitting or len(other) > len(fitting)):
        detail = _parse_line(first[1], layout, _places(layout))[-1]
        raise UserError(
            f"{layout.file} row {first[0]}: there is no header, and the first rows do not fit"
            f" {order}: {detail or repr(first[1].strip()[:200])}. {_ADD_HEADER}."
        )
    classes = [row[layout.columns.index("class")] for row in fitting]
    numbers = [_to_float(text) for text in classes if _is_number(text, layout.decimal)]
    in_range = [number for number in numbers if 0 <= number <= num_classes]
    if len(numbers) == len(fitting) >= 4 and not in_range:
        raise UserError(
            f"{layout.file} row {first[0]}: there is no header, and by {order} no class is one of"
            f" {NAMES}, which has 1 to {num_classes}: {first[1].strip()[:200]!r}. {_ADD_HEADER}."
        )


def _check_boxes(layout: Layout, fitting: list[list[str]], line: int) -> None:
    """Raises UserError where boxes do not look like what the columns say."""
    places = _places(layout)[1:5]
    boxes = np.array([[_to_float(row[at]) for at in places] for row in fitting])
    if not len(boxes):
        return
    inverted = ((boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3])).sum()
    if not layout.has_header and len(boxes) >= 4 and inverted * 4 > len(boxes):
        raise UserError(
            f"{layout.file}: there is no header, and by the order {', '.join(_PLACES)}, {inverted}"
            f" of the first {len(boxes)} boxes have xmin >= xmax or ymin >= ymax. {_ADD_HEADER}, or"
            " with x,y,width,height or x_center,y_center,width,height."
        )
    is_fraction = (boxes <= 1).all() and ((boxes > 0) & (boxes < 1)).any()
    is_vague = {_word(name) for name in layout.header} >= {"x", "y"} and "width" in layout.columns
    if is_fraction and is_vague:
        raise UserError(
            f"{layout.file} row {line}: x and y beside fractions may be the box's corner or its"
            " center. Rename them in the header to xmin,ymin or x_center,y_center."
        )


def _is_by_name(layout: Layout, fitting: list[list[str]], class_names: list[str]) -> bool:
    """Whether the class column holds names. Raises UserError where it may be either."""
    at = layout.columns.index("class")
    word = _word(layout.header[at]) if layout.header else ""
    texts = [row[at].strip() for row in fitting]
    values = set(texts)
    numeric = {text for text in values if _is_number(text, layout.decimal)}
    known = set(class_names)
    if not values or (values & known and word in _NAME_WORDS):
        return word in _NAME_WORDS
    if len(numeric) < len(values):
        return sum(text not in numeric for text in texts) * 2 > len(texts)
    if word in _NUMBER_WORDS or not values <= known:
        return False
    # The names are numbers themselves: 0 to 9, or 911.
    numbers = {text: _to_float(text) for text in values}
    if not all(0 <= number <= len(class_names) for number in numbers.values()):
        return True
    for text, number in sorted(numbers.items()):
        if number < 1 or class_names[int(number) - 1] != text:
            raise UserError(
                f"{layout.file}: class {text} may be the number of a class or its name, for {NAMES}"
                " has names that are numbers. Name the column class_id or class_name in a header."
            )
    return False


def _guess_delimiter(lines: list[str]) -> str:
    """Returns the delimiter with which most lines hold numbers or the words of a header."""

    def score(delimiter: str) -> int:
        decimals = "." if delimiter == "," else ".,"
        rows = [_fields(line, delimiter) for line in lines]
        numbers = (sum(any(_is_number(v, d) for d in decimals) for v in row) for row in rows)
        return sum(n > 3 for n in numbers) + sum(_word(value) in _KNOWN for value in rows[0])

    return max(_DELIMITERS, key=score)


# Rows


def _parse_lines(lines: list[str], start: int, layout: Layout) -> pd.DataFrame:
    """Splits lines into values, the plain ones by pandas and only the others one by one.

    Returns:
        A frame of row, name, the four values of the box, class and detail; not judged yet.
    """
    skip = max(0, layout.first_line - start)
    lines, numbers = lines[skip:], np.arange(start + skip, start + len(lines))
    frame = _parse_plain(lines, numbers, layout)
    if frame is not None:
        return frame
    pattern = _plain_line(layout)
    lines = [_mend(line) for line in lines]
    plain = np.array([pattern.fullmatch(line) is not None for line in lines], bool)
    unquoted = [line.replace('"', "") for line in itertools.compress(lines, plain)]
    frame = _parse_plain(unquoted, numbers[plain], layout)
    if frame is None:
        plain[:] = False
    places = _places(layout)
    rest = itertools.compress(zip(numbers, lines, strict=True), ~plain)
    others = [(number, *_parse_line(line, layout, places))
              for number, line in rest if not _is_blank(line)]  # fmt: skip
    slow = pd.DataFrame(others, columns=_PARSED).astype(_PARSED_TYPES)
    frames = [some for some in (frame, slow) if some is not None and len(some)]
    return pd.concat(frames).sort_values("row", ignore_index=True) if frames else slow


def _parse_plain(lines: list[str], numbers: np.ndarray, layout: Layout) -> pd.DataFrame | None:
    """Splits lines that are all plain, twenty times as fast; None if any is not."""
    text, width = "".join(lines), len(layout.columns)
    delimiters = text.count(layout.delimiter)
    if not lines or '"' in text or "\0" in text or delimiters != (width - 1) * len(lines):
        return None
    places = _places(layout)
    types = dict.fromkeys(range(width), "str") | dict.fromkeys(places[1:5], "float64")
    try:
        # round_trip reads a number as Python does; the default may differ in the last bit.
        values = pd.read_csv(
            io.BytesIO(text.encode()), sep=layout.delimiter, header=None, names=list(range(width)),
            dtype=types, quoting=csv.QUOTE_NONE, keep_default_na=False, na_filter=False,
            decimal=layout.decimal, float_precision="round_trip", skip_blank_lines=False,
        )  # fmt: skip
    except (ValueError, OverflowError):  # also what is not UTF-8
        return None
    box = values[list(places[1:5])].to_numpy()
    # A longer first line makes pandas take an index; a shorter one leaves values empty.
    is_plain = (
        len(values) == len(lines)
        and isinstance(values.index, pd.RangeIndex)
        and (np.abs(box) < _MAX_PIXEL).all()
        and (values[places[0]] != "").all()
        and (values[places[5]] != "").all()
    )
    if not is_plain:
        return None
    frame = values[list(places)].set_axis(_PARSED[1:7], axis=1)
    frame.insert(0, "row", numbers)
    frame["detail"] = pd.Series("", frame.index, dtype="str")
    return frame


def _plain_line(layout: Layout) -> re.Pattern[str]:
    """Returns what a line is like that `_parse_plain` can read once its quotes are gone."""
    point = re.escape(layout.decimal)
    number = rf"[ ]*[+-]?[0-9]{{1,9}}(?:{point}[0-9]*)?[ ]*"
    text = rf'[^"\0\n{layout.delimiter}]*'
    filled = rf'[^"\0\n{layout.delimiter}]+'
    values = {"": text, "filename": filled, "class": filled} | dict.fromkeys(layout.box, number)
    parts = (rf'(?:{values[column]}|[ ]*"{values[column]}"[ ]*)' for column in layout.columns)
    return re.compile(layout.delimiter.join(parts) + "\n?")


def _parse_line(line: str, layout: Layout, places: list[int]) -> tuple:
    """Returns name, the four values of the box (NaN if bad), class and detail ("" if good)."""
    fields, width = _fields(line.rstrip("\n"), layout.delimiter), len(layout.columns)
    while len(fields) > width and not fields[-1].strip():
        fields.pop()
    name = fields[places[0]] if places[0] < len(fields) else ""
    shown, box = repr(line.strip()[:200]), [np.nan] * 4
    if len(fields) != width:
        names = ", ".join(layout.header or layout.columns)
        return name, *box, "", f"{len(fields)} values instead of {width} ({names}): {shown}"
    texts = [fields[at] for at in places[1:5]]
    for text in texts:
        if not _is_number(text, layout.decimal):
            return name, *box, "", f"{text.strip()!r} is not a number: {shown}"
    values = [_to_float(text) for text in texts]
    if not all(abs(value) < _MAX_PIXEL for value in values):
        return name, *box, "", f"a box value is out of all range: {shown}"
    return name, *values, fields[places[5]], ""


def _judge(
    parsed: pd.DataFrame, layout: Layout,
    judge_class: Callable[[str], tuple[int, str, str]],
    judge_path: Callable[[str, int], str],
) -> pd.DataFrame:  # fmt: skip
    """Makes the frame that `read_rows` gives of one that `_parse_lines` gave."""
    codes, texts = pd.factorize(parsed["class"].str.strip())
    labels, reasons, details = zip(*map(judge_class, texts), strict=True)
    label = np.array(labels, np.int32)[codes]
    reason, detail = (np.array(values, object)[codes] for values in (reasons, details))
    name = parsed["name"].str.strip()
    path_detail = np.full(len(parsed), "", object)
    if name.str.contains(r"[/\\]|^[A-Za-z]:", regex=True).any():
        folder = name.str.replace(r"^[A-Za-z]:|[^/\\]*$", "", regex=True)
        name = name.str.replace(r"^.*[/\\]|^[A-Za-z]:", "", regex=True)
        folder_codes, folders = pd.factorize(folder)
        pairs, where = np.unique(folder_codes * (label.max() + 1) + label, return_inverse=True)
        folder_and_label = (divmod(int(pair), int(label.max()) + 1) for pair in pairs)
        details_of = [judge_path(folders[at], number) for at, number in folder_and_label]
        path_detail = np.array(details_of, object)[where]
    bad_name = name.isin(["", ".", ".."]) | name.str.contains("\0", regex=False)
    path_detail[bad_name] = "no file name"
    for more in (path_detail, parsed["detail"].to_numpy(object)):
        is_bad = more != ""
        reason[is_bad], detail[is_bad] = "bad_row", more[is_bad]
    label[reason != ""] = 0
    box = _corners(parsed, layout)
    box[reason == "bad_row"] = np.nan
    columns = [parsed["row"], name, *box.T, label, reason, detail]
    frame = pd.DataFrame(dict(zip(FRAME_COLUMNS, columns, strict=True)))
    return frame.astype({"name": "str", "reason": "str", "detail": "str"})


def _corners(parsed: pd.DataFrame, layout: Layout) -> np.ndarray:
    """Returns float64 [n, 4]: xmin, ymin, xmax, ymax."""
    box = parsed[list(_PARSED[2:6])].to_numpy(copy=True)
    if layout.box == _BOXES[1]:
        box[:, 2:] += box[:, :2]
    elif layout.box == _BOXES[2]:
        center, half = box[:, :2].copy(), box[:, 2:] / 2
        box = np.hstack([center - half, center + half])
    return box


def _class_judge(
    layout: Layout, class_names: list[str], first_class: int | None
) -> Callable[[str], tuple[int, str, str]]:
    """Returns a function from the text of a class to label, reason and detail."""
    find = class_finder(class_names)
    first = 1 if first_class is None else first_class
    last = len(class_names) - 1 + first
    range_text = f"{NAMES}, which has {first} to {last}"

    def unknown(detail: str) -> tuple[int, str, str]:
        return 0, "unknown_class", detail

    def by_name(text: str) -> tuple[int, str, str]:
        found = find(text)
        if len(found) > 1:
            names = " and ".join(repr(class_names[label - 1]) for label in found[:2])
            return unknown(f"class {text!r} fits two names of {NAMES}: {names}")
        if not found:
            return unknown(f"class {text!r} is not in {NAMES} (this file has classes by name)")
        return found[0], "", ""

    def by_number(text: str) -> tuple[int, str, str]:
        if not _is_number(text, layout.decimal):
            return unknown(f"class {text!r} is not a number (this file has classes by number)")
        number = _to_float(text)
        if number == 0 and first == 1:
            return 0, "class_zero", f"class 0 is not in {range_text}; do the numbers start at 0?"
        if not (first <= number <= last and number == int(number)):
            return unknown(f"class {text} is not in {range_text}")
        return int(number) - first + 1, "", ""

    @functools.lru_cache(1 << 16)
    def judge(text: str) -> tuple[int, str, str]:
        if not text:
            return 0, "bad_row", "no class"
        label, reason, detail = by_name(text) if layout.by_name else by_number(text)
        if label and class_names[label - 1] == _UNNAMED.format(label):
            return unknown(f"class {text} has no name: its line in {NAMES} is empty")
        return label, reason, detail

    return judge


def _path_judge(layout: Layout, class_names: list[str]) -> Callable[[str, int], str]:
    """Returns a function from folder and label to what contradicts the row ("" if nothing)."""
    find = class_finder(class_names)

    @functools.lru_cache(1 << 16)
    def judge(folder: str, label: int) -> str:
        *parents, last = folder.replace("\\", "/").rstrip("/").split("/")
        found = find(last)
        split = (parents or [""])[-1] if found else last
        if split.lower() in ANNOTATIONS and split.lower() != layout.split:
            return f"the path says {split}, this is the file of {layout.split}: {folder!r}"
        if label and found and label not in found:
            said, other = class_names[label - 1], class_names[found[0] - 1]
            return f"the row says class {said!r}, the path says {other!r}: {folder!r}"
        return ""

    return judge


# Text


def _line_chunks(stream: BinaryIO, encoding: str, count: int) -> Iterator[list[str]]:
    """Yields lists of so many lines, with any line ends; a byte that fits no encoding stays."""
    errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
    text = io.TextIOWrapper(stream, encoding, errors=errors, newline=None)
    try:
        while lines := list(itertools.islice(text, count)):
            yield lines
    finally:
        with suppress(ValueError):  # already closed
            text.detach()  # The stream is the caller's to close.


def _mend(line: str) -> str:
    """Reads a line that is not UTF-8 as Windows-1252, which is what spreadsheets wrote before."""
    try:
        line.encode()
        return line
    except UnicodeEncodeError:
        data = line.encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unicode_encoding(data: bytes) -> str | None:
    """Returns the Unicode encoding of bytes that may end inside a character, None if it is none."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    # ASCII characters, at least the line ends, have one zero byte each in UTF-16.
    zeros_first, zeros_second = data[0::2].count(0), data[1::2].count(0)
    if zeros_first + zeros_second > len(data) // 20:
        if zeros_second > 4 * zeros_first:
            return "utf-16-le"
        if zeros_first > 4 * zeros_second:
            return "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None
    return "utf-8-sig"


def _guess_encoding(head: bytes, class_names: list[str]) -> str:
    """Chooses an encoding for a CSV that is not wholly UTF-8 by the characters of the classes."""
    foreign = [line for line in head.splitlines() if not line.isascii()]
    if sum(_unicode_encoding(line) is not None for line in foreign) * 2 > len(foreign):
        return "utf-8-sig"
    known = _foreign("".join(class_names))
    scripts = set(map(_script, known))

    def score(encoding: str) -> tuple[int, int]:
        found = _foreign(head.decode(encoding, "replace"))
        return len(found & known), sum(_script(character) in scripts for character in found)

    return max(_OLD_ENCODINGS, key=score)


def _foreign(text: str) -> set[str]:
    return {character for character in text if not character.isascii()}


def _script(character: str) -> str:
    """Returns the first word of a character's Unicode name: LATIN, CYRILLIC, CJK, …."""
    return unicodedata.name(character, "").partition(" ")[0]


def _fields(line: str, delimiter: str) -> list[str]:
    """Splits a line; a quoted value ends where its line ends."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [""]) or [""]
    except csv.Error:
        return [line]


def _word(value: str) -> str:
    return re.sub(r"[\s_\-\"'#.:]", "", value.removeprefix("\ufeff")).lower()


def _is_blank(line: str) -> bool:
    return not line.strip(' ,;\t\r\n"')


def _is_number(text: str, decimal: str) -> bool:
    # Beside decimal commas a point may separate thousands: 1.234 is not read at all.
    if decimal == ",":
        text = text.replace(".", "?").replace(",", ".")
    return _NUMBER.fullmatch(text) is not None


def _to_float(text: str) -> float:
    return float(text.replace(",", "."))


def _places(layout: Layout) -> list[int]:
    """Returns the columns of file name, box and class."""
    return [layout.columns.index(role) for role in ("filename", *layout.box, "class")]


def _fits(row: list[str], layout: Layout) -> bool:
    """Whether a row has the values that its columns need."""
    if len(row) != len(layout.columns):
        return False
    name_at, *box_at, _ = _places(layout)
    others = [value for at, value in enumerate(row) if at != name_at]
    elsewhere = not layout.has_header and any(map(_PHOTO.search, others))
    is_named = bool(row[name_at].strip()) and (_PHOTO.search(row[name_at]) or not elsewhere)
    return bool(is_named) and all(_is_number(row[at], layout.decimal) for at in box_at)
