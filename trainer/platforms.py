"""What training services say about a job: where its output goes, and on which machines it runs.

Vertex AI says it by `AIP_*`. SageMaker's training toolkit says it by `SM_*`; a container without
the toolkit finds the machines in a file.
"""

import json
import os

from tfrecords.errors import UserError

MOUNT = "/gcs"
"""Where Vertex AI shows buckets as folders, each under its name."""

SAGEMAKER = "/opt/ml"
"""Where SageMaker keeps the files of a job."""

_RUN = ("AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR", "SM_MODEL_DIR")
_TENSORBOARD = "AIP_TENSORBOARD_LOG_DIR"


def run_folder() -> str | None:
    """Returns the folder that the job names for its model, if any.

    A run's folder is its model and its checkpoints in one, so that of the checkpoints is used only
    where none is named for the model.
    """
    variable = _run_variable()
    return os.environ[variable].rstrip("/") if variable else None


def tensorboard_folder() -> str | None:
    """Returns the folder that the job's TensorBoard watches, if there is one to write to.

    TensorFlow cannot write to `gs://` by itself, so a bucket is written to where it is mounted.
    """
    folder = os.environ.get(_TENSORBOARD, "").rstrip("/")
    if folder.startswith("gs://"):
        folder = os.path.join(MOUNT, folder.removeprefix("gs://"))
        bucket = os.path.relpath(folder, MOUNT).split(os.sep)[0]
        return folder if os.path.isdir(os.path.join(MOUNT, bucket)) else None
    return folder or None


def sagemaker_hosts() -> tuple[list[str], str] | None:
    """Returns the names of SageMaker's machines and that of this one; None outside SageMaker.

    Raises:
        UserError: they cannot be read.
    """
    file = os.path.join(SAGEMAKER, "input", "config", "resourceconfig.json")
    try:
        if "SM_HOSTS" in os.environ:
            file = "SM_HOSTS and SM_CURRENT_HOST"
            hosts, current = json.loads(os.environ["SM_HOSTS"]), os.environ["SM_CURRENT_HOST"]
        elif os.path.exists(file):
            with open(file) as opened:
                found = json.load(opened)
            hosts, current = found["hosts"], found["current_host"]
        else:
            return None
        if current not in hosts:
            raise ValueError(f"{current!r} is not one of {hosts}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} should name SageMaker's machines and this one: {error!r}. Set TF_CONFIG, or"
            " pass --strategy=mirrored to train on this machine alone."
        ) from None
    return list(hosts), current


def describe(*, run_is_given: bool) -> list[str]:
    """Returns lines for the user about what the job's environment decides, if anything.

    Args:
        run_is_given: whether `--run` names the run's folder, and the environment does not.
    """
    lines = []
    if not run_is_given and (variable := _run_variable()):
        lines.append(f"          which is {variable}; --run names another folder")
    if value := os.environ.get(_TENSORBOARD):
        folder = tensorboard_folder()
        where = f"{folder}, which is {_TENSORBOARD}"
        if not folder:
            where = f"in the run's folder; {_TENSORBOARD}={value} is not mounted at {MOUNT}"
        lines.append(f"TensorBoard: {where}")
    return lines


def _run_variable() -> str | None:
    return next((name for name in _RUN if os.environ.get(name, "").rstrip("/")), None)
