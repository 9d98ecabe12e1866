"""Measures pre-processing: its speed beside what else could be done, its memory, its graph.

    python -m benchmarks.preprocess --input=cars-crops.zip [--repeat=N] [--rounds=3]
    python -m benchmarks.preprocess --input=cars-crops.zip --scale
    python -m benchmarks.preprocess --rows=100000,1000000 [--input=cars-crops.zip]

Every table goes to the terminal, the figures behind it to `--report`. Photos become 256x320.

Speed. All of these take the same photos and run in turn, round by round. A ratio is the median of
the ratios of each round. All cores means those that this process may use.
- The limit is bare decode -> resize -> encode of photos in memory. Three chains are measured:
  simplejpeg with OpenCV's resize, OpenCV alone, and simplejpeg with reduced decoding (1/2, 1/4,
  1/8) where both sides stay at least as long as the target. All resize by linear interpolation,
  which is cheaper than what the job does with photos that shrink, and skips source pixels. Each
  runs in as many processes as there are cores and in as many threads. Each process or thread has
  its share in advance and has started when the clock does. The limit is the chain with the highest
  median.
- The pool is a plain script of the same photos (`benchmarks.opencv_pool`), timed as a whole command
  with interpreter start and imports. It writes a tar beside the job's output.
- This job is timed as a whole command too. The first photos are written when a file in
  `OUTPUT.incomplete/partial` has bytes. The steady rate counts from there to the published output;
  the photos that the job's threads had in hand at that moment are not counted. CPU time is what the
  kernel charges to the command and its children. Peak memory is `VmHWM` of its process.
- The usual Beam pipeline is one `Map` over photos with TensorFlow's codec, and `WriteToTFRecord`,
  on `--usual_photos` of the photos. It runs in one process; imports and one photo come before its
  clock starts.

`--scale` runs the job on the photos under 1, 2, 4 and 8 times as many names.

`--rows` runs the whole command in a process of its own on made-up CSVs of so many rows, and
on 16,185 (those of the Stanford Cars CSVs) first. Only the work on single photos is replaced: a
photo is never opened, and its record is empty. The source lists made-up photos at hardly any cost,
so neither the time nor the memory of reading a zip's directory is in the figures. With `--input`,
the CSVs and the listing of that data set are measured too, with its photos left closed. The seconds
of a stage are those inside its own functions; stages nested in it count for themselves. `imports`
are those that this module does not have itself, Beam's above all. `Beam and all else` is the rest.
The interpreter's start is in none of them. Bytes a row are relative to a run of 1,000 rows.
"""

import collections
import contextlib
import functools
import glob
import json
import math
import multiprocessing
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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from absl import flags
from pyarrow import csv as arrow_csv

from benchmarks import opencv_pool, rounds
from preprocess import photos, shard, storage, survey, tables
from tfrecords import command, manifest
from tfrecords.errors import FlagError

FLAGS = flags.FlagValues()
command.DEFINE_path("input", None, "zip or folder of a class-folder data set", flag_values=FLAGS)
flags.DEFINE_integer("repeat", 1, "times the photos, renamed", 1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "of measuring", 1, flag_values=FLAGS)
flags.DEFINE_integer("usual_photos", 2000, "for the usual pipeline", 1, flag_values=FLAGS)
flags.DEFINE_bool("scale", False, "measure memory and time by number of photos", flag_values=FLAGS)
flags.DEFINE_list("rows", [], "numbers of rows: measure the graph alone", flag_values=FLAGS)
command.DEFINE_path("work", "runs/benchmarks", "folder of outputs, deleted again", FLAGS)
command.DEFINE_path("report", "runs/benchmarks/preprocess.json", "file of figures", FLAGS)
flags.DEFINE_enum(
    "only", None, ["limit", "usual", "graph"], "one part, as the command itself starts it",
    flag_values=FLAGS)  # fmt: skip

_HEIGHT, _WIDTH, _QUALITY = 256, 320, 95
_CORES = shard.num_threads() - 1
_CARS_ROWS = 16_185
_FEW_ROWS = 1000
_POLL_SECONDS = 0.01

_GOALS = (
    ("whole command / pool", ">=", 1.0),
    ("steady / limit", ">=", 0.85),
    ("first photos, s", "<=", 4.0),
    ("steady / usual", ">=", 4.0),
)

