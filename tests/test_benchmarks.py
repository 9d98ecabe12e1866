"""The benchmarks, on data sets so small that only their working can be told."""

import importlib.util
import json
import re

import pytest

from benchmarks import fuzz, gpu, preprocess, serve, train_step
from benchmarks import input as benchmark_input
from tests.preprocess import photo_sets
from tests.tfrecords import datasets
from tfrecords.errors import FlagError, UserError
from trainer import configs, model

SMALL = ["--config.model.alpha=0.35", "--config.inference.zoom_passes=0", "--batch_size=2"]


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


@pytest.mark.slow
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
    with pytest.raises(FlagError, match="--batch_sizes=64,many: it is not numbers"):
        gpu.main(["--batch_sizes=64,many"])


@pytest.fixture
def tiny(tmp_path) -> str:
    """A data set with 7 photos to learn from."""
    datasets.write_default(str(tmp_path))
    return f"--data={tmp_path}"


def rates(text: str) -> dict[str, float]:
    """Returns the medians of a table by the names of its rows."""
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \|", text, re.MULTILINE)
    return {name: float(rate) for name, rate in rows}


@pytest.mark.slow
def test_input_beside_its_limit(tiny, capsys):
    benchmark_input.main([tiny, *SMALL, "--rounds=2"])
    found = rates(capsys.readouterr().out)
    assert len(found) == 4
    assert min(found.values()) > 0


@pytest.mark.slow
def test_steps_of_the_loop_beside_model_fit(tiny, capsys):
    train_step.main([tiny, *SMALL, "--rounds=1", "--steps=2"])
    said = capsys.readouterr().out
    found = rates(said)
    assert found.keys() == {
        "one batch in memory", "real records", "model.fit, one batch in memory"
    }  # fmt: skip
    assert min(found.values()) > 0
    assert "waiting for data on real records: " in said


def test_what_cannot_be_measured_is_said_in_a_sentence(tiny, monkeypatch):
    with pytest.raises(UserError, match="none is left to measure: give a smaller --batch_size"):
        benchmark_input.main([tiny, "--batch_size=4"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="PyTorch is not installed"):
        train_step.main([tiny, "--torch"])


@pytest.mark.parametrize("alpha", [0.35, 1.0, 1.4])
def test_the_network_in_pytorch_has_the_parameters_of_ours(alpha):
    pytest.importorskip("torch")
    from benchmarks import torch_network

    config = configs.replace(
        configs.load("default"), {"model.alpha": alpha, "model.word_shared_classifier": False}
    )
    theirs = torch_network.Network(alpha, config.model.last_stride, config.model.filters, 7)
    ours = model.build(config, 64, 96, [f"class {i}" for i in range(7)], fresh=False)
    values = [v for v in theirs.state_dict().values() if v.is_floating_point()]
    assert sum(value.numel() for value in values) == ours.count_params()


@pytest.mark.slow
def test_steps_of_the_loop_beside_pytorch(tiny, capsys):
    pytest.importorskip("torch")
    train_step.main([tiny, *SMALL, "--rounds=1", "--steps=2", "--torch"])
    found = rates(capsys.readouterr().out)
    assert found["PyTorch, torch.compile, the same"] > 0
    assert found["one batch in memory, not augmented"] > 0
    with pytest.raises(UserError, match="has the heads of --config=default only"):
        train_step.main([tiny, *SMALL, "--torch", "--config.model.head=pooled"])


@pytest.mark.slow
def test_a_short_fuzz_finds_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit, check=lambda error: error.code == 0):
        fuzz.main(["--mutations=40", "--processes=1", f"--keep={tmp_path}"])
    assert "40 mutations in" in capsys.readouterr().out


def test_the_server_is_not_measured_without_a_model():
    with pytest.raises(FlagError, match=r"^--model is missing\. --help shows"):
        serve.main([])
