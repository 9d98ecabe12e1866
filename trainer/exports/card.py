"""The texts in the folder of an export: `carbox.json`, `labels.txt`, the table, the model card."""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfrecords import image
from trainer import configs, figures
from trainer.exports import onnx, runtimes, saved_model
from trainer.exports.verify import Examples, Result, Verdicts, record_ious
from trainer.run_dir import Trained

RUNTIME = "carbox_runtime.py"

_HEADER = (
    "format", "passes", "MB", "ms", "top-1", "IoU", "names =", "box mean", "box max",
    "photos: names =", "box mean",
)  # fmt: skip


def weights_license(config: configs.Config) -> str:
    """Returns what is known of the license of a run's weights."""
    if config.weights == "imagenet":
        return (
            "Training began with the ImageNet weights of Keras Applications, which Keras publishes"
            " under Apache-2.0. They were learned from ImageNet's photos, and these weights from"
            " the photos of the data set: the terms of both apply as well."
        )
    if config.weights == "none":
        return (
            "Training began with random weights. They were learned from the photos of the data"
            " set, whose terms apply."
        )
    return (
        f"Training began with the weights of {os.path.basename(config.weights)}, whose terms apply,"
        " as do those of the photos of the data set."
    )


def facts(trained: Trained, run: str, size: tuple[int, int], files: dict[str, Any]) -> dict:
    """Returns what `carbox.json` says; see `runtimes.Export`.

    Args:
        trained: the run.
        run: its path.
        size: height and width of the photos that the files take, in pixels.
        files: by format, `file` and `all_passes`.
    """
    config, data = trained.config, trained.data
    return {
        "format_version": runtimes.FORMAT_VERSION,
        "carbox": importlib.metadata.version("carbox"),
        "run": os.path.basename(os.path.abspath(run)),
        "step": trained.step,
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "class_names": data.class_names,
        "height": size[0],
        "width": size[1],
        "resize": data.resize or "stretch",
        # How a photo becomes what the files take, as the records of the training did.
        "record_height": data.height,
        "record_width": data.width,
        "jpeg_quality": data.quality or image.ImageOptions.quality,
        "downscale": config.downscale,
        "inference": {
            "zoom_passes": config.inference.zoom_passes,
            "zoom_margin": config.inference.zoom_margin,
            "flip_tta": config.inference.flip_tta,
            "margin_tta": config.inference.margin_tta,
        },
        "weights_license": weights_license(config),
        "config": configs.flatten(config),
        "evaluation": _evaluation(run),
        "files": files,
    }


def names_as_json(class_names: Sequence[str]) -> dict[str, str]:
    """Returns the class names as one entry of an ONNX file's metadata."""
    return {"class_names": json.dumps(list(class_names), ensure_ascii=False)}


def write_json(folder: str, name: str, values: Any) -> None:
    """Writes a JSON file into a folder."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.write("\n")


def table(results: Sequence[Result], original: Verdicts, examples: Examples) -> str:
    """Returns a table of all files beside the run itself, as aligned text."""
    ious = record_ious(original, examples)
    top1 = float((original.names == examples.labels).mean())
    own = ["(the run)", "all", "", f"{1000 * original.latency:.1f}", f"{top1:.3f}"]
    rows = [list(_HEADER), [*own, f"{ious.mean():.4f}", *[""] * 5]]
    for one in results:
        rows.append([
            one.name,
            "all" if one.all_passes else "one",
            f"{one.megabytes:.1f}",
            f"{one.latency_ms:.1f}",
            f"{one.top1:.3f}",
            f"{one.mean_iou:.4f}",
            f"{one.names_agree:.2%}",
            f"{one.box_mean:.1e}",
            f"{one.box_max:.1e}",
            f"{one.photo_names_agree:.1%}",
            f"{one.photo_box_mean:.1e}",
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = []
    for row in rows:
        first, *others = (text.ljust if i < 2 else text.rjust for i, text in enumerate(row))
        cells = [first(widths[0]), *(put(w) for put, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def readme(
    said: dict[str, Any],
    results: Sequence[Result],
    shown: str,
    original: Verdicts,
    examples: Examples,
) -> str:
    """Returns the model card.

    Args:
        said: of `carbox.json`, with the published files only.
        results: of the published files.
        shown: the table.
        original: what the run finds by all passes.
        examples: on which all of it was measured.
    """
    parts = [_introduction(said), _figures(said, results, shown, original, examples)]
    parts += [_snippets(said), _recipe(said), _LIMITS]
    return "\n".join([*parts, f"## License of the weights\n\n{said['weights_license']}\n"])


_LIMITS = """## Intended use and limits

