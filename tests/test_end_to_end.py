"""From CSVs and photos to a picture with a box on it, by the commands that people type."""

import json

import numpy as np
from PIL import Image

from preprocess import run as preprocess
from tests.preprocess import photo_sets
from tests.trainer import commands
from tfrecords import manifest
from trainer import task


def test_csvs_become_a_model_that_draws_a_box(tmp_path):
    cars = photo_sets.write(tmp_path / "cars", train=40, test=8, height=60, width=80)
    data, run = tmp_path / "data", tmp_path / "run"
    size = ["--image_height=32", "--image_width=48"]
    preprocess.main(["--runner=DirectRunner", f"--input={cars}", f"--output={data}", *size])
    info = manifest.read(str(data))
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 31,
        "validation": 9,
        "test": 8,
    }
    one_zoom = [
        "--config.inference.zoom_passes=1",
        "--config.inference.flip_tta=false",
        "--config.inference.margin_tta=0",
    ]
    task.main([f"--data={data}", f"--run={run}", "--strategy=one", *commands.SETTINGS,
               "--epochs=1", *one_zoom])  # fmt: skip
    result = json.loads((run / "evaluation-test.json").read_text())
    assert result["num_examples"] == 8
    assert 0 <= result["mean_iou"] <= 1
    pictures = sorted((run / "pictures-test").glob("*[0-9]*.jpg"))
    assert len(pictures) == 8
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        # The true box is blue, the predicted one red: each leaves strong pixels of its color.
        blue = (pixels[..., 2] - pixels[..., :2].max(axis=-1)) > 60
        red = (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 60
        assert blue.sum() > 20, path
        assert red.sum() > 20, path
