import json

import pytest

from tfrecords.errors import UserError
from trainer.configs import Config
from trainer.history import History, read


def record(epoch: int, loss: float) -> dict[str, float]:
    return {"epoch": epoch, "loss": 9.0, "val_loss": loss}


def history(tmp_path, *losses: float) -> History:
    out = History(str(tmp_path), 0)
    for epoch, loss in enumerate(losses, 1):
        out.append(record(epoch, loss))
    return out


def test_the_file_holds_a_line_for_each_epoch(tmp_path):
    history(tmp_path, 3.0, 2.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val_loss"] for line in lines] == [3.0, 2.0]


def test_epochs_after_the_restored_one_are_forgotten(tmp_path):
    history(tmp_path, 3.0, 2.0, 1.0)
    again = History(str(tmp_path), 1)
    again.append(record(2, 2.5))
    assert [line["val_loss"] for line in read(str(tmp_path))] == [3.0, 2.5]


def test_best_is_the_lowest_validation_loss_and_the_first_of_equals(tmp_path):
    assert history(tmp_path, 3.0, 1.0, 2.0, 1.0).best()["epoch"] == 2


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    assert history(tmp_path, float("nan"), 3.0, 4.0).best()["epoch"] == 2


def test_plateaus_are_counted_anew_after_each(tmp_path):
    assert history(tmp_path, 3.0, 3.1, 3.2, 3.3, 3.4, 1.0).plateaus(2) == 2


def test_early_stopping_waits_for_its_patience(tmp_path):
    stagnant = history(tmp_path, 3.0, 2.0, 2.1, 2.2)
    assert stagnant.stagnates(Config(early_stopping_epochs=2))
    assert not stagnant.stagnates(Config(early_stopping_epochs=3))
    assert not stagnant.stagnates(Config(early_stopping_epochs=0))


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    History(str(tmp_path), 0, writes=False).append(record(1, 1.0))
    assert not list(tmp_path.iterdir())


def test_a_history_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "metrics.jsonl.new").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        history(tmp_path, 1.0)
