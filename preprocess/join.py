"""One bucket of the join: the rows and the photos whose file names hash alike.

A row finds its photo by split, class and file name. Buckets go by the stem of the name in lower
case, so all similar names are in one bucket, and the message about a row without a photo can say
what is there instead.
"""

import os
import unicodedata
from dataclasses import dataclass

import numpy as np
import pandas as pd

PHOTO_NAME = r"(?i)\.(?:jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?|avif|heic|heif|jp2)$"
"""Files that are photos by their names; only these count as unannotated when no row names them."""

_KEY = ["split", "label", "name"]
REJECTED_COLUMNS = ["file", "row", "photo", "reason", "detail"]


@dataclass(frozen=True)
class Joined:
    """The result of joining a bucket.

    Attributes:
        good: the rows that have a photo to themselves, with the columns of both sides.
        rejected: the others: file, row, photo, reason, detail.
        unannotated: relative paths of the photos that no row names.
        classes: by split and label, the rows (`total`), and how many of them found a photo
            (`found`).
        folders: by split, class folder and label, the photos (`total`), and how many of them a row
            names (`found`).
        shared: by split, names of files that stand in more than one class folder.
    """

    good: pd.DataFrame
    rejected: pd.DataFrame
    unannotated: list[str]
    classes: pd.DataFrame
    folders: pd.DataFrame
    shared: dict[str, int]


def normalized(name: str) -> str:
    """Returns a file name in the one of its Unicode forms by which names are compared."""
    return unicodedata.normalize("NFC", name)


def bucket_key(name: str) -> str:
    """Returns a key that is the same for names that could be confused."""
    return os.path.splitext(name)[0].casefold()


def join(rows: pd.DataFrame, photos: pd.DataFrame, class_names: list[str]) -> Joined:
    """Joins the rows of a bucket with its photos.

    Args:
        rows: file (the CSV), row (its line), split, name, xmin, ymin, xmax, ymax, label, reason,
            detail; `name` normalized. A row that has a reason already is passed on.
        photos: split, folder, label (0 for a folder that fits no class), name, path, relative,
            size, offset, stored, stamp, problem; `name` normalized.
        class_names: label = index + 1.
    """
    rows = rows.sort_values(["file", "row"], ignore_index=True)
    photos = photos.sort_values("path", ignore_index=True)
    # Integers with room for "none": a row without a photo would make floats of them all.
    photos = photos.astype(dict.fromkeys(("size", "offset", "stored", "stamp"), "Int64"))
    is_twin = photos.duplicated(_KEY)
    both = rows.merge(photos[~is_twin], on=_KEY, how="left")
    found = both["path"].notna() & both["label"].gt(0)
    _judge(both, found, photos[is_twin])
    missing = both["reason"].eq("missing_photo")
    if missing.any():
        _explain_missing(both, missing, photos, class_names)
    keep = both["reason"].eq("")
    bad = both[~keep]
    named = photos.merge(both.loc[found, _KEY].drop_duplicates(), on=_KEY, how="left",
                         indicator="named")["named"].eq("both")  # fmt: skip
    is_photo = named | photos["name"].str.contains(PHOTO_NAME, regex=True)
    left = photos[~named & is_photo]
    with_class = rows["label"].gt(0)
    return Joined(
        good=both[keep],
        rejected=bad.assign(photo=_photo_of(bad, class_names))[REJECTED_COLUMNS],
        unannotated=left["relative"].tolist(),
        classes=_counted(rows[with_class].assign(found=found[with_class]), ["split", "label"]),
        folders=_counted(photos.assign(found=named)[is_photo], ["split", "folder", "label"]),
        shared=_shared_names(photos[is_photo]),
    )


