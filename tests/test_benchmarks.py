"""The benchmarks of pre-processing, on a set so small that only their working can be told."""

import json

import pytest

from benchmarks import preprocess
from tests.preprocess import photo_sets
from tfrecords.errors import FlagError


@pytest.fixture
def measure(tmp_path, capfd):
    """Runs the command; returns its report and what it printed."""

    def run(*arguments):
        report = tmp_path / "report.json"
        preprocess.main([*arguments, f"--work={tmp_path}/work", f"--report={report}"])
        return json.loads(report.read_text()), capfd.readouterr().out

    return run


def test_speed_of_all_that_is_compared(measure, tmp_path):
    cars = photo_sets.zipped(photo_sets.write(tmp_path / "cars"), tmp_path / "cars.zip")
    report, printed = measure(f"--input={cars}", "--repeat=2", "--rounds=1", "--usual_photos=10")
    figures = report["speed, cars.zip x 2"]
    assert figures["photos"] == 60
    (one,) = figures["rounds"]
    assert len([name for name in one if name.startswith("limit")]) == 6
    assert figures["limit_is"] in one
    for name in ("whole", "pool", "usual", "whole_cpu_ms", "first_photo_seconds", "peak_mb"):
        assert one[name] > 0, name
    assert "| whole command / pool | >= 1.0 |" in printed


@pytest.mark.slow
def test_memory_by_number_of_photos(measure, tmp_path):
    cars = photo_sets.write(tmp_path / "cars")
    report, printed = measure(f"--input={cars}", "--scale")
    assert [one["photos"] for one in report["scale, cars"]["runs"]] == [30, 60, 120, 240]
    assert "bytes a photo" in printed


def test_graph_on_made_up_and_on_given_rows(measure, tmp_path):
    cars = photo_sets.write(tmp_path / "cars")
    report, printed = measure("--rows=70000", f"--input={cars}")
    runs = report["graph"]["runs"]
    assert {name: one["rows"] for name, one in runs.items()} == {
        "16,185 rows": 16_185,
        "70,000 rows": 70_000,
        "cars": 30,
    }
    for one in runs.values():
        assert one["stages"]["Join"] > 0
        assert one["stages"]["Beam and all else"] >= 0
        assert sum(one["stages"].values()) == pytest.approx(one["seconds"])
    assert "| Join |" in printed


def test_flags_that_make_no_sense_are_refused():
    with pytest.raises(FlagError, match="--input or --rows"):
        preprocess.main([])
    with pytest.raises(FlagError, match="not numbers"):
        preprocess.main(["--rows=many"])
