"""Beam's flags and runner: parsed as Beam parses them, mistakes reported in one sentence."""

import argparse
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Collection

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.runners.runner import PipelineResult, PipelineState

from preprocess.shard import WriteFailed
from tfrecords.errors import FlagError, UserError

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_COMPATIBLE = re.compile(
    r"Submission environment: \S*python([\d.]+)_sdk:(\S+)\. "
    r"Runtime environment: \S*python([\d.]+)_sdk:(\S+)\."
)


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
    if is_local(parsed):
        # Beam's `DirectRunner` would first look for the binary of another runner on the internet,
        # so that the same command would run on two runners. This keeps it in Python; there are no
        # triggers here.
        parsed.view_as(pipeline_options.TypeOptions).allow_unsafe_triggers = True
    try:
        return beam.Pipeline(options=parsed)
    except (ValueError, ImportError, RuntimeError) as error:
        raise _failed(parsed, error) from None


def tell_workers(graph: beam.Pipeline, name: str, text: str) -> None:
    """Sets a variable in the environment of the workers that `PROCESS` starts."""
    portable = graph.options.view_as(pipeline_options.PortableOptions)  # the pipeline's own copy
    with contextlib.suppress(ValueError, TypeError, AttributeError):  # Beam says what is wrong
        if portable.environment_type == "PROCESS":
            config = json.loads(portable.environment_config)
            config["env"] = config.get("env", {}) | {name: text}
            portable.environment_config = json.dumps(config)


def run(
    graph: beam.Pipeline,
    parsed: pipeline_options.PipelineOptions,
    check: Callable[[], object],
) -> None:
    """Runs a pipeline to its end; one on a cluster is canceled when it cannot get there.

    Args:
        graph: the pipeline.
        parsed: its options.
        check: is called twice a second while a cluster works, and raises to give up.

    Raises:
        UserError: a worker or the runner could not; the message is the cause alone.
        KeyboardInterrupt: the user stopped it.
    """
    try:
        _wait(graph.run(), check)
    except UserError:
        raise
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


def _wait(result: PipelineResult, check: Callable[[], object]) -> None:
    """Waits for a pipeline, without end only if its runner does so too."""
    try:
        while not PipelineState.is_terminal(result.state):
            check()
            time.sleep(_POLL_SECONDS)
        result.wait_until_finish()
    except (UserError, KeyboardInterrupt):
        with contextlib.suppress(Exception):  # the first error is the one to report
            result.cancel()
        raise


def _failure(error: Exception) -> str | None:
    """Returns a worker's message, which some runners pass on as text with its traceback."""
    if isinstance(error, WriteFailed | UserError):
        return str(error).split(" [while running")[0].removesuffix(".")
    said = re.search(
        r"(?:WriteFailed|UserError): ([^\n]*?)\.?(?: \[while running|\n|$)", str(error)
    )
    if said:
        return said.group(1)
    text = str(error)
    if found := _COMPATIBLE.search(text):  # Beam compares these itself
        ours, our_beam, theirs, their_beam = found.groups()
        return (
            f"a worker has Python {theirs} and apache-beam {their_beam}; the machine that started"
            f" the job has Python {ours} and apache-beam {our_beam}. Install the same on both"
        )
    missing = re.search(r"\w*(?:NotFound|Import|Attribute)Error: ([^\n]*)", text)
    if missing and re.search(r"\b(preprocess|tfrecords)\b|No (module|package)", missing.group(1)):
        return (
            f"a worker cannot load the job: {missing.group(1)}. Install there the same"
            " carbox[preprocess] as on the machine that started it"
        )
    return None


def _failed(parsed: pipeline_options.PipelineOptions, error: Exception) -> UserError:
    runner = parsed.view_as(pipeline_options.StandardOptions).runner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    if causes and any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = causes[-1:]
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
    runner = parsed.view_as(pipeline_options.StandardOptions).runner or "direct"
    return runner.lower().removesuffix("runner") in ("direct", "fnapi")  # as Beam reads it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    for kind in pipeline_options.PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    return parser
