"""Turns a class-folder data set of photos into sharded, checked TFRecords.

    python -m preprocess.run --runner=DirectRunner --input=cars.zip --output=data/tfrecords

Every flag that is not listed by `--help` goes to Beam: `--direct_num_workers=4`,
`--flink_master=…`, `--project=…`. README.md says more.
"""

import argparse
import difflib
import logging
import os
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tfrecords.errors import UserError, run_command

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from preprocess import plan as planning
    from preprocess import publish, source
    from preprocess.shard import Job

_SAMPLE = "data/sample"
_SPLITS = ("train", "validation", "test")


def main(argv: list[str] | None = None) -> None:
    """Parses flags, runs the job, prints what came of it.

    Args:
        argv: flags; those of the command line if absent.

    Raises:
        UserError: nothing was published, and why.
    """
    started = time.monotonic()
    flags, beam_flags = _parser().parse_known_args(argv)
    flags.output = flags.output if "://" in flags.output else os.path.abspath(flags.output)
    options = _beam_options(beam_flags)
    print(_intention(flags), flush=True)
    try:
        _run(flags, options, started)
    except OSError as error:
        raise _as_user_error(error, flags.output) from error


def _run(flags: argparse.Namespace, options: "PipelineOptions", started: float) -> None:
    from preprocess import plan as planning
    from preprocess import publish, source, storage

    publish_output = flags.output.rstrip("/")
    if flags.input is None:
        from preprocess import sample

        sample.draw(_SAMPLE)
    path = flags.input or _SAMPLE
    path = path if storage.is_remote(path) else os.path.abspath(path)
    dataset = source.load(storage.open_source(path), flags.limit)
    for note in dataset.notes:
        print(note)
    parameters = _parameters(flags)
    output = publish.Output(publish_output, publish.fingerprint(parameters, dataset.stamp))
    with publish.locked(output):
        if publish.is_published(output):
            publish.clean_up(output)
            print(f"{output.path} was complete already: only a killed job's traces were removed")
            return
        publish.require_absent(output.path, flags.overwrite)
        plan = planning.make(
            dataset,
            seed=flags.seed,
            validation_fraction=flags.validation_fraction,
            num_shards=lambda split, photos: _num_shards(flags, split, photos),
        )
        _write_shards(flags, options, path, plan, output, started)
        contents = _contents(flags, path, plan, output, parameters)
        publish.publish(output, contents, flags.overwrite)
    _print_summary(contents, dataset.num_rows, output.path, time.monotonic() - started)


def _write_shards(
    flags: argparse.Namespace,
    options: "PipelineOptions",
    path: str,
    plan: "planning.Plan",
    output: "publish.Output",
    started: float,
) -> None:
    from preprocess import progress, publish
    from preprocess.image import ImageOptions
    from preprocess.shard import Job

    names, note = publish.start(output, plan.names)
    if note:
        print(note)
    _require_few_rejected(flags, plan.dataset, output, [])
    for name in names:
        plan.write(name, f"{output.work}/plan/{name}")
    if not names:
        return
    image = ImageOptions(flags.image_height, flags.image_width, flags.resize,
                         flags.jpeg_quality, flags.max_pixels)  # fmt: skip
    job = Job(path, output.data, output.work, image, tuple(plan.dataset.class_names))
    total = sum(len(plan.rows[name]) for name in names)
    print(f"{total:,} photos in {len(names)} shards, ready after {time.monotonic() - started:.1f} s",
          flush=True)  # fmt: skip
    with progress.shown(progress.Progress(output.work, names, total)):
        _run_beam(options, job, names, output.incomplete)


