"""Lines for people on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from e2bench.errors import printable

_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said inside: work that is looked over first, and tells what there is to tell when it is done."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


def say(message: str) -> None:
    """Print a line on stderr, from rank 0 only; above a progress bar, which takes stderr's place while it is shown."""
    if not _hushed.get() and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        print(printable(message), file=sys.stderr, flush=True)
