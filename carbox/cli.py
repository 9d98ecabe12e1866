"""The command `carbox`: each of its words starts one of the modules that can be run by themselves.

carbox train --strategy=mirrored        is        python -m trainer.task --strategy=mirrored
"""

import difflib
import importlib
import importlib.machinery
import importlib.util
import sys

import carbox
from tfrecords import command
from tfrecords.errors import FlagError, run_command

COMMANDS = {
    "prepare": ("preprocess.run", "CSVs and photos become a data set of TFRecords"),
    "inspect": ("tfrecords.inspect", "shows what is in a data set, verifies every byte"),
    "train": ("trainer.task", "trains a model on a data set, evaluates and draws"),
    "evaluate": ("trainer.evaluate", "judges a trained run on a split"),
    "compare": ("trainer.compare", "sets runs side by side"),
    "predict": ("trainer.predict", "names the object on photos and draws its box"),
    "export": ("trainer.export", "writes a run as SavedModel, LiteRT, ONNX, Keras"),
    "serve": ("trainer.serve", "answers photos over HTTP, with a page to try it"),
}
"""By word: the module, and what it does."""


def main() -> None:
    """Runs the command that the first argument names, as `python -m MODULE` would."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-help", "-h", "help"):
        print(usage())
    elif arguments[0] in ("--version", "-V"):
        print(f"carbox {carbox.__version__}")
    else:
        run_command(lambda: _start(*arguments))


def usage() -> str:
    """Returns the help: one screen."""
    lines = [
        f"  {word:<10}{what:<51}{module}"
        for word, (module, what) in COMMANDS.items()
        if _exists(module)
    ]
    return "\n".join(
        (
            "carbox COMMAND [ARGUMENT ...]",
            "",
            *lines,
            "",
            "carbox COMMAND --help shows a command's flags; carbox --version the version.",
            "Each command is also python -m with the module on the right.",
        )
    )


def _start(word: str, *rest: str) -> None:
    known = {name: name for name, (module, _) in COMMANDS.items() if _exists(module)}
    if word not in known:
        spellings = known | {"preprocess": "prepare"}
        near = difflib.get_close_matches(word.lower(), spellings, 1)
        hint = f"Did you mean {spellings[near[0]]}?" if near else "carbox --help shows all."
        raise FlagError(f"carbox has no command {word!r}. {hint}")
    name, _ = COMMANDS[word]
    module = importlib.import_module(name)
    # Help shows what was typed.
    module.__doc__ = (module.__doc__ or "").replace(f"python -m {name}", f"carbox {word}")
    sys.argv = [f"{sys.argv[0]} {word}", *rest]
    command.run(module.main)


def _exists(name: str) -> bool:
    """Whether a module exists; unlike `find_spec(name)` this does not import its package."""
    package, _, module = name.partition(".")
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return importlib.machinery.PathFinder.find_spec(module, places) is not None
