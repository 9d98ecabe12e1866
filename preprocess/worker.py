r"""Starts a Python worker of a Beam runner, as `--environment_type=PROCESS` asks for it.

    carbox-worker --id=ID --provision_endpoint=HOST:PORT

The runner calls it on each of its machines, in the environment where carbox is installed:

    python -m preprocess.run --runner=FlinkRunner … --environment_type=PROCESS \
        --environment_config='{"command": "/opt/carbox/bin/carbox-worker"}'

Beam has such a program in its container images only.
"""

import argparse
import os

from tfrecords.errors import UserError, extra, run_command

with extra("preprocess"):
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from apache_beam.runners.worker import sdk_worker_main
    from google.protobuf import json_format, text_format

    from preprocess import environment

_CONNECT_SECONDS = 60


def main() -> None:
    """Asks the runner for what it has to say to this worker, and works until it is told to end.

    Raises:
        UserError: the driver has other versions, or no runner answers.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", required=True, help="name that the runner gives this worker")
    parser.add_argument("--provision_endpoint", required=True, help="HOST:PORT of the runner")
    asked, _ = parser.parse_known_args()  # runners differ in what else they pass
    if driver := os.environ.get(environment.VARIABLE):
        # Before Beam does: Flink hangs on the error of a worker with another Beam or Python.
        environment.Environment.from_json(driver).require_versions()
    info = _provision(asked.provision_endpoint, asked.id)
    os.environ |= {
        "WORKER_ID": asked.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
    }
    if info.status_endpoint.url:
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(
            info.status_endpoint
        )
    sdk_worker_main.main([])


def _provision(endpoint: str, worker: str) -> "beam_provision_api_pb2.ProvisionInfo":
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        try:
            return stub.GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(),
                metadata=[("worker_id", worker)],
                timeout=_CONNECT_SECONDS,
                wait_for_ready=True,
            ).info
        except grpc.RpcError as error:
            raise UserError(
                f"--provision_endpoint={endpoint}: no runner says there what worker {worker} is to"
                f" do ({error.code().name}). Runners start this command themselves, where a job has"
                " --environment_type=PROCESS."
            ) from None


def command() -> None:
    """Runs as a command."""
    run_command(main)


if __name__ == "__main__":
    command()
