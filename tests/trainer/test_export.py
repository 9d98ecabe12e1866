"""Exported files say what the run says, are used without this project, and are refused if wrong."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from tests.tfrecords import datasets
from tfrecords import image, manifest, reader
from tfrecords.errors import FlagError, UserError
from trainer import (
    checkpoint,
    configs,
    evaluate,
    export,
    inference,
    model,
    predictor,
    run_dir,
    train_state,
)
from trainer.exports import card, check_photos, photos, plain, runtimes, tflite, verify

HEIGHT, WIDTH = 48, 64
HEADS = ("pooled", "spatial", "soft_argmax")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A data set of photos at the size of the test's network."""
    directory = str(tmp_path_factory.mktemp("data"))

    def records(first: int, count: int):
        boxes = np.random.default_rng(first).uniform([0, 0, 0.6, 0.6], [0.4, 0.4, 1, 1], (count, 4))
        return [
            datasets.record(
                seed,
                encoded=datasets.jpeg(seed, HEIGHT, WIDTH),
                height=HEIGHT,
                width=WIDTH,
                bbox=tuple(box.tolist()),
            )
            for seed, box in zip(range(first, first + count), boxes, strict=True)
        ]

    splits = {"train": [records(0, 16)], "test": [records(40, 8)]}
    stored = manifest.Image(HEIGHT, WIDTH, "jpeg", 95, "stretch")
    datasets.write(directory, splits, image=stored)
    return directory


def make_run(folder: str, data: str, head: str, **inference_settings) -> str:
    """Makes a run of a small network, untrained, with the BatchNorm statistics of these photos.

    One gray level more or less would change an untrained network's mind, as it does not change a
    trained one's. So its last layers are made less excitable.
    """
    default = configs.load("default")
    config = dataclasses.replace(
        default,
        weights="none",
        model=dataclasses.replace(default.model, alpha=0.35, head=head, filters=8, stride=16),
        inference=configs.Inference(**inference_settings),
    )
    info = run_dir.describe_data(data, manifest.read(data))
    network = model.build(config, HEIGHT, WIDTH, info.class_names)
    split = evaluate.open_split(info, "train", config)
    shown = split.fetch(tf.range(split.size, dtype=tf.int64))["image"]
    for layer in [*network.layers, *network.get_layer("backbone").layers]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(tf.cast(shown, tf.float32), training=True)
    if head != "soft_argmax":
        kernel, _ = network.get_layer("bbox").get_weights()
        network.get_layer("bbox").set_weights([0.01 * kernel, np.float32([-2, -1, 1.4, 1])])
    else:
        network.get_layer("edges").set_weights([0.1 * network.get_layer("edges").get_weights()[0]])
    label = network.get_layer("label")
    label.kernel.assign(0.05 * label.kernel)
    label.bias.assign([0.0, 1.0, 0.0])
    run_dir.create(folder, config, info)
    values = train_state.create(tf.distribute.OneDeviceStrategy("/cpu:0"), network, config)
    checkpoint.save(values, os.path.join(folder, run_dir.BEST), keep=1)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("runs") / "small")
    return make_run(folder, data, "spatial", zoom_passes=1, flip_tta=True)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> str:
    """An export of a few formats, those that are written fastest."""
    output = str(tmp_path_factory.mktemp("exports") / "small")
    export.main([f"--run={run}", f"--output={output}", "--formats=saved_model,tflite_float32"])
    return output


@pytest.fixture(scope="module")
def shown(data) -> np.ndarray:
    """The photos of the test split."""
    decoded = [one["image"].numpy() for one in reader.stream(data, "test")]
    return np.stack(decoded)


