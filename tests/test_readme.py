"""What the pages tell people to type is understood, and their links lead somewhere."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

from preprocess import runner

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "README.md",
    ROOT / "BUILD.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text().replace("\\\n", " ")  # a long command goes on
    for page in FILES
}
COMMANDS = sorted(
    {
        command
        for text in PAGES.values()
        for command in re.findall(
            r"python -m ((?:benchmarks|preprocess|tfrecords|trainer)\.\w+)", text
        )
    }
)


def flags_of(command: str) -> set[str]:
    """Returns the names of a command's flags, and those of absl and of the settings."""
    module = importlib.import_module(command)
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        module.main(["--helpfull"])
    return set(re.findall(r"^ *--(?:\[no\])?([\w.]+)", said.getvalue(), re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_that_is_shown_exists(command):
    known = flags_of(command)
    if command == "preprocess.run":  # it hands the others to Beam
        known |= {name.lstrip("-") for name in runner.flag_names()}
    for page, text in PAGES.items():
        for line in re.findall(rf"python -m {re.escape(command)}\b([^\n`]*)", text):
            shown = re.findall(r"--(?:no(?=config\.))?([\w.]*\w)", line)
            assert set(shown) <= known, (page, line)


def test_every_flag_of_preprocessing_is_explained():
    explained = PAGES["docs/preparing.md"]
    from preprocess import run

    missing = {name for name in run.FLAGS if f"--{name}" not in explained}
    assert missing <= {"validation_shards", "test_shards"}


def headings(page: Path) -> set[str]:
    """Returns the anchors of a page, as GitHub makes them of its headings."""
    words = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"^#+ (.+)$", words, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


def test_the_readme_is_short_and_links_of_all_pages_lead_somewhere():
    assert len(PAGES["README.md"].splitlines()) <= 120
    for page in FILES:
        words = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^):]+)\)", words):
            path, _, heading = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), (page.name, target)
            assert not heading or heading in headings(linked), (page.name, target)
