"""`results.json` says what the page says, and is what its schema promises."""

import csv
import json
import os
import re
import shutil

import jsonschema
import numpy as np
import pytest

from tests.trainer import judged_runs
from tfrecords.errors import UserError
from trainer import configs, provenance, report, results_file, run_dir

CLASSES = [f"Car {number:02} Coupe" for number in range(12)]


def checked(run: str, name: str = results_file.FILE_NAME) -> dict:
    """Reads a file of results and holds it against the schema."""

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    with open(results_file.SCHEMA) as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    with open(os.path.join(run, name)) as file:
        found = json.load(file, parse_constant=refused)
    jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return judged_runs.write_data(str(tmp_path_factory.mktemp("cars")), CLASSES, 60)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> str:
    """A run that was evaluated and trained, as its files say, in two starts."""
    run = str(tmp_path_factory.mktemp("runs") / "one")
    judged_runs.write_run(run, data, seed=1)
    hardware = {"strategy": "one device", "gpus": [], "cpu": "any", "cores": 2}
    start = {"command": "python -m trainer.task", "time": "2026-01-02T03:04:05+00:00"}
    start |= {"versions": {"tensorflow": "2.21.0"}}
    start |= {"hardware": hardware | {"memory_gb": 8.0, "system": "Linux"}}
    epochs = {
        str(epoch): {"seconds": 10.0, "images_per_second": speed, "wait": 0.1}
        for epoch, speed in ((1, 5.0), (2, 40.0), (3, 42.0))
    }
    run_dir.write_json(run, provenance.FILE_NAME, {"starts": [start, start], "epochs": epochs})
    passes = [
        {"crop": [0, 0, 1, 1], "bbox": [0.1, 0.2, 0.8, 0.9], "iou": 0.5 + step / 5,
         "name": CLASSES[0], "probability": 0.6}
        for step in range(2)
    ]  # fmt: skip
    described = [{"position": position, "passes": passes} for position in (0, 30)]
    run_dir.write_json(run, "zoom-test.json", described)
    report.write(run)
    return run


def test_the_figures_are_those_of_the_predictions_and_of_the_page(run):
    found = checked(run)["evaluation"]
    with open(os.path.join(run, "predictions-test.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    right = np.array([row["right"] == "1" for row in rows])
    iou = np.array([float(row["iou"]) for row in rows])
    sure = np.array([float(row["probability_1"]) for row in rows])
    assert found["num_examples"] == len(rows) == 60
    for name, values in (("top1", right), ("mean_iou", iou), ("iou_70", iou >= 0.7)):
        figure = found["figures"][name]
        assert figure["value"] == pytest.approx(values.mean())
        low, high = figure["interval_95"]
        assert low < figure["value"] < high
    details = found["details"]
    assert details["iou"]["median"] == pytest.approx(np.median(iou))
    assert details["probability"]["mean"] == pytest.approx(sure.mean())
    assert sum(details["calibration"]["counts"]) == 60
    assert sum(one["photos"] for one in details["classes"]) == 60
    assert sum(one["times"] for one in details["confusions"]) == (~right).sum()
    with open(os.path.join(run, report.FILE_NAME), encoding="utf-8") as file:
        page = file.read()
    lists = {
        one["label"]: one
        for one in map(
            json.loads,
            re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL),
        )
    }
    shown = [[row[0], row[1], row[4] or ""] for row in lists["Classes"]["rows"]]
    assert shown == [[one["name"], one["photos"], one["taken_for"]] for one in details["classes"]]
    pairs = [[one["true"], one["said"], one["times"], one["reverse"]]
             for one in details["confusions"]]  # fmt: skip
    assert lists["Confused classes"]["rows"] == pairs
    for name, figure in found["figures"].items():
        assert report.written(name, figure["value"]) in page
        assert report.between(name, tuple(figure["interval_95"])) in page
    assert report.percent(details["calibration"]["error"]) in page
    assert results_file.FILE_NAME in page


def test_how_the_run_was_made_is_there(run, data):
    found = checked(run)
    assert found["run"] == "one"
    assert found["config"] == configs.flatten(judged_runs.CONFIG)
    assert found["data"] == vars(data)
    assert found["timing"] == {
        "epochs": 3, "seconds": 30.0, "images_per_second": 40.0, "wait": 0.1,
    }  # fmt: skip
    assert len(found["starts"]) == 2
    assert [one["epoch"] for one in found["epochs"]] == [1, 2, 3]
    assert [one["position"] for one in found["evaluation"]["details"]["zoom_passes"]] == [0, 30]


def test_every_evaluation_has_results_and_a_baseline_is_in_them(run, data, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied")
    for name in ("evaluation-{}.json", "predictions-{}.csv"):
        shutil.copy(copied / name.format("test"), copied / name.format("test-zoom0-noflip"))
    theirs = judged_runs.write_run(str(tmp_path / "other"), data, seed=2)
    report.write(str(copied), str(tmp_path / "other"))
    first, second = checked(str(copied)), checked(str(copied), "results-test-zoom0-noflip.json")
    assert second["evaluation"]["name"] == "test-zoom0-noflip"
    assert second["evaluation"]["baseline"] is None
    beside = first["evaluation"]["baseline"]["figures"]["mean_iou"]
    assert first["evaluation"]["baseline"]["run"] == "other"
    assert beside["baseline"] == pytest.approx(theirs.iou.mean())
    ours = first["evaluation"]["figures"]["mean_iou"]["value"]
    assert beside["difference"] == pytest.approx(ours - theirs.iou.mean())


def test_a_run_that_diverged_or_was_not_evaluated_has_results_too(run, tmp_path):
    left_out = shutil.ignore_patterns("*-test*", "run.json", "*.html")
    bare = shutil.copytree(run, tmp_path / "bare", ignore=left_out)
    lines = (bare / "metrics.jsonl").read_text().splitlines()
    diverged = json.dumps(json.loads(lines[2]) | {"loss": float("nan")})
    (bare / "metrics.jsonl").write_text("\n".join([*lines[:2], diverged, ""]))
    report.write(str(bare))
    found = checked(str(bare))
    assert found["evaluation"] is found["timing"] is None
    assert found["epochs"][2]["loss"] is None
    old = shutil.copytree(run, tmp_path / "old", ignore=shutil.ignore_patterns("*.csv"))
    report.write(str(old))
    evaluation = checked(str(old))["evaluation"]
    assert evaluation["details"] is evaluation["figures"]["top1"]["interval_95"] is None


@pytest.mark.parametrize("spoil", [lambda _: [], lambda values: values.pop("top1") and values])
def test_an_evaluation_without_its_figures_is_told_in_a_sentence(run, tmp_path, spoil):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "evaluation-test.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"evaluation-test\.json is damaged .*Evaluate the run"):
        report.write(str(copy))
