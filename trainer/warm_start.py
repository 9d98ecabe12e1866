"""Starts a new run from the weights of another one."""

from collections.abc import Sequence

import keras

from tfrecords.errors import UserError
from trainer import checkpoint, run_dir, train_state

_CLASSIFIER = "label/"


def load(network: keras.Model, run: str, class_names: Sequence[str]) -> str:
    """Gives a new network the values of a trained run, wherever path and shape agree.

    If the classes differ, the classifier keeps its new values.

    Args:
        network: freshly built.
        run: folder of the run that gives its weights: those of its best epoch, averaged where it
            has averages.
        class_names: of the new run.

    Returns:
        A summary of what was loaded, for the user.

    Raises:
        UserError: there is no such run, or its backbone differs.
    """
    config, data = run_dir.read(run)
    stored = checkpoint.read(run_dir.best_checkpoint(run))
    values = train_state.eval_values_of(stored)
    if list(class_names) != data.class_names:
        values = {path: value for path, value in values.items() if not path.startswith(_CLASSIFIER)}
    own = train_state.named_variables(network)
    taken = {
        path: variable
        for path, variable in own.items()
        if path in values and values[path].shape == tuple(variable.shape)
    }
    missing = [path for path in own if path.startswith(train_state.BACKBONE) and path not in taken]
    if missing:
        raise UserError(
            f"--init_from={run}: its backbone is another one ({missing[0]} differs): train with"
            f" --config.model.alpha={config.model.alpha} --config.model.stride="
            f"{config.model.stride}, or start from other weights."
        )
    for path, variable in taken.items():
        variable.assign(values[path])
    anew = sorted({path.split("/")[0] for path in own.keys() - taken.keys()})
    return f"weights: {len(taken)} of {len(own)} arrays from {run}" + (
        f"; {', '.join(anew)} start anew" if anew else ""
    )
