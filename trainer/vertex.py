"""Where Vertex AI wants the output of a training job: it says so by environment variables."""

import os

MOUNT = "/gcs"
"""Where Vertex AI shows buckets as folders, each under its name."""

_RUN = ("AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR")
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


def describe(*, run_is_given: bool) -> list[str]:
    """Returns lines for the user about what the job's environment decides; none outside Vertex AI.

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