def test_an_export_reads_photos_as_its_run_does(run, exported):
    photos = [datasets.jpeg(seed, 200, 300) for seed in range(60, 66)]
    by_run, by_export = (predictor.load(place).predict(photos) for place in (run, exported))
    for ours, theirs in zip(by_run, by_export, strict=True):
        assert theirs.name == ours.name
        sides = [dataclasses.astuple(one.box) for one in (ours, theirs)]
        np.testing.assert_allclose(*sides, atol=0.1)  # pixels
    trained = run_dir.load_trained(run)
    half = dataclasses.replace(trained, config=dataclasses.replace(trained.config, downscale=2))
    said = card.facts(half, run, (HEIGHT // 2, WIDTH // 2), {})
    assert (said["height"], said["width"], said["downscale"]) == (HEIGHT // 2, WIDTH // 2, 2)
    assert (said["record_height"], said["record_width"]) == (HEIGHT, WIDTH)
    assert said["jpeg_quality"] == 95


def test_the_card_says_where_an_export_reads_photos_otherwise_than_evaluation(exported):
    with open(os.path.join(exported, "README.md"), encoding="utf-8") as file:
        assert "of their size" not in file.read()
    said = runtimes.read(exported).facts | {"downscale": 2}
    sure, bbox = np.float32([[0.9, 0.1]]), np.ones((1, 4), np.float32)
    run = verify.Verdicts(bbox, sure, bbox, np.zeros(1, int), 0.1, sure)
    examples = verify.Examples(np.zeros((1, 8, 8, 3), np.uint8), bbox, np.zeros(1, int), [])
    text = " ".join(card.readme(said, [], "", run, examples).split())
    assert f"decoded records of {HEIGHT}x{WIDTH} at 1/2 of their size" in text
    assert "may differ from evaluation's on about 1 of 100 photos" in text


def judged(run: str, images: np.ndarray) -> dict[str, np.ndarray]:
    trained = run_dir.load_trained(run)
    found = inference.judge(
        lambda shown: trained.network(shown, training=False),
        images,
        trained.config.inference,
        (HEIGHT, WIDTH),
    )
    return {name: value.numpy() for name, value in found.items()}


def test_files_say_what_the_run_says(run, exported, shown):
    expected = judged(run, shown)
    for name in ("saved_model", "tflite_float32"):
        bbox, probabilities = runtimes.load(exported, name)(shown)
        np.testing.assert_allclose(bbox, expected["bbox"], atol=1e-3)
        np.testing.assert_allclose(
            probabilities, tf.nn.softmax(expected["logits"]), atol=1e-2, err_msg=name
        )


def test_the_folder_holds_what_programs_need(run, exported):
    found = runtimes.read(exported)
    assert found.class_names == datasets.CLASS_NAMES
    assert (found.height, found.width, found.resize) == (HEIGHT, WIDTH, "stretch")
    assert found.inference == {
        "zoom_passes": 1,
        "zoom_margin": 0.05,
        "flip_tta": True,
        "margin_tta": 0.03,
    }
    assert "random weights" in found.facts["weights_license"]
    with open(os.path.join(exported, "labels.txt"), encoding="utf-8") as file:
        assert file.read().splitlines() == datasets.CLASS_NAMES
    with open(os.path.join(exported, "table.json"), encoding="utf-8") as file:
        assert {row["name"] for row in json.load(file)} == set(found.files)
    for one in found.files.values():
        assert os.path.exists(os.path.join(exported, one["file"]))
    assert not [name for name in os.listdir(os.path.dirname(exported)) if "incomplete" in name]


def readme(folder: str) -> str:
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        return file.read()


def assert_builtin(path: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    names = {one["op_name"] for one in Interpreter(path)._get_ops_details()}
    assert not [name for name in names if name.startswith(("Flex", "CUSTOM"))]


def test_litert_needs_builtin_operations_only(exported):
    assert_builtin(os.path.join(exported, "model-float32.tflite"))


def test_what_the_model_card_tells_to_type_works(exported, tmp_path):
    """In a process of its own, as its reader would."""
    text = readme(exported)
    for heading in ("## Figures", "## Data and recipe", "## Intended use and limits", "## License"):
        assert heading in text
    folder = shutil.copytree(exported, tmp_path / "export")
    (folder / "photo.jpg").write_bytes(datasets.jpeg(1, 100, 150))
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert "saved_model" in code
    assert "Interpreter" in code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout.splitlines()[-1] for name in datasets.CLASS_NAMES)


def test_a_request_of_tensorflow_serving_is_answered(run, exported):
    """What the server makes of the request's JSON: base64 under `b64` to bytes, and a batch."""
    serve = tf.saved_model.load(os.path.join(exported, "saved_model")).signatures["serving_default"]
    first, second = datasets.jpeg(1, 90, 120), datasets.jpeg(2, 300, 200)
    found = serve(image_bytes=tf.constant([first, second]))
    assert found["names"].shape == (2, 3)
    assert found["heights"].numpy().tolist() == [90, 300]
    assert found["widths"].numpy().tolist() == [120, 200]
    options = image.ImageOptions(HEIGHT, WIDTH)
    stored = np.stack([image.read(data, options).image for data in (first, second)])
    expected = judged(run, stored)
    boxes = expected["bbox"].clip(0, 1) * [[120, 90] * 2, [200, 300] * 2]
    np.testing.assert_allclose(found["boxes"], boxes, atol=3)
    names = [datasets.CLASS_NAMES[i] for i in expected["logits"].argmax(axis=1)]
    assert [row[0].decode() for row in found["names"].numpy()] == names
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither a JPEG nor a PNG"):
        serve(image_bytes=tf.constant([b"hello"]))


def test_a_wrong_file_is_refused_and_the_others_are_published(run, tmp_path, monkeypatch):
    """Refused is the one that gives boxes as (ymin, xmin, ymax, xmax)."""
    right = tflite.write

    def write(network, judge, size, kind, path) -> None:
        def wrong(network, images):
            found = judge(network, images)
            return found | {"bbox": tf.gather(found["bbox"], [1, 0, 3, 2], axis=1)}

        right(network, wrong if kind == "float16" else judge, size, kind, path)

    monkeypatch.setattr(tflite, "write", write)
    output = str(tmp_path / "export")
    with pytest.raises(UserError, match="tflite_float16 did not pass the check") as error:
        export.main([f"--run={run}", f"--output={output}", "--formats=tflite_float16,tflite_int8"])
    assert error.value.exit_code == 3
    assert "boxes of the records differ by" in str(error.value)
    assert list(runtimes.read(output).files) == ["tflite_int8"]
    assert "float16" not in readme(output)
    assert_builtin(os.path.join(output, "model-int8.tflite"))
    assert "model-float16.tflite" not in os.listdir(output)


def test_a_file_that_does_not_load_without_this_project_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export.keras_file, "write", lambda _, path: run_dir.load_trained(run).network.save(path)
    )
    output = str(tmp_path / "export")
    with pytest.raises(UserError, match="nothing was published"):
        export.main([f"--run={run}", f"--output={output}", "--formats=keras"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("head", [pytest.param("pooled", marks=pytest.mark.slow), "soft_argmax"])
def test_plain_layers_compute_the_same(data, tmp_path, shown, head):
    run = make_run(str(tmp_path / "run"), data, head, zoom_passes=0, flip_tta=False)
    trained = run_dir.load_trained(run)
    network = plain.network(trained)
    path = str(tmp_path / "model.keras")
    network.save(path)
    with zipfile.ZipFile(path) as file:
        assert "carbox>" not in file.read("config.json").decode()
    expected = trained.network(shown.astype(np.float32), training=False)
    found = keras.models.load_model(path)(shown.astype(np.float32), training=False)
    assert np.ptp(expected["bbox"], axis=0).max() > 1e-3
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def _file(photo: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    photo.save(out, kind, **options)
    return out.getvalue()


def _photos() -> dict[str, bytes]:
    """Photos of many kinds."""
    photo = Image.open(io.BytesIO(datasets.jpeg(3, 217, 333)))
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    gray = photo.convert("L")
    found = {
        "png": _file(photo, "PNG"),
        "gray": _file(gray, "JPEG"),
        "gray png": _file(gray, "PNG"),
        "palette": _file(photo.convert("P"), "PNG", transparency=5),
        "alpha": _file(alpha, "PNG"),
        "gray alpha": _file(alpha.convert("LA"), "PNG"),
        "black and white": _file(photo.convert("1"), "PNG"),
        "12 of 16 bits": _file(Image.fromarray(np.asarray(gray).astype(np.uint16) * 16), "PNG"),
        "progressive": _file(photo, "JPEG", progressive=True),
        "tiny": _file(photo.resize((7, 5)), "PNG"),
        "thin": _file(photo.resize((900, 9)), "JPEG"),
        "large": _file(photo.resize((1601, 1201)), "JPEG"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        found[f"turned {orientation}"] = _file(photo, "JPEG", exif=exif)
    exif[ExifTags.Base.Orientation] = 6
    found["turned png"] = _file(photo, "PNG", exif=exif)
    return found


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_decoders_of_exports_see_what_records_hold(resize):
    """That of the SavedModel, and that by Pillow which comes with an export."""
    options = image.ImageOptions(HEIGHT, WIDTH, resize)
    decode = tf.function(lambda data: photos.decode(data, HEIGHT, WIDTH, resize))
    for name, data in _photos().items():
        expected = image.read(data, options)
        found = decode(tf.constant([data]))
        _assert_close(found.image[0].numpy(), expected.image, name)
        assert found.size[0].numpy().tolist() == [*expected[1:3]], name
        assert tuple(found.content[0].numpy()) == expected.content, name
        if "16 bits" in name:
            continue
        by_pillow, size, content = runtimes.read_photo(data, HEIGHT, WIDTH, resize)
        _assert_close(by_pillow, expected.image, name)
        assert (size, content) == (expected[1:3], expected.content), name


def _assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 8, name
    assert difference.mean() < 0.6, name


def test_boxes_go_back_to_the_photo_as_everywhere():
    options = image.ImageOptions(HEIGHT, WIDTH, "letterbox")
    data = datasets.jpeg(3, 200, 500)
    stored = image.read(data, options)
    bbox = (0.25, 0.375, 0.75, 0.625)
    expected = np.array(image.photo_box(bbox, stored.content, options)) * [500, 200, 500, 200]
    decoded = photos.decode(tf.constant([data]), HEIGHT, WIDTH, "letterbox")
    found = photos.photo_boxes(tf.constant([bbox]), decoded)
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    shown, size, content = runtimes.read_photo(data, HEIGHT, WIDTH, "letterbox")
    by_hand = runtimes.photo_box(np.array(bbox), shown.shape, size, content)
    np.testing.assert_allclose(by_hand, expected)


def test_photos_to_check_with_are_of_all_kinds_and_show_the_same(data, tmp_path):
    records = list(reader.Records(data, "test").read(np.arange(8)))
    made = check_photos.from_records(records * 3, "stretch")
    kinds = {Image.open(io.BytesIO(one)).format for one in made}
    modes = {Image.open(io.BytesIO(one)).mode for one in made}
    turned = {Image.open(io.BytesIO(one)).getexif().get(274, 1) for one in made}
    assert kinds == {"JPEG", "PNG"}
    assert {"RGB", "L", "RGBA", "P"} <= modes
    assert turned == {1, 2, 3, 4, 5, 6, 7, 8}
    for number, one in enumerate(made):
        if Image.open(io.BytesIO(one)).mode != "RGB":
            continue
        seen = image.read(one, image.ImageOptions(HEIGHT, WIDTH)).image.astype(int)
        stored = next(iter(reader.stream(data, "test").skip(number % 8)))["image"].numpy()
        assert np.abs(seen - stored).mean() < 4
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a/one.jpg", datasets.jpeg(1))
        archive.writestr("a/two.JPG", datasets.jpeg(2))
        archive.writestr("a/broken.jpg", b"nothing")
        archive.writestr("names.csv", "Audi")
    assert len(check_photos.from_path(str(tmp_path / "photos.zip"))) == 2
    with pytest.raises(UserError, match="no JPEG or PNG"):
        check_photos.from_path(str(tmp_path))


def test_nothing_of_others_is_replaced(run, exported, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other things"):
        export.main([f"--run={run}", f"--output={tmp_path}"])
    with pytest.raises(UserError, match="--overwrite"):
        export.main([f"--run={run}", f"--output={exported}"])


def test_flags_that_make_no_sense_are_answered(run, tmp_path, monkeypatch):
    output = f"--output={tmp_path / 'export'}"
    with pytest.raises(FlagError, match="must be one of saved_model"):
        export.main([f"--run={run}", output, "--formats=coreml"])
    with pytest.raises(FlagError, match="--run is missing"):
        export.main([output])
    there = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util,
        "find_spec",
        lambda name: None if name == "tf2onnx" else there(name),
    )
    with pytest.raises(UserError, match=r"pip install 'carbox\[onnx\]'"):
        export.main([f"--run={run}", output, "--formats=onnx"])


def test_a_box_that_is_no_number_is_never_good():
    examples = verify.Examples(
        np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 4), np.float32), np.zeros(2, int), []
    )
    sure, photo = np.float32([[0.9, 0.1]]), np.zeros(1, int)
    bbox = np.ones((2, 4), np.float32)
    good = verify.Verdicts(bbox, sure.repeat(2, 0), bbox[:1], photo, 0.1, sure)
    bad = dataclasses.replace(good, bbox=good.bbox * np.nan)
    assert not verify.compare("onnx", True, 1, good, good, examples).problem
    for name in ("onnx", "tflite_int8"):
        assert verify.compare(name, True, 1, bad, good, examples).problem


def test_names_agree_where_the_run_itself_is_undecided():
    examples = verify.Examples(
        np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 4), np.float32), np.zeros(1, int), []
    )
    for probabilities, agrees in (([0.504, 0.496], True), ([0.52, 0.48], False)):
        run = np.float32([probabilities])
        bbox, first, second = np.ones((1, 4), np.float32), np.zeros(1, int), np.ones(1, int)
        original = verify.Verdicts(bbox, run, bbox, first, 0.1, run)
        found = verify.Verdicts(bbox, run[:, ::-1], bbox, second, 0.1)
        result = verify.compare("onnx", True, 1, found, original, examples)
        assert result.names_agree == result.photo_names_agree == 0
        assert bool(result.problem) != agrees


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_format_passes_with_all_passes_and_letterbox(data, tmp_path, head):
    directory = shutil.copytree(data, tmp_path / "data")
    text = (directory / "dataset.json").read_text().replace('"stretch"', '"letterbox"')
    (directory / "dataset.json").write_text(text)
    run = make_run(str(tmp_path / "run"), str(directory), head, zoom_passes=2, flip_tta=True)
    output = str(tmp_path / "export")
    with contextlib.suppress(export.NotPublishedError):  # by 8 bits an untrained network loses much
        export.main([f"--run={run}", f"--output={output}"])
    files = set(runtimes.read(output).files)
    assert {"saved_model", "keras", "onnx", "tflite_float32", "tflite_float16"} <= files
