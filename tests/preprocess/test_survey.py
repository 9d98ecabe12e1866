"""The first look at a source: what is found, what is noted, and what is refused with the remedy."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from preprocess import storage, tables
from preprocess.survey import Survey, survey
from tests.preprocess import photo_sets
from tfrecords.errors import UserError

NAMES = "Audi A4\nRam C/V Van\n"
TRAIN = "1.jpg,1,2,30,40,1\n2.jpg,1,2,30,40,2\n"
TEST = "1.jpg,1,2,30,40,1\n"
CARS = {
    "names.csv": NAMES,
    "anno_train.csv": TRAIN,
    "anno_test.csv": TEST,
    "train/Audi A4/1.jpg": "no survey opens a photo",
    "train/Ram C-V Van/2.jpg": "x",
    "test/Audi A4/1.jpg": "x",
}


def put(root: Path, files: dict[str, str]) -> Path:
    """Writes files; `files` is from relative path to text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def look(root: Path, **more) -> Survey:
    return survey(storage.open_source(str(root), **more))


def told(found: Survey) -> str:
    return "\n".join(found.notes)


class Listed:
    """A source of which only sizes are told."""

    def __init__(self, tables: list[pa.Table], texts: dict[str, str]):
        self._tables, self._texts = tables, texts

    def scan(self) -> Iterator[pa.Table]:
        yield from self._tables

    def read(self, entry: storage.Entry) -> bytes:
        return self._texts[entry.path].encode()


def listed(paths: list[str], sizes: dict[str, int]) -> pa.Table:
    facts = [{"path": path, "size": sizes.get(path, 9), "offset": 0, "stored": 9, "stamp": 0,
              "problem": ""} for path in paths]  # fmt: skip
    return pa.Table.from_pylist(facts, tables.FILES)


def test_a_data_set_is_understood(tmp_path):
    found = look(put(tmp_path, CARS))
    assert found.class_names == ["Audi A4", "Ram C/V Van"]
    assert found.labels == {"Audi A4": 1, "Ram C-V Van": 2}
    assert [(csv.layout.split, csv.entry.path) for csv in found.csvs] == [
        ("train", "anno_train.csv"),
        ("test", "anno_test.csv"),
    ]
    assert found.num_files == len(CARS)
    assert sorted(found.tables[0]["path"].to_pylist()) == sorted(CARS)


def test_a_survey_says_how_each_csv_is_read(tmp_path):
    header = "class,fname,bbox_x1,bbox_y1,bbox_x2,bbox_y2\n1,1.jpg,1,2,30,40\n"
    notes = told(look(put(tmp_path, CARS | {"anno_test.csv": header})))
    assert "names.csv: 2 classes" in notes
    assert "anno_train.csv: columns by place (filename, xmin, ymin, xmax, ymax, class)" in notes
    assert "anno_test.csv: columns by header (class, fname, bbox_x1" in notes


def test_a_zip_gives_the_survey_of_its_folder(tmp_path):
    root = put(tmp_path / "cars", CARS)
    one, other = look(root), look(photo_sets.zipped(root, tmp_path / "cars.zip"))
    assert (one.class_names, one.labels, one.notes) == (
        other.class_names,
        other.labels,
        other.notes,
    )
    assert one.num_files == other.num_files


def test_each_csv_is_the_one_nearest_to_the_top(tmp_path):
    files = {f"down/below/{name}": text for name, text in CARS.items()} | {
        "down/below/old/names.csv": "Other\n",
        "down/below/a/anno_train.csv": "",
        "down/below/train/Audi A4/anno_test.csv": "",
        "down/below/my_names.csv": "no such name\n",
        "down/names.csv/readme.txt": "a folder of that name",
    }
    found = look(put(tmp_path, files))
    assert found.class_names == ["Audi A4", "Ram C/V Van"]
    assert [csv.entry.path for csv in found.csvs] == [
        "down/below/anno_train.csv",
        "down/below/anno_test.csv",
    ]


@pytest.mark.parametrize("name", ["names.csv", "anno_train.csv", "anno_test.csv"])
def test_two_csvs_equally_near_are_refused_with_both(tmp_path, name):
    files = {f"a/{path}": text for path, text in CARS.items()} | {f"b/{name}": CARS[name]}
    with pytest.raises(
        UserError, match=rf"two files could be {name}: a/{name} and b/{name}\. Name"
    ):
        look(put(tmp_path, files))


