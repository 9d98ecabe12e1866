"""The finished epochs of a run: one record each, kept in `metrics.jsonl`.

Only what follows from data, config and seed is in it, so that a resumed run writes the same file.
"""

import json
import math
import os

from tfrecords.errors import UserError
from trainer.configs import Config

EpochMetrics = dict[str, float]

FILE_NAME = "metrics.jsonl"


class History:
    """The records of finished epochs, in a file and in memory."""

    def __init__(self, folder: str, epochs: int, *, writes: bool = True):
        """Reads the records of finished epochs; later ones are dropped and will be written again.

        Args:
            folder: of the run.
            epochs: how many the restored state has finished.
            writes: whether this process keeps the file.
        """
        self._path = os.path.join(folder, FILE_NAME)
        self._writes = writes
        self.records = read(folder)[:epochs]

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: EpochMetrics) -> None:
        """Adds the record of an epoch; the file is whole at every moment.

        Raises:
            UserError: the file cannot be written.
        """
        self.records.append(record)
        if not self._writes:
            return
        try:
            with open(self._path + ".new", "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.records)
            os.replace(self._path + ".new", self._path)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}. Free some space or allow"
                " writing there, and start the same command again: it continues from the last"
                " checkpoint."
            ) from None

    def best(self) -> EpochMetrics:
        """Returns the record with the lowest loss, of validation where there is one."""
        return min(self.records, key=_judged_loss)

    def plateaus(self, patience: int) -> int:
        """Returns how often the loss has failed to improve for `patience` epochs in a row."""
        best, waited, count = float("inf"), 0, 0
        for record in self.records:
            loss = _judged_loss(record)
            best, waited = (loss, 0) if loss < best else (best, waited + 1)
            if waited >= patience:
                count, waited = count + 1, 0
        return count

    def stagnates(self, config: Config) -> bool:
        """Whether the config's early stopping ends the run."""
        patience = config.early_stopping_epochs
        if not patience or not self.records:
            return False
        return len(self) - 1 - self.records.index(self.best()) >= patience


def read(folder: str) -> list[EpochMetrics]:
    """Returns the records of a run's finished epochs; none where there is no file."""
    try:
        with open(os.path.join(folder, FILE_NAME)) as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        return []


def _judged_loss(record: EpochMetrics) -> float:
    loss = record.get("val_loss", record["loss"])
    # NaN compares false, so that it would stay the best; treat it as infinity.
    return math.inf if math.isnan(loss) else loss
