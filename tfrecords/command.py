"""How every command of carbox starts: its flags, its help, its exit code.

Several commands may live in one process and have flags of the same name, so each has its own:

    FLAGS = flags.FlagValues()
    flags.DEFINE_integer("image_height", 256, "pixels", lower_bound=1, flag_values=FLAGS)
    command.DEFINE_path("output", "data/tfrecords", "folder", flag_values=FLAGS)

    def main(argv: Sequence[str] | None = None) -> None:
        command.parse(FLAGS, argv, usage=__doc__)
        print(FLAGS.image_height)

    if __name__ == "__main__":
        command.run(main)
"""

import difflib
import functools
import itertools
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from absl import app, flags

from tfrecords.errors import FlagError, run_command

_HELP = ("--help", "-help", "-h", "-?")
_HELP_FULL = ("--helpfull", "-helpfull")
# absl's own flags of these names print the help of the whole process and exit with 1.
_NOT_FROM_ABSL = ("help", "helpfull", "helpshort", "helpxml", "only_check_flags")
_MORE = "..."


def run(main: Callable[[list[str]], object]) -> None:
    """Runs a command by `absl.app` and exits with its status; see `errors.run_command`.

    Args:
        main: takes the command line without the program's name, and parses it by `parse`.
    """

    def main_and_flush(argv: list[str]) -> None:
        main(argv[1:])
        sys.stdout.flush()

    run_command(functools.partial(app.run, main_and_flush, flags_parser=_parse_absl_flags))


def parse(
    values: flags.FlagValues,
    argv: Sequence[str] | None = None,
    *,
    usage: str | None,
    positional: str = "",
    known_elsewhere: Callable[[], Collection[str]] | None = None,
) -> list[str]:
    """Sets a command's flags, and absl's own, from the command line.

    `--help` prints the usage and the command's flags, `--helpfull` absl's too and the settings of a
    flag, such as `--config.epochs` where there is `--config`; both exit with 0.

    Args:
        values: the command's flags. Those that `argv` does not name go back to their defaults.
        argv: arguments without the program's name; those of the process if absent.
        usage: what help prints first; the module's docstring.
        positional: names of the arguments that are no flags, all of them paths, separated by
            spaces: `DIR`. With `...` at the end there may be more of the last: `PHOTO ...`.
        known_elsewhere: returns the names of further flags, which another parser takes. It is
            called only if such flags are given. An argument that is no flag may be the value of
            one.

    Returns:
        The positional arguments, with `~` expanded. With `known_elsewhere`, every argument that is
        not the command's own, in order and as it was given.

    Raises:
        FlagError: a flag is unknown, or a value is not one that the flag takes.
        SystemExit: after help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _answer_help(values, arguments, usage or "")
    for name in values:
        values[name].unparse()
    every = _with_absl_flags(values)
    rest = _set_flags(every, arguments)
    values.mark_as_parsed()
    unknown = list(_unknown_flags(rest))
    if unknown:
        elsewhere = known_elsewhere() if known_elsewhere else ()
        _require_known(unknown, [*_spellings(every), *(name.lstrip("-") for name in elsewhere)])
    if known_elsewhere:
        _refuse_strays(rest)
        return rest
    if "--" in rest:
        rest.remove("--")
    return _positional(rest, positional)


def required(values: flags.FlagValues, name: str) -> Any:
    """Returns the value of a flag that must be given.

    Raises:
        FlagError: it is not.
    """
    if values[name].value is None:
        raise FlagError(f"--{name} is missing. --help shows how to call the command.")
    return values[name].value


class PathParser(flags.ArgumentParser[str]):
    """Takes a local path or an address such as `gs://bucket/folder`.

    `~` is expanded and `file://` is taken off.
    """

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """Returns the path.

        Raises:
            ValueError: it is empty or no path.
        """
        if not argument:
            raise ValueError("it is empty: is a variable of the shell not set?")
        if argument.startswith("--"):
            raise ValueError("it begins with --: is the path missing? Or write ./ before it")
        if argument.startswith("file://"):
            argument = argument.removeprefix("file://")
            if not argument.startswith("/"):
                raise ValueError("an absolute path follows file://, as in file:///data")
        return os.path.expanduser(argument)


def DEFINE_path(  # noqa: N802 - as absl names its own
    name: str, default: str | None, help: str, flag_values: flags.FlagValues, **more: Any
) -> flags.FlagHolder:
    """Defines a flag whose value is a path; see `PathParser`."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    return flags.DEFINE(PathParser(), name, default, help, flag_values, serializer, **more)


def _parse_absl_flags(argv: list[str]) -> list[str]:
    """Sets absl's own flags, which `absl.app` reads first, and returns all arguments."""
    _set_flags(_with_absl_flags(flags.FlagValues()), argv[1:])
    flags.FLAGS.mark_as_parsed()
    if flags.FLAGS["verbosity"].using_default_value:
        # Warnings only; `absl.app` would print the info messages of every library.
        flags.FLAGS["verbosity"].parse("-1")
        flags.FLAGS["verbosity"].using_default_value = False
    return argv


def _with_absl_flags(values: flags.FlagValues) -> flags.FlagValues:
    """Returns a command's flags and those that absl's modules define; a command's come first."""
    every = flags.FlagValues()
    every.set_gnu_getopt(True)  # flags may follow other arguments
    for name in values:
        every[name] = values[name]
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        names = {flag.name, flag.short_name or flag.name}
        if name == flag.name and name not in _NOT_FROM_ABSL and names.isdisjoint(every):
            every[name] = flag
    return every


