"""`import carbox` and the command `carbox`: the public surface, quick to import, one word a job."""

import importlib
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import carbox
from carbox import cli
from tfrecords.errors import FlagError

THERE = [word for word in cli.COMMANDS if f"  {word}" in cli.usage()]


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "carbox", *arguments], capture_output=True, text=True
    )


@pytest.fixture
def typed(monkeypatch):
    """Types a command line in this process."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["carbox", *arguments])
        cli.main()

    return call


def test_importing_it_costs_no_tensorflow():
    heavy = "{'tensorflow', 'keras', 'apache_beam', 'cv2', 'numpy'}"
    done = python(f"import carbox, carbox.cli, sys; sys.exit(len({heavy} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_typed():
    from trainer import predictor

    for name in carbox.__all__:
        assert getattr(carbox, name) is not None
        assert name in dir(carbox)
    assert carbox.load is predictor.load
    assert re.match(r"\d+\.\d+", carbox.__version__)
    assert typing.get_type_hints(carbox.load)["return"] is carbox.Model
    assert Path(carbox.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        carbox.lod  # noqa: B018


def test_help_is_one_screen_and_names_each_command(typed, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        typed(*arguments)
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) <= 24
        assert max(map(len, shown)) <= 80
        assert {"prepare", "inspect", "train", "evaluate", "predict"} <= set(THERE)


def test_it_says_its_version(typed, capsys):
    typed("--version")
    assert capsys.readouterr().out == f"carbox {carbox.__version__}\n"


@pytest.mark.parametrize("word", THERE)
def test_each_command_shows_its_own_help_under_that_word(typed, capsys, monkeypatch, word):
    name, _ = cli.COMMANDS[word]
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "__doc__", module.__doc__)  # to be put back
    with pytest.raises(SystemExit) as stop:
        typed(word, "--help")
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert f"carbox {word}" in shown
    assert f"python -m {name}" not in shown
    assert "--" in shown


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("trian", "train"), ("preprocess", "prepare"), ("eval", "evaluate"), ("Predict", "predict")],
)
def test_a_near_miss_is_answered_with_the_command(typed, capsys, wrong, right):
    with pytest.raises(SystemExit) as stop:
        typed(wrong)
    assert stop.value.code == FlagError.exit_code == 2
    assert f"Did you mean {right}?" in capsys.readouterr().err


def test_what_is_no_command_at_all_is_said(typed, capsys):
    with pytest.raises(SystemExit):
        typed("xyzzy")
    assert "carbox --help shows all" in capsys.readouterr().err


def test_arguments_output_and_exit_code_are_those_of_the_module(tmp_path):
    done = command("inspect", str(tmp_path / "nowhere"))
    same = subprocess.run(
        [sys.executable, "-m", "tfrecords.inspect", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == same.returncode == 1
    assert done.stderr == same.stderr
    assert "no data set at" in done.stderr
