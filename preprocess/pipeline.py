"""The Beam graph: shard names out to workers, each of which writes the shards it is given.

Rows were joined, split and planned by the driver, and stand in one small file a shard; photos are
read by whoever gets the shard. So what Beam moves is names, and any runner and any number of
workers give the same bytes. What became of a shard is written beside it, not sent back.
"""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics

from preprocess.shard import Job, Result, ShardWriter


def build(pipeline: beam.Pipeline, job: Job, names: list[str]) -> None:
    """Adds the graph to a pipeline.

    Args:
        pipeline: to add to.
        job: what workers need to know.
        names: of the shards to write.
    """
    _ = (
        pipeline
        | "NameShards" >> beam.Create(names, reshuffle=False)
        | "SpreadOverWorkers" >> beam.Reshuffle()
        | "WriteShards" >> beam.ParDo(WriteShards(job))
    )


class WriteShards(beam.DoFn):
    """Writes the shards it is given, and counts their photos in Beam's metrics."""

    def __init__(self, job: Job):
        self._job = job

    def start_bundle(self) -> None:
        """Starts a queue of work that runs on from one shard of the bundle to the next."""
        self._writer = ShardWriter(self._job)

    def process(self, name: str) -> Iterator[None]:
        """Takes up one shard."""
        self._count(self._writer.add(name))
        return iter(())

    def finish_bundle(self) -> None:
        """Waits for the shards of the bundle."""
        self._count(self._writer.finish())

    @staticmethod
    def _count(results: list[Result]) -> None:
        for result in results:
            Metrics.counter("carbox", "written").inc(result.num_examples)
            for row in result.rejected:
                Metrics.counter("carbox", f"rejected_{row['reason']}").inc()
