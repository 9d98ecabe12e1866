"""The page of a run: `report.html` in its folder, from the files that lie there.

It shows the evaluation of the test split, or of the next best; every other evaluation has a page of
its own beside it, and each lists them all. Beside each page lies `results.json` with what it shows.
No model is needed, so a page can be made again at any time. Photos are taken from the records;
where these are gone, the page says so.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tfrecords import charts, pages
from tfrecords.errors import UserError
from trainer import figures, results, results_file
from trainer.figures import ClassFigures, Confusion
from trainer.history import EpochMetrics
from trainer.photos import Photos
from trainer.predictions import Judged
from trainer.results import Evaluation
from trainer.results_file import Details, Evaluated, RunResults

FILE_NAME = "report.html"
TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")

FIGURES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_iou": "mean IoU",
    "iou_50": "IoU ≥ 0.5",
    "iou_70": "IoU ≥ 0.7",
    "iou_90": "IoU ≥ 0.9",
    "top1_iou_50": "right name and IoU ≥ 0.5",
}
"""By the names of `metrics.means`: what a figure is."""

_SHOWN = 12  # photos in each of the worst, the best and the random ones
_PAIRS, _PAIRS_LISTED = 12, 500  # pairs of confused classes with photos, and in the table
_PASSES = 3  # photos whose zoom passes are shown
_CURVES = {
    "loss": "loss",
    "top-1 accuracy": "top1",
    "mean IoU": "mean_iou",
}


def write(run: str, baseline: str | None = None) -> str:
    """Writes the page of each evaluation in a run's folder, and its `results.json`.

    Args:
        run: its folder.
        baseline: of another run, whose figures of the same photos are shown beside.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: there is no such run, its files are damaged, or the baseline is of other photos.
    """
    evaluations = [results.read(run, name) for name in results.names(run)]
    suffixes = ["", *(f"-{one.name}" for one in evaluations[1:])]
    beside = _read_baseline(baseline, evaluations)
    listed = _list_evaluations(evaluations, suffixes)
    shown: list[Evaluation | None] = [*evaluations] or [None]
    for suffix, evaluation in zip(suffixes, shown, strict=True):
        same = beside and evaluation and beside.name == evaluation.name
        found = results_file.collect(run, evaluation, beside if same else None)
        results_file.write(run, f"results{suffix}.json", found)
        page = _page(run, found, evaluation, listed, f"results{suffix}.json")
        pages.write(os.path.join(run, f"report{suffix}.html"), page)
    return os.path.join(run, FILE_NAME)


def percent(value: float) -> str:
    """Returns a share as text."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def written(name: str, value: float, *, sign: bool = False) -> str:
    """Returns a figure as text.

    Args:
        name: of the figure.
        value: of it, or a difference of two.
        sign: whether it is a difference.
    """
    if not sign:
        return f"{value:.4f}" if name == "mean_iou" else percent(value)
    text = f"{value:+.4f}" if name == "mean_iou" else f"{100 * value:+.1f}"
    # What rounds to nothing has no sign.
    text = text.lstrip("+-") if not float(text) else text
    return text.replace("-", "\N{MINUS SIGN}")


def between(name: str, interval: figures.Interval, *, sign: bool = False) -> str:
    """Returns an interval as text; see `written`."""
    low, high = (written(name, side, sign=sign) for side in interval)
    return f"{low.removesuffix('%').strip()} to {high}"


