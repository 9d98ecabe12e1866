"""Photos of one's own: named and boxed as evaluation does it, whatever their format and place."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.tfrecords import datasets
from tfrecords import example, image, manifest, reader
from tfrecords.errors import UserError
from trainer import (
    checkpoint,
    configs,
    inference,
    model,
    predict,
    predictor,
    run_dir,
    train_state,
)

OPTIONS = image.ImageOptions(64, 96, "letterbox")
SIZES = ((240, 320), (300, 200), (180, 320), (256, 256))  # height and width of photos
COLORS = ((200, 40, 40), (40, 180, 60), (50, 70, 210))  # of each class
CONFIG = configs.replace(
    configs.load("sample"),
    {
        "downscale": 1,
        "model.head": "soft_argmax",
        "model.batch_norm_momentum": 0.8,
        "optimizer.ema": 0.0,
    },
)


def draw(number: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Draws a photo of one object of the class `number % 3`, and returns it with its box."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    coarse = rng.integers(90, 150, (6, 6, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    high, wide = (rng.uniform(0.35, 0.6, 2) * (height, width)).astype(int)
    top, left = (rng.uniform(0.1, 0.9, 2) * (height - high, width - wide)).astype(int)
    photo.paste(COLORS[number % 3], (left, top, left + wide, top + high))
    return photo, (float(left), float(top), float(left + wide), float(top + high))


def encode(photo: Image.Image, kind: str = "JPEG", **save) -> bytes:
    out = io.BytesIO()
    photo.save(out, kind, **save)
    return out.getvalue()


def record(number: int, data: bytes) -> example.Record:
    prepared = image.prepare(data, OPTIONS)
    height, width = prepared.original_height, prepared.original_width
    fractions, _ = image.normalize_box(draw(number)[1], height, width)
    return datasets.record(
        number,
        encoded=prepared.encoded,
        height=OPTIONS.height,
        width=OPTIONS.width,
        original_height=height,
        original_width=width,
        filename=f"{number:05}.jpg",
        bbox=image.place_box(fractions, prepared.content, OPTIONS),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A run that tells three colors apart in letterboxed photos, which lie beside it."""
    root = tmp_path_factory.mktemp("predict")
    (root / "photos").mkdir()
    (root / "data").mkdir()
    records = []
    for number in range(160):
        data = encode(draw(number)[0], quality=92)
        (root / "photos" / f"{number:05}.jpg").write_bytes(data)
        records.append(record(number, data))
    stored = manifest.Image(OPTIONS.height, OPTIONS.width, "jpeg", 95, OPTIONS.resize)
    splits = {"train": [records[:100]], "test": [records[100:]]}
    datasets.write(str(root / "data"), splits, image=stored)
    data = run_dir.describe_data(str(root / "data"), manifest.read(str(root / "data")))
    network = model.build(CONFIG, OPTIONS.height, OPTIONS.width, data.class_names)
    learn(network, str(root / "data"))
    state = train_state.create(tf.distribute.get_strategy(), network, CONFIG)
    checkpoint.save(state, str(root / "run" / run_dir.BEST), keep=1)
    run_dir.create(str(root / "run"), CONFIG, data)
    return str(root / "run")


def learn(network: keras.Model, directory: str) -> None:
    """Learns a data set in seconds, without all that a training does besides."""
    images, boxes, labels = decode_split(directory, "train")
    named = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(
        keras.optimizers.Adam(4e-3), {"bbox": "mae", "logits": named}, loss_weights=[5.0, 1.0]
    )
    network.fit(images, {"bbox": boxes, "logits": labels}, batch_size=8, epochs=8, verbose=0)


def decode_split(directory: str, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, boxes and labels (from 0) of a split, as training reads them."""
    examples = list(reader.stream(directory, split).as_numpy_iterator())
    images = np.stack([one["image"] for one in examples])
    boxes = np.stack([one["bbox"] for one in examples])
    return images, boxes, np.array([one["label"] - 1 for one in examples])


@pytest.fixture(scope="module")
def photos(run) -> str:
    return os.path.join(os.path.dirname(run), "photos")


@pytest.fixture(scope="module")
def used(run) -> predictor.Model:
    return predictor.load(run)


@pytest.fixture
def said(run, used, capsys, monkeypatch):
    """Runs the command, and returns its lines, what it said besides, and its exit code."""
    monkeypatch.setattr(predictor, "load", {run: used}.__getitem__)  # loaded once for all tests

    def call(*arguments: object) -> tuple[list[str], str, int]:
        code = 0
        try:
            predict.main([f"--model={run}", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return out.splitlines(), err, code

    return call


def path_of(photos: str, number: int) -> str:
    return os.path.join(photos, f"{number:05}.jpg")


def sides(found: predictor.Prediction) -> np.ndarray:
    """Returns a box in fractions of the photo."""
    box = found.box
    pixels = np.array([box.xmin, box.ymin, box.xmax, box.ymax])
    return pixels / [found.width, found.height, found.width, found.height]


def test_photos_are_judged_as_their_records_are(run, photos, used):
    trained = run_dir.load_trained(run)
    images, _, labels = decode_split(trained.data.path, "test")
    judged = inference.judge(
        lambda shown: trained.network(shown, training=False),
        tf.constant(images),
        trained.config.inference,
        (OPTIONS.height, OPTIONS.width),
    )
    found = used.predict([path_of(photos, 100 + number) for number in range(len(images))])
    named = np.array([used.class_names.index(one.name) for one in found])
    assert np.mean(named == np.argmax(judged["logits"], axis=1)) >= 0.99
    boxes = [
        image.photo_box(tuple(bbox), image.content_size(one.height, one.width, OPTIONS), OPTIONS)
        for one, bbox in zip(found, judged["bbox"].numpy().tolist(), strict=True)
    ]
    assert np.abs(np.array(boxes) - [sides(one) for one in found]).mean() < 0.001
    assert np.mean(named == labels) > 0.9  # names could agree by being always the same


def test_a_box_is_in_pixels_of_the_photo_and_within_it(used):
    off = []
    for number in range(8):
        photo, true = draw(number)
        found = used.predict(encode(photo, "PNG"))
        assert (found.width, found.height) == photo.size
        box = found.box
        assert 0 <= box.xmin <= box.xmax <= found.width
        assert 0 <= box.ymin <= box.ymax <= found.height
        off.append(np.abs(sides(found) - np.array(true) / [*photo.size, *photo.size]).mean())
    assert np.mean(off) < 0.15  # the model is small and trained for seconds


def test_a_turned_photo_is_seen_as_people_see_it(used):
    upright, _ = draw(1)
    expected = used.predict(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    data = encode(turned, "PNG", exif=exif)
    for photo in (data, Image.open(io.BytesIO(data))):
        found = used.predict(photo)
        assert (found.width, found.height) == upright.size
        assert found.name == expected.name
        assert np.abs(sides(found) - sides(expected)).max() < 0.01


def test_paths_bytes_pictures_and_arrays_are_the_same_photo(used, tmp_path):
    photo, _ = draw(5)
    path = tmp_path / "photo.png"
    path.write_bytes(encode(photo, "PNG"))
    every = [path, str(path), path.read_bytes(), photo, np.asarray(photo)]
    found = used.predict(every)
    assert len({one.name for one in found}) == 1
    assert np.ptp([sides(one) for one in found], axis=0).max() < 1e-5
    assert isinstance(used.predict(path), predictor.Prediction)
    assert used.predict([]) == []
    assert len(used.predict(np.stack([np.asarray(photo)] * 2))) == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_pictures_of_every_mode_are_read(used, mode):
    photo, _ = draw(3)
    converted = photo.convert("L").convert(mode) if mode == "I;16" else photo.convert(mode)
    assert used.predict(converted).width == photo.width


def test_gray_photos_and_formats_other_than_jpeg_are_read(used):
    photo, _ = draw(3)
    for data in (encode(photo.convert("L")), encode(photo, "WEBP"), encode(photo, "TIFF")):
        assert used.predict(data).height == photo.height


def test_names_come_with_probabilities_the_most_probable_first(used, photos):
    found = used.predict(path_of(photos, 4), top=2)
    assert [found.name, found.probability] == [found.names[0].name, found.names[0].probability]
    assert len(found.names) == 2
    every = used.predict(path_of(photos, 4), top=99).names
    assert {one.name for one in every} == set(used.class_names)
    assert sum(one.probability for one in every) == pytest.approx(1)
    chances = [one.probability for one in every]
    assert chances == sorted(chances, reverse=True)


def test_a_photo_that_cannot_be_read_is_named(used, photos, tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"page\.jpg: not an image but a web page"):
        used.predict([path_of(photos, 1), tmp_path / "page.jpg"])
    with pytest.raises(UserError, match=r"nowhere\.jpg: No such file"):
        used.predict("nowhere.jpg")
    with pytest.raises(UserError, match="photo 2: the file is empty"):
        used.predict([draw(0)[0], b""])
    with pytest.raises(TypeError, match="float64"):
        used.predict(np.zeros((8, 8, 3)))
    with pytest.raises(TypeError, match="int"):
        used.predict([3])


def test_a_damaged_photo_is_told_without_flags_of_another_command(used, photos):
    with open(path_of(photos, 1), "rb") as file:
        data = file.read()
    cut, whole = used.predict_bytes([data[: len(data) // 2], data])
    assert isinstance(cut, predictor.Unreadable)
    assert cut.reason == "damaged"
    assert "--" not in cut.detail
    assert isinstance(whole, predictor.Prediction)


def test_numbers_that_are_not_finite_are_no_prediction():
    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(images), 4), np.nan), np.ones((len(images), 1))

    broken = predictor.Model(judge, ["car"], OPTIONS, "a model of nothing")
    (found,) = broken.predict_bytes([encode(draw(0)[0])])
    assert isinstance(found, predictor.Unreadable)
    assert found.reason == "not_finite"


def test_a_long_stream_stays_in_order_and_is_read_a_little_ahead_only(used, photos):
    count, size, begun = 100, 4, []

    def read(number: int) -> bytes:
        begun.append(number)
        return predictor.read_file(path_of(photos, number))

    for done, (number, found) in enumerate(used.stream(range(count), read, batch_size=size)):
        assert number == done
        assert (found.height, found.width) == SIZES[number % len(SIZES)]
        assert len(begun) - done <= 5 * size
    assert len(begun) == count


def test_a_run_or_export_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        predictor.load(tmp_path)


def test_lines_come_in_the_order_of_the_arguments(said, photos, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.png", "b/10.jpg", "a.JPG", "c.jpeg"):
        (tmp_path / name).write_bytes(encode(draw(2)[0], "PNG"))
    for name in ("anno_train.csv", "b/Thumbs.db", "._a.jpg"):
        (tmp_path / name).write_text("no photo")
    single = path_of(photos, 7)
    lines, _, code = said(single, tmp_path, single)
    assert code == 0
    inside = [str(tmp_path / name) for name in ("a.JPG", "b/10.jpg", "b/2.png", "c.jpeg")]
    assert [json.loads(line)["photo"] for line in lines] == [single, *inside, single]


def test_a_line_is_what_the_python_interface_gives(said, photos, used):
    (line,), _, _ = said(path_of(photos, 7), "--top=2")
    found = json.loads(line)
    assert list(found) == ["photo", "width", "height", "box", "names"]
    expected = used.predict(path_of(photos, 7))
    assert (found["width"], found["height"]) == (expected.width, expected.height)
    assert found["box"]["xmax"] == pytest.approx(expected.box.xmax, abs=0.01)
    assert found["names"][0]["name"] == expected.name
    assert found["names"][0]["probability"] == pytest.approx(expected.probability, abs=1e-4)
    assert len(found["names"]) == 2


def test_a_zip_gives_what_its_folder_gives(said, photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.csv", "no photo")
        archive.writestr("__MACOSX/a/._00001.jpg", "no photo")
        for number in (11, 2, 30):
            archive.write(path_of(photos, number), f"cars/{number:05}.jpg")
    with zipfile.ZipFile(tmp_path / "photos.zip") as archive:
        archive.extractall(tmp_path / "folder")
    packed, _, code = said(tmp_path / "photos.zip")
    plain, _, _ = said(tmp_path / "folder")
    assert code == 0
    assert len(packed) == 3
    assert [line.replace("photos.zip", "folder") for line in packed] == plain


def test_what_cannot_be_read_has_a_line_and_the_rest_is_done(said, photos, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a photo, and named all the same")
    with zipfile.ZipFile(tmp_path / "cars.zip", "w") as archive:
        archive.write(path_of(photos, 1), "1.jpg")
    whole = (tmp_path / "cars.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-40])
    (tmp_path / "damaged.zip").write_bytes(whole.replace(whole[500:510], b"0123456789"))
    wrong = ["empty.jpg", "notes.txt", "missing.jpg", "cut.zip", "damaged.zip"]
    lines, err, code = said(*(tmp_path / name for name in wrong), path_of(photos, 3))
    assert code == predict.EXIT_SOME_FAILED == 3
    *failed, last = map(json.loads, lines)
    assert [set(one) for one in failed] == [{"photo", "error"}] * 5
    assert all(one["error"]["reason"] == "unreadable" for one in failed)
    assert all(one["error"]["detail"] for one in failed)
    assert last["names"]
    assert "5 of 6 photos could not be read" in err


def test_a_folder_without_a_photo_is_an_error(said, tmp_path):
    (tmp_path / "names.csv").write_text("a")
    with pytest.raises(UserError, match="no photo was found in"):
        said(tmp_path)


def test_standard_input_is_a_photo(said, monkeypatch):
    photo, _ = draw(8)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode(photo))))
    (line,), _, code = said("-")
    assert code == 0
    assert json.loads(line)["photo"] == "-"
    assert json.loads(line)["width"] == photo.width


def test_csv_has_a_row_for_each_photo(said, photos, tmp_path):
    (tmp_path / "a, b.jpg").write_text("no photo")
    lines, _, code = said("--format=csv", "--top=2", path_of(photos, 7), tmp_path / "a, b.jpg")
    assert code == 3
    first, second = csv.DictReader(lines)
    (line,), _, _ = said(path_of(photos, 7))
    found = json.loads(line)
    assert float(first["ymax"]) == found["box"]["ymax"]
    assert first["name_1"] == found["names"][0]["name"]
    assert float(first["probability_2"]) == found["names"][1]["probability"]
    assert first["error"] == ""
    assert second["photo"].endswith("a, b.jpg")
    assert (second["error"], second["name_1"]) == ("unreadable", "")


def test_photos_are_drawn_beside_and_nothing_is_replaced(said, photos, tmp_path):
    source = tmp_path / "000001-car.jpg"  # named as a drawn copy of `car.jpg` is
    source.write_bytes(encode(draw(1)[0]))
    (tmp_path / "car.jpg").write_bytes(encode(draw(2)[0]))
    (tmp_path / "car.png").write_bytes(encode(draw(2)[0], "PNG"))
    before = source.read_bytes()
    lines, _, _ = said(tmp_path / "car.jpg", tmp_path / "car.png", f"--output={tmp_path}")
    assert len(lines) == 2
    assert source.read_bytes() == before
    drawn = sorted(path.name for path in tmp_path.glob("0*"))
    assert drawn == ["000001-car-2.jpg", "000001-car.jpg", "000002-car.jpg"]
    for name in ("000001-car-2.jpg", "000002-car.jpg"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        red = (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 100
        assert red.sum() > 100


def test_drawn_copies_in_the_folder_itself_are_not_predicted(said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(draw(1)[0]))
    for _ in range(2):
        lines, _, _ = said(tmp_path, f"--output={tmp_path / 'drawn'}")
        assert len(lines) == 1
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_names_that_are_not_utf8_survive(said, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(name, "wb") as file:
        file.write(encode(draw(1)[0]))
    (line,), _, _ = said(tmp_path)
    assert os.fsencode(json.loads(line)["photo"]) == name


@pytest.mark.slow  # for all commands: tests/tfrecords/test_command.py
def test_a_reader_that_goes_and_ctrl_c_end_it_quietly(run, photos):
    command = [sys.executable, "-m", "trainer.predict", f"--model={run}", "--batch_size=4"]
    with subprocess.Popen(
        [*command, *[photos] * 200], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["photo"].startswith(photos)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in err
        assert "Traceback" not in err
    pipe = f"{' '.join(command)} {' '.join([photos] * 50)} | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 141
    assert len(ended.stdout.splitlines()) == 1
    assert "Traceback" not in ended.stderr
