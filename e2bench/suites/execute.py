"""A suite, from its plan to its report. One model is loaded at a time, and once for all runs that it can serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from e2bench.experiments.loading import load_model, tell
from e2bench.experiments.run import run_experiment
from e2bench.models.memory import release_memory
from e2bench.models.protocols import Generator
from e2bench.reporting import write_report
from e2bench.runs.processes import Processes, launched
from e2bench.suites import plan
from e2bench.suites.entries import REPORT, Suite
from e2bench.suites.trainings import Training, work_off_training
from e2bench.terminal import say


def run_suite(suite: Suite, *, dry_run: bool, show: Callable[[Path | None], None]) -> None:
    """Print the plan; without `dry_run` work it off, and write the report. show: prints a finished run.

    Every mistake that can be found without weights is found by the plan. Runs resume, and share their work between
    processes, as they do alone; trainings go on from their checkpoints.
    """
    began = time.monotonic()
    rows = plan.planned(suite, dry_run=dry_run)
    if launched()[0] == 0:
        plan.show(suite, rows)
    if dry_run:
        return
    work_off(suite, show)
    if Processes.from_environment().rank or not suite.wants_report:
        return
    out = suite.out / REPORT
    _say(len(suite.wanted) + 1, suite, "the report")
    paths = write_report(suite.out, out)
    say(f"done in {time.monotonic() - began:.0f} s; open {out / 'index.html'}, or look at:")
    for path in paths:
        if (path.suffix == ".png" and not path.stem.endswith("-dark")) or path.name in (
            "table1.csv",
            "table2.csv",
            "table3.csv",
        ):
            say(f"  {path}")


def work_off(suite: Suite, show: Callable[[Path | None], None]) -> None:
    """Train and measure what is not there yet, one model after the other."""
    model, key = None, None
    try:
        for number, piece in enumerate(suite.wanted, 1):
            if isinstance(piece, Training):
                _say(number, suite, piece.title)
                if not piece.is_done:
                    _close(model)
                    model = None
                    release_memory()
                    work_off_training(piece)
                say(f"trained: {piece.out}")
                continue
            _say(number, suite, piece.note or piece.title.replace("/", " "))
            if model is None or plan.loaded_as(piece.common) != key:
                _close(model)
                model = None
                release_memory()
                model, key = load_model(piece.common, needs=piece.experiment.needs), plan.loaded_as(piece.common)
                tell(model)
            show(run_experiment(piece.experiment, piece.common, model))
    finally:
        _close(model)


def _close(model: Generator | None) -> None:
    if model is not None:
        model.close()


def _say(number: int, suite: Suite, what: str) -> None:
    say("")
    say(f"{number} of {len(suite.wanted) + suite.wants_report}: {what}")
