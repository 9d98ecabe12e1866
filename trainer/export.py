"""Writes a trained run as files for other programs, and checks each before it is published.

python -m trainer.export --run=RUN --output=DIR [--formats=saved_model,tflite,onnx,keras]
    [--photos=FOLDER|ZIP] [--data=DIR] [--overwrite]

    saved_model  TensorFlow, TensorFlow Serving: a photo's bytes in; names and box in pixels out
    tflite       LiteRT for phones; or one of tflite_float32, tflite_float16, tflite_int8
    onnx         ONNX Runtime and others
    keras        a Keras file with plain layers; one pass, without zooming in

All but the last hold every pass in which the run judges a photo. Each file is loaded in a fresh
process by its own runtime alone, judges records of the test split and whole photos, and is compared
with the run. A file that differs is not published, the others are, and the exit code is 3.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from tfrecords import command, manifest, remote
from tfrecords.errors import FlagError, UserError, extra
from tfrecords.progress import waiting

with extra("train"):
    import numpy as np
    import tensorflow as tf

    from tfrecords import reader
    from trainer import evaluate, inference, run_dir
    from trainer import input as inputs
    from trainer.configs import Inference
    from trainer.exports import (
        card,
        check_photos,
        keras_file,
        onnx,
        plain,
        quantized,
        runtimes,
        saved_model,
        tflite,
        verify,
    )

_TFLITE = tuple(f"tflite_{kind}" for kind in tflite.KINDS)
FORMATS = ("saved_model", *_TFLITE, "onnx", "keras")
# What writing and checking each needs beside TensorFlow and Keras.
_PACKAGES = {"tflite": ("ai_edge_litert",), "onnx": ("onnx", "onnxruntime", "tf2onnx")}
_CALIBRATION = 256  # photos
_CALIBRATION_BATCH = 16

FLAGS = flags.FlagValues()
command.DEFINE_path("run", None, "folder of the run", flag_values=FLAGS)
command.DEFINE_path("output", None, "folder to make", flag_values=FLAGS)
flags.DEFINE_list(
    "formats",
    None,
    "which files to write, of saved_model, tflite, onnx, keras; all whose packages are installed if"
    " absent",
    flag_values=FLAGS,
)
command.DEFINE_path(
    "photos",
    None,
    f"folder or zip of whole photos, {check_photos.COUNT} of which the files are tried on; made out"
    " of records if absent",
    flag_values=FLAGS,
)
command.DEFINE_path("data", None, "data set, where the run's own was moved", flag_values=FLAGS)
flags.DEFINE_boolean("overwrite", False, "replace an export that is there", flag_values=FLAGS)


class NotPublishedError(UserError):
    """A file differs from the run, or cannot be made; the others are published."""

    exit_code = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: flags; those of the command line if absent.

    Raises:
        UserError: the run, its data or a package is missing, or the folder is taken.
        NotPublishedError: a file was not published.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    for name in ("run", "output"):
        command.required(FLAGS, name)
    formats = _choose_formats(FLAGS.formats)
    _check_output(FLAGS.output, overwrite=FLAGS.overwrite)
    with contextlib.suppress(RuntimeError):  # TensorFlow has begun to use it
        tf.config.set_visible_devices([], "GPU")
    run = remote.model(FLAGS.run, "run")
    trained = run_dir.load_trained(run)
    data = dataclasses.replace(trained.data, path=FLAGS.data or trained.data.path)
    trained = dataclasses.replace(trained, data=data)
    info = manifest.read(remote.dataset(data.path, "data"))
    evaluate.check_same_shape(info, data, data.path)
    with _incomplete(FLAGS.output) as folder:
        results, problems = export(trained, run, formats, FLAGS.photos, folder)
        if results:
            _publish(folder, FLAGS.output)
    for name, problem in problems.items():
        print(f"not published: {name}: {problem}")
    if results:
        print(f"export: {FLAGS.output}{os.sep}")
    if problems:
        published = f"{FLAGS.output} holds the others" if results else "nothing was published"
        raise NotPublishedError(
            f"{', '.join(problems)} did not pass the check ({published}):"
            f" {'; '.join(problems.values())}."
        )


def export(
    trained: run_dir.Trained, run: str, formats: Sequence[str], photos: str | None, folder: str
) -> tuple[list[verify.Result], dict[str, str]]:
    """Writes files and all that belongs to them into a folder, and removes those that differ.

    Args:
        trained: the run.
        run: its path.
        formats: out of `FORMATS`.
        photos: folder or zip of whole photos, or None.
        folder: exists and is empty.

    Returns:
        How the files that stay compare with the run; and what is wrong with others, by format.
    """
    with waiting("judging by the run itself"):
        examples = _examples(trained, photos)
        whole = verify.judge_by_run(trained, trained.config.inference, examples)
        once = verify.judge_by_run(trained, Inference(zoom_passes=0, flip_tta=False), examples)
    size = examples.images.shape[1], examples.images.shape[2]
    files: dict[str, dict[str, Any]] = {}
    results, problems = [], {}
    for name, file, write in _writers(trained, formats, size):
        all_passes = name != "keras"
        path = os.path.join(folder, file)
        try:
            with waiting(f"writing {file}"):
                write(path)
            files[name] = {"file": file, "all_passes": all_passes}
            card.write_json(folder, runtimes.FILE, card.facts(trained, run, size, files))
            with waiting(f"checking {file}"):
                found = verify.judge_by_file(folder, name, examples)
        except UserError:
            raise
        # Converters and runtimes raise whatever they like; one format must not stop the others.
        except Exception as error:
            problem = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
        else:
            original = whole if all_passes else once
            result = verify.compare(name, all_passes, _bytes(path), found, original, examples)
            problem = result.problem
        if problem:
            problems[name] = problem
            files.pop(name, None)
            _remove(path)
        else:
            results.append(result)
    if not results:
        return results, problems
    said = card.facts(trained, run, size, files)
    shown = card.table(results, whole, examples)
    card.write_json(folder, runtimes.FILE, said)
    card.write_json(folder, "table.json", [dataclasses.asdict(result) for result in results])
    shutil.copyfile(runtimes.__file__, os.path.join(folder, card.RUNTIME))
    _write(folder, "labels.txt", "".join(f"{name}\n" for name in trained.data.class_names))
    _write(folder, "README.md", card.readme(said, results, shown, whole, examples))
    print(f"\n{shown}\n")
    return results, problems


def _writers(
    trained: run_dir.Trained, formats: Sequence[str], size: tuple[int, int]
) -> Iterator[tuple[str, str, Callable[[str], None]]]:
    """Yields the name of each format, its file, and what writes it to a path."""
    network = plain.network(trained)
    data, how = trained.data, trained.config.inference
    input_size = network.input.shape[1], network.input.shape[2]

    def judge(network: plain.Network, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return inference.judge(network, images, how, input_size)

    def write_saved_model(path: str) -> None:
        saved_model.write(
            network,
            lambda images: judge(lambda shown: network(shown, training=False), images),
            data.class_names,
            (*size, data.resize or "stretch"),
            path,
        )

    def write_tflite(kind: str, path: str) -> None:
        chosen = network
        if kind == "int8":
            images = _calibration_images(trained)
            chosen = quantized.network(network, lambda one: _show(one, images, judge))
        tflite.write(chosen, judge, size, kind, path)

    def write_onnx(path: str) -> None:
        said = card.facts(trained, "", size, {})
        metadata = {key: str(said[key]) for key in ("height", "width", "resize", "inference")}
        onnx.write(network, judge, size, metadata | card.names_as_json(data.class_names), path)

    if "saved_model" in formats:
        yield "saved_model", saved_model.FOLDER, write_saved_model
    if "keras" in formats:
        yield "keras", keras_file.FILE, lambda path: keras_file.write(network, path)
    if "onnx" in formats:
        yield "onnx", onnx.FILE, write_onnx
    for name, kind in zip(_TFLITE, tflite.KINDS, strict=True):
        if name in formats:
            yield name, tflite.file(kind), functools.partial(write_tflite, kind)


def _show(
    network: Any, images: np.ndarray, judge: Callable[[plain.Network, tf.Tensor], Any]
) -> None:
    """Lets a network judge images, crops of the zoom passes included."""

    @tf.function
    def look(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return judge(lambda shown: network(shown, training=False), batch)

    for start in range(0, len(images), _CALIBRATION_BATCH):
        look(images[start : start + _CALIBRATION_BATCH])


def _examples(trained: run_dir.Trained, photos: str | None) -> verify.Examples:
    data = trained.data
    splits = manifest.read(remote.local(data.path)).splits
    name = "test" if "test" in splits else "validation"
    split = evaluate.open_split(data, name, trained.config)
    places = inputs.spread(split.size, verify.RECORDS)
    with inputs.reading():
        records = split.fetch(tf.constant(places))
    if photos:
        found = check_photos.from_path(photos)
    else:
        chosen = places[:: max(1, len(places) // check_photos.COUNT)][: check_photos.COUNT]
        serialized = reader.Records(data.path, name).read(chosen)
        found = check_photos.from_records(list(serialized), data.resize or "stretch")
    return verify.Examples(
        records["image"].numpy(), records["bbox"].numpy(), records["label"].numpy(), found
    )


def _calibration_images(trained: run_dir.Trained) -> np.ndarray:
    split = evaluate.open_split(trained.data, "train", trained.config)
    places = tf.constant(inputs.spread(split.size, _CALIBRATION))
    with inputs.reading():
        return split.fetch(places)["image"].numpy()


def _choose_formats(wanted: Sequence[str] | None) -> list[str]:
    """Returns the formats to write.

    Raises:
        FlagError: there is no such format.
        UserError: a package that one of them needs is not installed.
    """
    names = list(FORMATS if wanted is None else wanted)
    if "tflite" in names:
        place = names.index("tflite")
        names[place : place + 1] = _TFLITE
    for name in names:
        if name not in FORMATS:
            raise FlagError(f"--formats={name}: it must be one of {', '.join(FORMATS)}, tflite.")
    chosen = []
    for name in names:
        extra_name = name.split("_")[0]
        missing = [one for one in _PACKAGES.get(extra_name, ()) if not _is_installed(one)]
        if not missing:
            chosen.append(name)
            continue
        remedy = f"which is not installed: pip install 'carbox[{extra_name}]'"
        if wanted is not None:
            raise UserError(f"{name} needs {missing[0]}, {remedy}")
        print(f"left out: {name}, which needs {missing[0]}, {remedy}")
    if not chosen:
        raise FlagError("--formats is empty: name at least one.")
    return chosen


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _check_output(output: str, *, overwrite: bool) -> None:
    """Makes sure that the folder may be made.

    Raises:
        UserError: it is remote, or holds something.
    """
    if remote.is_remote(output):
        raise UserError(f"--output={output}: export to a local folder, and copy it from there.")
    if not os.path.isdir(output) or not os.listdir(output):
        return
    if not os.path.exists(os.path.join(output, runtimes.FILE)):
        raise UserError(f"--output={output} is a folder with other things in it. Name another one.")
    if not overwrite:
        raise UserError(f"--output={output} is an export already. Pass --overwrite to replace it.")


@contextlib.contextmanager
def _incomplete(output: str) -> Iterator[str]:
    """Makes a folder beside the output for what is not yet checked, and removes it."""
    parent, name = os.path.split(os.path.abspath(output))
    try:
        os.makedirs(parent, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{name}.incomplete-", dir=parent)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}.") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: str, output: str) -> None:
    """Renames a folder to the output, in the place of what is there."""
    os.chmod(folder, 0o755)  # temporary folders are their owner's alone
    old = f"{folder}-old"
    if os.path.isdir(output):
        os.rename(output, old)
    os.rename(folder, output)
    shutil.rmtree(old, ignore_errors=True)


def _bytes(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    command.run(main)
