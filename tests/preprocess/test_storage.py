"""Folders and zips: what is listed, what is refused, what is damaged."""

import os
import struct
import zipfile

import pytest

from preprocess import storage, tables
from tests.preprocess import photo_sets
from tfrecords.errors import UserError


def files_of(source: storage.Source) -> dict[str, dict]:
    """What a source says of each of its files, by path."""
    return {row["path"]: row for table in source.scan() for row in table.to_pylist()}


def entry_of(source: storage.Source, path: str) -> storage.Entry:
    row = files_of(source)[path]
    return storage.Entry(path, row["size"], row["offset"], row["stored"])


def read_all(source: storage.Source) -> dict[str, bytes]:
    files = files_of(source)
    good = [path for path, row in files.items() if not row["problem"]]
    return {path: source.read(entry_of(source, path)) for path in good}


def problems_of(source: storage.Source) -> dict[str, str]:
    return {path: row["problem"] for path, row in files_of(source).items() if row["problem"]}


def test_a_folder_and_its_zips_hold_the_same(tmp_path):
    root = photo_sets.write(tmp_path / "cars")
    expected = photo_sets.contents(root)
    assert read_all(storage.open_source(str(root))) == expected
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        zipped = photo_sets.zipped(root, tmp_path / f"{compression}.zip", compression)
        assert read_all(storage.open_source(str(zipped))) == expected


def test_a_zip_written_as_a_stream_is_read_and_checked(tmp_path):
    """Sizes and checksums stand behind the data then, and in the directory."""

    class Unseekable:
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    with open(tmp_path / "a.zip", "wb") as file, zipfile.ZipFile(Unseekable(file), "w") as archive:
        archive.writestr("train/x/1.jpg", b"abc" * 100, zipfile.ZIP_DEFLATED)
        archive.writestr("train/x/2.jpg", b"stored", zipfile.ZIP_STORED)
    expected = {"train/x/1.jpg": b"abc" * 100, "train/x/2.jpg": b"stored"}
    assert read_all(storage.open_source(str(tmp_path / "a.zip"))) == expected
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(raw.replace(b"stored", b"stared"))
    with pytest.raises(ValueError, match="checksum"):
        read_all(storage.open_source(str(tmp_path / "b.zip")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../train/x/1.jpg", "leads out of the data set"),
        ("train/../../x/1.jpg", "leads out of the data set"),
        ("/train/x/1.jpg", "an absolute path"),
        ("C:/train/x/1.jpg", "an absolute path"),
        ("..\\train\\x\\1.jpg", "leads out of the data set"),
    ],
)
def test_zip_members_that_lead_out_are_refused_by_name(tmp_path, name, why):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"evil")
        archive.writestr("train/x/2.jpg", b"good")
    source = storage.open_source(str(tmp_path / "a.zip"))
    assert read_all(source) == {"train/x/2.jpg": b"good"}
    ((path, problem),) = problems_of(source).items()
    assert why in problem
    assert "1.jpg" in path


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("train/x/1.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, b"/etc/passwd")
    source = storage.open_source(str(tmp_path / "a.zip"))
    assert problems_of(source) == {"train/x/1.jpg": "a symbolic link"}


def test_names_in_a_zip_without_the_utf8_flag(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/Citro\u00ebn/1.jpg", b"x")
    raw = (tmp_path / "a.zip").read_bytes()
    # Take the flag away, in the local header and in the directory, and leave the UTF-8 bytes.
    raw = raw.replace(b"\x00\x08\x00\x00", b"\x00\x00\x00\x00")
    (tmp_path / "b.zip").write_bytes(raw)
    assert read_all(storage.open_source(str(tmp_path / "b.zip"))) == {"train/Citroën/1.jpg": b"x"}


def test_a_zip_bomb_is_stopped_at_its_declared_size(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/x/1.jpg", bytes(50_000_000))
    source = storage.open_source(str(path))
    entry = entry_of(source, "train/x/1.jpg")
    assert entry.size == 50_000_000
    with pytest.raises(ValueError, match="40001 bytes, its directory says 40000"):
        source.read(entry._replace(size=40_000))


def test_a_member_that_lies_about_its_stored_size_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/x/1.jpg", b"photo")
    source = storage.open_source(str(tmp_path / "a.zip"))
    with pytest.raises(ValueError, match="to a member of 5"):
        source.read(entry_of(source, "train/x/1.jpg")._replace(stored=1 << 50))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw, at: raw[: at + 60] + b"\xff" + raw[at + 61 :], "checksum|inflated"),
        (lambda raw, at: raw[:at] + b"XXXX" + raw[at + 4 :], "no member where its directory says"),
        (lambda raw, at: raw[: at + 6] + b"\x01" + raw[at + 7 :], "encrypted"),
        (lambda raw, at: raw[: at + 8] + b"\x0c" + raw[at + 9 :], "method 12"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named_so(tmp_path, damage, says, compression):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("train/x/1.jpg", photo_sets.photo())
    entry = entry_of(storage.open_source(str(path)), "train/x/1.jpg")
    path.write_bytes(damage(path.read_bytes(), entry.offset))
    with pytest.raises(ValueError, match=says):
        storage.Zip(str(path)).read(entry)


def test_links_are_followed_inside_and_refused_where_they_lead_out(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    root = tmp_path / "cars"
    folder = root / "train" / "x"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"one")
    os.symlink(folder / "1.jpg", folder / "2.jpg")
    os.symlink("../../../outside/secret.jpg", folder / "3.jpg")
    os.symlink(outside, root / "train" / "y")
    os.symlink(root, root / "train" / "loop")
    os.symlink("nowhere", folder / "4.jpg")
    source = storage.open_source(str(root))
    assert read_all(source) == {"train/x/1.jpg": b"one", "train/x/2.jpg": b"one"}
    problems = problems_of(source)
    assert problems.keys() == {"train/x/3.jpg", "train/y"}
    assert all("leads out of the data set" in problem for problem in problems.values())
    followed = read_all(storage.open_source(str(root), follow_links=True))
    assert followed == {
        "train/x/1.jpg": b"one",
        "train/x/2.jpg": b"one",
        "train/x/3.jpg": b"secret",
        "train/y/secret.jpg": b"secret",
    }


def test_a_folder_is_listed_under_its_own_name_rather_than_a_link(tmp_path):
    for name in ("a", "z"):
        (tmp_path / "cars" / "m" / name).mkdir(parents=True)
        (tmp_path / "cars" / "m" / name / "1.jpg").write_bytes(b"x")
    for link in ("b", "y"):
        os.symlink("m", tmp_path / "cars" / link)
    os.symlink(tmp_path / "cars", tmp_path / "link")
    for path in (tmp_path / "cars", tmp_path / "link"):
        assert set(read_all(storage.open_source(str(path)))) == {"m/a/1.jpg", "m/z/1.jpg"}


def test_what_is_no_ordinary_file_is_left_out(tmp_path):
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "pipe.jpg")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.jpg").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/train/\xff.jpg", "wb") as file:
        file.write(b"x")
    source = storage.open_source(str(tmp_path))
    assert read_all(source) == {}
    ((path, problem),) = problems_of(source).items()
    assert "not UTF-8" in problem
    assert path == r"train/\xff.jpg" or "\\udcff" in path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"PK no zip"), "neither a folder nor a whole zip"),
        (lambda path: path.write_bytes(b"PK no zip"), "cut off: load it again"),
    ],
)
def test_an_input_that_is_nothing(tmp_path, make, says):
    make(tmp_path / "x.zip")
    with pytest.raises(UserError, match=says):
        files_of(storage.open_source(str(tmp_path / "x.zip")))


