"""Runs side by side: differences photo by photo, and a refusal where photos differ."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.tfrecords import datasets
from tests.trainer import judged_runs
from tfrecords.errors import FlagError, UserError
from trainer import compare, configs, figures, run_dir, task

CLASSES = ["<b>Audi</b> TTS", "Ram C/V", "Citroën 2CV", "Ford", "Volvo", "smart"]
OTHER = configs.replace(judged_runs.CONFIG, {"seed": 7, "optimizer.ema": 0.5})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[str, str]:
    """Two runs on the same photos, with other seeds."""
    root = tmp_path_factory.mktemp("compare")
    data = judged_runs.write_data(str(root / "data"), CLASSES, 90)
    judged_runs.write_run(str(root / "one"), data, seed=1)
    judged_runs.write_run(str(root / "two"), data, seed=2, config=OTHER)
    return str(root / "one"), str(root / "two")


def test_a_run_differs_in_nothing_from_itself(runs, capsys):
    compare.main([runs[0], runs[0]])
    said = capsys.readouterr().out
    assert said.count(" 0.0 [0.0 to 0.0]") == 6
    assert "0.0000 [0.0000 to 0.0000]" in said
    assert "names 0 photos right" in said
    assert said.rstrip().endswith("no setting differs")


def test_two_runs_differ_by_the_mean_of_the_paired_differences(runs, capsys):
    compared = compare.compare(runs, "test")
    one, two = (judged.judged for judged in compared.evaluations)
    differences = two.iou - one.iou
    value, (low, high) = compared.differences[0]["mean_iou"]
    assert value == pytest.approx(differences.mean())
    generator = np.random.default_rng(9)
    means = [generator.choice(differences, len(differences)).mean() for _ in range(5000)]
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.006)
    # Paired: narrower than two intervals of their own, were both runs nearly the same.
    close = {"iou": one.iou + 0.01}
    low, high = figures.intervals(figures.differences({"iou": one.iou}, close))["iou"]
    assert (low, high) == pytest.approx((0.01, 0.01))
    compare.main(list(runs))
    said = " ".join(capsys.readouterr().out.split())
    assert f"mean IoU {one.iou.mean():.4f} {two.iou.mean():.4f}" in said
    assert f"only one names {(one.right & ~two.right).sum()} photos right" in said
    assert f"only two {(two.right & ~one.right).sum()}" in said
    assert f"seed {judged_runs.CONFIG.seed} 7" in said
    assert "optimizer.ema" in said


def test_the_page_shows_what_one_gets_right_and_the_other_wrong(runs, tmp_path, capsys):
    path = str(tmp_path / "deep" / "page.html")
    compare.main([*runs, f"--html={path}"])
    assert f"page: {path}" in capsys.readouterr().out
    with open(path, encoding="utf-8") as file:
        page = file.read()
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    lists = {one["label"]: one for one in map(json.loads, found)}
    one, two = (judged.judged for judged in compare.compare(runs, "test").evaluations)
    cards = lists["Only one is right"]["cards"]
    wanted = set(one.photo[one.right & ~two.right])
    assert {card["lines"][-1] for card in cards} <= wanted
    assert len(cards) == min(12, len(wanted))
    assert all(len(card["photos"]) == 2 for card in cards)
    table = lists["Photos that one and two name differently"]["rows"]
    assert {row[0] for row in table if row[-1] == "one"} == wanted
    assert {row[0] for row in table if row[-1] == "two"} == set(two.photo[two.right & ~one.right])
    assert "<b>Audi" not in page.replace("\\u003cb", "")
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:image[^\"]*", "", page))


def test_other_configs_and_inputs_on_the_same_records_are_compared(runs, tmp_path, capsys):
    _, data = run_dir.read(runs[0])
    by = {
        "default": configs.replace(
            configs.load("default"), {"model.input_height": 32, "model.input_width": 32}
        ),
        "baseline": configs.replace(configs.load("baseline"), {"downscale": 2}),
    }
    for seed, (name, config) in enumerate(by.items(), start=3):
        judged_runs.write_run(str(tmp_path / name), data, seed, config)
    page = tmp_path / "page.html"
    both = [str(tmp_path / name) for name in by]
    compare.main([*both, f"--html={page}"])
    said = " ".join(capsys.readouterr().out.split())
    # Every setting that differs is named, those of inference and the input's size too.
    flat = [configs.flatten(config) for config in by.values()]
    differing = {key for key in flat[0] if flat[0][key] != flat[1][key]}
    assert {"inference.zoom_passes", "model.input_height", "downscale"} <= differing
    for key in differing:
        assert f"{key} {flat[0][key]} {flat[1][key]}" in said
    for key in flat[0].keys() - differing:
        assert f" {key} " not in said
    text = page.read_text(encoding="utf-8")
    assert "2 zoom passes (margin 0.02 and 0.08), flipped too" in text
    assert "0 zoom passes" in text
    assert "Only baseline is right" in text


@pytest.mark.slow
def test_a_trained_default_and_a_trained_baseline_are_compared(tmp_path, capsys):
    records = datasets.records
    os.makedirs(tmp_path / "data")
    splits = {"train": [records(0, 8)], "test": [records(40, 7)]}
    datasets.write(str(tmp_path / "data"), splits)
    small = ["--strategy=one", f"--data={tmp_path / 'data'}", "--weights=none", "--epochs=1",
             "--batch_size=4", "--config.model.alpha=0.35", "--config.model.filters=8"]  # fmt: skip
    runs = [str(tmp_path / name) for name in ("default", "baseline")]
    for run in runs:
        task.main([*small, f"--config={os.path.basename(run)}", f"--run={run}"])
    capsys.readouterr()
    compare.main(runs)
    said = " ".join(capsys.readouterr().out.split())
    assert "7 photos of the test split of tiny" in said
    assert "inference.zoom_passes 2 0" in said
    assert "loss.box 5*l1+2*giou squared_error" in said


def test_runs_on_different_data_are_refused(runs, tmp_path):
    other = judged_runs.write_data(str(tmp_path / "data"), CLASSES, 84)
    judged_runs.write_run(str(tmp_path / "far"), other, seed=1)
    with pytest.raises(UserError, match=r"one and .*far were evaluated on different data: cars"):
        compare.main([runs[0], str(tmp_path / "far")])


def test_rows_of_other_photos_are_refused(runs, tmp_path):
    changed = shutil.copytree(runs[1], tmp_path / "changed")
    table = changed / "predictions-test.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="not of the same photos"):
        compare.main([runs[0], str(changed)])


def test_what_is_missing_is_named_with_the_command_that_makes_it(runs, tmp_path):
    with pytest.raises(FlagError, match="RUN is missing"):
        compare.main([runs[0]])
    with pytest.raises(UserError, match=r"no evaluation 'validation' \(it has: test\)"):
        compare.main([*runs, "--split=validation"])
    with pytest.raises(UserError, match="there is no run there"):
        compare.main([runs[0], str(tmp_path / "nowhere")])
    old = shutil.copytree(runs[1], tmp_path / "old", ignore=shutil.ignore_patterns("*.csv"))
    with pytest.raises(UserError, match=r"holds no predictions-test\.csv"):
        compare.main([runs[0], str(old)])


def test_three_runs_are_measured_by_the_first(runs, tmp_path):
    third = str(shutil.copytree(runs[0], tmp_path / "third"))
    compared = compare.compare([*runs, third], "test")
    assert compared.names == ["one", "two", "third"]
    assert compared.differences[1]["top1"] == (0.0, (0.0, 0.0))
    assert "third − one" in compare.page(compared)
    assert "(one and third)" in compare.page(compared)


def test_the_command_works_where_the_records_are_gone(runs, tmp_path):
    copies = [str(shutil.copytree(run, tmp_path / os.path.basename(run))) for run in runs]
    for copy in copies:
        path = os.path.join(copy, "evaluation-test.json")
        with open(path) as file:
            values = json.load(file)
        run_dir.write_json(copy, "evaluation-test.json", values | {"data": "/nowhere"})
    page = str(tmp_path / "page.html")
    command = [sys.executable, "-m", "trainer.compare", *copies, f"--html={page}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "top-1 accuracy" in done.stdout
    with open(page, encoding="utf-8") as file:
        assert "No photos are shown." in file.read()
