"""Every number of many runs in one flat table, one row a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.experiments.numbers import Number
from e2bench.experiments.stored import damage
from e2bench.reporting import labels
from e2bench.reporting.runs import Results, Run, reason, scan
from e2bench.reporting.table import Column, Row, Table

# fmt: off
COLUMNS = (
    "model", "experiment", "task", "length", "scale", "method", "metric", "value", "low", "high", "n", "data", "commit",
    "folder",
)
# fmt: on
SHARE = "is_share"  # in a row, not in the table: whether people read its number in percent


def flat_table(*results: Path) -> tuple[Table, Results]:
    """The table, and what was found in `results` (`warnings`: what was skipped). Raises DataError as `scan` does."""
    found = scan(*results)
    rows: list[Row] = []
    for run in found.runs:
        try:
            with damage(run.folder):
                rows += [_row(run, number) for number in run.about.numbers(run.scores)]
        except E2BenchError as error:
            found.warnings.append(f"{run.name}: {reason(error, run.folder)}; skipped")
    return Table(
        "results", f"Every number in {', '.join(map(str, results))}", [Column(name) for name in COLUMNS], rows
    ), found


def _row(run: Run, number: Number) -> Row:
    rope, resolved = run.part("rope"), run.part("resolved")
    low, high = number.interval or (None, None)
    of_run: dict[str, Any] = {
        "length": resolved.get("window"),
        "scale": rope.get("factor"),
        "method": rope.get("method"),
    }
    own = {"length": number.length, "scale": number.scale, "method": number.method}
    return {
        "model": run.model,
        "experiment": run.experiment,
        "task": number.task,
        **{name: own[name] if own[name] is not None else of_run[name] for name in own},
        "metric": number.metric,
        "value": number.value,
        "low": low,
        "high": high,
        "n": number.n,
        "data": labels.data(run),
        "commit": run.manifest.get("commit"),
        "folder": run.name,
        SHARE: number.is_share,
    }
