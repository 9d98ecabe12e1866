import pytest

from tfrecords.progress import Progress


def test_a_log_gets_whole_lines_and_the_last_one_once(capsys):
    with Progress("epoch 1/2", total=4, unit="images", interval=0.0) as progress:
        progress.update(3, lambda: "loss 0.5")
        progress.update(1, lambda: "loss 0.25")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2: 3/4 images (75%), ")
    assert first.endswith("loss 0.5")
    assert last == "epoch 1/2: 4/4 images (100%), loss 0.25"


def test_a_note_is_asked_for_only_when_it_is_shown(capsys):
    progress = Progress("job", total=9, unit="photos", interval=60)
    progress.update(1, lambda: pytest.fail("asked for a note too early"))
    assert capsys.readouterr().out == ""


def test_units_done_before_do_not_count_for_the_rate():
    progress = Progress("job", total=1000, unit="photos", done=999, interval=60)
    assert progress.rate == 0
