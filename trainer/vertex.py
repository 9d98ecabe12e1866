"""Where Vertex AI wants the output of a training job: it says so by environment variables."""

import os

MOUNT = "/gcs"
"""Where Vertex AI shows buckets as folders, each under its name."""

_RUN = ("AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR")
_TENSORBOARD = "AIP_TENSORBOARD_LOG_DIR"


def run_folder() -> tuple[str, str] | None:
    """Returns the folder that the job names for its model, and the variable that does, if any.

    A run's folder is its model and its checkpoints in one, so that of the checkpoints is used only
    where none is named for the model.
    """
    for variable in _RUN:
        if folder := os.environ.get(variable, "").rstrip("/"):
            return folder, variable
    return None


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


def describe_tensorboard() -> str | None:
    """Returns one line for the user about where TensorBoard's files go; None outside Vertex AI."""
    if not (value := os.environ.get(_TENSORBOARD)):
        return None
    if folder := tensorboard_folder():
        return f"{folder} ({_TENSORBOARD})"
    return f"in the run's folder: {_TENSORBOARD}={value} is not mounted at {MOUNT}"
