"""Lines for people on stderr."""

from __future__ import annotations

import os

from e2bench.errors import printable


def say(message: str) -> None:
    """Print a line on stderr, from rank 0 only."""
    from rich.console import Console

    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        Console(stderr=True).print(printable(message), highlight=False, markup=False, soft_wrap=True)
