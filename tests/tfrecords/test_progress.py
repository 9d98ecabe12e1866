import io

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


def test_a_short_job_may_stay_silent_in_a_log(capsys):
    with Progress("evaluating", total=4, unit="images", interval=60, brief=True) as progress:
        progress.update(4)
    assert capsys.readouterr().out == ""
    with Progress("evaluating", total=4, unit="images", interval=0.0, brief=True) as progress:
        progress.update(2)
        progress.update(2)
    assert "4/4 images" in capsys.readouterr().out.splitlines()[-1]


def test_units_done_before_do_not_count_for_the_rate():
    progress = Progress("job", total=1000, unit="photos", done=999, interval=60)
    assert progress.rate == 0


def test_a_terminal_has_one_line_redrawn_and_the_cursor_below_it_at_the_end(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("tfrecords.progress._TERMINAL_SECONDS", 0.0)
    terminal = Terminal()
    with Progress("photos", total=4, unit="photos", file=terminal) as progress:
        progress.update(1, lambda: "0 rejected")
        progress.update(3, lambda: "3 rejected")
    written = terminal.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\n")
    first, last = [line for line in written.split("\r") if line.strip()]
    assert "25%" in first
    assert "4/4" in last
    assert "3 rejected" in last


def test_a_total_that_nobody_knows_is_left_out(capsys):
    with Progress("prepare", total=None, unit="photos", interval=0.0) as progress:
        progress.update(1234, lambda: "3 rejected")
    line = capsys.readouterr().out
    assert line.startswith("prepare: 1,234 photos, ")
    assert line.endswith("/s, 3 rejected\n")


def test_more_than_the_total_stays_at_the_total(capsys):
    with Progress("prepare", total=10, unit="photos", interval=0.0) as progress:
        progress.update(12)
    assert capsys.readouterr().out == "prepare: 10/10 photos (100%)\n"
