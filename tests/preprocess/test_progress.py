"""Progress is read off the incomplete folder, whoever writes there."""

import io
import json
import time

import pytest

from preprocess import progress, shard


@pytest.fixture
def work(tmp_path):
    for name in ("done", "progress"):
        (tmp_path / name).mkdir()
    return tmp_path


def finish(work, name, examples, rejected):
    result = shard.Result(name, examples, rejected=[{}] * rejected)
    (work / "done" / name).write_text(result.to_json())


def test_whole_shards_and_shards_on_their_way_are_counted_once(work):
    shown = progress.Progress(str(work), ["a", "b", "c"], 100)
    assert shown.line().startswith("0/100 photos")
    (work / "progress" / "a").write_text(json.dumps([10, 1]))
    assert shown.line().startswith("11/100 photos")
    assert shown.line().endswith("1 rejected")
    finish(work, "a", 28, 2)
    (work / "progress" / "b").write_text(json.dumps([5, 0]))
    finish(work, "z", 1000, 0)  # whole before this job began
    for _ in range(2):
        assert shown.line().startswith("35/100 photos")
    assert shown.line().endswith("2 rejected")


def test_half_written_reports_do_not_disturb(work):
    shown = progress.Progress(str(work), ["a", "b"], 100)
    (work / "progress" / "a").write_text("[3")
    (work / "progress" / "b").write_text(json.dumps([7, 0]))
    assert shown.line().startswith("7/100 photos")


def test_rate_and_time_left(work, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = progress.Progress(str(work), ["a"], 7500)
    finish(work, "a", 300, 0)
    now += 3
    assert shown.line() == "300/7,500 photos, 100/s, 1 min 12 s left, 0 rejected"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log"])
def test_a_line_is_redrawn_on_a_terminal_and_logged_elsewhere(work, monkeypatch, stream):
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.02)
    with progress.shown(progress.Progress(str(work), ["a"], 10), stream):
        deadline = time.monotonic() + 20
        while stream.getvalue().count("0/10 photos") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    written = stream.getvalue()
    assert written.count("0/10 photos") >= 3
    if stream.isatty():
        assert "\n" not in written
        assert written.endswith("\r\x1b[K")
    else:
        assert "\r" not in written
        assert all(line.startswith("0/10 photos") for line in written.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7265, "2 h 01 min"),
    ],
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
