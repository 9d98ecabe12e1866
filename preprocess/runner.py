"""Beam's flags and runner: parsed as Beam parses them, mistakes reported in one sentence."""

import argparse
import logging
import re
import socket
from collections.abc import Collection
from typing import Any

import apache_beam as beam
from apache_beam.options import pipeline_options

from preprocess.shard import WriteFailed
from tfrecords.errors import FlagError, UserError

_CONNECT_SECONDS = 10.0


def flag_names() -> Collection[str]:
    """Returns the names of Beam's flags, with their dashes."""
    return _parser()._option_string_actions.keys()


def options(arguments: list[str]) -> pipeline_options.PipelineOptions:
    """Parses Beam's flags.

    Raises:
        FlagError: Beam does not know an argument, or cannot take its value.
    """
    # Errors are raised; Beam's own messages about them are pages long.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        _, unknown = _parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise FlagError(f"{error} (a flag of Beam)") from None
    if unknown:
        raise FlagError(f"unexpected argument {unknown[0]!r}: it belongs to no flag.")
    parsed = pipeline_options.PipelineOptions(arguments)
    direct = parsed.view_as(pipeline_options.DirectOptions)
    if direct.direct_num_workers < 0:
        raise FlagError(f"--direct_num_workers={direct.direct_num_workers}: it is below 0.")
    workers = parsed.view_as(pipeline_options.WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "ERROR"
    return parsed


def pipeline(parsed: pipeline_options.PipelineOptions) -> beam.Pipeline:
    """Returns an empty pipeline on the runner that the options name.

    Raises:
        UserError: there is no such runner here, or the options do not fit it.
    """
    _require_job_server(parsed)
    try:
        return beam.Pipeline(_local_runner(parsed), parsed)
    except (ValueError, ImportError, RuntimeError) as error:
        raise _failed(parsed, error) from None


def run(graph: beam.Pipeline, parsed: pipeline_options.PipelineOptions) -> None:
    """Runs a pipeline to its end.

    Raises:
        UserError: a worker or the runner could not; the message is the cause alone.
        KeyboardInterrupt: the user stopped it.
    """
    try:
        graph.run().wait_until_finish()
    except Exception as error:
        if str(error).startswith("KeyboardInterrupt"):  # Beam turns it into an error
            raise KeyboardInterrupt from None
        if reason := _failure(error):
            raise UserError(
                f"{reason}. Finished shards are kept: when the cause is gone, run the same command"
                " again and it continues."
            ) from None
        if is_local(parsed):
            raise  # a defect: its traceback is of use
        raise _failed(parsed, error) from None


def _failure(error: Exception) -> str | None:
    """Returns a worker's message, which some runners pass on as text with its traceback."""
    if isinstance(error, WriteFailed | UserError):
        return str(error).split(" [while running")[0].removesuffix(".")
    said = re.search(
        r"(?:WriteFailed|UserError): ([^\n]*?)\.?(?: \[while running|\n|$)", str(error)
    )
    return said.group(1) if said else None


def _failed(parsed: pipeline_options.PipelineOptions, error: Exception) -> UserError:
    runner = parsed.view_as(pipeline_options.StandardOptions).runner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError(f"--runner={runner}: {' '.join(lines[:4]) or type(error).__name__}")


def _require_job_server(parsed: pipeline_options.PipelineOptions) -> None:
    """Checks that a server listens at `--job_endpoint`: Beam would wait silently for minutes."""
    endpoint = parsed.view_as(pipeline_options.PortableOptions).job_endpoint
    host, _, port = (endpoint or "").rpartition(":")
    if not port.isdigit():
        return  # none, or one that Beam starts itself
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--job_endpoint={endpoint}: no job server answers there ({error.strerror or error})."
            " Start one, or correct the address."
        ) from None


def is_local(parsed: pipeline_options.PipelineOptions) -> bool:
    """Whether the pipeline runs in this process, or in others that it starts."""
    return parsed.view_as(pipeline_options.StandardOptions).runner in (None, "DirectRunner")


def _local_runner(parsed: pipeline_options.PipelineOptions) -> Any:
    """Returns the runner in this process for `DirectRunner`, None for any other.

    Beam's `DirectRunner` first looks for the binary of another runner on the internet, and falls
    back to this one where it finds none.
    """
    if not is_local(parsed):
        return None
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    encoded = JobServiceHandle.encode_pipeline_options(parsed.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    for kind in pipeline_options.PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    return parser
