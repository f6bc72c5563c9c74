"""`e2bench ARGUMENTS` with a pause after every line written, so that a test can stop a run half way on any machine.

As a script, also under torchrun: python tests/slowed.py longbench --out … ; PAUSE_S in the environment: its seconds.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = float(os.environ.get("PAUSE_S", 1))


def paused(write: Callable[..., None]) -> Callable[..., None]:
    """The same writer, its caller held up afterwards."""

    @functools.wraps(write)
    def write_and_wait(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        time.sleep(PAUSE_S)

    return write_and_wait


def slow_down(command: str) -> None:
    """Slow every later `command` of this process."""
    from e2bench.runs.folder import RunFolder

    RunFolder.append = paused(RunFolder.append)  # type: ignore[method-assign]
    if command == "train":
        from e2bench.train.callbacks import TrainLog

        TrainLog.on_log = paused(TrainLog.on_log)  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(sys.argv[1])
    from e2bench.cli import main

    main()