def _set_flags(every: flags.FlagValues, arguments: list[str]) -> list[str]:
    """Sets flags and returns the arguments that are not theirs.

    Raises:
        FlagError: a flag does not take its value, or a file of flags cannot be read.
    """
    try:
        rest = every([sys.argv[0], *arguments], known_only=True)[1:]
    except (flags.Error, ValueError) as error:
        raise FlagError(_said(error, every)) from None
    for name in every:
        value = every[name].value
        if isinstance(value, float) and math.isnan(value):  # absl finds it within every range
            raise FlagError(f"flag --{name}={value}: it is not {every[name].parser.syntactic_help}")
    return rest


def _said(error: Exception, every: flags.FlagValues) -> str:
    text = str(error)
    not_converted = "invalid literal|could not convert|..Non-boolean argument"
    if found := re.match(rf"(flag --([\w.]+)=.*): ({not_converted})", text, re.DOTALL):
        flag = every[found[2]]
        wanted = "true or false" if flag.boolean else flag.parser.syntactic_help
        return f"{found[1]}: it is not {wanted}"
    return text


def _unknown_flags(rest: Iterable[str]) -> Iterator[str]:
    """Yields the flags, as they were given, among arguments that were not parsed."""
    for argument in rest:
        if argument == "--":
            return
        # A number may be the value of another parser's flag; a single dash is standard input.
        if argument.startswith("-") and argument != "-" and not re.match(r"-\.?\d", argument):
            yield argument


def _spellings(values: flags.FlagValues) -> Iterator[str]:
    for name in values:
        yield name
        if values[name].boolean:
            yield f"no{name}"


def _require_known(arguments: Iterable[str], known: Collection[str]) -> None:
    settings = next((flag.partition(".")[0] for flag in known if "." in flag), None)
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        if name in known:
            continue
        if settings and name == "set":
            hint = f"Write --{settings}.KEY=VALUE; --helpfull shows every KEY."
        elif near := _nearest(name, known):
            hint = f"Did you mean --{near}?"
        else:
            hint = f"--help{'full' if settings else ''} shows all flags."
        raise FlagError(f"unknown flag {argument}. {hint}")


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the flag that a name is another spelling of, or else the most similar one.

    A flag's last part may stand for it (`ema` for `config.optimizer.ema`), with or without those
    before it, and so may the initials of that part's words (`lr` for `learning_rate`).
    """
    spellings: dict[str, str] = {}
    initials: dict[str, str] = {}
    for flag in sorted(known, key=lambda flag: flag.count(".")):
        no = "no" if flag.startswith("no") and flag[2:] in known else ""
        *before, last = flag.removeprefix(no).split(".")
        words = [word for word in last.split("_") if word]
        for chosen in itertools.product((True, False), repeat=len(before)):
            start = no + "".join(itertools.compress(before, chosen))
            spellings.setdefault(_plain(start + last), flag)
            if len(words) > 1:
                initials.setdefault(_plain(start + "".join(word[0] for word in words)), flag)
    for spelled in (_plain(name), _plain(name.rpartition(".")[2])):
        if found := spellings.get(spelled) or initials.get(spelled):
            return found
    near = difflib.get_close_matches(_plain(name), spellings, 1, cutoff=0.7)
    return spellings[near[0]] if near else None


def _refuse_strays(rest: list[str]) -> None:
    """Refuses arguments that cannot be the value of another parser's flag."""
    for before, argument in itertools.pairwise(["", *rest]):
        if argument == "--":
            return
        takes_no_more = not before or (before.startswith("-") and "=" in before)
        if takes_no_more and not argument.startswith("-"):
            raise FlagError(_unexpected(argument))


def _unexpected(argument: str) -> str:
    return f"unexpected argument {argument!r}. Flags begin with --."


def _plain(name: str) -> str:
    return re.sub("[-_.]", "", name).lower()


def _positional(given: list[str], names: str) -> list[str]:
    wanted = names.split()
    more = wanted[-1:] == [_MORE]
    wanted = wanted[:-1] if more else wanted
    if len(given) < len(wanted):
        raise FlagError(f"{wanted[len(given)]} is missing. --help shows how to call the command.")
    if len(given) > len(wanted) and not more:
        raise FlagError(_unexpected(given[len(wanted)]))
    try:
        return [PathParser().parse(argument) for argument in given]
    except ValueError as error:
        raise FlagError(f"{wanted[-1]}: {error}") from None


def _answer_help(values: flags.FlagValues, arguments: list[str], usage: str) -> None:
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    full = any(argument in _HELP_FULL for argument in before)
    if not full and not any(argument in _HELP for argument in before):
        return
    print(usage.strip(), end="\n\n")
    for name in values:
        of, _, setting = name.partition(".")
        if full or not (setting and of in values):
            print(_describe(values[name]))
    if full:
        print(flags.FLAGS.get_help())
    sys.exit(0)


def _describe(flag: flags.Flag) -> str:
    """Returns a flag's name, what it is for, its default and the values that it takes."""
    about = [flag.parser.syntactic_help] if flag.parser.syntactic_help else []
    if flag.default is not None:
        default = str(flag.default).lower() if flag.boolean else flag.default
        about.insert(0, f"default: {default}")
    text = f"--{'[no]' if flag.boolean else ''}{flag.name}: {flag.help}"
    text += f" ({'; '.join(about)})" if about else ""
    return textwrap.fill(
        text,
        flags.get_help_width(),
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )
