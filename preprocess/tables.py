"""The tables that move through the pipeline: Arrow, at most 65,536 rows each."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

ROWS_AT_MOST = 1 << 16

FILES = pa.schema(
    [
        ("path", pa.string()),  # relative to the source, with `/`
        ("size", pa.int64()),  # in bytes, as it will be read
        ("offset", pa.int64()),  # where it begins: of its header in a zip, else 0
        ("stored", pa.int64()),  # bytes that it takes up: fewer than `size` where a zip packs it
        ("stamp", pa.int64()),  # changes when the file's bytes change: modification time or CRC
        ("problem", pa.string()),  # why it must not be read; mostly empty
    ]
)
"""Files, as a source has them."""

PHOTOS = pa.schema(
    [
        ("split", pa.string()),  # train or test
        ("folder", pa.string()),  # class folder
        ("label", pa.int32()),  # its class, from 1; 0 where it fits none
        ("name", pa.string()),  # of the file, in one Unicode form
        ("relative", pa.string()),  # train|test/<class folder>/<file>
        *((field.name, field.type) for field in FILES),
    ]
)
"""Photos, as a source has them."""

_BOX = [(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")]
_PLACE = [("file", pa.string()), ("row", pa.int64())]  # the CSV, and the line in it, from 1

ROWS = pa.schema(
    [
        *_PLACE,
        ("split", pa.string()),
        ("name", pa.string()),  # of the photo's file, in one Unicode form
        *_BOX,  # in pixels or fractions of the photo
        ("label", pa.int32()),  # class, from 1; 0 in a bad row
        ("reason", pa.string()),  # why it cannot be used; mostly empty
        ("detail", pa.string()),
    ]
)
"""Rows, as the CSVs have them."""

REJECTED = pa.schema(
    [*_PLACE, ("photo", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
"""Rejected rows."""

JOINED = pa.schema(
    [
        *_PLACE,
        ("relative", pa.string()),  # the photo's path: train|test/<class folder>/<file>
        *((field.name, field.type) for field in FILES if field.name != "problem"),
        *_BOX,
        ("label", pa.int32()),
        ("split", pa.string()),
        ("key", pa.uint64()),  # hash of the relative path
    ]
)
"""Rows that have found their photos."""


def from_frame(frame: pd.DataFrame, schema: pa.Schema) -> Iterator[pa.Table]:
    """Turns a frame that has the columns of a schema into tables."""
    yield from bounded(pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False))


def bounded(table: pa.Table) -> Iterator[pa.Table]:
    """Cuts a table into tables of at most `ROWS_AT_MOST` rows."""
    for start in range(0, len(table), ROWS_AT_MOST):
        yield table.slice(start, ROWS_AT_MOST)


def cut(table: pa.Table, numbers: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """Cuts a table by a number for each row, int64 [n]; rows of a number keep their order."""
    if not len(table):
        return
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    table = table.take(pa.array(order)).combine_chunks()
    for value, start, end in zip(values.tolist(), starts, [*starts[1:], len(table)], strict=True):
        yield value, table.slice(start, end - start)
