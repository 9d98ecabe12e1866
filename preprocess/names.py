"""names.csv: the name of each class."""

import re
import unicodedata
from collections.abc import Collection
from contextlib import suppress

from preprocess import text
from preprocess.folders import class_finder
from tfrecords.errors import UserError

NAMES = "names.csv"
UNNAMED = "class {} (unnamed)"  # what a class is called whose line is empty

_NAME_WORDS = {"classname", "labelname", "categoryname", "name", "names", "class", "classes",
               "label", "labels", "category"}  # fmt: skip
_NUMBER_WORDS = {"", "id", "ids", "index", "idx", "no", "number", "unnamed0", "class", "label",
                 "classid", "classnumber", "classindex", "labelid", "categoryid"}  # fmt: skip
_PANDAS_WORDS = (["", "0"], ["0", "1"])  # where columns have no names
_DIGITS = re.compile(r"\s*[0-9]{1,9}\s*")

_Lines = list[tuple[int, str]]  # each with its number, from 1


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
        UserError: it names no class, or two the same, or none that fits a folder.
    """
    encoding = text.unicode_encoding(data + b"\n") or _old_encoding(data, file, folders)
    try:
        names, how = _parse(data.decode(encoding), file)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} begins like {encoding} but is not: {error}. {text.SAVE_AS_UTF8}."
        ) from None
    if folders and not _fitting(names, folders):
        raise UserError(
            f"{file}: none of its names fits a class folder. The first name is {names[0]!r}, the"
            f" first folder {min(folders)!r}. Write one name a line, or number,name."
        )
    return names, how if encoding == "utf-8-sig" else f"{how}, read as {encoding}"


def _old_encoding(data: bytes, file: str, folders: Collection[str]) -> str:
    """Returns the encoding in which every name that is not ASCII has a folder."""
    for encoding in text.OLD_ENCODINGS:
        with suppress(UnicodeDecodeError, UserError):
            names, _ = _parse(data.decode(encoding), file)
            foreign = [name for name in names if not name.isascii()]
            if len(_fitting(foreign, folders)) == len(foreign):
                return encoding
    raise UserError(
        f"{file} is not UTF-8, and no other encoding makes its names fit the class folders."
        f" {text.SAVE_AS_UTF8}."
    )


def _fitting(names: list[str], folders: Collection[str]) -> set[int]:
    """Returns the labels that folders have."""
    find = class_finder(names)
    return {label for folder in folders for label in find(folder)}


def _parse(content: str, file: str) -> tuple[list[str], str]:
    """Returns the names of a decoded file, and a sentence that says how they were read."""
    if "\0" in content:
        raise UserError(f"{file} holds zero bytes, as no text does. {text.SAVE_AS_UTF8}.")
    lines = list(enumerate(re.split(r"\r*\n|\r", content.removeprefix("\ufeff")), 1))
    while lines and text.is_blank(lines[-1][1]):
        lines.pop()
    contents = [line for _, line in lines]
    has_header, delimiter, number_at = _columns(contents) if lines else (False, "", None)
    body = lines[has_header:]
    if not body:
        raise UserError(
            f"{file} is empty: it gives the class names, one a line, line 1 for class 1."
        )
    if number_at is None:
        named, num_unnamed = _names_by_line(body, file)
    else:
        named, num_unnamed = _names_by_number(body, delimiter, number_at, file), 0
    _check_unique(named, file)
    dropped = [f"header {lines[0][1]!r}"] * has_header + ["index column"] * (number_at is not None)
    how = f"{file}: {len(named)} class{'es' if len(named) > 1 else ''}, one a line"
    how += f", {' and '.join(dropped)} dropped" if dropped else ""
    how += f", {num_unnamed} of them without a name" if num_unnamed else ""
    return [name for _, name in named], how


def _columns(lines: list[str]) -> tuple[bool, str, int | None]:
    """Returns whether there is a header, the delimiter, and the column of numbers if any."""
    rest = [line for line in lines[1:] if not text.is_blank(line)]
    for delimiter in text.DELIMITERS:
        rows = [text.split_values(line, delimiter) for line in [lines[0], *rest]]
        words = [text.column_word(value) for value in rows[0]]
        if words in _PANDAS_WORDS:
            return True, delimiter, 0
        for number_at in (0, 1) if len(words) == 2 else ():
            if words[number_at] in _NUMBER_WORDS and words[1 - number_at] in _NAME_WORDS:
                return True, delimiter, number_at
        if all(len(row) > 1 and _DIGITS.fullmatch(row[0]) for row in rows):
            return False, delimiter, 0
    word = text.column_word(lines[0])
    # pandas writes 0 over a column without a name; classes may be called 0 to 9 as well.
    others = [line.strip(' "') for line in rest]
    is_zero = word == "0" and ("0" in others or not all(map(str.isdigit, others)))
    return is_zero or word in _NAME_WORDS or lines[0].strip() == '""', "", None


def _names_by_line(body: _Lines, file: str) -> tuple[_Lines, int]:
    """Returns line and name of each class, and how many lines are empty."""
    blank = [number for number, line in body if text.is_blank(line)]
    num_named = len(body) - len(blank)
    if blank and (blank[0] == body[0][0] or (num_named >= 3 and len(blank) >= num_named - 1)):
        raise UserError(
            f"{file} row {blank[0]} is empty, and line n names class n. Delete the empty lines, or"
            " write a name into each line that stands for a class."
        )
    named = []
    for label, (number, line) in enumerate(body, 1):
        line = line.strip().rstrip(",;")
        # Without quotes a name may hold a comma: there is no second column to confuse it with.
        values = text.split_values(line, ",") if line.startswith('"') else [line]
        name = values[0].strip() if len(values) == 1 else line
        named.append((number, name or UNNAMED.format(label)))
    return named, len(blank)


def _names_by_number(body: _Lines, delimiter: str, number_at: int, file: str) -> _Lines:
    """Returns line and name of each class, in the order of the class numbers."""
    found = []
    for number, line in body:
        if text.is_blank(line):
            continue
        values = text.split_values(line.strip().rstrip(delimiter), delimiter)
        class_number = values.pop(0 if number_at == 0 else -1)
        name = delimiter.join(values).strip()  # Without quotes it may hold the delimiter.
        if not name or not _DIGITS.fullmatch(class_number):
            raise UserError(
                f"{file} row {number}: {line.strip()!r} is not a class number and a name, as other"
                " lines are. Write one name a line, line 1 for class 1."
            )
        found.append((int(class_number), number, name))
    found.sort()
    first = min(found[0][0], 1)
    wrong = [class_number for i, (class_number, *_) in enumerate(found, first) if class_number != i]
    if wrong:
        raise UserError(
            f"{file}: the numbers beside the names are not 1 to {len(found)}: see {wrong[0]}."
            " Number every class once, or write one name a line, line n for class n, in double"
            " quotes where a name begins with a number and a comma."
        )
    return [(number, name) for _, number, name in found]


def _check_unique(named: _Lines, file: str) -> None:
    first: dict[str, int] = {}
    for number, name in sorted(named):
        earlier = first.setdefault(unicodedata.normalize("NFC", name), number)
        if earlier != number:
            raise UserError(
                f"{file} row {number}: class name {name!r} is that of row {earlier} too."
                " Each class needs its own name."
            )
