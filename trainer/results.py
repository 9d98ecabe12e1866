"""The evaluations in a run's folder: which there are, their figures, what was said of each photo.

An evaluation's name is its split, with a suffix for other data or another way of judging; see
`evaluate.result_suffix`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfrecords.errors import UserError
from trainer import configs, predictions, run_dir
from trainer.predictions import Judged

_FIRST = ("test", "validation", "train")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        run: the run's folder.
        name: of the evaluation.
        split, data, data_name, fingerprint: the photos and where their records were.
        step: of the checkpoint that was evaluated.
        zoom_passes, zoom_margin, flip_tta, margin_tta: how photos were judged.
        figures: as `metrics.means` names them.
        judged: what was said of each photo; None where an older version did not write it.
    """

    run: str
    name: str
    split: str
    data: str
    data_name: str
    fingerprint: str
    step: int
    zoom_passes: int
    zoom_margin: float
    flip_tta: bool
    margin_tta: float
    figures: dict[str, float]
    judged: Judged | None

    def judging(self) -> str:
        """Returns how photos were judged, in words."""
        passes = f"{self.zoom_passes} zoom pass{'es' * (self.zoom_passes != 1)}"
        if self.zoom_passes:
            margins = sorted(
                {self.zoom_margin - self.margin_tta, self.zoom_margin + self.margin_tta}
            )
            passes += f" (margin {' and '.join(f'{margin:.3g}' for margin in margins)})"
        return passes + (", flipped too" if self.flip_tta else "")

    def photos(self) -> str:
        """Returns which photos were judged, in words."""
        count = int(self.figures["num_examples"])
        return f"{count:,} photos of the {self.split} split of {self.data_name}"


def names(run: str) -> list[str]:
    """Returns the names of a run's evaluations: own data and settings first, test before others.

    Raises:
        UserError: there is no such run.
    """
    run_dir.read(run)
    files = (file for file in os.listdir(run) if file.startswith("evaluation-"))
    found = [file[len("evaluation-") : -len(".json")] for file in files if file.endswith(".json")]
    found = [name for name in found if _split(name) in _FIRST]
    return sorted(found, key=lambda name: ("-" in name, _FIRST.index(_split(name)), name))


def read(run: str, name: str) -> Evaluation:
    """Reads an evaluation.

    Raises:
        UserError: there is no such run or evaluation, or its files are damaged.
    """
    _, own = run_dir.read(run)
    path = os.path.join(run, f"evaluation-{name}.json")
    try:
        with open(path) as file:
            values = json.load(file)
        table = os.path.join(run, f"predictions-{name}.csv")
        return Evaluation(
            run=run,
            name=name,
            split=_split(name),
            data=values["data"],
            data_name=values.get("data_name", own.name),
            fingerprint=values.get("fingerprint", own.fingerprint),
            step=values["step"],
            zoom_passes=values["zoom_passes"],
            zoom_margin=_setting(values, "zoom_margin"),
            flip_tta=values["flip_tta"],
            margin_tta=_setting(values, "margin_tta"),
            figures=_figures(values),
            judged=predictions.read(table) if os.path.exists(table) else None,
        )
    except FileNotFoundError:
        there = ", ".join(names(run)) or "none"
        raise UserError(
            f"the run {run} has no evaluation {name!r} (it has: {there}). Make it with"
            f" `python -m trainer.evaluate --run={run} --split={name.partition('-')[0]}`."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Evaluate the run again.") from None


def judged_of(evaluation: Evaluation) -> Judged:
    """Returns what was said of each photo.

    Raises:
        UserError: it was not written.
    """
    if evaluation.judged is None:
        raise UserError(
            f"{evaluation.run} holds no predictions-{evaluation.name}.csv. Make it with"
            f" `python -m trainer.evaluate --run={evaluation.run} --split={evaluation.split}`."
        )
    return evaluation.judged


def check_same_photos(evaluations: Sequence[Evaluation]) -> None:
    """Checks that evaluations can be compared photo by photo.

    Raises:
        UserError: they are of different data or photos, or one holds no predictions.
    """
    first, *others = evaluations
    ours = judged_of(first)
    for other in others:
        theirs = judged_of(other)
        if other.fingerprint != first.fingerprint:
            raise UserError(
                f"{first.run} and {other.run} were evaluated on different data: {first.data_name}"
                f" ({first.fingerprint[:8]}) and {other.data_name} ({other.fingerprint[:8]})."
                " Only figures of the same photos can be compared. Evaluate both on one data set"
                " with `python -m trainer.evaluate --run=RUN --data=DIR`."
            )
        if not (
            np.array_equal(ours.photo, theirs.photo)
            and np.array_equal(ours.true_name, theirs.true_name)
        ):
            raise UserError(
                f"{first.run} and {other.run}: the rows of predictions-{first.name}.csv are not of"
                " the same photos. Evaluate both runs again."
            )


def _setting(values: dict[str, Any], name: str) -> float:
    """Returns a setting of inference; older evaluations do not name those that came later."""
    return values.get(name, configs.SETTINGS[f"inference.{name}"].before)


def _split(name: str) -> str:
    return name.partition("-")[0]


def _figures(values: dict[str, Any]) -> dict[str, float]:
    known = (
        "num_examples",
        "top1",
        "top5",
        "mean_iou",
        "iou_50",
        "iou_70",
        "iou_90",
        "top1_iou_50",
    )
    return {name: float(values[name]) for name in known}
