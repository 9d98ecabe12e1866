"""What in a data set hurts training, each with its remedy."""

import array
import collections
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfrecords import example, manifest, scan

_IMBALANCE = 10  # times more training photos in the largest class than in the smallest
_SMALL_BOX, _FULL_BOX = 0.01, 0.99  # share of the photo's area below and above which a box is odd
_NAMED = 5  # photos or classes that one finding names before it says "and N more"

_SMALL, _FULL = f"less than {_SMALL_BOX:.0%}", f"more than {_FULL_BOX:.0%}"
_ABSENT_SPLIT = {
    "train": "Nothing can be trained. Give the data set an anno_train.csv and prepare it again.",
    "validation": "Training cannot tell its best epoch. Prepare the data set again with a larger"
    " --validation_fraction.",
    "test": "Final figures need photos that training never saw. Give the data set an"
    " anno_test.csv and prepare it again.",
}
_ABSENT_CLASS = {
    "train": "The model cannot learn them. Add photos of them, or take them out of names.csv.",
    "validation": "Training does not see how well it knows them. Add photos of them, or prepare the"
    " data set again with a larger --validation_fraction.",
    "test": "How well the model knows them stays unknown. Add test photos of them.",
}
_UNEVEN = (
    "The model will favor the large classes. Add photos of the small ones, and judge the result by"
    " class, not by its average alone."
)
_ODD_BOX = {
    _SMALL: "Look whether the box was drawn by mistake. If it is right, cut the photos around"
    " their objects before preparing them, or store larger ones.",
    _FULL: "Look at them: some annotation tools draw a box around the whole photo by default. A box"
    " without surroundings does not teach where an object ends.",
}
_LEAKED = (
    "Figures on these photos flatter the model, which was trained on them or chosen by them. Keep"
    " each photo in one split and prepare the data set again."
)
_TWICE = "It counts twice. Delete one of them, unless that is meant."


class Finding(NamedTuple):
    """Something that hurts training.

    Attributes:
        text: what was found, in one sentence that names photos or classes.
        remedy: what it does to training, and what to do about it.
    """

    text: str
    remedy: str


def find(info: manifest.Manifest, directory: str) -> Iterator[Finding]:
    """Yields everything in a data set that hurts training.

    Reads every record for its digest and box, decodes no photo, and keeps 8 bytes for each.

    Raises:
        UserError: a record cannot be read.
    """
    yield from _class_findings(info)
    prefixes = array.array("Q")
    counts: collections.Counter[str] = collections.Counter()
    named: dict[str, list[str]] = collections.defaultdict(list)
    for _, record in scan.records(info, directory):
        prefixes.append(digest_prefix(record))
        if share := _odd_share(record):
            counts[share] += 1
            if counts[share] <= _NAMED:
                named[share].append(record.filename)
    for share, count in sorted(counts.items()):
        text = f"{count:,} boxes cover {share} of their photo: {_some(named[share], count)}"
        yield Finding(text, _ODD_BOX[share])
    values, times = np.unique(np.frombuffer(prefixes, np.uint64), return_counts=True)
    if (times > 1).any():
        yield from _duplicate_findings(info, directory, set(values[times > 1].tolist()))


def digest_prefix(record: example.Record) -> int:
    """Returns the first 64 bits of a photo's digest; 0 if it has none."""
    try:
        return int(record.sha256[:16], 16)
    except ValueError:
        return 0  # no digest; whole ones are compared wherever prefixes are equal


def _odd_share(record: example.Record) -> str:
    """Returns how much of its photo a box covers where that is odd, or nothing."""
    xmin, ymin, xmax, ymax = record.bbox
    area = (xmax - xmin) * (ymax - ymin)
    if area < _SMALL_BOX:
        return _SMALL
    return _FULL if area > _FULL_BOX else ""


def _class_findings(info: manifest.Manifest) -> Iterator[Finding]:
    for name in manifest.SPLITS:
        if name not in info.splits:
            yield Finding(f"there is no {name} split", _ABSENT_SPLIT[name])
            continue
        counts = info.splits[name].class_counts
        absent = [c for c, count in zip(info.class_names, counts, strict=True) if not count]
        if absent:
            text = (
                f"{len(absent):,} of {len(counts):,} classes have no photo in {name}:"
                f" {_some(absent, len(absent))}"
            )
            yield Finding(text, _ABSENT_CLASS[name])
    counts = info.splits["train"].class_counts if "train" in info.splits else []
    present = [count for count in counts if count]
    if present and max(present) > _IMBALANCE * min(present):
        most, least = (info.class_names[counts.index(f(present))] for f in (max, min))
        text = (
            f"training classes are far from even: {most!r} has {max(present):,} photos,"
            f" {least!r} has {min(present):,}"
        )
        yield Finding(text, _UNEVEN)


def _duplicate_findings(
    info: manifest.Manifest, directory: str, repeated: set[int]
) -> Iterator[Finding]:
    """Reads the names of the photos whose digests begin alike, and says which are the same."""
    places: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for split, record in scan.records(info, directory):
        if digest_prefix(record) in repeated:
            places[record.sha256].append((split, record.filename))
    repeats = [same for same in places.values() if len(same) > 1]
    # The worst come first: photos that are in several splits.
    repeats.sort(key=lambda same: -len({split for split, _ in same}))
    for same in repeats[:_NAMED]:
        splits = sorted({split for split, _ in same}, key=manifest.SPLITS.index)
        names = " and ".join(name for _, name in same[:_NAMED])
        more = f" and {len(same) - _NAMED:,} more" if len(same) > _NAMED else ""
        where = f"twice in {splits[0]}" if len(splits) == 1 else "in " + " and ".join(splits)
        remedy = _TWICE if len(splits) == 1 else _LEAKED
        yield Finding(f"the same photo is {where}: {names}{more}", remedy)
    if len(repeats) > _NAMED:
        text = f"{len(repeats) - _NAMED:,} more photos are there more than once"
        yield Finding(text, "Delete all but one of each, and prepare the data set again.")


def _some(names: list[str], count: int) -> str:
    more = count - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