def _read_baseline(baseline: str | None, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    if baseline is None:
        return None
    for evaluation in evaluations:
        if evaluation.name in results.names(baseline):
            beside = results.read(baseline, evaluation.name)
            results.check_same_photos([evaluation, beside])
            return beside
    raise UserError(
        f"--baseline={baseline}: it has been evaluated on none of"
        f" {', '.join(one.name for one in evaluations)}. Evaluate it first:"
        f" `python -m trainer.evaluate --run={baseline}`."
    )


def _page(
    run: str,
    found: RunResults,
    evaluation: Evaluation | None,
    listed: list[dict[str, Any]],
    results_name: str,
) -> str:
    evaluated = found.evaluation
    baseline = evaluated.baseline if evaluated else None
    values: dict[str, Any] = {
        "large": [],
        "figure_rows": [],
        "listed": listed,
        "here": evaluated.name if evaluated else "",
        "results_name": results_name,
        "baseline": baseline.run if baseline else "",
        "curves": list(_curves(found.epochs)),
        "distributions": [],
        "classes": None,
        "pairs": None,
        "pair_cards": None,
        "photos": [],
        "photos_missing": "",
        "passes": None,
        "made": list(_made(found)),
        "settings": [(key, _plain(value)) for key, value in found.config.items()],
    }
    subtitle = f"trained on {found.data.name}; not evaluated yet"
    if evaluation and evaluated:
        subtitle = f"{evaluation.photos()}; {evaluation.judging()}; epoch that ended at step"
        subtitle += f" {evaluation.step:,}"
        values["large"], values["figure_rows"] = _figures(evaluated)
        if evaluated.details:
            values |= _details(evaluation, evaluated.details, evaluated.figures["top1"].value)
    return pages.render(
        "run.html",
        [TEMPLATES],
        title=f"Run {found.run}",
        subtitle=subtitle,
        made_by=f"python -m trainer.evaluate --run={shlex.quote(run)}",
        **values,
    )


def _details(evaluation: Evaluation, details: Details, right: float) -> dict[str, Any]:
    judged = results.judged_of(evaluation)
    photos = Photos(evaluation)
    values: dict[str, Any] = {
        "distributions": list(_distributions(details, right)),
        "classes": _class_table(details.classes),
        "pairs": _pair_table(details.confusions),
        "photos_missing": photos.missing,
    }
    if not photos.missing:
        values["pair_cards"] = _pair_gallery(judged, details.confusions, photos)
        values["photos"] = list(_galleries(judged, photos))
        if details.zoom_passes:
            values["passes"] = _passes_gallery(judged, details.zoom_passes, photos)
    return values


def _figures(evaluated: Evaluated) -> tuple[list[tuple[str, str, str]], list[list[str]]]:
    """Returns the large numbers, and the rows of the table of figures."""
    shown = {
        name: between(name, one.interval_95) if one.interval_95 else ""
        for name, one in evaluated.figures.items()
    }
    large = [
        (written(name, evaluated.figures[name].value), FIGURES[name], shown[name])
        for name in ("top1", "top5", "mean_iou", "top1_iou_50")
    ]
    rows = []
    for name, what in FIGURES.items():
        row = [what, written(name, evaluated.figures[name].value), shown[name] or "–"]
        if evaluated.baseline:
            beside = evaluated.baseline.figures[name]
            row += [
                written(name, beside.baseline),
                written(name, beside.difference, sign=True),
                between(name, beside.interval_95, sign=True),
            ]
        rows.append(row)
    return large, rows


def _list_evaluations(
    evaluations: Sequence[Evaluation], suffixes: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "file": f"report{suffix}.html",
            "name": one.name,
            "data": f"{one.split} of {one.data_name} ({one.fingerprint[:8]})",
            "judged": one.judging(),
            "photos": f"{int(one.figures['num_examples']):,}",
            "top1": percent(one.figures["top1"]),
            "mean_iou": f"{one.figures['mean_iou']:.4f}",
            "step": f"{one.step:,}",
        }
        for suffix, one in zip(suffixes, evaluations, strict=False)
    ]


def _curves(records: Sequence[EpochMetrics]) -> Iterator[tuple[str, Markup]]:
    if not records:
        return
    losses = [record.get("val_loss", record["loss"]) for record in records]
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    best = float(records[int(np.argmin(finite))]["epoch"])
    for title, key in _CURVES.items():
        series = {"training": _points(records, key), "validation": _points(records, f"val_{key}")}
        series = {name: points for name, points in series.items() if points}
        if series:
            yield title, _curve(title, series, best, percent=key == "top1")
    rates = _points(records, "learning_rate")
    if rates:
        yield "learning rate", _curve("learning rate", {"learning rate": rates}, best)


