"""The whole job, step by step: load, plan, write the shards, publish, say what came of it."""

import argparse
import os
import re
import time
from collections import Counter
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from preprocess import image, pipeline, plan, progress, publish, shard, source, split, storage
from tfrecords import manifest
from tfrecords.errors import UserError


def run(flags: argparse.Namespace, options: PipelineOptions, started: float) -> None:
    """Runs the job.

    Args:
        flags: of `preprocess.run`.
        options: Beam's.
        started: `time.monotonic()` when the command began.

    Raises:
        UserError: nothing was published, and why.
        OSError: nothing was published: something could not be read or written.
    """
    graph = _graph(options)
    if storage.is_remote(flags.output):
        storage.require_file_system(flags.output)
    place = _absolute(flags.input or _draw_sample())
    try:
        dataset = source.load(storage.open_source(place), flags.limit)
    except UserError as error:
        text = str(error)
        raise UserError(text if place in text else f"--input={place}: {text}") from None
    for note in dataset.notes:
        print(f"  {note}")
    parameters = _parameters(flags)
    output = publish.Output(_absolute(flags.output), publish.fingerprint(parameters, dataset.stamp))
    with publish.locked(output):
        if publish.is_published(output):
            publish.clean_up(output)
            print(f"{output.path} is complete: only a killed job's traces had to be removed")
            return
        publish.require_free(output, flags.overwrite)
        planned = plan.make(
            dataset,
            seed=flags.seed,
            validation_fraction=flags.validation_fraction,
            num_shards=lambda name, photos: _num_shards(flags, name, photos),
        )
        waiting, note = publish.start(output, planned.names)
        if note:
            print(f"  {note}")
        _require_few_rejected(flags, dataset, output, [])
        _write_shards(flags, graph, place, planned, waiting, output, started)
        contents = _contents(flags, place, planned, output, parameters)
        publish.publish(output, contents, flags.overwrite)
    _print_summary(contents, dataset.num_rows, output.path, time.monotonic() - started)


def warm_up(flags: argparse.Namespace) -> None:
    """Makes TensorFlow ready for the photos to come."""
    image.warm_up(_image_options(flags))


def _draw_sample() -> str:
    from preprocess import sample  # it needs a drawing library that nothing else here does

    sample.draw(sample.DEFAULT_DIRECTORY)
    return sample.DEFAULT_DIRECTORY


def _absolute(path: str) -> str:
    """Returns a path that means the same to workers, which may run elsewhere."""
    return path.rstrip("/") if storage.is_remote(path) else os.path.abspath(path)


def _image_options(flags: argparse.Namespace) -> image.ImageOptions:
    return image.ImageOptions(
        flags.image_height, flags.image_width, flags.resize, flags.jpeg_quality, flags.max_pixels
    )


