"""The page of a run: its numbers are those of the CSV, and it can be used in a browser."""

import contextlib
import csv
import html
import io
import json
import math
import os
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.tfrecords import datasets
from tests.trainer import commands, judged_runs
from tfrecords import manifest
from tfrecords.errors import UserError
from trainer import configs, figures, inference, predictions, provenance, report, task

EVIL = '<script>alert("1")</script> & Co'
CLASSES = [EVIL, *(f"Car {number:02} Coupe" for number in range(39))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return judged_runs.write_data(str(tmp_path_factory.mktemp("cars")), CLASSES, 160)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> str:
    """A run as an evaluation leaves it, with its page."""
    run = str(tmp_path_factory.mktemp("runs") / "one")
    judged_runs.write_run(run, data, seed=1)
    report.write(run)
    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A letterboxed data set: photos of 4:3 in records of 3:2."""
    directory = str(tmp_path_factory.mktemp("tiny"))
    records = datasets.records
    stored = manifest.Image(datasets.HEIGHT, datasets.WIDTH, "jpeg", 95, "letterbox")
    splits = {"train": [records(0, 8)], "test": [records(40, 5)]}
    datasets.write(directory, splits, image=stored)
    return directory


def read(*path: str) -> str:
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def lists(page: str) -> dict[str, dict]:
    """Returns the tables and galleries of a page, by their labels."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {one["label"]: one for one in map(json.loads, found)}


def test_an_interval_is_what_drawing_photos_again_gives():
    values = np.random.default_rng(3).random(50)
    low, high = figures.intervals({"iou": values, "other": values > 0.5})["iou"]
    generator = np.random.default_rng(7)
    means = [generator.choice(values, 50).mean() for _ in range(20_000)]
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.012)
    assert figures.intervals({"iou": values})["iou"] == (low, high)  # always the same


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        low, high = figures.intervals({"top1": generator.random(100) < 0.7})["top1"]
        covered += low <= 0.7 <= high
    assert covered >= 52  # 57 expected; fewer than 52 in one of 100 such tests


def test_the_calibration_error_is_that_of_the_definition():
    # Two bins: of four names at 0.6, three are right; of one at 0.9, none.
    found = figures.calibration(np.array([0.6, 0.6, 0.6, 0.6, 0.9]),
                                np.array([True, True, True, False, False]), bins=4)  # fmt: skip
    assert found.counts.tolist() == [0, 0, 4, 1]
    assert found.accuracy[2:] == pytest.approx([0.75, 0])
    assert found.error == pytest.approx(4 / 5 * 0.15 + 1 / 5 * 0.9)
    sure = figures.calibration(np.ones(3), np.ones(3, bool))
    assert (sure.error, sure.counts[-1]) == (0, 3)