def _points(records: Sequence[EpochMetrics], key: str) -> list[tuple[float, float]]:
    return [(record["epoch"], record[key]) for record in records if key in record]


def _curve(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    best: float,
    *,
    percent: bool = False,
) -> Markup:
    last = "; ".join(f"{name} {points[-1][1]:.4g}" for name, points in series.items())
    few = max(map(len, series.values())) <= 30
    return charts.lines(
        dict(series), label=f"{title} over the epochs, at the end: {last}", x="epoch", y="",
        percent=percent, mark=best, points=few,
    )  # fmt: skip


def _distributions(details: Details, right: float) -> Iterator[tuple[str, str, Markup]]:
    edges = np.linspace(0, 1, results_file.HISTOGRAM_BINS + 1).tolist()
    yield (
        "IoU of the boxes",
        f"Half of them are at least {details.iou.median:.3f}.",
        charts.bars(
            details.iou.histogram, edges,
            label="Histogram of the IoU of predicted and true boxes", x="IoU", y="photos",
        ),
    )  # fmt: skip
    found = details.calibration
    points = [
        (float(x), float(y))
        for x, y, count in zip(found.confidence, found.accuracy, found.counts, strict=True)
        if count
    ]
    yield (
        "How far probabilities can be believed",
        f"Share that is right, by probability. Expected calibration error {percent(found.error)};"
        " below the diagonal the model is surer than it is right.",
        charts.lines(
            {"this run": points, "as sure as right": [(0.0, 0.0), (1.0, 1.0)]},
            label=f"Reliability diagram; expected calibration error {percent(found.error)}",
            x="probability of the first name", y="",
            x_range=(0, 1), y_range=(0, 1), percent=True, points=len(points) <= figures.BINS,
        ),
    )  # fmt: skip
    yield (
        "How sure the model is",
        f"Mean probability of the first name {percent(details.probability.mean)},"
        f" share that is right {percent(right)}.",
        charts.bars(
            details.probability.histogram, edges,
            label="Histogram of the probability of the first name",
            x="probability of the first name", y="photos",
        ),
    )  # fmt: skip


def _class_table(classes: Sequence[ClassFigures]) -> Markup:
    columns = [
        pages.Column("class"),
        pages.Column("photos", number=True),
        pages.Column("right", number=True, digits=1, percent=True),
        pages.Column("mean IoU", number=True, digits=3),
        pages.Column("most often taken for"),
        pages.Column("times", number=True, hint="how often it was taken for that"),
    ]
    rows: list[list[str | float | None]] = [
        [one.name, one.photos, round(one.top1, 5), round(one.mean_iou, 4), one.taken_for or None,
         one.times or None]
        for one in classes
    ]  # fmt: skip
    return pages.table("Classes", columns, rows, noun="classes", page_size=15)


def _pair_table(pairs: Sequence[Confusion]) -> Markup:
    columns = [
        pages.Column("class"),
        pages.Column("taken for"),
        pages.Column("photos", number=True),
        pages.Column("the other way around", number=True),
    ]
    rows: list[list[str | float | None]] = [
        [one.true, one.said, one.times, one.reverse] for one in pairs[:_PAIRS_LISTED]
    ]
    return pages.table("Confused classes", columns, rows, noun="pairs", page_size=10)


def _pair_gallery(judged: Judged, pairs: Sequence[Confusion], photos: Photos) -> Markup:
    """Shows for each pair a photo that was mistaken, and one of the class that it was taken for."""
    cards = []
    for pair in pairs[:_PAIRS]:
        mistaken = (judged.true_name == pair.true) & (judged.names[:, 0] == pair.said)
        shown = [int(np.flatnonzero(mistaken & ~judged.right)[0])]
        others = np.flatnonzero(judged.true_name == pair.said)
        if others.size:
            # One that was recognized, if there is any.
            shown.append(int(others[np.argmax(judged.right[others])]))
        times = f"{pair.times} photo{'s' * (pair.times > 1)}"
        cards.append(
            pages.Card(
                photos=[photos.show_judged(position) for position in shown],
                title=f"{pair.true} taken for {pair.said}",
                lines=[str(judged.photo[position]) for position in shown],
                badges=[times, f"the other way around {pair.reverse}"],
            )
        )
    return pages.gallery("Confused classes", cards, noun="pairs", page_size=_PAIRS)


