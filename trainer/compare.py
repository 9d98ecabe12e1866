"""Sets runs side by side: the same figures on the same photos, and what differs.

    python -m trainer.compare RUN RUN ... [--split=test] [--html=FILE]

Prints the figures of each run, and the difference from the first one with its paired 95 % bootstrap
interval, and the settings that differ. The page also shows photos that one run gets right and
another wrong. Works from what trainer.evaluate has written; no model is run.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from absl import flags

from tfrecords import command, pages, remote
from tfrecords.errors import extra

with extra("train"):
    from trainer import configs, figures, report, results, run_dir
    from trainer.figures import Interval
    from trainer.photos import Photos
    from trainer.results import Evaluation

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "split",
    "test",
    "evaluation to compare: a split, or a longer name that the run's page lists",
    flag_values=FLAGS,
)
command.DEFINE_path("html", None, "file of the page to write", flag_values=FLAGS)

_SHOWN, _LISTED = 12, 2000  # photos with a picture, and rows of the table, for each pair and side


@dataclass(frozen=True)
class Comparison:
    """Runs on the same photos.

    Attributes:
        names: short ones that tell the runs apart.
        evaluations: of each run.
        figures: of each run, by name.
        differences: of each run but the first, by name: the first's figure taken from its own, and
            the paired interval.
        settings: key and each run's value, where they differ.
    """

    names: list[str]
    evaluations: list[Evaluation]
    figures: list[dict[str, float]]
    differences: list[dict[str, tuple[float, Interval]]]
    settings: list[tuple[str, list[str]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: a run is not there, not evaluated, or was evaluated on other photos.
    """
    named = command.parse(FLAGS, argv, usage=__doc__, positional="RUN RUN ...")
    runs = [remote.model(run) for run in named]
    compared = compare(runs, FLAGS.split)
    if FLAGS.html:
        pages.write(FLAGS.html, page(compared))
    for line in summary(compared):
        print(line)
    if FLAGS.html:
        print(f"page: {FLAGS.html}")


def compare(runs: Sequence[str], name: str) -> Comparison:
    """Compares an evaluation of each run.

    Args:
        runs: their folders; the first is what the others are measured by.
        name: of the evaluation.

    Raises:
        UserError: see `main`.
    """
    evaluations = [results.read(run, name) for run in runs]
    results.check_same_photos(evaluations)
    of_photos = [figures.of_photos(results.judged_of(one)) for one in evaluations]
    differences = []
    for values in of_photos[1:]:
        differs = figures.differences(of_photos[0], values)
        intervals = figures.intervals(differs)
        differences.append({key: (float(differs[key].mean()), intervals[key]) for key in differs})
    return Comparison(
        names=_short_names(runs),
        evaluations=evaluations,
        figures=[{key: float(one.mean()) for key, one in values.items()} for values in of_photos],
        differences=differences,
        settings=list(_differing_settings(evaluations)),
    )


def summary(compared: Comparison) -> Iterator[str]:
    """Yields the lines for the terminal."""
    yield compared.evaluations[0].photos()
    yield ""
    header = ["", *compared.names]
    header += [f"{name} - {compared.names[0]}" for name in compared.names[1:]]
    yield from _aligned([header, *_figure_rows(compared)])
    yield ""
    yield "differences in points, with paired 95 % bootstrap intervals over the photos"
    for number, name in enumerate(compared.names[1:], start=1):
        ours, theirs = (positions.size for positions in _disagreements(compared, number))
        yield f"only {compared.names[0]} names {ours:,} photos right, only {name} {theirs:,}"
    yield ""
    if compared.settings:
        yield from _aligned([["what differs", *compared.names], *_setting_rows(compared)])
    else:
        yield "no setting differs"


def page(compared: Comparison) -> str:
    """Returns the page."""
    first = compared.evaluations[0]
    photos = Photos(first)
    return pages.render(
        "compare.html",
        [report.TEMPLATES],
        title=f"Runs {' and '.join(compared.names)}",
        subtitle=compared.evaluations[0].photos(),
        made_by=f"python -m trainer.compare {shlex.join(one.run for one in compared.evaluations)}",
        names=compared.names,
        runs=[[name, one.run, one.judging(), f"{one.step:,}"]
              for name, one in zip(compared.names, compared.evaluations, strict=True)],
        rows=_figure_rows(compared),
        settings=_setting_rows(compared),
        photos_missing=photos.missing,
        pairs=[_pair(compared, number, photos) for number in range(1, len(compared.names))],
    )  # fmt: skip


def _pair(compared: Comparison, number: int, photos: Photos) -> dict[str, object]:
    """Returns what the page shows of the first run and another."""
    sides = []
    both = compared.names[0], compared.names[number]
    for winner, positions in enumerate(_disagreements(compared, number)):
        chosen = positions
        if positions.size > _SHOWN:
            drawn = np.random.default_rng(0).choice(positions, _SHOWN, replace=False)
            chosen = np.sort(drawn)
        gallery = None
        if positions.size and not photos.missing:
            cards = [_card(compared, number, photos, int(position)) for position in chosen]
            gallery = pages.gallery(f"Only {both[winner]} is right", cards, page_size=_SHOWN)
        sides.append((both[winner], int(positions.size), len(chosen), gallery))
    return {"name": both[1], "sides": sides, "table": _table(compared, number)}


def _card(compared: Comparison, number: int, photos: Photos, position: int) -> pages.Card:
    shown, badges, lines = [], [], []
    for which in (0, number):
        judged = results.judged_of(compared.evaluations[which])
        boxes = [
            pages.Box(photos.fractions(position, box[position]), kind)
            for box, kind in ((judged.true_box, "true"), (judged.box, "predicted"))
            if np.isfinite(box[position]).all()
        ]
        shown.append(photos.show(position, boxes))
        badges.append(f"IoU {judged.iou[position]:.3f}")
        lines.append(
            f"{compared.names[which]}: {judged.names[position, 0]},"
            f" {report.percent(judged.probabilities[position, 0])}"
        )
    first = results.judged_of(compared.evaluations[0])
    return pages.Card(
        shown, str(first.true_name[position]), [*lines, str(first.photo[position])], badges
    )


def _table(compared: Comparison, number: int) -> object:
    """Returns the table of the photos that one of two runs names right and the other wrong."""
    ours, theirs = (results.judged_of(compared.evaluations[which]) for which in (0, number))
    names = compared.names[0], compared.names[number]
    columns = [
        pages.Column("photo"),
        pages.Column("is"),
        *(pages.Column(f"{name} says") for name in names),
        *(pages.Column(f"IoU of {name}", number=True, digits=3) for name in names),
        pages.Column("right"),
    ]
    rows: list[list[str | float | None]] = []
    for winner, positions in enumerate(_disagreements(compared, number)):
        for i in positions[:_LISTED]:
            rows.append(
                [ours.photo[i], ours.true_name[i], ours.names[i, 0], theirs.names[i, 0],
                 _number(ours.iou[i]), _number(theirs.iou[i]), names[winner]]
            )  # fmt: skip
    return pages.table(
        f"Photos that {names[0]} and {names[1]} name differently", columns, rows,
        facets=[6], noun="photos", page_size=10,
    )  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _disagreements(compared: Comparison, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of photos that only the first, and only the other run names right."""
    ours, theirs = (results.judged_of(compared.evaluations[which]).right for which in (0, number))
    return np.flatnonzero(ours & ~theirs), np.flatnonzero(theirs & ~ours)


def _figure_rows(compared: Comparison) -> list[list[str]]:
    return [
        [what, *(report.written(key, one[key]) for one in compared.figures)]
        + [
            f"{report.written(key, value, sign=True)} [{report.between(key, interval, sign=True)}]"
            for value, interval in (one[key] for one in compared.differences)
        ]
        for key, what in report.FIGURES.items()
    ]


def _setting_rows(compared: Comparison) -> list[list[str]]:
    return [[key, *values] for key, values in compared.settings]


def _differing_settings(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[str]]]:
    flat = [configs.flatten(run_dir.read(one.run)[0]) for one in evaluations]
    # How they were judged here, which may not be as the config says.
    for values, one in zip(flat, evaluations, strict=True):
        values["inference.zoom_passes"] = one.zoom_passes
        values["inference.zoom_margin"] = one.zoom_margin
        values["inference.flip_tta"] = one.flip_tta
        values["inference.margin_tta"] = one.margin_tta
        values["evaluated at step"] = one.step
    for key in dict.fromkeys(key for values in flat for key in values):
        found = [values.get(key) for values in flat]
        if any(value != found[0] for value in found):
            yield key, [str(value) for value in found]


def _short_names(runs: Sequence[str]) -> list[str]:
    """Returns the folders' names, or whole paths where those are the same."""
    short = [os.path.basename(os.path.abspath(run)) for run in runs]
    return short if len(set(short)) == len(short) else list(runs)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


if __name__ == "__main__":
    command.run(main)
