"""A suite, from its plan to its report. One model is loaded at a time, and once for all runs that it can serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from e2bench.errors import printable
from e2bench.experiments.forecast import Forecast, forecast, outline_of
from e2bench.experiments.forecast_table import UNKNOWN, gib, hours, notes, tokens
from e2bench.experiments.loading import load_model, with_preset
from e2bench.experiments.options import OF_A_MODEL, Common
from e2bench.experiments.run import check_folder_early, run_experiment
from e2bench.models.memory import release_memory
from e2bench.reporting import write_report
from e2bench.runs.processes import Processes, launched
from e2bench.suites.entries import REPORT, Entry, Suite
from e2bench.terminal import hushed, say


def run_suite(suite: Suite, *, dry_run: bool, show: Callable[[Path | None], None]) -> None:
    """Print the plan; without `dry_run` work it off, and write the report. show: prints a finished run.

    Every mistake that can be found without weights is found by the plan. Runs resume, and share their work between
    processes, as they do alone.
    """
    began = time.monotonic()
    forecasts = _planned(suite, aloud=dry_run)
    if launched()[0] == 0:
        _print(suite, forecasts)
    if dry_run:
        return
    work_off(suite, show)
    if Processes.from_environment().rank:
        return
    out = suite.out / REPORT
    _say(len(suite.entries) + 1, suite, "the report")
    paths = write_report(suite.out, out)
    say(f"done in {time.monotonic() - began:.0f} s; open {out / 'index.html'}, or look at:")
    for path in paths:
        if (path.suffix == ".png" and not path.stem.endswith("-dark")) or path.name in (
            "table1.csv",
            "table2.csv",
            "table3.csv",
        ):
            say(f"  {path}")


def loaded_as(common: Common) -> Hashable:
    """Equal for runs that one loaded model can serve."""
    common = with_preset(common)
    return tuple(getattr(common, name) for name in OF_A_MODEL)


def work_off(suite: Suite, show: Callable[[Path | None], None]) -> None:
    """Measure what the runs lack, one model after the other."""
    model, key = None, None
    try:
        for number, entry in enumerate(suite.entries, 1):
            _say(number, suite, entry.note or " ".join(filter(None, (entry.model, entry.name))))
            if model is None or loaded_as(entry.common) != key:
                if model is not None:
                    model.close()
                model = None
                release_memory()
                model, key = load_model(entry.common, needs=entry.experiment.needs), loaded_as(entry.common)
            show(run_experiment(entry.experiment, entry.common, model))
    finally:
        if model is not None:
            model.close()


def _say(number: int, suite: Suite, what: str) -> None:
    say("")
    say(f"{number} of {len(suite.entries) + 1}: {what}")


# the plan


def _planned(suite: Suite, *, aloud: bool) -> list[Forecast]:
    """A forecast of every run. aloud: say what the runs would say of their data and settings."""
    outlines: dict[Hashable, Any] = {}
    return [_forecast(suite, entry, outlines, aloud) for entry in suite.entries]


def _forecast(suite: Suite, entry: Entry, outlines: dict[Hashable, Any], aloud: bool) -> Forecast:
    common, out = entry.common, Path(str(entry.common.out))
    with suite.file.at(entry.line, f"{entry.model} {entry.name}".strip()):
        if not common.fresh:
            check_folder_early(entry.experiment, out, common.engine)
        key = loaded_as(common), entry.experiment.needs
        with nullcontext() if aloud else hushed():
            say(f"{out.relative_to(suite.out)}:")
            if key not in outlines:
                outlines[key] = outline_of(common, entry.experiment)
            return forecast(entry.experiment, common, outlines[key], suite.out)


def _print(suite: Suite, forecasts: list[Forecast]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(printable(f"suite {suite.file.name}: the plan")), title_justify="left")
    for at, column in enumerate(("run", "inputs", "done", "tokens", "hours", "GiB")):
        table.add_column(column, justify="right" if at else "left", overflow="fold")
    for entry, found in zip(suite.entries, forecasts, strict=True):
        table.add_row(escape(printable("/".join(filter(None, (entry.model, entry.name))))), *_cells(found))
    total = _total([found.hours for found in forecasts])
    counts = (sum(found.inputs for found in forecasts), sum(found.done for found in forecasts))
    read = _total([found.tokens for found in forecasts])
    most = [found.gib for found in forecasts]
    table.add_section()
    table.add_row(
        "all",
        *(f"{count:,}" for count in counts),
        tokens(None if read is None else int(read), any(found.sampled for found in forecasts)),
        hours(total),
        UNKNOWN if None in most else gib(max(value for value in most if value is not None)),
    )
    console = Console()
    console.print(table)
    lines = ["GiB: weights and the longest input of a run; what is free beyond that makes batches larger"]
    rates = {f.rate.source: f.rate for f in forecasts if f.rate is not None and f.hours}
    if rates:
        lines.append(f"hours: at the rates of the finished runs in {', '.join(rates)}")
    for line in (*lines, *notes(forecasts)):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _cells(found: Forecast) -> tuple[str, ...]:
    return (
        f"{found.inputs:,}",
        f"{found.done:,}",
        tokens(found.tokens, found.sampled),
        hours(found.hours),
        gib(found.gib),
    )


def _total(values: list[Any]) -> float | None:
    return None if None in values else sum(values)
