"""Statistics over all shards, for the manifest."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from preprocess import split
from preprocess.shard import BOX_MEASURES, Result
from tfrecords import manifest


@dataclass
class Totals:
    """Sums over shards.

    Attributes:
        shards: by name, what the manifest says about it: num_examples, bytes, sha256.
        stored_as: by name, the finished file in the incomplete folder.
        kept: shards that were finished before this job.
        class_counts: by split, label to records.
        boxes: for each of `BOX_MEASURES`, by shard: sum, sum of squares, min and max.
        clipped: boxes that reached slightly beyond their photo.
        damaged: relative paths of damaged photos that were kept, with what their decoder said.
        widths, heights: pixels of the original photos, to how many have them.
        rejected: rows rejected with their photos, with the keys of `rejected.jsonl`.
    """

    shards: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    stored_as: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    class_counts: dict[str, Counter[int]] = field(default_factory=dict)
    boxes: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    clipped: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_examples(self) -> int:
        """Records of all shards."""
        return sum(examples for examples, _, _ in self.shards.values())

    def splits(self, num_classes: int) -> dict[str, manifest.Split]:
        """Returns the splits that have records."""
        splits = {}
        for name, counts in self.class_counts.items():
            shards = [
                manifest.Shard(file, *facts)
                for file, facts in sorted(self.shards.items())
                if split.split_of(file) == name
            ]
            if total := sum(shard.num_examples for shard in shards):
                per_class = [counts[label] for label in range(1, num_classes + 1)]
                splits[name] = manifest.Split(total, shards, per_class)
        return {name: splits[name] for name in manifest.SPLITS if name in splits}

    def box_stats(self) -> dict[str, Any]:
        """Returns mean, std, min and max of each of `BOX_MEASURES`, and the number clipped.

        Center, size and area are fractions of the photo; aspect is width / height in pixels.
        """
        stats: dict[str, Any] = {"clipped": self.clipped}
        for name in BOX_MEASURES:
            if name not in self.boxes:
                continue
            # fsum rounds once, so the order of the shards makes no difference.
            totals, squares, lows, highs = zip(*self.boxes[name].values(), strict=True)
            mean = math.fsum(totals) / self.num_examples
            variance = max(0.0, math.fsum(squares) / self.num_examples - mean * mean)
            stats[name] = {
                "mean": round(mean, 5),
                "std": round(math.sqrt(variance), 5),
                "min": round(min(lows), 5),
                "max": round(max(highs), 5),
            }
        return stats

    def original_sizes(self) -> dict[str, Any]:
        """Returns min, median and max of the photos' own widths and heights, in pixels."""
        return {
            name: {"min": min(counts), "median": _median(counts), "max": max(counts)}
            for name, counts in (("width", self.widths), ("height", self.heights))
            if counts
        }


class SumTotals(beam.CombineFn):
    """Adds up the results of shards; one that is given twice counts once."""

    def create_accumulator(self) -> dict[str, Result]:
        """Returns no results."""
        return {}

    def add_input(self, accumulator: dict[str, Result], element: Result) -> dict[str, Result]:
        """Adds a shard."""
        accumulator[element.file] = element
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[dict[str, Result]]) -> dict[str, Result]:
        """Puts results together."""
        return {name: result for some in accumulators for name, result in some.items()}

    def extract_output(self, accumulator: dict[str, Result]) -> Totals:
        """Returns the totals."""
        totals = Totals()
        for _, result in sorted(accumulator.items()):
            _add(totals, result)
        return totals


def _add(totals: Totals, result: Result) -> None:
    totals.shards[result.file] = (result.num_examples, result.bytes, result.sha256)
    totals.stored_as[result.file] = result.stored_as
    totals.kept += result.kept
    name = split.split_of(result.file)
    totals.class_counts.setdefault(name, Counter()).update(result.class_counts)
    for measure, sums in result.boxes.items():
        totals.boxes.setdefault(measure, {})[result.file] = sums
    totals.clipped += result.clipped
    totals.damaged |= result.damaged
    totals.widths.update(result.widths)
    totals.heights.update(result.heights)
    totals.rejected += result.rejected


@dataclass
class Report:
    """The report of the pipeline to the driver.

    Attributes:
        refusal: why no photo was opened, for the user; "" where they were.
        rows: rows read, by CSV.
        rejected: rows rejected before any photo was opened, by reason.
        examples: the first of them of each reason: file, row, photo, reason, detail.
        unannotated: photos that no row names.
        unannotated_examples: the first of them.
        source_fingerprint: sha256 of the CSVs, and of the paths and sizes of the photos.
        totals: of the shards.
    """

    refusal: str
    rows: dict[str, int]
    rejected: dict[str, int]
    examples: list[list[Any]]
    unannotated: int
    unannotated_examples: list[str]
    source_fingerprint: str
    totals: Totals

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(vars(self) | {"totals": vars(self.totals)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Parses what `to_json` gives."""
        values = json.loads(text)
        totals = values.pop("totals")
        for name in ("widths", "heights"):
            totals[name] = _counter(totals[name])
        totals["class_counts"] = {
            name: _counter(counts) for name, counts in totals["class_counts"].items()
        }
        return cls(totals=Totals(**totals), **values)


def report_path(folder: str, run: str) -> str:
    """Returns where the report of a run is, in the incomplete folder."""
    return f"{folder}/report-{run}.json"


def _counter(counts: dict[str, int]) -> Counter[int]:
    return Counter({int(key): count for key, count in counts.items()})


def _median(counts: Counter[int]) -> int:
    """Returns the lower median of values counted."""
    half = (sum(counts.values()) + 1) // 2
    for value in sorted(counts):
        half -= counts[value]
        if half <= 0:
            return value
    raise ValueError("no values")