def test_predictions_are_read_as_they_were_written(run):
    path = os.path.join(run, "predictions-test.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    judged = predictions.read(path)
    assert len(judged) == len(rows) == 160
    for i in (0, 77, 159):
        assert rows[i]["photo"] == judged.photo[i]
        assert rows[i]["name_5"] == judged.names[i, 4]
        assert float(rows[i]["true_ymax"]) == judged.true_box[i, 3]
        assert float(rows[i]["xmin"]) == judged.box[i, 0]
        assert bool(int(rows[i]["right"])) == judged.right[i]


def test_the_numbers_on_the_page_are_those_of_the_csv(run):
    with open(os.path.join(run, "predictions-test.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    page = read(run, report.FILE_NAME)
    text = re.sub(r"<[^>]+>|\s+", " ", page.partition("application/json")[0]).replace("\xa0", " ")
    text = " ".join(text.split())
    right = np.array([row["right"] == "1" for row in rows])
    iou = np.array([float(row["iou"]) for row in rows])
    top5 = [row["true_name"] in [row[f"name_{k}"] for k in range(1, 6)] for row in rows]
    assert f"top-1 accuracy {right.mean():.1%}".replace("%", " %") in text
    assert f"top-5 accuracy {np.mean(top5):.1%}".replace("%", " %") in text
    assert f"mean IoU {iou.mean():.4f}" in text
    assert (
        f"right name and IoU ≥ 0.5 {np.mean(right & (iou >= 0.5)):.1%}".replace("%", " %") in text
    )
    classes = {row[0]: row for row in lists(page)["Classes"]["rows"]}
    assert len(classes) == 40
    for name in CLASSES[:5]:
        of_class = np.array([row["true_name"] == name for row in rows])
        _, photos, top1, mean_iou, taken_for, times = classes[name]
        assert photos == of_class.sum()
        assert top1 == pytest.approx(right[of_class].mean(), abs=1e-4)
        assert mean_iou == pytest.approx(iou[of_class].mean(), abs=1e-4)
        wrong = [row["name_1"] for row in rows if row["true_name"] == name and row["right"] == "0"]
        assert wrong.count(taken_for) == times if wrong else taken_for is None
    pairs = lists(page)["Confused classes"]["rows"]
    assert sum(row[2] for row in pairs) == (~right).sum()


def test_the_worst_and_the_best_predictions_are_shown_with_both_boxes(run):
    judged = predictions.read(os.path.join(run, "predictions-test.csv"))
    page = lists(read(run, report.FILE_NAME))
    worst, best = page["Worst predictions"]["cards"], page["Best predictions"]["cards"]
    assert len(worst) == len(best) == 12
    assert all("wrong" in card["badges"] for card in worst)
    assert all("right" in card["badges"] for card in best)
    card = best[0]
    i = judged.photo.tolist().index(card["lines"][-1])
    assert f"IoU {judged.iou[i]:.3f}" in card["badges"]
    (photo,) = card["photos"]
    assert photo["width"] / photo["height"] == pytest.approx(640 / 480, abs=0.02)  # as it was taken
    true, found = photo["boxes"]
    assert true["sides"] == pytest.approx([0.125, 0.25, 0.75, 0.875], abs=1e-4)
    assert found["sides"] == pytest.approx(judged.box[i] / [640, 480, 640, 480])


def test_letterboxed_photos_are_shown_without_black_bars(tmp_path):
    stored = judged_runs.datasets.manifest.Image(32, 48, "jpeg", 95, "letterbox")
    data = judged_runs.write_data(str(tmp_path / "data"), ["a", "b"], 12, image=stored)
    run = str(tmp_path / "run")
    judged_runs.write_run(run, data, seed=1)
    card = lists(read(report.write(run)))["Best predictions"]["cards"][0]
    (photo,) = card["photos"]
    assert (photo["width"], photo["height"]) == (43, 32)  # 640 x 480 within 48 x 32


def test_text_is_text_and_the_page_needs_nothing_else(run):
    page = read(run, report.FILE_NAME)
    assert "<script>alert" not in page
    assert EVIL in [row[0] for row in lists(page)["Classes"]["rows"]]
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', page):
        assert address.startswith(("#", "data:"))
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:image[^\"]*", "", page))


def test_without_records_the_page_says_so_and_keeps_its_numbers(run, data, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    values = json.loads(read(run, "evaluation-test.json")) | {"data": str(tmp_path / "gone")}
    (moved / "evaluation-test.json").write_text(json.dumps(values))
    page = read(report.write(str(moved)))
    assert "No photos are shown. no data set at" in html.unescape(page)
    assert lists(page).keys() == {"Classes", "Confused classes"}


def test_a_baseline_stands_beside_and_must_be_of_the_same_photos(run, data, tmp_path):
    baseline = str(tmp_path / "baseline")
    theirs = judged_runs.write_run(baseline, data, seed=2)
    ours = predictions.read(os.path.join(run, "predictions-test.csv"))
    copied = str(shutil.copytree(run, tmp_path / "copied"))
    page = read(report.write(copied, baseline))
    points = 100 * (ours.right.mean() - theirs.right.mean())
    assert f"{points:+.1f}".replace("-", "−") in page
    assert ">baseline</th>" in page
    other = judged_runs.write_data(str(tmp_path / "other"), CLASSES, 80)
    judged_runs.write_run(str(tmp_path / "stranger"), other, seed=2)
    with pytest.raises(UserError, match="different data"):
        report.write(copied, str(tmp_path / "stranger"))


def test_every_evaluation_has_a_page_and_each_page_lists_all(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied")
    for name in ("validation", "test-zoom0-noflip"):
        shutil.copy(copied / "predictions-test.csv", copied / f"predictions-{name}.csv")
        values = json.loads(read(run, "evaluation-test.json")) | {"zoom_passes": 0}
        (copied / f"evaluation-{name}.json").write_text(json.dumps(values))
    report.write(str(copied))
    links = {
        "report.html": ("report-validation.html", "report-test-zoom0-noflip.html"),
        "report-validation.html": ("report.html", "report-test-zoom0-noflip.html"),
        "report-test-zoom0-noflip.html": ("report.html", "report-validation.html"),
    }
    for file, others in links.items():
        found = re.findall(r'href="(report[^"]*)"', read(str(copied), file))
        assert sorted(found) == sorted(others)
    assert "0 zoom passes" in read(str(copied), "report-validation.html")
    # The records have no validation split.
    assert "No photos are shown." in read(str(copied), "report-validation.html")


def test_a_run_without_an_evaluation_has_a_page_too(run, tmp_path):
    bare = shutil.copytree(
        run, tmp_path / "bare", ignore=shutil.ignore_patterns("*-test*", "*.html")
    )
    page = read(report.write(str(bare)))
    assert "This run has not been evaluated yet." in page
    assert page.count('<svg class="chart"') == 4


def test_the_passes_begin_with_the_whole_photo_and_end_with_the_result():
    def network(shown):
        bbox = tf.tile([[0.25, 0.25, 0.75, 0.75]], [len(shown), 1])
        return {"bbox": bbox, "logits": tf.reduce_mean(shown, [1, 2])}

    photos = np.random.default_rng(0).random((2, 40, 60, 3), np.float32)
    passes: list[inference.Outputs] = []
    settings = configs.Inference(zoom_passes=2, zoom_margin=0.1, flip_tta=True)
    found = inference.judge(network, photos, settings, (40, 60), passes)
    assert len(passes) == 3
    np.testing.assert_array_equal(passes[0]["crop"], [[0, 0, 1, 1]] * 2)
    np.testing.assert_array_equal(passes[0]["bbox"], [[0.25, 0.25, 0.75, 0.75]] * 2)
    # The box found so far and a tenth of its sides around it.
    np.testing.assert_allclose(passes[1]["crop"], [[0.2, 0.2, 0.8, 0.8]] * 2, atol=0.01)
    # The box in that, and less around it.
    np.testing.assert_allclose(passes[2]["crop"], [[0.33, 0.33, 0.67, 0.67]] * 2, atol=0.02)
    for name, value in found.items():
        np.testing.assert_array_equal(passes[2][name], value)


def test_a_training_ends_with_its_page(tiny, tmp_path):
    run = str(tmp_path / "run")
    judged = ["--config.inference.zoom_passes=1", "--config.inference.flip_tta=false"]
    judged.append("--config.inference.margin_tta=0")
    flags = [*commands.SETTINGS, "--epochs=1", *judged]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        task.main(["--strategy=one", f"--data={tiny}", f"--run={run}", *flags])
    assert f"report: {os.path.join(run, 'report.html')}\n" in said.getvalue()
    known = provenance.read(run)
    assert known["starts"][0]["command"] == shlex.join(sys.orig_argv)
    assert known["starts"][0]["versions"]["tensorflow"]
    assert known["epochs"]["1"]["seconds"] > 0
    drawn = sorted(os.listdir(os.path.join(run, "pictures-test")))
    assert len(drawn) == 6
    for name in drawn[:-1]:  # the last is the sheet
        with Image.open(os.path.join(run, "pictures-test", name)) as picture:
            assert picture.width / picture.height == pytest.approx(4 / 3, rel=0.02)
    page = read(run, report.FILE_NAME)
    for text in ("photos a second", "tensorflow 2", "replica on", "fingerprint of the data"):
        assert text in page
    zoomed = lists(page)["Zoom passes"]["cards"]
    assert 1 <= len(zoomed) <= 3
    for card in zoomed:
        assert len(card["photos"]) == 2
        assert card["lines"][0].startswith("whole photo: ")
        assert math.isclose(
            card["photos"][0]["width"] / card["photos"][0]["height"], 4 / 3, rel_tol=0.02
        )


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_in_a_browser_tables_sort_and_search_on_a_phone_and_in_the_dark(run):
    sync_api = pytest.importorskip("playwright.sync_api")
    expect = sync_api.expect
    address = f"file://{os.path.join(run, report.FILE_NAME)}"
    complaints: list[str] = []
    every = lists(read(run, report.FILE_NAME))["Classes"]["rows"]
    wanted = [row for row in every if "Car 07 Coupe" in row]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for options in (
            {"viewport": {"width": 1280, "height": 900}},
            {"viewport": {"width": 320, "height": 568}, "is_mobile": True, "color_scheme": "dark"},
        ):
            page = browser.new_context(**options).new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text))
            page.on("request", lambda request: request.url.startswith(("file:", "data:"))
                    or complaints.append(request.url))  # fmt: skip
            page.goto(address)
            assert (
                page.evaluate("document.documentElement.scrollWidth")
                <= options["viewport"]["width"]
            )
            back = page.evaluate("getComputedStyle(document.body).backgroundColor")
            dark = sum(map(int, re.findall(r"\d+", back)[:3])) < 3 * 64
            assert dark == (options.get("color_scheme") == "dark")
            classes = page.locator("#classes")
            rows = classes.locator("tbody tr")
            expect(rows).to_have_count(15)
            classes.get_by_role("button", name="right").click()
            shares = [float(row.locator("td").nth(1).inner_text().split()[0]) for row in rows.all()]
            assert shares == sorted(shares, reverse=True)
            classes.locator("thead button").first.focus()
            page.keyboard.press("Enter")
            expect(rows.first.locator("th")).to_have_text(EVIL)
            classes.get_by_role("searchbox").fill("car 07")
            expect(rows).to_have_count(len(wanted))
            for row in rows.all():
                expect(row).to_contain_text("Car 07 Coupe")
            expect(page.locator("#photos .photo img")).to_have_count(36)
        browser.close()
    assert complaints == []
