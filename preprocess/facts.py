"""What the graph counts before any photo is opened, and whether that stops the job."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np

from preprocess import annotations

_SHOWN = 3  # examples that one message names


@dataclass
class Facts:
    """Sums over tables of rows and photos.

    Attributes:
        digests: sha256 of each CSV, by split.
        rows: by CSV.
        boxes, fractions: by CSV, boxes that are numbers, and those of them within [0, 1].
        zeros, first_zeros: by CSV, rows of class 0, and the first of them.
        reasons: rejected rows, by reason.
        examples: the first rejected rows of each reason: (file, row, photo, reason, detail).
        photos: sum of the hashes of all photos' relative paths and sizes, uint64 [4].
        unannotated: photos that no row names.
        unannotated_examples: the first of them.
        classes: by (split, label), rows that have it, and how many of them found a photo.
        folders: by (split, class folder), photos in it, and how many of them a row names.
        shared: by split, names of files that stand in more than one class folder.
        strange: by (split, folder), photos in folders that fit no class.
    """

    digests: dict[str, str] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    fractions: Counter[str] = field(default_factory=Counter)
    zeros: Counter[str] = field(default_factory=Counter)
    first_zeros: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, int, str, str, str]]] = field(default_factory=dict)
    photos: np.ndarray = field(default_factory=lambda: np.zeros(4, np.uint64))
    unannotated: int = 0
    unannotated_examples: list[str] = field(default_factory=list)
    classes: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    folders: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    shared: Counter[str] = field(default_factory=Counter)
    strange: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: "Facts") -> "Facts":
        """Adds what was counted elsewhere; the order of adding makes no difference."""
        self.digests |= other.digests
        for file, row in other.first_zeros.items():
            self.first_zeros[file] = min(row, self.first_zeros.get(file, row))
        for name in ("rows", "boxes", "fractions", "zeros", "reasons", "shared", "strange"):
            getattr(self, name).update(getattr(other, name))
        for reason, some in other.examples.items():
            self.examples[reason] = sorted([*self.examples.get(reason, []), *some])[:_SHOWN]
        self.photos = self.photos + other.photos
        self.unannotated += other.unannotated
        both = [*self.unannotated_examples, *other.unannotated_examples]
        self.unannotated_examples = sorted(both)[:_SHOWN]
        for label, counts in other.classes.items():
            self.classes[label] = self.classes.get(label, 0) + counts
        for folder, counts in other.folders.items():
            self.folders[folder] = self.folders.get(folder, 0) + counts
        return self

    def add_rejected(self, rows: Iterable[tuple[str, int, str, str, str]]) -> None:
        """Adds rejected rows: (file, row, photo, reason, detail)."""
        found: dict[str, list[tuple[str, int, str, str, str]]] = {}
        for row in rows:
            found.setdefault(row[3], []).append(row)
        counts = Counter({reason: len(some) for reason, some in found.items()})
        self.add(Facts(reasons=counts, examples=found))

    @property
    def num_rows(self) -> int:
        """Rows of all CSVs."""
        return self.rows.total()

    @property
    def num_rejected(self) -> int:
        """Rows rejected before any photo is opened."""
        return self.reasons.total()


class SumFacts(beam.CombineFn):
    """Adds up `Facts`."""

    def create_accumulator(self) -> Facts:
        """Returns no facts."""
        return Facts()

    def add_input(self, accumulator: Facts, element: Facts) -> Facts:
        """Adds some."""
        return accumulator.add(element)

    def merge_accumulators(self, accumulators: Iterable[Facts]) -> Facts:
        """Adds up sums."""
        total = Facts()
        for one in accumulators:
            total.add(one)
        return total

    def extract_output(self, accumulator: Facts) -> Facts:
        """Returns the sum."""
        return accumulator


def contradiction(
    facts: Facts, class_names: list[str], first_class: int | None, box_unit: str | None
) -> str:
    """Finds contradictions between the CSVs and the photos.

    Args:
        facts: of the whole data set.
        class_names: label = index + 1.
        first_class: the number of the first class, if the user gave it.
        box_unit: `pixel` or `fraction`, if the user gave it.

    Returns:
        A message for the user, or "" where there is no contradiction.
    """
    return (
        (_zero_class(facts, class_names) if first_class is None else "")
        or (_fractions(facts) if box_unit is None else "")
        or (_shifted_classes(facts, class_names) if first_class is None else "")
        or _no_rows(facts)
    )


def _zero_class(facts: Facts, class_names: list[str]) -> str:
    if not facts.zeros:
        return ""
    file, row = min(facts.first_zeros.items())
    return (
        f"class ids seem to start at 0: {facts.zeros.total():,} rows have class 0, the"
        f" first is {file} row {row}. Pass --first_class=0 if class 0 is"
        f" {class_names[0]!r}, the first of {annotations.NAMES}, or --first_class=1 to reject"
        " those rows."
    )


def _fractions(facts: Facts) -> str:
    for file, boxes in sorted(facts.boxes.items()):
        if boxes and facts.fractions[file] == boxes:
            return (
                f"{file}: all {boxes:,} boxes lie within [0, 1], so they seem to be fractions of"
                " the photo, not pixels. Pass --box_unit=fraction if they are (xmin, ymin, xmax,"
                " ymax; for center and size give the file a header: filename,x_center,y_center,"
                "width,height,class), or --box_unit=pixel if they are pixels."
            )
    return ""


def _shifted_classes(facts: Facts, class_names: list[str]) -> str:
    """Where file names repeat across folders, a row of the wrong class still finds a photo.

    A shift of the class numbers then shows only at its ends: a class whose rows find no photo, and
    a folder that no row names.
    """
    for split in annotations.ANNOTATIONS:
        if not facts.shared[split]:
            continue
        lost = [
            (label, counts[0]) for (where, label), counts in sorted(facts.classes.items())
            if where == split and not counts[1]
        ]  # fmt: skip
        unnamed = [
            (folder, counts[0]) for (where, folder), counts in sorted(facts.folders.items())
            if where == split and not counts[1]
        ]  # fmt: skip
        if facts.reasons["unknown_class"]:
            unnamed += [
                (folder, count)
                for (where, folder), count in sorted(facts.strange.items())
                if where == split
            ]
        has_rows = any(where == split for where, _ in facts.classes)
        # All rows of a small class may have been rejected for another reason.
        if lost or (has_rows and sum(n for _, n in unnamed) > facts.reasons["bad_row"]):
            rows = ", ".join(
                f"class {label} ({class_names[label - 1]!r}): {count:,} rows and no photo"
                for label, count in lost[:_SHOWN]
            )
            photos = ", ".join(
                f"folder {split}/{folder}: {count:,} photos and no row"
                for folder, count in unnamed[:_SHOWN]
            )
            return (
                f"the classes of the {split} rows do not fit its folders, and since the same file"
                " names stand in several folders, rows may have found photos of other classes."
                f" {'; '.join(filter(None, (rows, photos)))}. Check that line n of"
                f" {annotations.NAMES} is the name of class n, and that class ids start at 1."
                " Pass --first_class=1 (or 0) if they do and the photos or rows really are absent."
            )
    return ""


def _no_rows(facts: Facts) -> str:
    if not facts.num_rows:
        return (
            f"{', '.join(sorted(facts.rows))}: no row in it. Each row is: filename, xmin,"
            " ymin, xmax, ymax, class."
        )
    if facts.num_rejected < facts.num_rows:
        return ""
    file, row, photo, reason, detail = min(some[0] for some in facts.examples.values())
    return (
        f"no row can be used, out of {facts.num_rows:,}. The first is {file} row {row},"
        f" {photo!r}: {reason}: {detail}."
    )
