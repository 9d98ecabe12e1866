"""From rows to shards: which rows each shard holds, in which order, and the files that say so."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess import shard, source, split


@dataclass(frozen=True)
class Plan:
    """The shards of a data set.

    Attributes:
        names: of all shards, e.g. `train-00000-of-00016.tfrecord`.
        rows: for each shard the positions of its rows in the table of its split's source.
        tables: the rows by split, without their paths.
        dataset: what was planned.
    """

    names: list[str]
    rows: dict[str, np.ndarray]
    tables: dict[str, source.Rows]
    dataset: source.Dataset

    @property
    def num_photos(self) -> dict[str, int]:
        """Photos of each split, before any is rejected."""
        totals: dict[str, int] = {}
        for name, rows in self.rows.items():
            totals[split_of(name)] = totals.get(split_of(name), 0) + len(rows)
        return totals

    def write(self, name: str, path: str) -> None:
        """Writes the plan of one shard."""
        rows = self.tables[split_of(name)]
        table = rows.table.take(pa.array(self.rows[name]))
        listing = self.dataset.listing
        photo = table["photo"].to_numpy()
        columns = {
            "file": pa.repeat(pa.scalar(rows.file, pa.large_string()), len(table)),
            "row": table["row"],
            "path": listing.path.take(pa.array(photo)),
            "size": listing.size[photo],
            "offset": listing.offset[photo],
            "stored": listing.stored[photo],
        }
        columns |= {key: table[key] for key in ("xmin", "ymin", "xmax", "ymax", "label")}
        shard.write_plan(path, pa.table(columns))


def make(
    dataset: source.Dataset,
    *,
    seed: int,
    validation_fraction: float,
    num_shards: Callable[[str, int], int],
) -> Plan:
    """Plans a data set.

    Args:
        dataset: its rows.
        seed: of the split and the order.
        validation_fraction: of each class of the train photos.
        num_shards: from a split's name and number of photos to its number of shards.
    """
    members: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    tables = {}
    for folder, rows in dataset.rows.items():
        table = rows.table
        paths = dataset.listing.path.take(pc.cast(table["photo"].combine_chunks(), pa.int64()))
        keys = split.hashes(source.relative_paths(paths), seed)
        everything = np.arange(len(table))
        if folder == "test":
            members["test"] = (everything, keys)
            tables["test"] = rows
            continue
        chosen = split.is_validation(table["label"].to_numpy(), keys, validation_fraction)
        members["train"] = (everything[~chosen], keys[~chosen])
        members["validation"] = (everything[chosen], keys[chosen])
        tables["train"] = tables["validation"] = rows
    shards: dict[str, np.ndarray] = {}
    for name, (positions, keys) in members.items():
        if len(positions):
            count = min(len(positions), num_shards(name, len(positions)))
            for number, some in enumerate(split.cut(keys, count)):
                shards[f"{name}-{number:05d}-of-{count:05d}.tfrecord"] = positions[some]
    return Plan(list(shards), shards, tables, dataset)


def split_of(shard_name: str) -> str:
    """Returns the split of a shard, from its name."""
    return shard_name.split("-", 1)[0]
