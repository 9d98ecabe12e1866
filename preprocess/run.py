"""Turns a class-folder data set of photos into sharded, checked TFRecords.

    python -m preprocess.run --runner=DirectRunner --input=cars.zip --output=data/tfrecords

Flags that `--help` does not list go to Beam: `--direct_num_workers=4`, `--flink_master=…`,
`--project=…`. What was done when a job is killed is kept: run the same command again.
"""

import argparse
import difflib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfrecords.errors import UserError, run_command
from tfrecords.quiet import quiet_imports

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def main(argv: list[str] | None = None) -> None:
    """Parses flags and runs the job.

    Args:
        argv: flags; those of the command line if absent.

    Raises:
        UserError: nothing was published, and why.
    """
    started = time.monotonic()
    flags, beam_flags = _parser().parse_known_args(argv)
    options = _beam_options(beam_flags)
    print(_intention(flags), flush=True)
    with quiet_imports():
        from preprocess import job  # and TensorFlow with it

        job.warm_up(flags)
    try:
        job.run(flags, options, started)
    except OSError as error:
        raise UserError(
            f"{error.filename or flags.output}: {error.strerror or error}. An output that was"
            " there before is untouched, and what is done is kept for the next run. Free some"
            " space or mend the path, then run the same command again."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m preprocess.run",
        description="Photos and CSVs to sharded, checked TFRecords. Other flags go to Beam.",
        epilog="Defaults are in brackets.",
        allow_abbrev=False,
    )

    def add(flag: str, text: str, kind: Callable[[str], object] = str, **more: object) -> None:
        default = more.get("default")
        text += f" [{default}]" if default is not None else ""
        parser.add_argument(flag, type=kind, help=text, **more)  # type: ignore[arg-type]

    add("--input", "folder, zip or bucket of a class-folder data set; without it the built-in"
        " sample is drawn", _path, metavar="PATH")  # fmt: skip
    add("--output", "folder of the data set", _path, default="data/tfrecords", metavar="DIR")
    parser.add_argument("--overwrite", action="store_true",
        help="replace an output that exists, once the new one is complete")  # fmt: skip
    add("--image_height", "pixels", _integer(1, 16384), default=256)
    add("--image_width", "pixels", _integer(1, 16384), default=320)
    add("--resize", "stretch to the target's shape, or letterbox: the whole photo, on black",
        choices=("stretch", "letterbox"), default="stretch")  # fmt: skip
    add("--jpeg_quality", "1 to 100", _integer(1, 100), default=95)
    add("--validation_fraction", "of each class of the train photos", _number(0, 1), default=0.2)
    add("--seed", "of the split and of the order", _integer(-(1 << 63), (1 << 63) - 1), default=42)
    add("--shard_mb", "size of a shard, at most about, in 10^6 bytes; smaller where that gives"
        " workers more to do", _number(0.001, 1e6), default=100.0)  # fmt: skip
    for split in ("train", "validation", "test"):
        add(f"--{split}_shards", f"number of shards of the {split} split, instead of --shard_mb",
            _integer(1, 99999), metavar="N")  # fmt: skip
    add("--max_rejected", "fraction of the rows; when more are rejected, nothing is published",
        _number(0, 1, inclusive=True), default=0.01)  # fmt: skip
    add("--max_pixels", "photos with more are rejected undecoded", _integer(1, 1 << 31),
        default=100_000_000)  # fmt: skip
    add("--limit", "only the first N rows of each CSV: a dry run", _integer(1, 1 << 62),
        metavar="N")  # fmt: skip
    return parser


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: is a variable of the shell not set?")
    return text


def _integer(low: int, high: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return integer


def _number(low: float, high: float, inclusive: bool = False) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not (low <= value < high or (inclusive and value == high)):
            and_less = "up to" if inclusive else "less than"
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} {and_less} {high:g}")
        return value

    return number


def _beam_options(arguments: list[str]) -> "PipelineOptions":
    """Returns Beam's options.

    Raises:
        UserError: neither this command nor Beam knows a flag, or Beam cannot take its value.
    """
    # What goes wrong is raised; Beam's own account of it is pages long.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    with quiet_imports():
        from apache_beam.options import pipeline_options

    beam = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for kind in pipeline_options.PipelineOptions.__subclasses__():
        kind._add_argparse_args(beam)
    try:
        _, unknown = beam.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (a flag of Beam)") from None
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [*_parser()._option_string_actions, *beam._option_string_actions]
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"Did you mean {near[0]}?" if near else "See --help."
        raise UserError(f"unknown flag {flag!r}: neither this command nor Beam has it. {hint}")
    options = pipeline_options.PipelineOptions(arguments)
    workers = options.view_as(pipeline_options.WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "ERROR"
    return options


def _intention(flags: argparse.Namespace) -> str:
    lines = [
        f"preprocess: {flags.input or 'the built-in sample'} -> {flags.output}",
        f"  photos of {flags.image_height}x{flags.image_width} (height x width), {flags.resize},"
        f" JPEG quality {flags.jpeg_quality}",
        f"  {flags.validation_fraction:.0%} of train for validation, seed {flags.seed}",
    ]
    if flags.limit:
        lines.append(f"  a dry run: the first {flags.limit:,} rows of each CSV")
    return "\n".join(lines)


if __name__ == "__main__":
    # Worker processes inherit these. No Keras here: its import takes half as long as TensorFlow's.
    # Photos are the parallelism: an op on one photo needs no threads. No GPU: TensorFlow would
    # take its memory at once.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    run_command(main)