Naming the one object on a photo, out of the classes in `labels.txt`, and drawing its box, on photos
like those of the data set. The model always answers with one of its classes and one box: on a photo
without such an object, with several, or of a class it does not know, the answer is wrong, and its
probability may be high all the same. Probabilities are not calibrated. Figures hold for photos of
the data set's kind; other cameras, countries, years or views were not measured. It was not made for
decisions about people.
"""


def _evaluation(run: str) -> dict[str, Any]:
    """Returns what `trainer.evaluate` found on the whole test split; empty if it was not asked."""
    try:
        with open(os.path.join(run, "evaluation-test.json"), encoding="utf-8") as file:
            found = json.load(file)
        return {key: found[key] for key in ("num_examples", "top1", "mean_iou")}
    except (OSError, ValueError, KeyError):
        return {}


def _introduction(said: dict[str, Any]) -> str:
    passes = said["inference"]["zoom_passes"]
    how = "once" if not passes else f"{1 + passes} times, each time nearer to the box found before"
    flip = ", the last time mirrored too" if said["inference"]["flip_tta"] else ""
    return f"""# {said["run"]}

Names the object on a photo, one of {len(said["class_names"])} classes, and draws its box.
MobileNetV2, trained by carbox {said["carbox"]} on the data set `{said["data"]}`. A photo is
looked at {how}{flip}; that is
inside every file but a Keras one.

| file | what it is |
|---|---|
{_file_rows(said)}
| `{RUNTIME}` | reads photos for the files that take pixels, and runs any file; needs nothing else |
| `carbox.json` | class names, size and resize mode of photos, config: what programs need to know |
| `labels.txt` | class names, one a line, in the order of `probabilities` |
| `table.json` | the figures below |
"""


def _file_rows(said: dict[str, Any]) -> str:
    about = {
        "saved_model": "SavedModel: JPEG or PNG bytes in; names, probabilities and boxes in pixels"
        " of the photo out. TensorFlow, TensorFlow Serving",
        "onnx": f"ONNX, opset {onnx.OPSET}, any batch size",
        "tflite_float32": "LiteRT, builtin operations only",
        "tflite_float16": "LiteRT, weights of 16 bits: half the size",
        "tflite_int8": "LiteRT, weights and activations of 8 bits; photos uint8 as in the others",
        "keras": "Keras, plain layers, **one pass only**, not mirrored",
    }
    return "\n".join(f"| `{one['file']}` | {about[name]} |" for name, one in said["files"].items())


def _figures(
    said: dict[str, Any],
    results: Sequence[Result],
    shown: str,
    original: Verdicts,
    examples: Examples,
) -> str:
    count = len(examples.labels)
    right = original.names == examples.labels
    ious = record_ious(original, examples)
    between = figures.intervals({"top1": right.astype(np.float64), "iou": ious})
    whole = ""
    if found := said["evaluation"]:
        whole = (
            f" On the whole split ({found['num_examples']:,.0f} photos): top-1 {found['top1']:.1%},"
            f" mean IoU {found['mean_iou']:.3f}."
        )
    lost = ""
    for one in results:
        if not one.all_passes:
            lost = (
                f"\n`{said['files'][one.name]['file']}` judges in one pass: top-1"
                f" {one.top1:.1%} instead of {right.mean():.1%}, mean IoU {one.mean_iou:.3f}"
                f" instead of {ious.mean():.3f}. It is compared with the run in one pass.\n"
            )
    return f"""## Figures

On {count} records of the test split: top-1 **{right.mean():.1%}** (95 % interval
{between["top1"][0]:.1%} to {between["top1"][1]:.1%}), mean IoU of the box **{ious.mean():.3f}**
({between["iou"][0]:.3f} to {between["iou"][1]:.3f}).{whole}

Each file was loaded by its own runtime alone and compared with the run, on these records and on
{len(examples.photos)} whole photos (turned by EXIF, large, PNG, gray …), which the SavedModel or
Pillow decoded. `ms`: one photo of the records' size, on the machine of the export. `names =`: top-1
name as the run's (checked is this, but for names that the run finds as probable within 0.01).
`box`: difference of a side from the run's, as a share of the photo's side.

