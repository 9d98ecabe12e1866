"""The page of a data set: classes, boxes, sizes, photos, rejected rows, photos that look the same.

page = data_page.make(info, directory, list(findings.find(info, directory)))
"""

import collections
import itertools
import json
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfrecords import charts, data_rows, findings, manifest, near, pages

_SAMPLE = 600  # photos of the contact sheet
_PAIRS = 60  # photos that look the same that are shown
_BUDGET = 5_000_000  # characters of all thumbnails of the contact sheet
_REJECTED = 50  # rejected rows shown of each reason
_NAMED = 4  # of the smallest and of the largest classes that are named
_MAP = 40  # cells of the heat map across


def write(
    path: str, info: manifest.Manifest, directory: str, found: Sequence[findings.Finding]
) -> None:
    """Writes the page to a local file.

    Args:
        path: of the page.
        info, directory: the data set.
        found: what `findings.find` found in it.

    Raises:
        UserError: a record cannot be read, or the page not written.
    """
    pages.write(path, make(info, directory, found))


def make(info: manifest.Manifest, directory: str, found: Sequence[findings.Finding]) -> str:
    """Returns the page; see `write`."""
    rows = data_rows.read_rows(info, directory)
    sample = data_rows.choose_sample(rows, _SAMPLE)
    alike = data_rows.find_alike(rows)
    wanted = {*sample, *itertools.chain(*(pair[:2] for pair in alike[:_PAIRS]))}
    shown = data_rows.read_shown(info, directory, wanted)
    sample = _within_budget(sample, shown)
    notes = [*found, *_alike_findings(alike, rows), *_size_findings(info, rows)]
    photos = sum(split.num_examples for split in info.splits.values())
    return pages.render(
        "data.html",
        title=f"Data set {info.name}",
        subtitle=f"{photos:,} photos of {len(info.class_names):,} classes in {directory}",
        made_by=" ".join(["carbox inspect", *map(shlex.quote, sys.argv[1:])]),
        figures=_figures(info),
        notes=_by_remedy(notes),
        splits=_split_rows(info),
        split_names=[name for name, _ in _splits(info)],
        classes=_class_table(info),
        class_extremes=_class_extremes(info),
        class_chart=_class_chart(info),
        class_words=f"Each class has {min(_class_counts(info)[1], default=0):,} photos of the"
        f" {_class_counts(info)[0]} split.",
        box_map=_box_map(rows, info),
        box_sizes=_box_sizes(rows),
        original_sizes=_original_sizes(rows),
        sheet=_contact_sheet([shown[position] for position in sample]),
        sheet_words=_sheet_words(len(sample), photos),
        alike=_alike_gallery(alike, shown),
        alike_words=_alike_words(alike),
        rejected=_rejected_table(info, directory),
        facts=_facts(info),
    )


def _within_budget(sample: list[int], shown: dict[int, data_rows.Shown]) -> list[int]:
    """Drops photos, evenly, where their thumbnails would make the page too large."""
    size = sum(len(shown[position].photo.src) for position in sample)
    if size <= _BUDGET:
        return sample
    kept = np.linspace(0, len(sample) - 1, int(len(sample) * _BUDGET / size)).astype(int)
    return [sample[number] for number in kept]


def _by_remedy(notes: Iterable[findings.Finding]) -> list[tuple[list[str], str]]:
    """Returns sentences with the remedy that they share."""
    grouped: dict[str, list[str]] = collections.defaultdict(list)
    for note in notes:
        grouped[note.remedy].append(note.text[:1].upper() + note.text[1:] + ".")
    return [(texts, remedy) for remedy, texts in grouped.items()]


def _figures(info: manifest.Manifest) -> list[tuple[str, str, str]]:
    stored = info.image
    return [
        *((f"{split.num_examples:,}", f"{name} photos", "") for name, split in _splits(info)),
        (f"{len(info.class_names):,}", "classes", ""),
        (f"{sum(info.rejected.values()):,}", "rejected", "rows of the CSVs"),
        (f"{info.unannotated:,}", "unannotated", "photos that no CSV names"),
        (
            f"{stored.width} × {stored.height}",
            "pixels stored",
            f"{stored.encoding.upper()} {stored.quality}, {stored.resize}",
        ),
    ]


