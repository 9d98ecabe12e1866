"""The text of a CSV: its encoding, its lines, and the values of a line."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas"}
OLD_ENCODINGS = ("cp1252", "gb18030", "cp932")  # of old spreadsheets: Western, Chinese, Japanese
SAVE_AS_UTF8 = "Save it as UTF-8 (in Excel: 'CSV UTF-8')"

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16",
                     codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


def unicode_encoding(data: bytes) -> str | None:
    """Returns the Unicode encoding of bytes that may end inside a character, None if it is none.

    A few lines that are not UTF-8 among more that are do not change what the file is.
    """
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
    foreign = [line for line in data.splitlines(keepends=True) if not line.isascii()]
    is_utf8 = not foreign or sum(map(_is_utf8, foreign)) * 2 > len(foreign)
    return "utf-8-sig" if is_utf8 else None


def line_chunks(stream: BinaryIO, encoding: str, count: int) -> Iterator[list[str]]:
    """Yields lists of `count` lines, with any line ends; undecodable bytes become U+FFFD."""
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline=None)
    try:
        while lines := list(itertools.islice(text, count)):
            yield lines
    finally:
        with suppress(ValueError):  # already closed
            text.detach()  # The stream is the caller's to close.


def split_values(line: str, delimiter: str) -> list[str]:
    """Splits a line at its delimiters; one with a quote out of place is a single value."""
    if '"' not in line:
        return line.split(delimiter)
    if '" ' in line:
        line = re.sub(rf'" +(?={delimiter}|$)', '"', line)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return [line]


def is_blank(line: str) -> bool:
    """Whether a line has no values, or only empty ones."""
    return not line.strip(' ,;\t\r\n"')


def column_word(value: str) -> str:
    """Returns what a column's name is compared by: `Class ID` and `class_id` are the same."""
    return re.sub(r"[\s_\-\"'#.:\ufeff]", "", value).lower()


def _is_utf8(line: bytes) -> bool:
    try:
        is_whole = line.endswith((b"\n", b"\r"))
        codecs.getincrementaldecoder("utf-8")().decode(line, final=is_whole)
    except UnicodeDecodeError:
        return False
    return True