def _judge(both: pd.DataFrame, found: pd.Series, twins: pd.DataFrame) -> None:
    """Sets the reason of rows that cannot be used and have no reason yet."""
    box = both[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float)
    inverted = ~((box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3]))
    refused = found & both["problem"].fillna("").ne("")
    other = both[_KEY].merge(twins.drop_duplicates(_KEY)[[*_KEY, "path"]], on=_KEY, how="left")
    has_twin = other["path"].notna()
    undecided = both["reason"].eq("")
    usable = undecided & found & ~refused & ~has_twin & ~inverted
    again = usable & both["path"].where(usable).duplicated()
    for reason, where, detail in (
        ("missing_photo", ~found, lambda some: ""),
        ("duplicate", again, lambda some: _first_rows(both, usable & ~again, some)),
        ("box_inverted", found & inverted, lambda some: _boxes(box[some])),
        ("ambiguous", has_twin, lambda some: [
            f"two photos may be meant: {one} and {two}"
            for one, two in zip(both.loc[some, "path"], other.loc[some, "path"], strict=True)
        ]),
        ("unsafe_path", refused, lambda some: both.loc[some, "problem"]),
    ):  # fmt: skip
        some = undecided & where
        if some.any():
            both.loc[some, "reason"] = reason
            both.loc[some, "detail"] = detail(some)


def _first_rows(both: pd.DataFrame, firsts: pd.Series, some: pd.Series) -> list[str]:
    taken = both[firsts].set_index("path")["row"]
    rows = taken.loc[both.loc[some, "path"]]
    return [f"row {row} has a box for this photo already" for row in rows]


def _boxes(box: np.ndarray) -> list[str]:
    return [
        f"box ({', '.join(f'{value:g}' for value in one)}): xmin < xmax, ymin < ymax must hold"
        for one in box
    ]


def _explain_missing(
    both: pd.DataFrame, missing: pd.Series, photos: pd.DataFrame, class_names: list[str]
) -> None:
    """Explains which photos are there instead of the missing ones."""
    firsts = photos.drop_duplicates(["split", "name"])
    elsewhere = dict(
        zip(
            zip(firsts["split"], firsts["name"], strict=True),
            firsts["relative"],
            strict=True,
        )
    )
    similar = {
        (split, label, bucket_key(name)): relative
        for split, label, name, relative in zip(
            photos["split"], photos["label"], photos["name"], photos["relative"], strict=True
        )
    }
    reasons, details = [], []
    columns = (both.loc[missing, name] for name in _KEY)
    for split, label, name in zip(*columns, strict=True):
        wanted = f"{class_names[label - 1]!r}, class {label}"
        near = similar.get((split, label, bucket_key(name)))
        if (split, name) in elsewhere:
            reasons.append("wrong_folder")
            details.append(f"the row says {wanted}, the photo is at {elsewhere[split, name]}")
        elif near:
            reasons.append("missing_photo")
            details.append(f"no such file, but {near} is there: the name or its ending differs")
        else:
            reasons.append("missing_photo")
            details.append(f"no such file in a {split} folder of {wanted}")
    both.loc[missing, "reason"] = reasons
    both.loc[missing, "detail"] = details


def _photo_of(bad: pd.DataFrame, class_names: list[str]) -> list[str]:
    """Returns the photos' paths, as far as they are known."""
    return [
        relative if label and isinstance(relative, str)
        else f"{split}/{class_names[label - 1]}/{name}" if label else name
        for relative, split, label, name in zip(
            bad["relative"], bad["split"], bad["label"], bad["name"], strict=True
        )
    ]  # fmt: skip


def _counted(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Returns how many there are of each kind (`total`), and how many of them are `found`."""
    counted = frame.groupby(by)["found"].agg(["size", "sum"]).reset_index()
    return counted.rename(columns={"size": "total", "sum": "found"})


def _shared_names(photos: pd.DataFrame) -> dict[str, int]:
    folders = photos[["split", "name", "folder"]].drop_duplicates()
    shared = folders[folders.duplicated(["split", "name"])].drop_duplicates(["split", "name"])
    return {str(split): int(count) for split, count in shared["split"].value_counts().items()}