@pytest.mark.parametrize("text", [None, ""])
def test_one_annotation_file_is_enough_and_the_other_is_noted(tmp_path, text):
    files = {name: content for name, content in CARS.items() if name != "anno_test.csv"}
    found = look(put(tmp_path, files | ({} if text is None else {"anno_test.csv": text})))
    assert [csv.layout.split for csv in found.csvs] == ["train"]
    assert f"anno_test.csv is {'missing' if text is None else 'empty'}: no test photos" in told(
        found
    )


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"names.csv": None}, r"names\.csv is missing: it gives the class names"),
        ({"names.csv": ""}, r"names\.csv is empty"),
        ({"names.csv": " \n"}, r"names\.csv is empty"),
        (
            {"anno_train.csv": None, "anno_test.csv": None},
            r"anno_train\.csv and anno_test\.csv are missing or empty\. Each row is: filename",
        ),
        ({"anno_train.csv": "", "anno_test.csv": ""}, "are missing or empty"),
        ({path: None for path in CARS if path.endswith("jpg")}, "there are no photos: none at "),
    ],
)
def test_what_is_missing_or_empty_is_said(tmp_path, spoil, says):
    files = {name: text for name, text in (CARS | spoil).items() if text is not None}
    with pytest.raises(UserError, match=says):
        look(put(tmp_path, files))


def test_photos_at_other_places_are_no_photos(tmp_path):
    files = {name: text for name, text in CARS.items() if name.endswith("csv")}
    others = ["images/1.jpg", "train/1.jpg", "Training/Audi A4/1.jpg", "train/Audi A4/more/1.jpg"]
    with pytest.raises(UserError, match="there are no photos"):
        look(put(tmp_path, files | dict.fromkeys(others, "x")))


def test_a_folder_that_holds_only_a_zip_says_to_name_it(tmp_path):
    put(tmp_path / "cars", CARS)
    (tmp_path / "download").mkdir()
    photo_sets.zipped(tmp_path / "cars", tmp_path / "download" / "cars.zip")
    with pytest.raises(UserError, match=r"But cars\.zip is there: name it as --input, or unpack"):
        look(tmp_path / "download")


@pytest.mark.parametrize("name", ["photos.tgz", "train/photos.tar.gz", "PHOTOS.7Z"])
def test_photos_that_are_still_packed_are_named(tmp_path, name):
    files = {path: text for path, text in CARS.items() if path.endswith("csv")}
    with pytest.raises(UserError, match=f"no photos.* But {name} is there"):
        look(put(tmp_path, files | {name: "packed"}))


def snapshot(root: Path, files: dict[str, str], only: str = "") -> Path:
    """Writes files as a download cache keeps them: links to blobs beside the data set."""
    put(root / "snapshot", files)
    (root / "blobs").mkdir()
    for number, name in enumerate(name for name in files if name.startswith(only)):
        (root / "snapshot" / name).rename(root / "blobs" / f"{number:040x}")
        (root / "snapshot" / name).symlink_to(root / "blobs" / f"{number:040x}")
    return root / "snapshot"


def test_a_snapshot_of_links_that_lead_out_says_what_to_do(tmp_path):
    root = snapshot(tmp_path, CARS)
    with pytest.raises(UserError, match=r"names\.csv is missing.* links that lead out") as caught:
        look(root)
    assert "6 files" in str(caught.value)
    assert "`cp -rL`" in str(caught.value)
    assert "--follow_links" in str(caught.value)
    # And what it says helps.
    assert look(root, follow_links=True).num_files == len(CARS)
    shutil.copytree(root, tmp_path / "copy")
    assert look(tmp_path / "copy").num_files == len(CARS)


def test_photos_that_are_links_leading_out_say_so_too(tmp_path):
    with pytest.raises(UserError, match=r"there are no photos.* 2 files are links.*cp -rL"):
        look(snapshot(tmp_path, {k: v for k, v in CARS.items() if "test/" not in k}, "train/"))


def test_some_links_that_lead_out_are_noted_with_the_remedy(tmp_path):
    notes = told(look(snapshot(tmp_path, CARS, "test/")))
    assert "refused, a symbolic link that leads out of the data set: test/Audi A4/1.jpg" in notes
    assert "(1 in all). Pass --follow_links" in notes


# dropped, so a class folder that holds only refused photos has no label, and its rows are told
# `wrong_folder` (the photo is at train/Ram C-V Van/2.jpg) instead of `unsafe_path`.
def test_a_class_folder_of_refused_photos_keeps_its_class(tmp_path):
    found = look(snapshot(tmp_path, CARS, "train/Ram"))
    assert found.labels == {"Audi A4": 1, "Ram C-V Van": 2}


def test_a_link_inside_the_data_set_is_followed(tmp_path):
    root = put(tmp_path / "cars", CARS)
    (root / "train" / "Audi A4" / "3.jpg").symlink_to(root / "test" / "Audi A4" / "1.jpg")
    found = look(root)
    assert found.num_files == len(CARS) + 1
    assert "refused" not in told(found)


def test_a_hidden_class_folder_is_noted(tmp_path):
    notes = told(look(put(tmp_path, CARS | {"train/.Fiat 500/1.jpg": "x"})))
    assert "hidden: its name begins with a dot. Rename it" in notes
    assert "train/.Fiat 500" in notes


