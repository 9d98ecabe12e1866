"""Turns a class-folder data set of photos into sharded, checked TFRecords.

    python -m preprocess.run --runner=DirectRunner --input=cars.zip --output=data/tfrecords

Flags that are not listed here go to Beam: --direct_num_workers=4, --flink_master=…, --project=….
A job that was stopped continues with the same command and keeps its finished shards.
"""

import functools
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from tfrecords import command, remote
from tfrecords.errors import UserError, extra
from tfrecords.quiet import quiet_imports

if TYPE_CHECKING:
    from preprocess import environment, pipeline, publish
    from preprocess.statistics import Report
    from preprocess.survey import Survey
    from tfrecords.manifest import Manifest

T = TypeVar("T")

FLAGS = flags.FlagValues()
command.DEFINE_path(
    "input", None, "folder, zip or bucket of a class-folder data set; without it the built-in"
    " sample is drawn", flag_values=FLAGS)  # fmt: skip
command.DEFINE_path("output", "data/tfrecords", "folder of the data set", flag_values=FLAGS)
flags.DEFINE_bool(
    "overwrite", False, "replace an output that exists, once the new one is complete",
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("image_height", 256, "pixels", 1, 16384, flag_values=FLAGS)
flags.DEFINE_integer("image_width", 320, "pixels", 1, 16384, flag_values=FLAGS)
flags.DEFINE_enum(
    "resize", "stretch", ["stretch", "letterbox"],
    "stretch to the target's shape, or letterbox: the whole photo, on black",
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("jpeg_quality", 95, "of the stored photos", 1, 100, flag_values=FLAGS)
flags.DEFINE_float(
    "validation_fraction", 0.2, "of each class of the train photos; less than 1", 0, 0.999999,
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer(
    "seed", 42, "of the split and of the order", -(1 << 63), (1 << 63) - 1,
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_float(
    "shard_mb", 100.0, "size of a shard, about, in 10^6 bytes; smaller where that gives workers"
    " more to do", 0.001, 1e6, flag_values=FLAGS)  # fmt: skip
for _split in ("train", "validation", "test"):
    flags.DEFINE_integer(
        f"{_split}_shards", None, f"number of shards of the {_split} split, instead of --shard_mb",
        1, 99999, flag_values=FLAGS)  # fmt: skip
flags.DEFINE_float(
    "max_rejected", 0.01, "fraction of the rows; when more are rejected, nothing is published",
    0, 1, flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer(
    "max_pixels", 100_000_000, "photos with more are rejected undecoded", 1, 1 << 31,
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool(
    "keep_damaged", False, "keep photos whose decoder warns, with what it could read",
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer(
    "limit", None, "only the first N rows of each CSV: writes a small data set", 1, 1 << 62,
    flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer(
    "first_class", None, "number of the first class in the CSVs, 0 or 1; without it 1, and"
    " classes that do not fit the folders stop the job", 0, 1, flag_values=FLAGS)  # fmt: skip
flags.DEFINE_enum(
    "box_unit", None, ["pixel", "fraction"], "of the boxes in the CSVs; without it pixels, and"
    " boxes that are all within [0, 1] stop the job", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool(
    "follow_links", False, "read links that lead out of the input folder", flag_values=FLAGS
)

flags.DEFINE_float(
    "worker_timeout", 600.0, "seconds without a sign of life from the workers of a cluster after"
    " which the job is given up", 1, 1e9, flag_values=FLAGS)  # fmt: skip

_MANY_FILES = 500  # of the input; fewer are done before a process has started
_EXAMPLES = 5  # rows that a message or the summary names
_NOT_IN_PARAMETERS = (
    "input",
    "output",
    "overwrite",
    "max_rejected",
    "follow_links",
    "worker_timeout",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses flags and runs the job.

    Args:
        argv: flags; those of the command line if absent.

    Raises:
        UserError: nothing was published; the message says why.
    """
    started = time.monotonic()
    beam_flags = command.parse(FLAGS, argv, usage=__doc__, known_elsewhere=_beam_flag_names)
    print(_intention(), flush=True)
    try:
        _run(beam_flags, started)
    except BrokenPipeError:
        raise
    except OSError as error:
        path = error.filename or FLAGS.output
        advice = "Free some space or correct the path"
        if remote.is_remote(path):
            advice = "Check the address, your credentials and what they allow"
        raise UserError(
            f"{path}: {error.strerror or error}. An output that was there before is untouched, and"
            f" what is done is kept for the next run. {advice}, then run the same command again."
        ) from error
    except KeyboardInterrupt:
        print(
            f"\nFinished shards are kept in {FLAGS.output}.incomplete. Run the same command again"
            " to continue, or delete that folder."
        )
        raise


def _run(beam_flags: list[str], started: float) -> None:
    """Surveys the input, runs the pipeline, publishes what it made."""
    with extra("preprocess"), quiet_imports():
        from preprocess import (
            environment,
            photos,
            pipeline,
            progress,
            publish,
            runner,
            shard,
            storage,
            survey,
        )
    options = runner.options(beam_flags)
    graph = runner.pipeline(options)
    for flag in ("input", "output"):
        path = FLAGS[flag].value
        if path and storage.is_remote(path):
            _blamed(flag, functools.partial(storage.require_file_system, path))
    output = publish.Output(_absolute(FLAGS.output), secrets.token_hex(4))
    if not publish.has_traces(output):  # those may have to be repaired first
        publish.require_free(output, FLAGS.overwrite)
    place = _absolute(FLAGS.input or _draw_sample())
    source = _blamed("input", lambda: storage.open_source(place, FLAGS.follow_links))
    seen = _blamed("input", lambda: survey.survey(source))
    for note in seen.notes:
        print(f"  {note}")
    parameters = _parameters()
    fingerprint = publish.fingerprint(parameters, seen.class_names)
    with publish.locked(output):
        publish.require_free(output, FLAGS.overwrite)
        if note := publish.start(output, fingerprint):
            print(f"  {note}")
        here = environment.Environment.of(
            output.incomplete, output.run, source, [csv.entry for csv in seen.csvs]
        )
        settings = _settings(place, seen, here, output, fingerprint)
        environment.mark(settings.shards)
        runner.tell_workers(graph, environment.VARIABLE, here.to_json())
        if runner.is_local(options) and seen.num_files > _MANY_FILES:
            photos.HELPERS.start(shard.num_threads())  # they are ready when the join is
        pipeline.LISTED[output.run] = seen.tables
        pipeline.build(graph, settings, seen.csvs)
        print(f"  joining rows and photos, after {time.monotonic() - started:.1f} s", flush=True)
        try:
            with progress.shown(progress.Counts(output.incomplete, output.run)):
                watch = progress.Watch(output.incomplete, output.run, FLAGS.worker_timeout)
                runner.run(graph, options, watch.check)
        except UserError:
            publish.forget(output)
            raise
        finally:
            photos.HELPERS.stop()
        report = publish.read_report(output)
        rejected = _require_usable(report, output)
        contents = _contents(place, parameters, seen, report, rejected)
        publish.publish(output, contents, report.totals, FLAGS.overwrite)
    _print_summary(contents, report, output.path, time.monotonic() - started)


def _blamed(flag: str, look: Callable[[], T]) -> T:
    """Returns what `look` finds; errors about a path name the flag that gave it."""
    path = FLAGS[flag].value or "the built-in sample"
    try:
        return look()
    except UserError as error:
        if str(error).startswith(f"--{flag}="):
            raise
        raise UserError(f"--{flag}={path}: {error}") from None
    except OSError as error:
        raise UserError(f"--{flag}={path}: {error.strerror or error}") from None


def _intention() -> str:
    lines = [
        f"preprocess: {FLAGS.input or 'the built-in sample'} -> {FLAGS.output}",
        f"  photos of {FLAGS.image_height}x{FLAGS.image_width} (height x width), {FLAGS.resize},"
        f" JPEG quality {FLAGS.jpeg_quality}",
        f"  {FLAGS.validation_fraction:.0%} of train for validation, seed {FLAGS.seed}",
    ]
    if FLAGS.limit:
        lines.append(
            f"  a small data set, of the first {FLAGS.limit:,} rows of each CSV, will be written"
        )
    return "\n".join(lines)


def _beam_flag_names() -> Collection[str]:
    with extra("preprocess"), quiet_imports():
        from preprocess import runner
    return runner.flag_names()


def _draw_sample() -> str:
    from preprocess import sample  # it needs a drawing library that the other modules here do not

    print(f"  drawing the sample in {sample.DEFAULT_DIRECTORY}, unless it is there", flush=True)
    sample.draw(sample.DEFAULT_DIRECTORY)
    return sample.DEFAULT_DIRECTORY


def _absolute(path: str) -> str:
    """Returns a path that is valid for workers too, which may run in another folder."""
    return path.rstrip("/") if remote.is_remote(path) else os.path.realpath(path)


def _parameters() -> dict[str, Any]:
    """Returns every flag that shapes the output."""
    return {name: FLAGS[name].value for name in sorted(FLAGS) if name not in _NOT_IN_PARAMETERS}


def _settings(
    place: str,
    seen: "Survey",
    here: "environment.Environment",
    output: "publish.Output",
    fingerprint: str,
) -> "pipeline.Settings":
    from preprocess import photos, pipeline
    from tfrecords import image

    csv_bytes = sum(csv.entry.size for csv in seen.csvs)
    return pipeline.Settings(
        shards=photos.Settings(
            source=place,
            follow_links=FLAGS.follow_links,
            folder=output.incomplete,
            image=image.ImageOptions(
                FLAGS.image_height,
                FLAGS.image_width,
                FLAGS.resize,
                FLAGS.jpeg_quality,
                FLAGS.max_pixels,
                FLAGS.keep_damaged,
            ),
            box_unit=FLAGS.box_unit or "pixel",
            class_names=tuple(seen.class_names),
            fingerprint=fingerprint,
            run=output.run,
        ),
        environment=here,
        labels=seen.labels,
        num_buckets=pipeline.num_buckets(seen.num_files, csv_bytes),
        seed=FLAGS.seed,
        validation_fraction=FLAGS.validation_fraction,
        num_shards={
            name: FLAGS[f"{name}_shards"].value for name in ("train", "validation", "test")
        },
        shard_bytes=FLAGS.shard_mb * 1e6,
        max_rejected=FLAGS.max_rejected,
        first_class=FLAGS.first_class,
        box_unit=FLAGS.box_unit,
        limit=FLAGS.limit,
    )


def _require_usable(report: "Report", output: "publish.Output") -> Counter[str]:
    """Writes the list of rejected rows; returns how many there are, by reason.

    Raises:
        UserError: the input contradicts itself, or more rows are rejected than allowed, or no
            record is left.
    """
    from preprocess import pipeline, publish

    counts = Counter(report.rejected)
    counts.update(row["reason"] for row in report.totals.rejected)
    rows = sum(report.rows.values())
    refusal = pipeline.too_many_rejected(rows, counts.total(), FLAGS.max_rejected)
    if report.refusal and report.refusal != refusal:
        publish.forget(output)
        raise UserError(report.refusal)
    publish.write_rejected(output, report.totals.rejected)
    if not refusal and not report.totals.num_examples:
        refusal = f"no photo can be used: {counts.total():,} of {rows:,} rows are rejected"
    if not refusal:
        return counts
    publish.forget(output)
    found = [[row[name] for name in publish.REJECTED_FIELDS] for row in report.totals.rejected]
    examples: dict[str, list[Any]] = {}
    for example in sorted([*report.examples, *found]):
        examples.setdefault(example[3], example)
    shown = "".join(
        f"\n  {file} row {row}, {photo}: {reason}: {detail}"
        for file, row, photo, reason, detail in list(examples.values())[:_EXAMPLES]
    )
    if 2 * counts["wrong_folder"] > counts.total():
        shown += "\nDo the class ids of the CSVs start at 0? Then pass --first_class=0."
    raise UserError(
        f"{refusal}: {_counted(counts)}. For example:{shown}\n"
        f"All are in {output.rejected}. Correct them, or raise --max_rejected; finished shards are"
        " kept."
    )


def _contents(
    place: str,
    parameters: dict[str, Any],
    seen: "Survey",
    report: "Report",
    rejected: Counter[str],
) -> "Manifest":
    from preprocess import publish
    from tfrecords import manifest

    return manifest.Manifest(
        name=os.path.basename(place).removesuffix(".zip") if FLAGS.input else "drawn",
        sample=not FLAGS.input,
        image=manifest.Image(
            height=FLAGS.image_height,
            width=FLAGS.image_width,
            encoding="jpeg",
            quality=FLAGS.jpeg_quality,
            resize=FLAGS.resize,
        ),
        class_names=seen.class_names,
        splits=report.totals.splits(len(seen.class_names)),
        rejected=dict(rejected),
        unannotated=report.unannotated,
        box_stats=report.totals.box_stats(),
        original_sizes=report.totals.original_sizes(),
        parameters=parameters,
        source_fingerprint=report.source_fingerprint,
        libraries=publish.libraries(),
    )


def _print_summary(contents: "Manifest", report: "Report", output: str, seconds: float) -> None:
    total = sum(part.num_examples for part in contents.splits.values())
    for name, part in contents.splits.items():
        size = sum(one.bytes for one in part.shards) / 1e6
        print(
            f"{name:>10}  {part.num_examples:>9,} photos in {len(part.shards):>4} shards,"
            f" {size:>9,.1f} MB"
        )
    rejected = f": {_counted(contents.rejected)}" if contents.rejected else ""
    rows = ", ".join(f"{file} {count:,}" for file, count in sorted(report.rows.items()))
    print(
        f"  rejected  {sum(contents.rejected.values()):>9,} of {sum(report.rows.values()):,} rows"
        f" ({rows}){rejected}"
    )
    if report.unannotated:
        some = ", ".join(report.unannotated_examples)
        more = " …" if report.unannotated > len(report.unannotated_examples) else ""
        print(f"            {report.unannotated:>9,} photos that no row names: {some}{more}")
    for photo, damage in sorted(report.totals.damaged.items())[:_EXAMPLES]:
        print(f"  kept though damaged: {photo}: {damage}")
    kept = f", {report.totals.kept} shards were whole already" if report.totals.kept else ""
    print(f"{seconds:.1f} s, {total / seconds:,.0f} photos/s{kept}\nwritten: {output}")
    if contents.rejected:
        print(f"rejected rows: {output}/rejected.jsonl")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


if __name__ == "__main__":
    command.run(main)
