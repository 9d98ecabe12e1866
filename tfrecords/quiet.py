"""Imports without noise."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Imports without notices about absent GPUs and cloud libraries, and a fifth faster.

    Those notices are written before anything can be set to silence them. A garbage
    collection over the half million new objects would find nothing: they live as long as the
    process.
    """
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