def _splits(info: manifest.Manifest) -> list[tuple[str, manifest.Split]]:
    return [(name, info.splits[name]) for name in manifest.SPLITS if name in info.splits]


def _split_rows(info: manifest.Manifest) -> list[list[str]]:
    photos = sum(split.num_examples for _, split in _splits(info)) or 1
    rows = []
    for name, split in _splits(info):
        counts = split.class_counts or [0]
        rows.append(
            [
                name,
                f"{split.num_examples:,}",
                f"{split.num_examples / photos:.1%}".replace("%", " %"),
                f"{sum(map(bool, counts)):,} of {len(info.class_names):,}",
                f"{min(counts):,}",
                f"{statistics.median(counts):,.0f}",
                f"{max(counts):,}",
                f"{len(split.shards):,}",
                f"{sum(shard.bytes for shard in split.shards) / 1e6:,.1f}",
            ]
        )
    return rows


def _class_table(info: manifest.Manifest) -> pages.Markup:
    splits = _splits(info)
    columns = [
        pages.Column("class"),
        pages.Column("photos", number=True, bar=list(range(2, len(splits) + 2))),
        *(pages.Column(name, number=True) for name, _ in splits),
    ]
    rows = [
        [name, sum(counts), *counts]
        for name, *counts in zip(
            info.class_names, *(split.class_counts for _, split in splits), strict=True
        )
    ]
    return pages.table("Photos of each class", columns, rows, sort=1, noun="classes")


def _class_counts(info: manifest.Manifest) -> tuple[str, list[int]]:
    """Returns the counts that matter most: those of train where there are any."""
    splits = _splits(info)
    name, split = (
        splits[0] if splits else ("no", manifest.Split(0, [], [0] * len(info.class_names)))
    )
    return name, split.class_counts