```
{shown}
```
{lost}"""


def _snippets(said: dict[str, Any]) -> str:
    """Returns how to use each file, in Python; a test runs it."""
    files = said["files"]
    parts = ["## Use\n\nIn this folder, with a `photo.jpg`.\n"]
    if "saved_model" in files:
        parts.append(_SAVED_MODEL.format(folder=saved_model.FOLDER))
    pixels = [name for name in files if name != "saved_model"]
    if pixels:
        parts.append("The other files" if "saved_model" in files else "The files")
        parts[-1] += _PREPARE.format(module=RUNTIME.removesuffix(".py"))
    for name, text in _RUN.items():
        found = [one for one in pixels if one.startswith(name)]
        if found:
            parts.append(text.format(file=files[found[0]]["file"]))
    if pixels:
        parts.append(_FINISH)
    return "\n".join(parts)


_SAVED_MODEL = """The SavedModel (`pip install tensorflow`) takes the photo's bytes:

```python
import tensorflow as tf

model = tf.saved_model.load("{folder}")
photo = tf.io.read_file("photo.jpg")
found = model.signatures["serving_default"](image_bytes=photo[tf.newaxis])
print(found["names"][0].numpy(), found["probabilities"][0].numpy(), found["boxes"][0].numpy())
```

TensorFlow Serving: put what is in `{folder}` under `/models/NAME/1` and ask

```
curl http://localhost:8501/v1/models/NAME:predict -d \\
  "{{\\"instances\\": [{{\\"image_bytes\\": {{\\"b64\\": \\"$(base64 -w0 photo.jpg)\\"}}}}]}}"
```
"""

_PREPARE = """ take pixels (`pip install numpy pillow`):

```python
import json

import {module} as carbox

facts = json.load(open("carbox.json"))
with open("photo.jpg", "rb") as file:
    photo = file.read()
image, size, content = carbox.read_photo(photo, facts["height"], facts["width"], facts["resize"])
```
"""

_RUN = {
    "onnx": """ONNX (`pip install onnxruntime`):

```python
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
bbox, probabilities = session.run(["bbox", "probabilities"], {{"image": image[None]}})
```
""",
    "tflite": """LiteRT (`pip install ai-edge-litert`), any of the `.tflite` files:

```python
from ai_edge_litert.interpreter import Interpreter

found = Interpreter("{file}").get_signature_runner()(image=image[None])
bbox, probabilities = found["bbox"], found["probabilities"]
```
""",
    "keras": """Keras (`pip install keras tensorflow`), in one pass only:

```python
import keras

found = keras.models.load_model("{file}").predict_on_batch(image[None].astype("float32"))
bbox, probabilities = found["bbox"], found["probabilities"]
```
""",
}

_FINISH = """and then, after any of them:

```python
box = carbox.photo_box(bbox[0], image.shape, size, content)
best = probabilities[0].argmax()
print(facts["class_names"][best], probabilities[0][best], "xmin, ymin, xmax, ymax:", box)
```

`carbox.load(".", FORMAT)` does the middle part for any format that `carbox.json` names.
"""


def _recipe(said: dict[str, Any]) -> str:
    usual = configs.flatten(configs.load("default"))
    changed = {
        key: value
        for key, value in said["config"].items()
        if usual.get(key) != value and key != "name"
    }
    settings = "\n".join(f"    --config.{key}={value}" for key, value in changed.items())
    photos = "stretched to" if said["resize"] == "stretch" else "fitted on black into"
    smaller = ""
    if said["downscale"] > 1:
        smaller = (
            f"\nEvaluation decoded records of {said['record_height']}x{said['record_width']} at"
            f" 1/{said['downscale']} of their size. `read_photo` and the SavedModel bring a photo"
            " to the small size at once, so that the name may differ from evaluation's on about 1"
            " of 100 photos; the package carbox takes both steps.\n"
        )
    return f"""## Data and recipe

Data set `{said["data"]}`, fingerprint `{said["data_fingerprint"][:16]}`, photos {photos}
{said["height"]}x{said["width"]} (height x width). Step {said["step"]:,}, the run's best epoch on
the validation split. Config `{said["config"]["name"]}`; what differs from carbox's `default`:

```
{settings or "    (nothing)"}
```
{smaller}"""