def _run_beam(options: "PipelineOptions", job: "Job", names: list[str], incomplete: str) -> None:
    import apache_beam as beam

    from preprocess import pipeline

    try:
        with beam.Pipeline(options=options) as graph:
            pipeline.build(graph, job, names)
    except Exception as error:
        failed = re.search(r"ShardFailed: ([^\n]*?)(?: \[while running|\n|$)", str(error))
        if failed is None:
            raise
        raise UserError(
            f"{failed.group(1)}. What is whole is kept in {incomplete}: when the cause is gone,"
            " run the same command again and it goes on from there."
        ) from None


def _contents(
    flags: argparse.Namespace,
    path: str,
    plan: "planning.Plan",
    output: "publish.Output",
    parameters: dict[str, Any],
) -> Any:
    from preprocess import publish
    from tfrecords import manifest

    dataset = plan.dataset
    totals = publish.Totals(len(dataset.class_names))
    for name, result in zip(plan.names, publish.results(output, plan.names), strict=True):
        totals.add(name.split("-", 1)[0], result)
    rejected = _require_few_rejected(flags, dataset, output, totals.rejected)
    name = os.path.basename(path.rstrip("/"))
    return manifest.Manifest(
        name=name.removesuffix(".zip"),
        image=manifest.Image(flags.image_height, flags.image_width, "jpeg", flags.jpeg_quality),
        class_names=dataset.class_names,
        splits=totals.splits(),
        rejected=dict(rejected),
        unannotated=dataset.unannotated,
        box_stats=totals.box_stats(),
        original_sizes=totals.original_sizes(),
        parameters=parameters,
        source_fingerprint=dataset.fingerprint,
        libraries=publish.libraries(),
    )


def _require_few_rejected(
    flags: argparse.Namespace,
    dataset: "source.Dataset",
    output: "publish.Output",
    found: list[dict[str, Any]],
) -> Counter[str]:
    """Writes down what was rejected, and stops the job when it is too much.

    Raises:
        UserError: more than `--max_rejected`, or everything.
    """
    from preprocess import publish

    counts = publish.write_rejected(output, dataset.rejected, found)
    total = counts.total()
    if total <= flags.max_rejected * dataset.num_rows and total < dataset.num_rows:
        return counts
    examples = (dataset.rejected.slice(0, 3).to_pylist() + found)[:3]
    lines = [
        f"\n  {row['file']} row {row['row']}, {row['photo']}: {row['reason']}: {row['detail']}"
        for row in examples
    ]
    raise UserError(
        f"{total:,} of {dataset.num_rows:,} rows ({total / dataset.num_rows:.1%}) are rejected,"
        f" --max_rejected={flags.max_rejected:g} allows {flags.max_rejected:.1%}:"
        f" {_counted(counts)}. For example:{''.join(lines)}\n"
        f"All are in {output.data}/{publish.REJECTED_NAME}. Mend them, or raise --max_rejected:"
        " what is done already is kept."
    )


def _num_shards(flags: argparse.Namespace, split: str, photos: int) -> int:
    from preprocess import split as splitting

    wanted = getattr(flags, f"{split}_shards")
    if wanted is not None:
        return wanted
    size = splitting.photo_bytes(flags.image_height, flags.image_width, flags.jpeg_quality)
    return splitting.num_shards(photos, size, flags.shard_mb * 1e6)


