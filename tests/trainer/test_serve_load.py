"""The benchmark of the server: many clients, too many clients, malformed bodies."""

import json

import pytest

from benchmarks import serve
from tests.trainer import servers

pytestmark = pytest.mark.slow


def test_no_client_is_refused_a_crowd_is_and_malformed_bodies_change_nothing(tmp_path, capfd):
    report = tmp_path / "report.json"
    # What must not happen is an error of the command.
    serve.main([f"--model={servers.tiny_run(tmp_path)}", "--seconds=5", "--crowd=200",
                "--malformed=300", f"--report={report}"])  # fmt: skip
    figures = json.loads(report.read_text())
    assert figures["clients"]["answers"].keys() == {"200"}
    assert figures["crowd"]["answers"].keys() == {"200", "503"}
    assert sum(figures["malformed"]["answers"].values()) == 300
    assert "| 50 clients, " in capfd.readouterr().out
