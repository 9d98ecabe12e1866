"""The bytes, the rows and the facts of two data sets, pinned.

`rows` (split, path, class, box, original size of every record) may never change for input that is
read rightly. `shards` (sha256 of every file) may change only together with
`publish.CODE_VERSION`: raise it, then write the new digests with
`python -m tests.preprocess.test_golden`.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

from preprocess import run, sample
from tests.preprocess import photo_sets
from tfrecords import example, manifest

GOLDEN = Path(__file__).with_name("golden.json")
_FACTS = ("class_names", "rejected", "unannotated", "box_stats", "original_sizes")


def drawn_set(root: Path) -> Path:
    """Photos of several kinds and sizes, and rows of which some cannot be used."""
    photo_sets.write(root, train=60, test=15)
    picture = Image.fromarray(photo_sets.pixels(60, 80, 7))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, data in {
        2: photo_sets.photo(600, 800, 2),
        3: photo_sets.photo(180, 240, 3),
        4: photo_sets.photo(kind="PNG"),
        5: photo_sets.encode(picture.convert("L")),
        6: photo_sets.encode(picture.convert("CMYK")),
        7: photo_sets.encode(picture.transpose(Image.Transpose.ROTATE_90), exif=exif),
        8: b"",
    }.items():
        photo_sets.path_of(root, "train", number).write_bytes(data)
    photo_sets.replace_row(root / "anno_train.csv", 9, "99999.jpg,1,2,30,40,1")
    photo_sets.replace_row(root / "anno_train.csv", 10, "00010.jpg,30,2,1,40,2")
    return root


def described(output: Path) -> dict:
    """What is pinned of a published data set."""
    info = manifest.read(str(output))
    rows = []
    for split, part in info.splits.items():
        for shard in part.shards:
            records = tf.data.TFRecordDataset(str(output / shard.file)).map(example.parse)
            for fields in records.as_numpy_iterator():
                fields.pop("encoded")
                fields["bbox"] = fields["bbox"].tolist()
                rows.append(f"{split} {sorted((k, str(v)) for k, v in fields.items())}")
    return {
        "rows": hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest(),
        "facts": {name: getattr(info, name) for name in _FACTS}
        | {name: part.class_counts for name, part in info.splits.items()},
        "shards": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(output.glob("*.tfrecord"))
        },
    }


def made(name: str, folder: Path) -> dict:
    """Makes a data set and describes it."""
    output = folder / "out"
    if name == "sample":
        sample.draw(str(folder / "sample"))
        run.main([f"--input={folder}/sample", f"--output={output}"])
    else:
        source = drawn_set(folder / "drawn")
        flags = photo_sets.flags(source, output, "--max_rejected=0.1", "--train_shards=3")
        run.main(flags)
    return described(output)


@pytest.mark.parametrize("name", ["drawn", "sample"])
def test_the_same_input_gives_the_bytes_it_always_gave(name, tmp_path):
    found, expected = made(name, tmp_path), json.loads(GOLDEN.read_text())[name]
    assert found["rows"] == expected["rows"]
    assert found["facts"] == expected["facts"]
    assert found["shards"] == expected["shards"], "raise publish.CODE_VERSION; see above"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        found = {
            name: made(name, Path(directory, name))
            for name in ("drawn", "sample")
            if not os.makedirs(Path(directory, name))
        }
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