def _parameters(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns every flag that shapes the output."""
    kept_out = ("input", "output", "overwrite", "max_rejected")
    return {name: value for name, value in sorted(vars(flags).items()) if name not in kept_out}


def _num_shards(flags: argparse.Namespace, name: str, photos: int) -> int:
    wanted = getattr(flags, f"{name}_shards")
    if wanted is not None:
        return wanted
    size = split.photo_bytes(flags.image_height, flags.image_width, flags.jpeg_quality)
    return split.num_shards(photos, size, flags.shard_mb * 1e6)


def _write_shards(
    flags: argparse.Namespace,
    graph: beam.Pipeline,
    place: str,
    planned: plan.Plan,
    names: list[str],
    output: publish.Output,
    started: float,
) -> None:
    """Has Beam write the shards that are not there yet.

    Raises:
        UserError: a worker could not.
    """
    if not names:
        return
    for name in names:
        planned.write(name, f"{output.work}/plan/{name}")
    class_names = tuple(planned.dataset.class_names)
    job = shard.Job(place, output.data, output.work, _image_options(flags), class_names)
    total = sum(len(planned.rows[name]) for name in names)
    seconds = time.monotonic() - started
    print(f"  {total:,} photos for {len(names)} shards, after {seconds:.1f} s", flush=True)
    try:
        with progress.shown(progress.Progress(output.work, names, total)), graph:
            pipeline.build(graph, job, names)
    except Exception as error:
        if str(error).startswith("KeyboardInterrupt"):  # Beam makes an error of it
            raise KeyboardInterrupt from None
        reason = _shard_failure(error)
        if reason is None:
            raise
        raise UserError(
            f"{reason}. What is whole is kept in {output.incomplete}: when the cause is gone, run"
            " the same command again and it goes on from there."
        ) from None


def _shard_failure(error: Exception) -> str | None:
    """Returns what a worker said with `ShardFailed`, which some runners hand over as text."""
    if isinstance(error, shard.ShardFailed):
        return str(error).split(" [while running")[0]
    said = re.search(r"ShardFailed: ([^\n]*?)(?: \[while running|\n|$)", str(error))
    return said.group(1) if said else None


def _graph(options: PipelineOptions) -> beam.Pipeline:
    """Returns the empty pipeline of the runner asked for.

    Raises:
        UserError: there is no such runner here, or Beam's options do not fit it.
    """
    try:
        return beam.Pipeline(_local_runner(options), options)
    except (ValueError, ImportError) as error:
        runner = options.view_as(StandardOptions).runner
        raise UserError(f"--runner={runner}: {error}") from None


def _local_runner(options: PipelineOptions) -> Any:
    """Returns the runner in this process for `DirectRunner`, None for any other.

    Beam's `DirectRunner` first looks for the binary of another runner on the internet, and falls
    back to this one where it finds none.
    """
    if options.view_as(StandardOptions).runner not in (None, "DirectRunner"):
        return None
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


def _contents(
    flags: argparse.Namespace,
    place: str,
    planned: plan.Plan,
    output: publish.Output,
    parameters: dict[str, Any],
) -> manifest.Manifest:
    dataset = planned.dataset
    totals = publish.Totals(len(dataset.class_names))
    for name, result in zip(planned.names, publish.results(output, planned.names), strict=True):
        totals.add(plan.split_of(name), result)
    rejected = _require_few_rejected(flags, dataset, output, totals.rejected)
    return manifest.Manifest(
        name=os.path.basename(place).removesuffix(".zip") if flags.input else manifest.SAMPLE_NAME,
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
    dataset: source.Dataset,
    output: publish.Output,
    found: list[dict[str, Any]],
) -> Counter[str]:
    """Writes down what was rejected, and stops the job when it is too much.

    Raises:
        UserError: more than `--max_rejected`, or everything.
    """
    counts = publish.write_rejected(output, dataset.rejected, found)
    total = counts.total()
    if total <= flags.max_rejected * dataset.num_rows and total < dataset.num_rows:
        return counts
    examples = "".join(
        f"\n  {row['file']} row {row['row']}, {row['photo']}: {row['reason']}: {row['detail']}"
        for row in (dataset.rejected.slice(0, 3).to_pylist() + found)[:3]
    )
    raise UserError(
        f"{total:,} of {dataset.num_rows:,} rows ({total / dataset.num_rows:.1%}) are rejected,"
        f" and --max_rejected={flags.max_rejected:g} allows {flags.max_rejected:.1%}:"
        f" {_counted(counts)}. For example:{examples}\n"
        f"All are in {output.data}/{manifest.REJECTED_NAME}. Mend them, or raise --max_rejected;"
        " what is done already is kept."
    )


def _print_summary(contents: manifest.Manifest, num_rows: int, output: str, seconds: float) -> None:
    total = sum(part.num_examples for part in contents.splits.values())
    for name in manifest.SPLITS:
        if name in contents.splits:
            part = contents.splits[name]
            size = sum(one.bytes for one in part.shards) / 1e6
            print(
                f"{name:>10}  {part.num_examples:>9,} photos in {len(part.shards):>4} shards,"
                f" {size:>9,.1f} MB"
            )
    rejected = f": {_counted(contents.rejected)}" if contents.rejected else ""
    print(f"  rejected  {sum(contents.rejected.values()):>9,} of {num_rows:,} rows{rejected}")
    if contents.unannotated:
        print(f"            {contents.unannotated:>9,} photos that no row names")
    print(f"{seconds:.1f} s, {total / seconds:,.0f} photos/s\nwritten: {output}")
    if contents.rejected:
        print(f"set aside: {output}/{manifest.REJECTED_NAME}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