def test_what_file_managers_leave_behind_is_not_seen(tmp_path):
    junk = {"__MACOSX/names.csv": "no\n", ".git/names.csv": "no\n", "train/Audi A4/.DS_Store": "x",
            "train/Audi A4/Thumbs.db": "x", ".names.csv": "no\n"}  # fmt: skip
    found = look(put(tmp_path, CARS | junk))
    assert found.num_files == len(CARS)
    assert "refused" not in told(found)


def test_strange_folders_are_noted_with_their_number(tmp_path):
    assert "fit no class" not in told(look(put(tmp_path, CARS)))
    strange = {f"train/Other {i}/1.jpg": "x" for i in (1, 2)} | {"test/Other 1/1.jpg": "x"}
    found = look(put(tmp_path, CARS | strange))
    assert "2 folders fit no class of names.csv, their photos are left out" in told(found)
    assert told(found).endswith("Other 1, Other 2") or "Other 1, Other 2\n" in told(found)
    assert not {"Other 1", "Other 2"} & found.labels.keys()
    more = {f"train/Other {i}/1.jpg": "x" for i in range(3, 9)}
    assert "8 folders fit no class" in (notes := told(look(put(tmp_path, more))))
    assert "Other 1, Other 2, Other 3 …" in notes


def test_a_csv_that_its_zip_cannot_give_is_named(tmp_path):
    root = put(tmp_path / "cars", CARS)
    zipped = photo_sets.zipped(root, tmp_path / "cars.zip", zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"names\.csv cannot be read: .*method 14"):
        look(zipped)


@pytest.mark.parametrize("name", ["names.csv", "anno_train.csv", "anno_test.csv"])
def test_a_csv_whose_bytes_are_damaged_in_a_zip_is_named(tmp_path, name):
    zipped = photo_sets.zipped(put(tmp_path / "cars", CARS), tmp_path / "cars.zip")
    with zipfile.ZipFile(zipped) as archive:
        info = archive.getinfo(name)
    data = bytearray(zipped.read_bytes())
    data[info.header_offset + 30 + len(name) + 1] ^= 1
    zipped.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} cannot be read: .*checksum"):
        look(zipped)


@pytest.mark.parametrize("name", ["names.csv", "anno_train.csv", "anno_test.csv"])
def test_a_csv_that_may_not_be_read_is_named(name):
    def refuse(entry):
        if entry.path == name:
            raise PermissionError(13, "Permission denied")
        return CARS[entry.path].encode()

    source = Listed([listed([*CARS], {})], {})
    source.read = refuse
    with pytest.raises(UserError, match=f"{name} cannot be read: .*Permission denied"):
        survey(source)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [("names.csv", 1 << 27, "larger than 64 MiB"), ("anno_test.csv", 1 << 31, "larger than 1 GiB")],
)
def test_what_is_too_large_to_be_a_csv_is_refused_unread(name, size, says):
    texts = {path: text for path, text in CARS.items() if path != name}
    source = Listed([listed([*CARS], {name: size})], texts)
    with pytest.raises(UserError, match=f"{name} is {says}"):
        survey(source)


def test_many_files_are_counted_and_not_kept():
    csvs = {path: text for path, text in CARS.items() if path.endswith("csv")}
    photos = [f"train/Audi A4/{i}.jpg" for i in range(tables.ROWS_AT_MOST)]
    few = [listed(photos[:10], {}), listed([*CARS], {})]
    assert survey(Listed(few, csvs)).tables == few
    many = [listed(photos, {}), listed([*CARS], {})]
    found = survey(Listed(many, csvs))
    assert (found.num_files, found.tables) == (len(photos) + len(CARS), [])
    assert found.labels == {"Audi A4": 1, "Ram C-V Van": 2}


def test_only_the_beginning_of_an_annotation_file_decides_how_it_is_read(tmp_path):
    """Rows far below never change what the first ones said."""
    late = "b.jpg,nonsense\n" * 40_000
    found = look(put(tmp_path, CARS | {"anno_train.csv": TRAIN * 2000 + late}))
    assert found.csvs[0].layout.columns == ("filename", "xmin", "ymin", "xmax", "ymax", "class")


def test_a_second_data_set_further_down_is_refused():
    nested = CARS | {"old/anno_train.csv": "1.jpg,1,2,3,4,1\n", "old/train/Audi A4/9.jpg": "x"}
    says = r"two data sets: .*anno_train\.csv and old/anno_train\.csv"
    with pytest.raises(UserError, match=says):
        survey(Listed([listed([*nested], {})], nested))


def test_a_csv_of_nearly_the_right_name_is_named():
    files = {path.replace("anno_train", "Anno-Train"): text for path, text in CARS.items()}
    with pytest.raises(UserError, match=r"anno_train\.csv is missing, but .*Anno-Train\.csv is"):
        survey(Listed([listed([*files], {})], files))