def test_a_cut_off_zip_is_refused(tmp_path):
    path = photo_sets.zipped(photo_sets.write(tmp_path / "cars"), tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut off"):
        storage.open_source(str(path))


def test_a_scheme_without_a_file_system_says_what_to_install():
    with pytest.raises(UserError, match="apache-beam"):
        storage.open_source("nosuch://bucket/data")


def test_a_file_is_whole_or_absent(tmp_path):
    path = str(tmp_path / "a")
    storage.write(path, b"old")
    with storage.create(path + ".partial") as file:
        file.write(b"half")
    assert storage.read(path) == b"old"
    storage.rename(path + ".partial", path)
    assert storage.sizes(str(tmp_path)) == {"a": 4}


def test_a_header_shorter_than_it_says(tmp_path):
    (tmp_path / "a").write_bytes(struct.pack("<I", 0x04034B50))
    with pytest.raises(ValueError, match="no member"):
        storage.Zip(str(tmp_path / "a")).read(storage.Entry("x", 1, 0, 1))


def test_an_archive_of_another_kind_is_to_be_unpacked(tmp_path):
    (tmp_path / "cars.tgz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"cars\.tgz is neither .* Unpack it and name the folder"):
        storage.open_source(str(tmp_path / "cars.tgz"))


def test_a_hidden_class_folder_is_named_and_other_hidden_things_are_not(tmp_path):
    root = tmp_path / "cars"
    for path in ("train/.Net 2012/1.jpg", "train/.DS_Store", ".git/train/.x/1.jpg"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    assert problems_of(storage.open_source(str(root))).keys() == {"train/.Net 2012"}
    zipped = photo_sets.zipped(root, tmp_path / "cars.zip")
    found = problems_of(storage.open_source(str(zipped)))
    assert "train/.Net 2012/1.jpg" in found
    assert "train/.DS_Store" not in found


def test_large_listings_come_in_tables_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_MOST", 7)
    root = photo_sets.write(tmp_path / "cars")
    found = list(storage.open_source(str(root)).scan())
    assert max(len(table) for table in found) == 7
    assert sum(len(table) for table in found) == 33
