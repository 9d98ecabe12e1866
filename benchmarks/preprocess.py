"""Measures pre-processing against its limits: speed, memory, and the driver's share.

    python -m benchmarks.preprocess --input=cars-crops.zip [--repeat=N] [--rounds=3]
    python -m benchmarks.preprocess --input=cars-crops.zip --scale
    python -m benchmarks.preprocess --rows=1000000

Speed, on the same photos in one run, interleaved, medians and bests:
- limit: decode, resize and encode of photos in memory, the job's own op chain as one `tf.data`
  graph on all cores, and nothing else;
- this job, as a command of its own: photos/s of the whole command; from when it has its plan
  (planned), and from the first photos written (steady), to the published output; seconds to the
  first photos written;
- the usual Beam pipeline: one `Map` over photos and `WriteToTFRecord`, its start-up not counted.

`--scale`: the same photos under 1, 2, 4 and 8 times as many names: peak memory of the command and
time per photo. `--rows`: what the driver does before any photo is opened, on that many rows of a
made-up CSV, with a listing instead of photos.

Tables go to the terminal, the figures behind them to `--report`.
"""

import argparse
import functools
import glob
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pyarrow as pa

from preprocess import plan, source, split, storage


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark that the flags name."""
    parser = argparse.ArgumentParser("python -m benchmarks.preprocess", allow_abbrev=False)
    parser.add_argument("--input", help="zip or folder of a class-folder data set")
    parser.add_argument("--repeat", type=int, default=1, help="times the photos, under other names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--usual_photos", type=int, default=2000, help="for the usual pipeline")
    parser.add_argument("--image_height", type=int, default=256)
    parser.add_argument("--image_width", type=int, default=320)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmarks", help="for outputs, deleted again")
    parser.add_argument("--report", default="runs/benchmarks/preprocess.json")
    parser.add_argument("--only", choices=("usual", "driver"), help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.only:
        print(json.dumps({"usual": _run_usual, "driver": _run_driver}[flags.only](flags)))
        return
    os.makedirs(flags.work, exist_ok=True)
    if flags.rows:
        name, figures = "driver", _measure_driver(flags)
    elif flags.input is None:
        parser.error("--input or --rows is needed")
    elif flags.scale:
        name, figures = "scale", _measure_scale(flags)
    else:
        name, figures = f"speed, {os.path.basename(flags.input)}", _measure_speed(flags)
    _add_to_report(flags.report, name, figures)


def _measure_speed(flags: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=flags.work) as folder:
        place = flags.input
        if flags.repeat > 1:
            place = _repeated(flags.input, os.path.join(folder, "photos"), flags.repeat)
        photos = _load_photos(place)
        limit = functools.partial(_limit, _limit_graph(photos, flags), len(photos))
        limit()  # warm
        rounds: list[dict[str, float]] = []
        for number in range(flags.rounds):
            figures = {"limit": limit()}
            figures |= _run_job(place, os.path.join(folder, "out"), len(photos), flags)
            figures["usual"] = _child(flags, "usual", place)["rate"]
            rounds.append(figures)
            print(f"round {number + 1}: {_rounded(figures)}", flush=True)
    print(f"\n{len(photos):,} photos to {flags.image_height}x{flags.image_width},"
          f" {os.cpu_count()} cores, {flags.rounds} rounds, usual pipeline on"
          f" {min(flags.usual_photos, len(photos)):,} photos\n")  # fmt: skip
    print(_speed_table(rounds))
    return {"photos": len(photos), "rounds": rounds}


def _speed_table(rounds: list[dict[str, float]]) -> str:
    """Returns medians and bests; bests are compared, since other work on a machine only slows."""
    keys = rounds[0]
    median = {key: statistics.median(one[key] for one in rounds) for key in keys}
    best = {key: max(one[key] for one in rounds) for key in keys}
    lines = [
        "| what | photos/s, median | best | of the limit, best by best |",
        "|---|---:|---:|---:|",
    ]
    for key, text in (
        ("limit", "limit: one `tf.data` graph, photos in memory"),
        ("steady", "this job, from the first photos written to the published output"),
        ("planned", "this job, from its plan to the published output"),
        ("whole", "this job, whole command"),
        ("usual", "usual Beam pipeline, its start-up not counted"),
    ):
        share = best[key] / best["limit"]
        lines.append(f"| {text} | {median[key]:,.0f} | {best[key]:,.0f} | {share:.2f} |")
    times = {key: statistics.median(one[key] / one["usual"] for one in rounds) for key in keys}
    lines.append(
        f"\nplan ready after {median['plan_seconds']:.1f} s, first photos written after"
        f" {median['first_photo_seconds']:.1f} s, {times['steady']:.1f} times the usual pipeline"
        f" (median of the rounds' ratios), peak memory {median['peak_mb']:,.0f} MB"
    )
    return "\n".join(lines)


def _measure_scale(flags: argparse.Namespace) -> dict[str, Any]:
    figures = []
    with tempfile.TemporaryDirectory(dir=flags.work) as folder:
        for times in (1, 2, 4, 8):
            place = _repeated(flags.input, os.path.join(folder, f"photos{times}"), times)
            photos = sum(len(names) for *_, names in os.walk(place)) - 3
            one = _run_job(place, os.path.join(folder, "out"), photos, flags)
            one |= {"times": times, "photos": photos, "ms_per_photo": 1000 / one["steady"]}
            figures.append(one)
            print(_rounded(one), flush=True)
            shutil.rmtree(place)
    print("\n| times | photos | peak memory, MB | ms per photo |\n|---:|---:|---:|---:|")
    for one in figures:
        print(f"| {one['times']} | {one['photos']:,} | {one['peak_mb']:,.0f} |"
              f" {one['ms_per_photo']:.3f} |")  # fmt: skip
    return {"runs": figures}


def _measure_driver(flags: argparse.Namespace) -> dict[str, Any]:
    few = _child(flags, "driver", "", rows=1000)
    many = _child(flags, "driver", "", rows=flags.rows)
    growth = (many["peak_mb"] - few["peak_mb"]) * 1e6 / flags.rows
    print("| step | seconds |\n|---|---:|")
    for step in ("load", "plan", "write"):
        print(f"| {step} | {many[step]:.1f} |")
    print(f"\n{flags.rows:,} rows: peak memory {many['peak_mb']:,.0f} MB, of which"
          f" {few['peak_mb']:,.0f} MB without rows: {growth:,.0f} bytes a row")  # fmt: skip
    return {"rows": flags.rows, "bytes_a_row": growth, **many}


def _limit_graph(photos: list[bytes], flags: argparse.Namespace) -> Any:
    import tensorflow as tf

    from preprocess import image
    from tfrecords import pipelines

    options = image.ImageOptions(flags.image_height, flags.image_width)
    return (
        tf.data.Dataset.from_tensor_slices(photos)
        .map(
            lambda photo: tf.strings.length(image.graph(photo, tf.constant(1), options)[0]),
            num_parallel_calls=pipelines.CORES,
            deterministic=False,
        )
        .batch(256)
        .with_options(pipelines.untuned())
    )


def _limit(dataset: Any, count: int) -> float:
    started = time.perf_counter()
    total = sum(len(batch) for batch in dataset)
    assert total == count
    return count / (time.perf_counter() - started)


def _run_job(place: str, output: str, photos: int, flags: argparse.Namespace) -> dict[str, float]:
    """Runs the command, watches its folder, and returns its figures."""
    from preprocess import shard

    command = [
        sys.executable, "-m", "preprocess.run", f"--input={place}", f"--output={output}",
        f"--image_height={flags.image_height}", f"--image_width={flags.image_width}",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ready: list[float] = []
    watch = threading.Thread(target=_note_when_ready, args=(process, started, ready))
    watch.start()
    first = published = peak = 0.0
    ended = False
    while not ended:
        time.sleep(0.005)
        now = time.perf_counter() - started
        if not first and glob.glob(f"{output}.incomplete/work-*/partial/*"):
            first = now
        if not published and os.path.exists(output):
            published = now
        peak = _peak_mb(process.pid) or peak
        ended = process.poll() is not None
    seconds = time.perf_counter() - started
    if process.returncode:
        assert process.stderr is not None
        sys.exit(f"the job failed: {process.stderr.read()}")
    watch.join()
    shutil.rmtree(output)
    return {
        "whole": photos / seconds,
        "planned": photos / (published - ready[0]),
        "steady": (photos - shard.CHUNK_PHOTOS) / (published - first),
        "plan_seconds": ready[0],
        "first_photo_seconds": first,
        "seconds": seconds,
        "peak_mb": peak,
    }


def _peak_mb(pid: int) -> float:
    """Returns the peak memory of a process; 0 when it is gone.

    What `wait4` gives would include the memory of the process that started it.
    """
    try:
        with open(f"/proc/{pid}/status") as file:
            found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    except OSError:
        return 0.0
    return int(found.group(1)) / 1000 if found else 0.0


def _note_when_ready(process: subprocess.Popen, started: float, ready: list[float]) -> None:
    """Notes when the job says that it hands its shards to Beam."""
    assert process.stdout is not None
    for line in process.stdout:
        if " photos for " in line:
            ready.append(time.perf_counter() - started)


def _child(flags: argparse.Namespace, what: str, place: str, rows: int = 0) -> dict[str, float]:
    """Measures in a process of its own, whose memory is its own."""
    command = [
        sys.executable, "-m", "benchmarks.preprocess", f"--only={what}", f"--input={place}",
        f"--work={flags.work}", f"--usual_photos={flags.usual_photos}", f"--rows={rows}",
        f"--image_height={flags.image_height}", f"--image_width={flags.image_width}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _run_usual(flags: argparse.Namespace) -> dict[str, float]:
    """The pipeline of tutorials, at its best: in this process, warm, photos read by offset."""
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    at = storage.open_source(flags.input)
    dataset = source.load(at)
    rows = dataset.rows["train"].table.slice(0, flags.usual_photos).to_pylist()
    work = [
        (dataset.listing.entry(row["photo"]), row["label"], dataset.class_names[row["label"] - 1])
        for row in rows
    ]
    to_example = functools.partial(_usual_example, at, flags.image_height, flags.image_width)
    to_example(work[0])
    with tempfile.TemporaryDirectory(dir=flags.work) as folder:
        started = time.perf_counter()
        with beam.Pipeline(fn_runner.FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.Create(work)
                | beam.Reshuffle()
                | beam.Map(to_example)
                | beam.io.WriteToTFRecord(os.path.join(folder, "train"), num_shards=8)
            )
        return {"rate": len(work) / (time.perf_counter() - started)}


def _usual_example(
    at: storage.Source, height: int, width: int, item: tuple[storage.Entry, int, str]
) -> bytes:
    import tensorflow as tf

    entry, label, name = item
    photo = tf.io.decode_jpeg(at.read(entry), channels=3)
    small = tf.cast(tf.image.resize(photo, [height, width]), tf.uint8)
    encoded = tf.io.encode_jpeg(small, quality=95).numpy()
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/filename": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[entry.path.encode()])
        ),
        "image/object/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "image/object/class/text": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[name.encode()])
        ),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


class _Synthetic:
    """A data set of which only the listing and the CSVs exist."""

    def __init__(self, rows: int):
        self._rows = rows

    def listing(self) -> storage.Listing:
        """Lists photos `car_data/train/class 000/0000000.jpg` … and the CSVs."""
        parts = [
            pa.array(
                [
                    f"car_data/train/class {i % 196:03d}/{i:08d}.jpg"
                    for i in range(start, min(start + 65536, self._rows))
                ],
                pa.large_string(),
            )
            for start in range(0, self._rows, 65536)
        ]
        paths = pa.concat_arrays(
            [pa.array(["anno_train.csv", "names.csv"], pa.large_string()), *parts]
        )
        numbers = np.full(len(paths), 10_000)
        return storage.Listing(paths, numbers, numbers * 0, numbers, numbers, {}, [])

    def read(self, entry: storage.Entry) -> bytes:
        """Makes up a CSV."""
        if entry.path == "names.csv":
            return b"".join(b"class %03d\n" % i for i in range(196))
        return b"".join(
            b"%08d.jpg,%d,%d.5,%d,%d,%d\n" % (i, i % 90, i % 70, 300 + i % 99, 200, i % 196 + 1)
            for i in range(self._rows)
        )


def _run_driver(flags: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        figures[name] = time.perf_counter() - started
        return result

    dataset = timed("load", lambda: source.load(_Synthetic(flags.rows)))
    size = split.photo_bytes(256, 320, 95)
    planned = timed(
        "plan",
        lambda: plan.make(
            dataset,
            seed=42,
            validation_fraction=0.2,
            num_shards=lambda _, photos: split.num_shards(photos, size, 100e6),
        ),
    )
    with tempfile.TemporaryDirectory(dir=flags.work) as folder:
        timed("write", lambda: [planned.write(n, os.path.join(folder, n)) for n in planned.names])
    assert sum(planned.num_photos.values()) == flags.rows
    figures["peak_mb"] = _peak_mb(os.getpid())
    return figures


def _repeated(place: str, folder: str, times: int) -> str:
    """Makes a folder with each photo under so many names, as hard links."""
    once = f"{folder}-once"
    if os.path.isdir(place):
        shutil.copytree(place, once, copy_function=os.link)
    else:
        with zipfile.ZipFile(place) as archive:
            archive.extractall(once)
    csvs = {os.path.basename(path): path for path in glob.glob(f"{once}/**/*.csv", recursive=True)}
    os.makedirs(folder)
    shutil.copy(csvs["names.csv"], folder)
    for part in ("train", "test"):
        with open(csvs[f"anno_{part}.csv"]) as file:
            lines = file.read().splitlines()
        with open(f"{folder}/anno_{part}.csv", "w") as file:
            file.writelines(f"{copy}-{line}\n" for copy in range(times) for line in lines)
        for path in glob.glob(f"{once}/**/{part}/*/*", recursive=True):
            *_, name_of_class, name = path.split("/")
            target = f"{folder}/{part}/{name_of_class}"
            os.makedirs(target, exist_ok=True)
            for copy in range(times):
                os.link(path, f"{target}/{copy}-{name}")
    shutil.rmtree(once)
    return folder


def _load_photos(place: str) -> list[bytes]:
    at = storage.open_source(place)
    dataset = source.load(at)
    return [
        at.read(dataset.listing.entry(position))
        for rows in dataset.rows.values()
        for position in rows.table["photo"].to_pylist()
    ]


def _rounded(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())


def _add_to_report(path: str, name: str, figures: dict[str, Any]) -> None:
    report = {}
    if os.path.exists(path):
        with open(path) as file:
            report = json.load(file)
    report[name] = figures | {"cores": os.cpu_count()}
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        json.dump(report, file, indent=1, sort_keys=True)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