def _parameters(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns every flag that shapes the output."""
    names = ("image_height", "image_width", "resize", "jpeg_quality", "validation_fraction", "seed",
             "shard_mb", "max_pixels", "limit", *(f"{split}_shards" for split in _SPLITS))  # fmt: skip
    return {name: getattr(flags, name) for name in names}


def _intention(flags: argparse.Namespace) -> str:
    return (
        f"preprocess: {flags.input or f'the sample, drawn into {_SAMPLE}'} -> {flags.output}"
        f"\n  photos of {flags.image_height}x{flags.image_width} (height x width), {flags.resize},"
        f" JPEG quality {flags.jpeg_quality}; {flags.validation_fraction:.0%} of train for"
        f" validation, seed {flags.seed}"
        + (f"; only the first {flags.limit} rows of each CSV" if flags.limit else "")
    )


def _print_summary(contents: Any, num_rows: int, output: str, seconds: float) -> None:
    total = sum(split.num_examples for split in contents.splits.values())
    print()
    for name, split in contents.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        print(f"{name:>10}: {split.num_examples:>9,} records in {len(split.shards):>4} shards,"
              f" {size / 1e6:,.1f} MB")  # fmt: skip
    print(f"  rejected: {sum(contents.rejected.values()):,} of {num_rows:,} rows"
          + (f": {_counted(contents.rejected)}; see {output}/rejected.jsonl"
             if contents.rejected else ""))  # fmt: skip
    if contents.unannotated:
        print(f"  without a row: {contents.unannotated:,} photos")
    print(f"  {seconds:.1f} s, {total / seconds:,.0f} photos/s\nwritten: {output}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _as_user_error(error: OSError, output: str) -> UserError:
    return UserError(
        f"cannot write {error.filename or output}: {error.strerror or error}. An output that was"
        " there before is untouched. Free some space, or name another --output, and run again."
    )


def _beam_options(arguments: list[str]) -> "PipelineOptions":
    """Returns Beam's options.

    Raises:
        UserError: neither this command nor Beam knows a flag.
    """
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    from apache_beam.options import pipeline_options

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for kind in pipeline_options.PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [*_parser()._option_string_actions, *parser._option_string_actions]
        near = difflib.get_close_matches(flag, known, 1)
        raise UserError(
            f"unknown flag {flag!r}: neither this command nor Beam has it."
            + (f" Did you mean {near[0]}?" if near else " See --help.")
        )
    return pipeline_options.PipelineOptions(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m preprocess.run",
        description="Photos and CSVs to sharded, checked TFRecords. Other flags go to Beam.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--input",
        metavar="PATH",
        help=f"folder, zip or bucket of a class-folder data set; without it the built-in sample"
        f" is drawn into {_SAMPLE}",
    )
    add("--output", default="data/tfrecords", metavar="DIR", help="default: %(default)s")
    add(
        "--overwrite",
        action="store_true",
        help="replace an output that exists, once the new one is complete",
    )
    add("--image_height", type=_between(1, 16384), default=256, help="pixels; default: %(default)s")
    add("--image_width", type=_between(1, 16384), default=320, help="pixels; default: %(default)s")
    add(
        "--resize",
        choices=("stretch", "letterbox"),
        default="stretch",
        help="to the target's shape, or the whole photo in its own, on black; default: %(default)s",
    )
    add("--jpeg_quality", type=_between(1, 100), default=95, help="default: %(default)s")
    add("--validation_fraction", type=_fraction, default=0.2, help="default: %(default)s")
    add("--seed", type=int, default=42, help="of split and order; default: %(default)s")
    add(
        "--shard_mb",
        type=_positive,
        default=100.0,
        help="size of shards, about, in 10^6 bytes; smaller when that gives workers more to do;"
        " default: %(default)g",
    )
    for split in _SPLITS:
        add(
            f"--{split}_shards",
            type=_between(1, 99999),
            metavar="N",
            help=f"number of shards of the {split} split, instead of --shard_mb",
        )
    add(
        "--max_rejected",
        type=_fraction_or_one,
        default=0.01,
        metavar="FRACTION",
        help="of the rows; when more are rejected nothing is published; default: %(default)s",
    )
    add(
        "--max_pixels",
        type=_between(1, 1 << 31),
        default=100_000_000,
        help="photos with more are rejected undecoded; default: %(default)s",
    )
    add(
        "--limit",
        type=_between(1, 1 << 62),
        metavar="N",
        help="only the first N rows of each CSV: a dry run",
    )
    return parser  # fmt: skip


def _between(low: int, high: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return integer


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction: at least 0 and below 1")
    return value


def _fraction_or_one(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction between 0 and 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a size above 0")
    return value


if __name__ == "__main__":
    run_command(main)
