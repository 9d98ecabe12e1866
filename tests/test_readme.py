"""What the README and the pages of docs/ tell people to type is understood."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(
            r"python -m ((?:preprocess|tfrecords|trainer)\.\w+)", page.read_text()
        )
    }
)
OF_BEAM = {"runner", "direct_num_workers", "direct_running_mode"}


def flags_of(command: str) -> set[str]:
    help_text = subprocess.run(
        [sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"--(?:\[no\])?(\w+)", help_text))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_that_is_shown_exists(command):
    known = flags_of(command) | (OF_BEAM if command == "preprocess.run" else set())
    for page in PAGES:
        for line in re.findall(rf"python -m {re.escape(command)}\b([^\n`]*)", page.read_text()):
            assert set(re.findall(r"--(\w+)", line)) <= known, (page.name, line)


def test_every_flag_of_preprocessing_is_explained():
    explained = (ROOT / "docs" / "preparing.md").read_text()
    missing = {flag for flag in flags_of("preprocess.run") if f"--{flag}" not in explained}
    assert missing <= {"validation_shards", "test_shards"} | OF_BEAM | {"flink_master", "project"}


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