_Item = tuple[storage.Entry, int, str]  # a photo, its label and the name of its class


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark that the flags name."""
    command.parse(FLAGS, argv, usage=__doc__)
    sizes = _sizes(FLAGS.rows)
    if FLAGS.input is None and not sizes:
        raise FlagError("--input or --rows is needed.")
    os.makedirs(FLAGS.work, exist_ok=True)
    if FLAGS.only:
        parts = {"limit": _run_limit, "usual": _run_usual, "graph": _run_graph}
        print(json.dumps(parts[FLAGS.only]()))
        return
    name = os.path.basename(FLAGS.input or "")
    if sizes:
        _add_to_report("graph", _measure_graph(sizes))
    elif FLAGS.scale:
        _add_to_report(f"scale, {name}", _measure_scale())
    else:
        _add_to_report(f"speed, {name} x {FLAGS.repeat}", _measure_speed())


def _sizes(given: list[str]) -> list[int]:
    if not all(re.fullmatch("[1-9][0-9]*", one) for one in given):
        raise FlagError(f"flag --rows={','.join(given)}: it is not numbers, separated by commas.")
    return [int(one) for one in given]


# Speed


def _measure_speed() -> dict[str, Any]:
    found: list[dict[str, float]] = []
    with _work_folder() as folder:
        place = FLAGS.input
        if FLAGS.repeat > 1:
            place = repeated(FLAGS.input, f"{folder}/photos", FLAGS.repeat)
        for number in range(1, FLAGS.rounds + 1):
            figures = _child("limit", place)
            figures |= _run_pool(place, f"{folder}/pool.tar")
            figures |= _run_job(place, f"{folder}/out")
            figures |= _child("usual", place)
            found.append(figures)
            print(f"round {number}: {_rounded(figures)}", flush=True)
    by_name = {name: [figures[name] for figures in found] for name in found[0]}
    chains = {name: values for name, values in by_name.items() if name.startswith("limit")}
    winner = max(chains, key=lambda name: statistics.median(chains[name]))
    by_name["limit"] = by_name[winner]
    photos = int(found[0]["photos"])
    print(f"\n{photos:,} photos, {_CORES} cores, {FLAGS.rounds} rounds\n")
    print(_speed_table(by_name, winner), _chain_table(chains), _goal_table(by_name), sep="\n\n")
    return {"photos": photos, "limit_is": winner, "rounds": found}


def _speed_table(by_name: Mapping[str, list[float]], winner: str) -> str:
    lines = [
        "| what | photos/s, median | best | to the limit | CPU ms a photo |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, text in (
        ("limit", winner),
        ("steady", "this job, from the first photos written to the published output"),
        ("whole", "this job, whole command"),
        ("pool", "pool of processes with OpenCV, whole command"),
        ("usual", "usual Beam pipeline, its start not counted"),
    ):
        cpu = by_name.get(f"{name}_cpu_ms")
        lines.append(
            f"| {text} | {statistics.median(by_name[name]):,.0f} | {max(by_name[name]):,.0f}"
            f" | {rounds.ratio(by_name, name, 'limit'):.2f}"
            f" | {f'{statistics.median(cpu):.2f}' if cpu else ''} |"
        )
    lines.append(
        f"\nFirst photos written after {statistics.median(by_name['first_photo_seconds']):.1f} s"
        f" (best {min(by_name['first_photo_seconds']):.1f} s), peak memory"
        f" {statistics.median(by_name['peak_mb']):,.0f} MB."
    )
    return "\n".join(lines)


def _chain_table(chains: Mapping[str, list[float]]) -> str:
    lines = ["| chain | photos/s, median | best |", "|---|---:|---:|"]
    for name, rates in chains.items():
        lines.append(f"| {name} | {statistics.median(rates):,.0f} | {max(rates):,.0f} |")
    return "\n".join(lines)


def _goal_table(by_name: Mapping[str, list[float]]) -> str:
    figures = (
        rounds.ratio(by_name, "whole", "pool"),
        rounds.ratio(by_name, "steady", "limit"),
        statistics.median(by_name["first_photo_seconds"]),
        rounds.ratio(by_name, "steady", "usual"),
    )
    lines = ["| goal | wanted | found | reached |", "|---|---:|---:|---|"]
    for (name, sign, wanted), figure in zip(_GOALS, figures, strict=True):
        reached = figure >= wanted if sign == ">=" else figure <= wanted
        lines.append(f"| {name} | {sign} {wanted} | {figure:.2f} | {'yes' if reached else 'no'} |")
    return "\n".join(lines)


def _run_pool(place: str, output: str) -> dict[str, float]:
    """Runs the plain script and returns its rate."""
    text, seconds, cpu = _watched(
        [sys.executable, "-m", "benchmarks.opencv_pool", place, output, str(_CORES)]
    )
    os.remove(output)
    photos = int(text.split()[-1])
    return {"pool": photos / seconds, "pool_cpu_ms": 1000 * cpu / photos}


def _run_job(place: str, output: str) -> dict[str, float]:
    """Runs the command, watches its folder, and returns its figures."""
    first = published = peak = 0.0

    def look(pid: int, seconds: float) -> None:
        nonlocal first, published, peak
        if not first and _has_bytes(f"{output}.incomplete"):
            first = seconds
        if not published and os.path.exists(output):
            published = seconds
        peak = _peak_mb(pid) or peak

    _, seconds, cpu = _watched(
        [sys.executable, "-m", "preprocess.run", f"--input={place}", f"--output={output}"], look
    )
    published = published or seconds
    first = first or published  # so few photos that nobody saw them come
    splits = manifest.read(output).splits.values()
    photos = sum(split.num_examples for split in splits)
    shutil.rmtree(output)
    in_hand = min(photos, shard.num_threads() * shard.CHUNK_PHOTOS)
    return {
        "photos": photos,
        "whole": photos / seconds,
        "whole_cpu_ms": 1000 * cpu / photos,
        "steady": (photos - in_hand) / max(published - first, _POLL_SECONDS),
        "first_photo_seconds": first,
        "seconds": seconds,
        "peak_mb": peak,
    }


def _watched(
    arguments: list[str], look: Callable[[int, float], None] = lambda pid, seconds: None
) -> tuple[str, float, float]:
    """Runs a command to its end.

    Args:
        arguments: the command.
        look: called again and again with its process id and the seconds since its start.

    Returns:
        What it printed, its seconds, and the CPU seconds of it and its children.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - started
            if ended:
                break
            look(process.pid, seconds)
            time.sleep(_POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed: {text}")
    return text, seconds, usage.ru_utime + usage.ru_stime


def _has_bytes(incomplete: str) -> bool:
    """Whether a shard has begun; a small one may be whole already."""
    for folder in ("partial", "whole"):
        with contextlib.suppress(FileNotFoundError):
            if any(entry.stat().st_size for entry in os.scandir(f"{incomplete}/{folder}")):
                return True
    return False


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


# The limit


def _simplejpeg(data: bytes) -> bytes:
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    return _resized_and_encoded(pixels)


def _simplejpeg_reduced(data: bytes) -> bytes:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    for times in (8, 4, 2, 1):
        size = -(-height // times), -(-width // times)
        if size[0] >= _HEIGHT and size[1] >= _WIDTH:
            break
    return _resized_and_encoded(simplejpeg.decode_jpeg(data, "RGB", False, False, *size, 1))


def _resized_and_encoded(pixels: np.ndarray) -> bytes:
    pixels = cv2.resize(pixels, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR)
    return simplejpeg.encode_jpeg(pixels, _QUALITY, "RGB", "420")


_CHAINS = {
    "simplejpeg": _simplejpeg,
    "OpenCV": opencv_pool.small_photo,
    "simplejpeg, reduced decoding": _simplejpeg_reduced,
}


def _run_limit() -> dict[str, float]:
    """Returns photos/s of each chain, in processes and in threads, on photos in memory."""
    cv2.setNumThreads(1)
    at = storage.open_source(FLAGS.input)
    photos = [at.read(entry) for entry, *_ in _items(at)]
    forking = multiprocessing.get_context("fork")
    rates = {}
    # Processes come first: a process with threads should not be forked.
    for kind, barrier, worker in (
        ("processes", forking.Barrier, forking.Process),
        ("threads", threading.Barrier, threading.Thread),
    ):
        for name, chain in _CHAINS.items():
            seconds = _seconds_of_workers(barrier(_CORES + 1), worker, chain, photos)
            rates[f"limit: {name}, {_CORES} {kind}"] = len(photos) / seconds
    return rates


def _seconds_of_workers(
    barrier: Any, worker: Any, chain: Callable[[bytes], bytes], photos: list[bytes]
) -> float:
    workers = [
        worker(target=_work, args=(barrier, chain, photos[i::_CORES])) for i in range(_CORES)
    ]
    for one in workers:
        one.start()
    barrier.wait()  # until all have started
    started = time.perf_counter()
    barrier.wait()  # until all are done
    seconds = time.perf_counter() - started
    for one in workers:
        one.join()
    return seconds


def _work(barrier: Any, chain: Callable[[bytes], bytes], photos: list[bytes]) -> None:
    try:
        barrier.wait()
        for photo in photos:
            chain(photo)
        barrier.wait()
    except BaseException:
        barrier.abort()  # so that nobody waits for this one
        raise


def _items(at: storage.Source) -> list[_Item]:
    """Lists the photos that lie in folders of known classes."""
    seen = survey.survey(at)
    items = []
    for table in at.scan():
        for path, size, offset, stored in zip(
            *(table[name].to_pylist() for name in storage.Entry._fields), strict=True
        ):
            found = re.search(survey.PHOTO_PATH, path)
            label = seen.labels.get(found["folder"], 0) if found else 0
            if label:
                entry = storage.Entry(path, size, offset, stored)
                items.append((entry, label, seen.class_names[label - 1]))
    return items


# The usual pipeline


def _run_usual() -> dict[str, float]:
    """The pipeline of tutorials, at its best: in this process, warm, photos read by offset."""
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    items = _items(storage.open_source(FLAGS.input))
    work = items[:: math.ceil(len(items) / FLAGS.usual_photos)]
    to_example = functools.partial(_reopened_example, FLAGS.input)
    to_example(work[0])
    with _work_folder() as folder:
        started = time.perf_counter()
        with beam.Pipeline(fn_runner.FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.Create(work)
                | beam.Reshuffle()
                | beam.Map(to_example)
                | beam.io.WriteToTFRecord(os.path.join(folder, "train"), num_shards=8)
            )
        return {"usual": len(work) / (time.perf_counter() - started)}


def _reopened_example(place: str, item: _Item) -> bytes:
    # An open source cannot travel to a worker, so each process opens its own.
    return _usual_example(storage.opened(place, False, "usual"), _HEIGHT, _WIDTH, item)


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


# By number of photos


def _measure_scale() -> dict[str, Any]:
    figures: list[dict[str, float]] = []
    with _work_folder() as folder:
        for times in (1, 2, 4, 8):
            place = repeated(FLAGS.input, f"{folder}/photos{times}", times)
            one = _run_job(place, f"{folder}/out") | {"times": times}
            one["ms_a_photo"] = 1000 / max(one["steady"], 1e-9)
            figures.append(one)
            print(_rounded(one), flush=True)
            shutil.rmtree(place)
    print("\n| times | photos | peak memory, MB | ms a photo, steady |\n|---:|---:|---:|---:|")
    for one in figures:
        print(f"| {one['times']} | {one['photos']:,} | {one['peak_mb']:,.0f}"
              f" | {one['ms_a_photo']:.3f} |")  # fmt: skip
    least, most = figures[0], figures[-1]
    growth = (most["peak_mb"] - least["peak_mb"]) * 1e6 / (most["photos"] - least["photos"])
    print(f"\nPeak memory grows by {growth:,.0f} bytes a photo.")
    return {"runs": figures, "bytes_a_photo": growth}


def repeated(place: str, folder: str, times: int) -> str:
    """Makes a folder with each photo under so many names, as hard links.

    Args:
        place: of the data set, a folder or a zip.
        folder: to make.
        times: how many names.

    Returns:
        `folder`.
    """
    once = f"{folder}-once"
    if os.path.isdir(place):
        shutil.copytree(place, once)
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


# The graph


def _measure_graph(sizes: list[int]) -> dict[str, Any]:
    runs = {f"{rows:,} rows": _child("graph", rows=rows)
            for rows in sorted({_FEW_ROWS, _CARS_ROWS, *sizes})}  # fmt: skip
    few = runs.pop(f"{_FEW_ROWS:,} rows") if _FEW_ROWS not in sizes else runs[f"{_FEW_ROWS:,} rows"]
    if FLAGS.input:
        runs[os.path.basename(FLAGS.input)] = _child("graph", FLAGS.input)
    print("| CSVs | rows | seconds | µs a row | peak memory, MB | bytes a row |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, one in runs.items():
        rows, more = one["rows"], one["rows"] - _FEW_ROWS
        growth = (one["peak_mb"] - few["peak_mb"]) * 1e6 / more if more > 0 else math.nan
        print(
            f"| {name} | {rows:,} | {one['seconds']:.1f} | {1e6 * one['seconds'] / rows:,.0f}"
            f" | {one['peak_mb']:,.0f} | {growth:,.0f} |"
        )
    print(f"\n{_FEW_ROWS:,} rows take {few['seconds']:.1f} s and {few['peak_mb']:,.0f} MB.\n")
    print(_stage_table(runs))
    return {"few": few, "runs": runs}


def _stage_table(runs: Mapping[str, Any]) -> str:
    """Returns the seconds of each stage, one column a run."""
    lines = [
        f"| seconds | {' | '.join(runs)} |",
        f"|---|{'---:|' * len(runs)}",
    ]
    stages = next(iter(runs.values()))["stages"]
    for stage in stages:
        cells = " | ".join(f"{one['stages'][stage]:.2f}" for one in runs.values())
        lines.append(f"| {stage} | {cells} |")
    totals = " | ".join(f"{one['seconds']:.2f}" for one in runs.values())
    lines.append(f"| in all | {totals} |")
    return "\n".join(lines)


def _run_graph() -> dict[str, Any]:
    """Runs the command with closed photos, on made-up CSVs unless there is an input."""
    started = time.perf_counter()
    from preprocess import facts, pipeline, publish, run
    from preprocess import statistics as totals

    imports = time.perf_counter() - started
    timed: dict[str, list[tuple[Any, str]]] = {
        "Survey": [(survey, "survey")],
        "BuildGraph": [(pipeline, "build")],
        "ReadRows": [(pipeline.ReadRows, "process")],
        "ListPhotos": [(pipeline.ListPhotos, "process")],
        "PartitionRows, PartitionPhotos": [(pipeline, "partition")],
        "Join": [(pipeline.Join, "process")],
        "SumFacts": [(facts.SumFacts, "add_input"), (facts.SumFacts, "merge_accumulators")],
        "Judge": [(pipeline, "judge")],
        "HashesOfClasses": [(pipeline, "hashes_of_classes")],
        "DrawValidation": [(pipeline, "draw_validation")],
        "AssignShards": [(pipeline, "assign_shards")],
        "NameShards": [(pipeline, "name_shards")],
        "CutRejected": [(pipeline, "cut_rejected")],
        "WriteFiles": [(pipeline.WriteFiles, "process"), (pipeline.WriteFiles, "finish_bundle")],
        "SumTotals": [(totals.SumTotals, "add_input"), (totals.SumTotals, "merge_accumulators")],
        "WriteReport": [(pipeline, "write_report")],
        "tables to bytes": [(pipeline.TableCoder, "encode")],
        "bytes to tables": [(pipeline.TableCoder, "decode")],
        "Publish": [(publish, "read_report"), (publish, "publish")],
    }
    for stage, functions in timed.items():
        _SECONDS[stage] = 0.0
        for owner, name in functions:
            setattr(owner, name, _timed(stage, getattr(owner, name)))
    for owner in (photos, photos.HELPERS):
        vars(owner)["process"] = _closed_photos
    with _work_folder() as folder:
        if not FLAGS.input:
            source = _MadeUp(folder, *_sizes(FLAGS.rows))
            storage.open_source = lambda path, follow_links=False: source
        started = time.perf_counter()
        run.main([f"--input={FLAGS.input or folder}", f"--output={folder}/out"])
        seconds = time.perf_counter() - started
        rows = sum(split.num_examples for split in manifest.read(f"{folder}/out").splits.values())
    stages = {"imports": imports, **_SECONDS}
    stages["Beam and all else"] = seconds - sum(_SECONDS.values())
    return {"rows": rows, "seconds": imports + seconds, "peak_mb": _peak_mb(os.getpid()),
            "stages": stages}  # fmt: skip


_SECONDS: dict[str, float] = collections.defaultdict(float)
"""By stage, in this process."""


class _Clock(threading.local):
    """What a thread is at, and since when."""

    stage = ""
    since = 0.0


_clock = _Clock()


@contextlib.contextmanager
def _at(stage: str) -> Iterator[None]:
    """Counts the time of the block for a stage, and what nests in it for its own."""
    outer = _clock.stage
    _turn_to(stage)
    try:
        yield
    finally:
        _turn_to(outer)


def _turn_to(stage: str) -> None:
    now = time.perf_counter()
    if _clock.stage:
        _SECONDS[_clock.stage] += now - _clock.since
    _clock.stage, _clock.since = stage, now


def _timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, timed; of a generator the steps, not what is done between them."""

    def steps(results: Generator[Any]) -> Iterator[Any]:
        end = object()
        while True:
            with _at(stage):
                result = next(results, end)
            if result is end:
                return
            yield result

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _at(stage):
            results = function(*args, **kwargs)
        return steps(results) if isinstance(results, Generator) else results

    return call


def _closed_photos(_: photos.Settings, rows: list[photos.Row]) -> photos.Chunk:
    """Stands in for `photos.process`: facts of photos that nobody opened, and no records."""
    box = (0.25, 0.25, 0.75, 0.75)
    written = [photos.Written(row.label, box, 480, 640, False) for row in rows]
    return photos.Chunk(b"", written, [], {})


class _MadeUp:
    """A source of which only the listing and the CSVs exist."""

    def __init__(self, folder: str, rows: int):
        """Writes the CSVs."""
        self._folder, self._rows = folder, rows
        with open(f"{folder}/names.csv", "w") as file:
            file.writelines(f"class {label:03d}\n" for label in range(196))
        options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
        with open(f"{folder}/anno_train.csv", "wb") as file:
            for numbers in self._pieces():
                values = [pa.array(column) for column in (
                    numbers % 90, numbers % 70 + 0.5, 300 + numbers % 99,
                    np.full(len(numbers), 200), numbers % 196 + 1
                )]  # fmt: skip
                table = pa.table([_names(numbers), *values], names=list("nabcdl"))
                arrow_csv.write_csv(table, file, options)

    def _pieces(self) -> Iterator[np.ndarray]:
        for start in range(0, self._rows, tables.ROWS_AT_MOST):
            yield np.arange(start, min(start + tables.ROWS_AT_MOST, self._rows))

    def scan(self) -> Iterator[pa.Table]:
        """Lists the CSVs, and photos such as `train/class 000/00000000.jpg`."""
        names = ["names.csv", "anno_train.csv"]
        sizes = [os.path.getsize(f"{self._folder}/{name}") for name in names]
        yield _listed(pa.array(names), np.array(sizes))
        for numbers in self._pieces():
            folders = _digits(numbers % 196, 3)
            paths = pc.binary_join_element_wise("train/class ", folders, "/", _names(numbers), "")
            yield _listed(paths, np.full(len(numbers), 10_000))

    def read(self, entry: storage.Entry) -> bytes:
        """Reads a CSV."""
        with open(f"{self._folder}/{entry.path}", "rb") as file:
            return file.read()


def _names(numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(_digits(numbers, 8), ".jpg", "")


def _digits(numbers: np.ndarray, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def _listed(paths: pa.Array, sizes: np.ndarray) -> pa.Table:
    columns = [paths, sizes, sizes * 0, sizes, sizes, pa.array([""] * len(sizes))]
    return pa.table(columns, schema=tables.FILES)


# Processes, folders and figures


def _child(what: str, place: str | None = None, rows: int | None = None) -> dict[str, Any]:
    """Measures in a process of its own, whose memory is its own."""
    arguments = [
        sys.executable, "-m", "benchmarks.preprocess", f"--only={what}",
        f"--work={FLAGS.work}", f"--usual_photos={FLAGS.usual_photos}",
    ]  # fmt: skip
    arguments += [f"--input={place}"] if place else []
    arguments += [f"--rows={rows}"] if rows else []
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _work_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=FLAGS.work) as folder:
        yield os.path.abspath(folder)


def _rounded(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())


def _add_to_report(name: str, figures: dict[str, Any]) -> None:
    report = {}
    if os.path.exists(FLAGS.report):
        with open(FLAGS.report) as file:
            report = json.load(file)
    report[name] = figures | {"cores": _CORES}
    os.makedirs(os.path.dirname(FLAGS.report) or ".", exist_ok=True)
    with open(FLAGS.report, "w") as file:
        json.dump(report, file, indent=1, sort_keys=True)
    print(f"\nwritten: {FLAGS.report}")


if __name__ == "__main__":
    command.run(main)
