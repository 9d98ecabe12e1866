"""Small real data sets for the tests: drawn photos, true records, a true manifest."""

import hashlib
import io
import os

import numpy as np
from PIL import Image

from tfrecords import example, manifest

HEIGHT, WIDTH = 32, 48
CLASS_NAMES = ["Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012", "Citroën 2CV 1970"]


def jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """Returns the bytes of a smooth random photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(out, "JPEG")
    return out.getvalue()


def record(seed: int, **changes) -> example.Record:
    """Returns a valid record; `changes` replace its fields."""
    label = seed % len(CLASS_NAMES) + 1
    values = {
        "encoded": jpeg(seed),
        "height": HEIGHT,
        "width": WIDTH,
        "original_height": 480,
        "original_width": 640,
        "filename": f"train/{CLASS_NAMES[label - 1]}/{seed:05d}.jpg",
        "sha256": hashlib.sha256(str(seed).encode()).hexdigest(),
        "bbox": (0.125, 0.25, 0.75, 0.875),
        "label": label,
        "text": CLASS_NAMES[label - 1],
    }
    return example.Record(**{**values, **changes})


def records(first: int, count: int) -> list[example.Record]:
    return [record(seed) for seed in range(first, first + count)]


def write(directory: str, splits: dict[str, list[list[example.Record]]], **changes) -> None:
    """Writes a data set.

    Args:
        directory: to write into; exists.
        splits: records of each shard of each split.
        changes: replace fields of the manifest.
    """
    described = {}
    names = changes.get("class_names", CLASS_NAMES)
    for name, shards in splits.items():
        written, counts = [], [0] * len(names)
        for number, content in enumerate(shards):
            file = f"{name}-{number:05d}-of-{len(shards):05d}.tfrecord"
            data = b"".join(example.frame(example.encode(item)) for item in content)
            with open(os.path.join(directory, file), "wb") as out:
                out.write(data)
            digest = hashlib.sha256(data).hexdigest()
            written.append(manifest.Shard(file, len(content), len(data), digest))
            for item in content:
                if 1 <= item.label <= len(counts):
                    counts[item.label - 1] += 1
        described[name] = manifest.Split(sum(map(len, shards)), written, counts)
    values = {
        "name": "tiny",
        "sample": False,
        "image": manifest.Image(HEIGHT, WIDTH, "jpeg", 95, "stretch"),
        "class_names": CLASS_NAMES,
        "splits": described,
        "rejected": {},
        "unannotated": 0,
        "box_stats": {"area": {"min": 0.1, "median": 0.390625, "max": 0.9}},
        "original_sizes": {"height": {"min": 480, "max": 480}},
        "parameters": {"seed": 42},
        "source_fingerprint": "0" * 64,
        "libraries": {"tensorflow": "2.21.0"},
    }
    with open(os.path.join(directory, manifest.FILE_NAME), "w", encoding="utf-8") as out:
        out.write(manifest.Manifest(**{**values, **changes}).to_json())


def write_default(directory: str) -> None:
    """Writes a data set without a fault: 7 + 3 + 4 records in 2 + 1 + 1 shards."""
    train = records(0, 7)
    splits = {"train": [train[:4], train[4:]], "validation": [records(10, 3)]}
    write(directory, {**splits, "test": [records(20, 4)]})