def _class_extremes(info: manifest.Manifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns the names and counts of the smallest and the largest classes, each with a title."""
    split, counts = _class_counts(info)
    if len(set(counts)) < 2:
        return []
    order = sorted(range(len(counts)), key=lambda label: (counts[label], info.class_names[label]))
    named = [(info.class_names[label], f"{counts[label]:,}") for label in order]
    few = (f"Fewest {split} photos", named[:_NAMED])
    return [few, (f"Most {split} photos", named[::-1][:_NAMED])]


def _class_chart(info: manifest.Manifest) -> pages.Markup:
    split, counts = _class_counts(info)
    low, high = min(counts, default=0), max(counts, default=0)
    step = max(1, -(-(high - low + 1) // 24))
    values, edges = np.histogram(counts, np.arange(low, high + step + 1, step))
    return charts.bars(
        values.tolist(), edges.tolist(), label=f"How many classes have how many {split} photos",
        x=f"{split} photos of a class", y="classes", whole=True,
    )  # fmt: skip


def _box_map(rows: np.ndarray, info: manifest.Manifest) -> tuple[pages.Markup, str]:
    """Returns a heat map of how many boxes cover each place of the photo, and what it says."""
    sizes = rows["width"] / np.maximum(rows["height"], 1)
    aspect = float(np.clip(np.median(sizes), 0.5, 2.5)) if len(rows) else 1.0
    across, down = _MAP, max(8, round(_MAP / aspect))
    # A cell is covered if its center is; the corners of each box mark where its cover begins and
    # ends, and sums along both axes then count the boxes.
    first = np.ceil(rows["box"][:, :2] * (across, down) - 0.5).astype(int)
    last = np.ceil(rows["box"][:, 2:] * (across, down) - 0.5).astype(int)
    first, last = np.maximum(first, 0), np.minimum(last, (across, down))
    whole = (last > first).all(axis=1)
    (left, top), (right, bottom) = first[whole].T, last[whole].T
    marks = np.zeros((down + 1, across + 1), np.int64)
    for ys, xs, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(marks, (ys, xs), sign)
    share = marks.cumsum(0).cumsum(1)[:down, :across] / max(len(rows), 1)
    corners = share[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    words = (
        f"{_percent(share[down // 2, across // 2])} of the boxes cover the middle of their photo,"
        f" {_percent(corners)} its corners."
    )
    label = "Which share of the boxes covers each place of the photo. " + words
    return charts.heat(share, label=label, aspect=aspect), words


def _box_sizes(rows: np.ndarray) -> tuple[pages.Markup, str]:
    """Returns a histogram of the boxes' areas, and what it says."""
    sides = rows["box"][:, 2:] - rows["box"][:, :2]
    areas = np.clip(sides.prod(axis=1), 0, 1)
    values, edges = np.histogram(areas, 20, (0, 1))
    low, middle, high = np.quantile(areas, [0.05, 0.5, 0.95]) if len(areas) else (0, 0, 0)
    words = (
        f"Half of the boxes cover more than {_percent(middle)} of their photo, nine of ten between"
        f" {_percent(low)} and {_percent(high)}."
    )
    chart = charts.bars(
        values.tolist(), edges.tolist(), label="How large the boxes are. " + words,
        x="share of the photo that the box covers", y="boxes", percent_x=True,
    )  # fmt: skip
    return chart, words


def _original_sizes(rows: np.ndarray) -> tuple[pages.Markup | str, str]:
    """Returns a histogram of the photos' longer sides, and what it says."""
    if not len(rows):
        return "", ""
    longer = np.maximum(rows["height"], rows["width"])
    upright = (rows["height"] > rows["width"]).mean()
    sizes, counts = np.unique(
        np.stack([rows["width"], rows["height"]], 1), axis=0, return_counts=True
    )
    width, height = sizes[counts.argmax()]
    if len(sizes) == 1:
        return "", f"All photos had {width:,} × {height:,} pixels (width × height)."
    cut = np.quantile(longer, 0.99)
    words = (
        f"Longer side: {longer.min():,} to {longer.max():,} pixels, median"
        f" {np.median(longer):,.0f}. Most frequent: {width:,} × {height:,}"
        f" ({_percent(counts.max() / len(rows))}). {_percent(upright)} are upright."
    )
    if longer.max() > 1.5 * cut:
        words += f" The chart ends at {cut:,.0f}, the largest 1 % are beyond."
    else:
        cut = longer.max()
    values, edges = np.histogram(longer, 24, (longer.min(), max(cut, longer.min() + 1)))
    chart = charts.bars(
        values.tolist(), edges.tolist(), label="How large the original photos are. " + words,
        x="pixels of the longer side", y="photos",
    )  # fmt: skip
    return chart, words


def _size_findings(info: manifest.Manifest, rows: np.ndarray) -> Iterator[findings.Finding]:
    stored = info.image
    smaller = (rows["height"] < stored.height) & (rows["width"] < stored.width)
    if smaller.mean() > 0.05 if len(rows) else False:
        yield findings.Finding(
            f"{_percent(smaller.mean())} of the photos are smaller than the"
            f" {stored.width} × {stored.height} pixels that are stored",
            "They were enlarged, which costs time and shows nothing new. Prepare the data set with"
            " a smaller --image_height and --image_width, or use larger photos.",
        )


def _alike_findings(alike: list[near.Pair], rows: np.ndarray) -> Iterator[findings.Finding]:
    looks = [pair for pair in alike if pair.bits >= 0]
    if looks:
        yield findings.Finding(
            f"{_photos(len(looks), 'looks', 'look')} like one of an earlier split",
            "Compare the pairs under “Near duplicates”. Where they are the same photo, keep one, or"
            " figures on it flatter the model.",
        )
    named = sum(rows["label"][pair.photo] != rows["label"][pair.earlier] for pair in alike)
    if named:
        yield findings.Finding(
            f"{_photos(named, 'is or looks', 'are or look')} like one of an earlier split, under"
            " another class name",
            "Compare the pairs under “Near duplicates”. Where both show the same object, one of its"
            " names is wrong: correct it in the CSV and prepare the data set again.",
        )


def _alike_words(alike: list[near.Pair]) -> str:
    if not alike:
        return "No photo is or looks like one of another split."
    same = sum(pair.bits < 0 for pair in alike)
    words = (
        f"{_photos(same, 'is', 'are')} the same file as one of an earlier split (in the order"
        f" train, validation, test). {_photos(len(alike) - same, 'looks', 'look')} like one: at"
        f" most {near.NEAR} of the 64 bits of their perceptual hashes (dHash) differ, and their"
        " colors are close."
    )
    if len(alike) > _PAIRS:
        words += f" The nearest {_PAIRS} are shown."
    return words


def _alike_gallery(alike: list[near.Pair], shown: dict[int, data_rows.Shown]) -> pages.Markup | str:
    cards = []
    for pair in alike[:_PAIRS]:
        earlier, photo = shown[pair.earlier], shown[pair.photo]
        kind = "same file" if pair.bits < 0 else f"{pair.bits} of 64 bits differ"
        one_name = earlier.text == photo.text
        splits = f"{earlier.split} and {photo.split}"
        cards.append(
            pages.Card(
                photos=[earlier.photo, photo.photo],
                title=earlier.text if one_name else f"{earlier.text} / {photo.text}",
                lines=[earlier.filename, photo.filename],
                badges=[splits, kind, *([] if one_name else ["two names"])],
                facets=[splits, kind, "one" if one_name else "two"],
            )
        )
    facets = ["splits", "how near", "names"]
    return pages.gallery(
        "Photos that look the same", cards, facets=facets, noun="pairs", page_size=12
    ) if cards else ""  # fmt: skip


def _contact_sheet(sample: Iterable[data_rows.Shown]) -> pages.Markup:
    cards = [
        pages.Card(
            photos=[one.photo],
            title=one.text,
            lines=[one.filename, f"{one.size} pixels"],
            badges=[one.split],
            facets=[one.text, one.split],
        )
        for one in sample
    ]
    return pages.gallery("Photos with their boxes", cards, facets=["class", "split"])


def _sheet_words(shown: int, photos: int) -> str:
    if shown == photos:
        return f"All {photos:,} photos with their boxes."
    return (
        f"A sample of {shown:,} of the {photos:,} photos, drawn at random with seed"
        f" {data_rows.SEED}, spread as evenly as possible over classes and splits."
    )


def _rejected_table(info: manifest.Manifest, directory: str) -> dict[str, Any]:
    """Returns counts by reason, as the manifest says, and rows as examples."""
    total = sum(info.rejected.values())
    reasons = [
        [reason, f"{count:,}"]
        for reason, count in sorted(info.rejected.items(), key=lambda item: (-item[1], item[0]))
    ]
    if not total:
        return {"total": 0, "reasons": [], "table": "", "words": ""}
    taken: collections.Counter[str] = collections.Counter()
    rows = []
    for row in _read_rejected(directory):
        reason = str(row.get("reason"))
        taken[reason] += 1
        if taken[reason] <= _REJECTED:
            rows.append(
                [str(row.get(name, "")) for name in ("reason", "photo", "detail", "file", "row")]
            )
    columns = [pages.Column(name) for name in ("reason", "photo", "detail", "file", "row")]
    words = f"{total:,} rows were rejected."
    if any(count > _REJECTED for count in taken.values()):
        words += (
            f" The first {_REJECTED} of each reason are shown, all are in {manifest.REJECTED_NAME}."
        )
    table = (
        pages.table("Rejected rows, examples", columns, rows, facets=[0], noun="rows")
        if rows
        else ""
    )
    return {"total": total, "reasons": reasons, "table": table, "words": words}


def _read_rejected(directory: str) -> Iterator[dict[str, Any]]:
    try:
        with manifest.open_file(os.path.join(directory, manifest.REJECTED_NAME)) as file:
            for line in file.read().splitlines():
                yield json.loads(line)
    except (OSError, ValueError):
        return  # missing or damaged: `--verify` says so


def _facts(info: manifest.Manifest) -> list[list[str]]:
    return [
        ["fingerprint of the source", info.source_fingerprint],
        *(
            [f"--{name}", _text(value)]
            for name, value in info.parameters.items()
            if value is not None
        ),
        *([name, version] for name, version in info.libraries.items()),
    ]


def _text(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _photos(count: int, one: str, many: str) -> str:
    return f"1 photo {one}" if count == 1 else f"{count:,} photos {many}"


def _percent(share: float) -> str:
    digits = 0 if share in (0, 1) or 0.1 <= share <= 0.9 else 1
    return f"{100 * share:.{digits}f} %"
