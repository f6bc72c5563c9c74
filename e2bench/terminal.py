"""Lines for people on stderr."""

from __future__ import annotations

import os
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
    """Print a line on stderr, from rank 0 only."""
    from rich.console import Console

    if not _hushed.get() and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        Console(stderr=True).print(printable(message), highlight=False, markup=False, soft_wrap=True)
