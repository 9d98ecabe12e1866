"""Errors for the user, and the exit codes of all commands."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

_OURS = ("benchmarks", "carbox", "preprocess", "tfrecords", "trainer")
_INTERRUPTED_EXIT = 130  # 128 + SIGINT
_SIGPIPE_EXIT = 141  # 128 + SIGPIPE, as shells report a program that wrote to a closed pipe


class UserError(Exception):
    """A mistake that the user can correct.

    The message says what is wrong, where (file, row, value), and what to do about it.
    """

    exit_code = 1


class FlagError(UserError):
    """A flag or an argument that the command does not take."""

    exit_code = 2


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's main function and exits with its status.

    Exit codes: 0 done, 1 a `UserError` (its message on stderr, no traceback), 2 a wrong flag, 130
    interrupted, 141 when the reader of the output is gone (`| head`). Everything else is a defect
    and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter shuts down
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        _exit_at_once(_INTERRUPTED_EXIT)
    except BrokenPipeError:
        if not _output_is_closed():
            raise  # another pipe
        sys.exit(_SIGPIPE_EXIT)
    finally:
        if _output_is_closed():
            _discard_output()


def _exit_at_once(status: int) -> NoReturn:
    """Ends the process without waiting for its threads.

    An interrupt may fall into the middle of `ThreadPoolExecutor.submit`: a thread has started that
    the executor does not know yet. Nobody ever tells it to stop, and Python waits for it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns a missing package into a message that names the extra which brings it.

        with extra("train"):
            import tensorflow as tf

    It works at the top of a module too, before anything can catch the error.

    Args:
        name: of the extra: `preprocess`, `train`.

    Raises:
        UserError: an import in the block needs a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = error.name or ""
        # A name with a dot is a part missing from a package that is there: a defect.
        if not package or "." in package or package in (*_OURS, *sys.stdlib_module_names):
            raise
        sys.excepthook = _without_traceback(sys.excepthook)
        raise UserError(
            f"this command needs {package}, which is not installed: pip install 'carbox[{name}]'"
        ) from None


_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def _without_traceback(hook: _Hook) -> _Hook:
    """Returns a hook that prints a `UserError` as `run_command` does and leaves the rest to `hook`.

    Python calls it for uncaught exceptions, and exits with 1.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            hook(kind, error, trace)

    return show


def _output_is_closed() -> bool:
    """Whether standard output is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # an error is reported whatever is asked for
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, ValueError, io.UnsupportedOperation):
        return False  # no pipe: captured by a test, closed, or replaced


def _discard_output() -> None:
    """Lets the interpreter flush at its end without an error."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