def _galleries(judged: Judged, photos: Photos) -> Iterator[tuple[str, Markup]]:
    count = min(_SHOWN, len(judged))
    order = np.argsort(figures.score(judged), kind="stable")
    chosen = np.random.default_rng(0).choice(len(judged), count, replace=False)
    for title, positions in (
        ("Worst", order[:count]), ("Best", order[::-1][:count]), ("Drawn at random", chosen),
    ):  # fmt: skip
        cards = [_card(judged, photos, int(position)) for position in positions]
        yield title, pages.gallery(f"{title} predictions", cards, page_size=_SHOWN)


def _card(judged: Judged, photos: Photos, position: int) -> pages.Card:
    right = bool(judged.right[position])
    wrong = [] if right else [f"is {judged.true_name[position]}"]
    return pages.Card(
        photos=[photos.show_judged(position)],
        title=f"{judged.names[position, 0]}, {percent(judged.probabilities[position, 0])}",
        lines=[*wrong, str(judged.photo[position])],
        badges=["right" if right else "wrong", f"IoU {judged.iou[position]:.3f}"],
    )


def _passes_gallery(judged: Judged, described: Sequence[dict[str, Any]], photos: Photos) -> Markup:
    """Shows the zoom passes on the photo that they helped most, a usual one, and the worst."""
    gained = [one["passes"][-1]["iou"] - one["passes"][0]["iou"] for one in described]
    order = np.argsort(np.nan_to_num(gained), kind="stable")
    chosen = dict.fromkeys((order[-1], order[len(order) // 2], order[0]))
    cards = []
    for number in list(chosen)[:_PASSES]:
        position, passes = described[number]["position"], described[number]["passes"]
        lines = []
        for count, one in enumerate(passes):
            what = f"zoom pass {count}" if count else "whole photo"
            lines.append(
                f"{what}: {one['name']}, {percent(one['probability'])}, IoU {one['iou']:.3f}"
            )
        shown = photos.show_passes(
            position, [one["crop"] for one in passes], [one["bbox"] for one in passes]
        )
        gain = written("mean_iou", gained[number], sign=True)
        title = f"{judged.true_name[position]}: IoU {gain} by zooming in"
        cards.append(pages.Card(shown, title, [*lines, str(judged.photo[position])]))
    return pages.gallery("Zoom passes", cards, page_size=_PASSES)


def _made(found: RunResults) -> Iterator[tuple[str, str]]:
    """Yields how the run was made: name and text of each fact."""
    for start in found.starts:
        yield (
            f"started {start['time'].replace('T', ' ').replace('+00:00', ' UTC')}",
            start["command"],
        )
    if found.starts:
        last = found.starts[-1]
        hardware = last["hardware"]
        yield (
            "hardware",
            "; ".join(
                (
                    hardware["strategy"],
                    *(hardware["gpus"] or ["no GPU"]),
                    f"{hardware['cpu']}, {hardware['cores']} cores",
                    f"{hardware['memory_gb']:g} GB of memory",
                    hardware["system"],
                )
            ),
        )
        yield "versions", ", ".join(f"{name} {text}" for name, text in last["versions"].items())
    if timing := found.timing:
        yield (
            "time of the training steps",
            f"{_duration(timing.seconds)} in {timing.epochs} epochs",
        )
        yield (
            "speed",
            f"{timing.images_per_second:,.0f} photos a second; {percent(timing.wait)} of the time"
            " it waited for data",
        )
    data = found.data
    yield "epochs", str(len(found.epochs))
    yield "data", f"{data.name} at {data.path}, {len(data.class_names):,} classes"
    yield "stored photos", f"{data.height} x {data.width} pixels (height x width), {data.resize}"
    yield "fingerprint of the data", data.fingerprint


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | None) else str(value)
