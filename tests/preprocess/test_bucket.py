"""Inputs and outputs with `scheme://`, through Beam's own file system interface."""

import contextlib

import pytest

from preprocess import run, shard
from tests.preprocess import bucket, photo_sets
from tfrecords import manifest
from tfrecords.errors import UserError

SOURCE, OUTPUT = "carboxtest://photos/cars", "carboxtest://sets/cars"


@pytest.fixture
def cars(tmp_path):
    bucket.OBJECTS.clear()
    bucket.LOG.clear()
    root = photo_sets.write(tmp_path / "cars")
    bucket.upload(root, SOURCE)
    return root


@pytest.fixture
def expected(cars, tmp_path):
    run.main(photo_sets.flags(cars, tmp_path / "local"))
    return photo_sets.contents(tmp_path / "local")


def test_from_bucket_to_bucket_gives_the_same_bytes(expected):
    run.main(photo_sets.flags(SOURCE, OUTPUT))
    assert bucket.under(OUTPUT) == expected
    assert not bucket.under(OUTPUT + ".incomplete")


def test_a_zip_in_a_bucket(cars, expected, tmp_path):
    zipped = photo_sets.zipped(cars, tmp_path / "cars.zip", 8)
    bucket.OBJECTS["carboxtest://photos/cars.zip"] = zipped.read_bytes()
    run.main(photo_sets.flags("carboxtest://photos/cars.zip", OUTPUT))
    assert bucket.under(OUTPUT) == expected


def test_from_bucket_to_disk_and_back(cars, expected, tmp_path):
    run.main(photo_sets.flags(SOURCE, tmp_path / "out"))
    assert photo_sets.contents(tmp_path / "out") == expected
    run.main(photo_sets.flags(cars, OUTPUT))
    assert bucket.under(OUTPUT) == expected


def test_the_manifest_comes_last(cars):
    run.main(photo_sets.flags(SOURCE, OUTPUT))
    published = [path for how, path in bucket.LOG if how == "put" and path.startswith(OUTPUT + "/")]
    assert published[-1] == f"{OUTPUT}/dataset.json"
    assert published[-2] == f"{OUTPUT}/croissant.json"
    assert len(published) == 5


def test_while_it_is_replaced_there_is_no_manifest(cars, expected):
    run.main(photo_sets.flags(SOURCE, OUTPUT, "--seed=1", "--train_shards=3"))
    with pytest.raises(UserError, match=r"exists\. Pass --overwrite"):
        run.main(photo_sets.flags(SOURCE, OUTPUT))
    bucket.LOG.clear()
    run.main(photo_sets.flags(SOURCE, OUTPUT, "--overwrite"))
    changes = [change for change in bucket.LOG if change[1].startswith(OUTPUT + "/")]
    assert changes[0] == ("delete", f"{OUTPUT}/dataset.json")
    assert changes[-1] == ("put", f"{OUTPUT}/dataset.json")
    assert bucket.under(OUTPUT) == expected


def test_strangers_in_the_output_are_never_deleted(cars):
    bucket.OBJECTS[f"{OUTPUT}/thesis.doc"] = b"x"
    with pytest.raises(UserError, match=r"is no data set: it holds 'thesis\.doc'"):
        run.main(photo_sets.flags(SOURCE, OUTPUT, "--overwrite"))
    assert bucket.under(OUTPUT) == {"thesis.doc": b"x"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("replace", "stride"),
    [
        (True, 13),
        pytest.param(False, 13, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_each_change_of_the_bucket(cars, expected, monkeypatch, replace, stride):
    kills = 0
    for step in range(1, 200, stride):
        bucket.OBJECTS.clear()
        bucket.upload(cars, SOURCE)
        old = {}
        if replace:
            run.main(photo_sets.flags(SOURCE, OUTPUT, "--seed=1"))
            old = bucket.under(OUTPUT)
        changes = 0

        class Log(list):
            def append(self, item, step=step):
                nonlocal changes
                changes += 1
                if changes >= step:
                    raise Killed

        flags = photo_sets.flags(SOURCE, OUTPUT, *(["--overwrite"] if replace else []))
        with monkeypatch.context() as patch:
            patch.setattr(bucket, "LOG", Log())
            with contextlib.suppress(Killed, RuntimeError):
                run.main(flags)
        now = bucket.under(OUTPUT)
        assert now in (old, expected) or "dataset.json" not in now
        if changes < step:
            break
        kills += 1
        # It may have been published already, and its traces removed.
        with contextlib.suppress(UserError):
            run.main(flags)
        assert bucket.under(OUTPUT) == expected
        assert not bucket.under(OUTPUT + ".incomplete")
    assert kills > 25 // stride


def test_whole_shards_are_not_done_again(cars, expected, monkeypatch, capsys):
    really, closed = shard._OpenShard.close, []

    def close(self):
        if len(closed) == 2:
            raise Killed
        closed.append(self.name)
        return really(self)

    with monkeypatch.context() as patch:
        patch.setattr(shard._OpenShard, "close", close)
        with pytest.raises((Killed, RuntimeError)):
            run.main(photo_sets.flags(SOURCE, OUTPUT))
    run.main(photo_sets.flags(SOURCE, OUTPUT))
    assert "2 shards were whole already" in capsys.readouterr().out
    assert bucket.under(OUTPUT) == expected


def test_an_input_that_is_not_there(cars):
    with pytest.raises(UserError, match="nothing is there"):
        run.main(photo_sets.flags("carboxtest://photos/nothing", OUTPUT))


def test_a_scheme_that_nobody_serves(cars):
    for source, output in (("nosuch://x", OUTPUT), (SOURCE, "nosuch://x/y")):
        with pytest.raises(UserError, match="nosuch"):
            run.main(photo_sets.flags(source, output))


def test_too_many_rejected_are_listed_in_the_bucket(cars):
    del bucket.OBJECTS[f"{SOURCE}/car_data/test/{photo_sets.FOLDERS[1]}/00001.jpg"]
    with pytest.raises(UserError, match="1 missing_photo"):
        run.main(photo_sets.flags(SOURCE, OUTPUT))
    assert manifest.REJECTED_NAME in bucket.under(f"{OUTPUT}.incomplete")
