"""Progress is read off the incomplete folder, whoever writes there."""

import io
import json
import time

import pytest

from preprocess import progress, shard


@pytest.fixture
def folder(tmp_path):
    for name in ("whole", "progress"):
        (tmp_path / name).mkdir()
    return tmp_path


def finish(folder, name, examples, rejected):
    result = shard.Result(name, f"{name}-1234", examples, rejected=[{}] * rejected)
    (folder / "whole" / f"{result.stored_as}.json").write_text(result.to_json())


def test_whole_shards_and_shards_on_their_way_are_counted_once(folder):
    counts = progress.Counts(str(folder), "run")
    assert counts.done() == (0, 0)
    (folder / "progress" / "a").write_text(json.dumps([10, 1]))
    assert counts.done() == (10, 1)
    finish(folder, "a", 28, 2)
    (folder / "progress" / "b").write_text(json.dumps([5, 0]))
    for _ in range(2):
        assert counts.done() == (33, 2)


def test_half_written_reports_do_not_disturb(folder):
    counts = progress.Counts(str(folder), "run")
    (folder / "progress" / "a").write_text("[3")
    (folder / "progress" / "b").write_text(json.dumps([7, 0]))
    (folder / "whole" / "c-1234.json").write_text("{")
    assert counts.done() == (7, 0)


def test_the_total_is_known_when_the_join_has_said_it(folder):
    counts = progress.Counts(str(folder), "run")
    assert counts.total() is None
    (folder / "progress" / "total-other").write_text("5")
    assert counts.total() is None
    (folder / "progress" / "total-run").write_text("7")
    assert counts.total() == 7
    assert counts.done() == (0, 0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log"])
def test_a_line_is_redrawn_on_a_terminal_and_logged_elsewhere(folder, monkeypatch, stream):
    monkeypatch.setattr(progress, "_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.02)
    (folder / "progress" / "total-run").write_text("10")
    with progress.shown(progress.Counts(str(folder), "run"), stream):
        deadline = time.monotonic() + 20
        for done in range(1, 8):
            (folder / "progress" / "a").write_text(json.dumps([done, 1]))
            while f"{done + 1}/10" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    written = stream.getvalue()
    assert "8/10" in written
    assert "1 rejected" in written
    assert ("\r" in written) == stream.isatty()
