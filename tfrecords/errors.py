"""How every command of carbox speaks to its user when something is wrong."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend.

    The message says what is wrong, where (file, row, value), and what to do about it.
    """


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's main function and exits with its status.

    Exit codes: 0 done, 1 a `UserError` (its message on stderr, no traceback), 130 interrupted.
    argparse exits with 2 for a wrong flag. Everything else is a defect and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
