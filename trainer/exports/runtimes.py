"""Runs an exported file; it needs nothing of this project, only numpy and the file's own runtime.

    predict = runtimes.load("exports/cars", "onnx")
    bbox, probabilities = predict(images)         # uint8 [b, height, width, 3], RGB

Pillow alone reads photos for it: `read_photo`. As a script it judges what a job names, in a process
in which this project cannot be imported; see `trainer.exports.verify`:

    python -I runtimes.py JOB.json
"""

import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FILE = "carbox.json"
FORMAT_VERSION = 1

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 [b, height, width, 3], RGB -> bbox float32 [b, 4], fractions of the image: (xmin, ymin,
xmax, ymax), and probabilities float32 [b, classes]. Not for several threads at a time."""

PACKAGES = {
    "saved_model": ("tensorflow", "tensorflow"),
    "onnx": ("onnxruntime", "onnxruntime"),
    "tflite_float32": ("ai_edge_litert", "ai-edge-litert"),
    "tflite_float16": ("ai_edge_litert", "ai-edge-litert"),
    "tflite_int8": ("ai_edge_litert", "ai-edge-litert"),
    "keras": ("keras", "keras tensorflow"),
}
"""The package that runs each format, and what to install for it; the best choice first."""

_PROJECT = ("benchmarks", "carbox", "preprocess", "tfrecords", "trainer")
_RUNTIMES = ("ai_edge_litert", "keras", "onnx", "onnxruntime", "tensorflow", "tf2onnx")
_OUTPUTS = ("bbox", "probabilities")
_SERVING: dict[str, Any] = {}
_NEEDS = {"saved_model": ("tensorflow", "keras"), "keras": ("tensorflow", "keras")}
_LATENCY_RUNS = 20
_ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class Export:
    """What `carbox.json` says of an export.

    Attributes:
        folder: where it is.
        class_names: in the order of the probabilities.
        height, width: of the photos that its files take, in pixels.
        resize: how photos come to that size: `stretch` to it whatever their shape, or `letterbox`,
            the whole photo in its own shape, centered on black.
        inference: the section `inference` of the config, which files that hold all passes follow.
        files: by format, `file` and whether it holds `all_passes`.
        facts: all that the file says.
    """

    folder: str
    class_names: list[str]
    height: int
    width: int
    resize: str
    inference: dict[str, Any]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def read(folder: str) -> Export:
    """Returns what is known of an export.

    Raises:
        FileNotFoundError: there is none.
        ValueError: `carbox.json` is damaged or of another version.
    """
    path = os.path.join(folder, FILE)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        facts = json.loads(text)
        if facts["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {facts['format_version']}, not {FORMAT_VERSION}")
        return Export(
            folder,
            class_names=facts["class_names"],
            height=facts["height"],
            width=facts["width"],
            resize=facts["resize"],
            inference=facts["inference"],
            files=facts["files"],
            facts=facts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not one that this version reads: {error!r}") from None


def choose(export: Export) -> str:
    """Returns the format that suits this machine best: all passes before one, TensorFlow first.

    Raises:
        ModuleNotFoundError: no runtime for any of them is installed; says how to install one.
    """
    there = [name for name in PACKAGES if name in export.files]
    for name in there:
        if importlib.util.find_spec(PACKAGES[name][0]):
            return name
    first = PACKAGES[there[0]] if there else ("tensorflow", "tensorflow")
    raise ModuleNotFoundError(
        f"nothing that runs the files of {export.folder} is installed: pip install {first[1]}",
        name=first[0],
    )


def load(folder: str, name: str | None = None) -> Predict:
    """Loads a file of an export.

    Args:
        folder: of the export.
        name: of the format, a key of `PACKAGES`; what `choose` returns if absent.

    Raises:
        FileNotFoundError, ValueError: see `read`; or the export has no such format.
        ModuleNotFoundError: the format's runtime is not installed.
    """
    export = read(folder)
    name = name or choose(export)
    if name not in export.files:
        raise ValueError(f"{folder} has no format {name!r}, only {', '.join(export.files)}")
    path = os.path.join(folder, export.files[name]["file"])
    if name == "saved_model":
        return _load_saved_model(path)
    if name == "onnx":
        return _load_onnx(path)
    return _load_keras(path) if name == "keras" else _load_tflite(path)


def read_photo(
    data: bytes, height: int, width: int, resize: str
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int, int, int]]:
    """Decodes, turns and resizes a photo by Pillow alone, as the model's photos were.

    Photos of more than 8 bits a channel come out otherwise.

    Args:
        data: the file's bytes.
        height, width: wanted, in pixels.
        resize: `stretch` or `letterbox`.

    Returns:
        uint8 [height, width, 3]; height and width of the whole upright photo; and (top, left,
        height, width) of the photo inside the image; all in pixels.
    """
    from PIL import Image, ImageOps

    file = Image.open(io.BytesIO(data))
    turned = file.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    size = (file.width, file.height) if turned else (file.height, file.width)
    content = _content(size, height, width, resize)
    top, left, rows, columns = content
    # A JPEG is decoded at a reduced size that is not smaller than what is shown of it.
    file.draft("RGB", (rows, columns) if turned else (columns, rows))
    photo = ImageOps.exif_transpose(file)
    if photo.has_transparency_data:
        white = Image.new("RGBA", photo.size, "white")
        photo = Image.alpha_composite(white, photo.convert("RGBA"))
    photo = photo.convert("RGB")
    across, down = _group(photo.width, columns), _group(photo.height, rows)
    wide = min(photo.width, columns) * across, min(photo.height, rows) * down
    shown = photo.resize(wide, Image.Resampling.BILINEAR).reduce((across, down))
    shown = shown.resize((columns, rows), Image.Resampling.BILINEAR)
    image = np.zeros((height, width, 3), np.uint8)
    image[top : top + rows, left : left + columns] = np.asarray(shown)
    return image, size, content


def photo_box(
    bbox: np.ndarray,
    shape: tuple[int, ...],
    size: tuple[int, int],
    content: tuple[int, int, int, int],
) -> np.ndarray:
    """Returns a box in pixels of the whole photo: float64 [4].

    Args:
        bbox: [4], fractions of the image that was judged.
        shape: of that image.
        size, content: as `read_photo` returns them.
    """
    top, left, rows, columns = content
    stored = np.array([shape[1], shape[0]] * 2)
    fractions = (bbox * stored - [left, top, left, top]) / [columns, rows, columns, rows]
    return np.clip(fractions, 0, 1) * [size[1], size[0], size[1], size[0]]


def _content(
    size: tuple[int, int], height: int, width: int, resize: str
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of an upright photo of this size inside the image."""
    if resize == "stretch":
        return 0, 0, height, width
    rows = max(min((2 * size[0] * width + size[1]) // (2 * size[1]), height), 1)
    columns = max(min((2 * size[1] * height + size[0]) // (2 * size[0]), width), 1)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _group(pixels: int, shown: int) -> int:
    """Returns how many pixels in a row are averaged to one: an even number, or 1."""
    return 2 * -(-pixels // (2 * shown)) if pixels > shown else 1


def _load_saved_model(path: str) -> Predict:
    import tensorflow as tf

    module = tf.saved_model.load(path)
    signature = module.signatures["pixels"]

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert module  # its variables must stay
        found = signature(image=tf.constant(images))
        return found["bbox"].numpy(), found["probabilities"].numpy()

    return predict


def _load_onnx(path: str) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bbox, probabilities = session.run(["bbox", "probabilities"], {"image": images})
        return bbox, probabilities

    return predict


def _load_tflite(path: str) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=os.cpu_count())
    run = interpreter.get_signature_runner("serving_default")

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [run(image=image[np.newaxis]) for image in images]
        bbox, probabilities = (np.concatenate([one[key] for one in found]) for key in _OUTPUTS)
        return bbox, probabilities

    return predict


def _load_keras(path: str) -> Predict:
    import keras

    model = keras.models.load_model(path)

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = model.predict_on_batch(images.astype(np.float32))
        return np.asarray(found["bbox"]), np.asarray(found["probabilities"])

    return predict


def main(job_path: str) -> None:
    """Judges records and photos, and writes what was found.

    Args:
        job_path: of a JSON file: `folder` of the export, `name` of the format, `records` (an .npy
            file of images), `photos` (paths), `output` (an .npz file to write).
    """
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    name = job["name"]
    runtime = PACKAGES[name][0]
    for module in (*_PROJECT, *_RUNTIMES):
        if module not in (runtime, *_NEEDS.get(name, ())):
            sys.modules[module] = None  # type: ignore[assignment]  # importing it fails now
    predict = load(job["folder"], name)
    images = np.load(job["records"])
    batches = [predict(images[start : start + 32]) for start in range(0, len(images), 32)]
    bbox, probabilities = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    export = read(job["folder"])
    photos = []
    for path in job["photos"]:
        with open(path, "rb") as file:
            photos.append(file.read())
    judge = _judge_bytes if name == "saved_model" else _judge_pixels
    found = [judge(export, predict, photo) for photo in photos]
    boxes, labels = (np.array(part) for part in zip(*found, strict=True))
    np.savez(
        job["output"],
        bbox=bbox,
        probabilities=probabilities,
        photo_boxes=boxes,
        photo_labels=labels,
        latency=_latency(predict, images[:1]),
    )


def _judge_pixels(export: Export, predict: Predict, photo: bytes) -> tuple[np.ndarray, int]:
    """Returns the box in pixels of the photo, and the number of its class."""
    image, size, content = read_photo(photo, export.height, export.width, export.resize)
    bbox, probabilities = predict(image[np.newaxis])
    return photo_box(bbox[0], image.shape, size, content), int(probabilities[0].argmax())


def _judge_bytes(export: Export, predict: Predict, photo: bytes) -> tuple[np.ndarray, int]:
    """As `_judge_pixels`, by the SavedModel's own decoder."""
    import tensorflow as tf

    path = os.path.join(export.folder, export.files["saved_model"]["file"])
    if path not in _SERVING:
        _SERVING[path] = tf.saved_model.load(path)
    found = _SERVING[path].signatures["serving_default"](image_bytes=tf.constant([photo]))
    name = found["names"][0, 0].numpy().decode()
    return found["boxes"][0].numpy(), export.class_names.index(name)


def _latency(predict: Predict, image: np.ndarray) -> float:
    """Returns how long one photo takes, in seconds: the median of some runs."""
    times = []
    for _ in range(_LATENCY_RUNS + 3):
        start = time.perf_counter()
        predict(image)
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    main(sys.argv[1])
