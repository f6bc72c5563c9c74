"""What a suite will take: inputs, tokens, hours, memory and disk of every training and run, before any of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, printable
from e2bench.experiments.forecast import Forecast, Rate, forecasts, outline_of
from e2bench.experiments.forecast_table import UNKNOWN, gib, hours, notes, tokens
from e2bench.experiments.loading import with_preset
from e2bench.experiments.options import OF_A_MODEL, Common
from e2bench.experiments.run import check_folder_early
from e2bench.suites.entries import Entry, Suite
from e2bench.suites.trainings import FOLDER, Cost, Training, check, cost_of, measured_rate
from e2bench.terminal import hushed, say


@dataclass(frozen=True)
class Row:
    """One training or run of the plan. inputs, done: of a training its steps.    rate: source of the hours.

    disk: bytes of a training; a run's lines take little.    found: the forecast of a run.
    """

    title: str
    inputs: int
    done: int
    tokens: int | None
    hours: float | None
    gib: float | None
    rate: str = ""
    disk: int = 0
    found: Forecast | None = None


def planned(suite: Suite, *, dry_run: bool) -> list[Row]:
    """A row for every piece that is wanted. Raises what trainings and runs would, as far as it can be seen now.

    dry_run: say what the runs would say of their data and settings, and let weights and texts of trainings be missing.
    """
    costs = {piece.title: _cost(suite, piece) for piece in suite.wanted if isinstance(piece, Training)}
    rows: dict[int, Row] = {}
    for piece in suite.wanted:
        if isinstance(piece, Training):
            if not piece.is_done:
                with suite.file.at(piece.line, piece.title):
                    check(piece, weights=not dry_run)
            rows[id(piece)] = _training_row(suite, piece, costs)
        elif not dry_run:
            _check_trained(suite, piece)
    outlines: dict[Hashable, Any] = {}
    for alike in _alike([piece for piece in suite.wanted if isinstance(piece, Entry)]):
        rows |= _run_rows(suite, alike, outlines, aloud=dry_run)
    return [rows[id(piece)] for piece in suite.wanted]


def _cost(suite: Suite, training: Training) -> Cost:
    with suite.file.at(training.line, training.title):
        return cost_of(training)


def _training_row(suite: Suite, training: Training, costs: dict[str, Cost]) -> Row:
    cost = costs[training.title]
    rate = _training_rate(suite, costs, cost)
    left = cost.flops * (1 - cost.done / cost.steps)
    return Row(
        training.title,
        cost.steps,
        cost.done,
        cost.tokens,
        0.0 if not left else left / rate.per_second / 3600 if rate else None,
        cost.gib,
        rate.source if rate and left else "",
        cost.disk,
    )


def _training_rate(suite: Suite, costs: dict[str, Cost], cost: Cost) -> Rate | None:
    """Of the longest training there is, else what was measured on another model."""
    best: tuple[float, Rate] | None = None
    for piece in suite.wanted:
        if isinstance(piece, Training) and (found := measured_rate(piece, costs[piece.title])):
            work = costs[piece.title].flops * costs[piece.title].done
            if best is None or work > best[0]:
                best = work, Rate(found, f"the training in {piece.out}")
    return best[1] if best else cost.rate


def _stand_in(suite: Suite, name: str) -> Rate | None:
    """The rate that the file gives."""
    per_second = suite.rates.per_second.get(name)
    return Rate(per_second, f"{suite.rates.machine} in {suite.file.shown}") if per_second else None


def _check_trained(suite: Suite, entry: Entry) -> None:
    training = entry.training
    if training and training not in suite.wanted and not training.is_done:
        raise E2BenchError(f"{entry.title} needs {training.out}, which is not there: add --only {training.title}")


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs that have one plan, together: of one experiment over one model, or over arms that are not trained yet."""
    groups: list[tuple[Any, list[Entry]]] = []
    for entry in entries:
        what = entry.experiment, _untrained(entry).replaced(out=None)
        same = next((group for known, group in groups if known == what), None)
        if same is None:
            groups.append((what, same := []))
        same.append(entry)
    return [group for _, group in groups]


def _untrained(entry: Entry) -> Common:
    """The run's settings, over its arm's base until the arm is trained: that has the same shape."""
    if entry.training and not entry.training.is_done:
        return entry.common.replaced(model=entry.training.recipe.base)
    return entry.common


def _run_rows(suite: Suite, alike: list[Entry], outlines: dict[Hashable, Any], *, aloud: bool) -> dict[int, Row]:
    """A row for each of some runs that have one plan."""
    for entry in alike:
        with suite.file.at(entry.line, entry.title):
            if not entry.common.fresh:
                check_folder_early(entry.experiment, Path(str(entry.common.out)), entry.common.engine)
    first = alike[0]
    runs = [_untrained(entry) for entry in alike]
    key = loaded_as(runs[0]), runs[0].is_served and first.experiment.needs  # of a server what it must be able to do
    with suite.file.at(first.line, first.title), nullcontext() if aloud else hushed():
        say(f"{', '.join(str(Path(str(entry.common.out)).relative_to(suite.out)) for entry in alike)}:")
        if key not in outlines:
            outlines[key] = outline_of(runs[0], first.experiment)
        otherwise = _stand_in(suite, first.experiment.name)
        found = forecasts(first.experiment, runs, outlines[key], suite.out, otherwise)
    return {id(entry): _run_row(entry, one) for entry, one in zip(alike, found, strict=True)}


def _run_row(entry: Entry, found: Forecast) -> Row:
    source = found.rate.source if found.rate is not None and found.hours else ""
    return Row(entry.title, found.inputs, found.done, found.tokens, found.hours, found.gib, source, found=found)


def loaded_as(common: Common) -> Hashable:
    """Equal for runs that one loaded model can serve."""
    common = with_preset(common)
    return tuple(getattr(common, name) for name in OF_A_MODEL)


def show(suite: Suite, rows: Sequence[Row]) -> None:
    """Print the plan."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    trains = any(row.disk for row in rows)
    table = Table(title=escape(printable(f"suite {suite.file.name}: the plan")), title_justify="left")
    columns = ("run", "inputs", "done", "tokens", "hours", "GiB", *(["disk"] if trains else []))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", overflow="fold")
    for row in rows:
        table.add_row(escape(printable(row.title)), *_cells(row, trains))
    table.add_section()
    table.add_row(*_cells_of_all(rows, trains))
    console = Console()
    console.print(table)
    for line in _legend(rows, trains):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _cells(row: Row, trains: bool) -> tuple[str, ...]:
    sampled = row.found is not None and row.found.sampled
    cells = (f"{row.inputs:,}", f"{row.done:,}", tokens(row.tokens, sampled), hours(row.hours), gib(row.gib))
    return (*cells, gib(row.disk / 2**30) if row.disk else "") if trains else cells


def _cells_of_all(rows: Sequence[Row], trains: bool) -> tuple[str, ...]:
    read, most = _total([row.tokens for row in rows]), [row.gib for row in rows]
    cells = (
        "all",
        *(f"{count:,}" for count in (sum(row.inputs for row in rows), sum(row.done for row in rows))),
        tokens(None if read is None else int(read), any(row.found and row.found.sampled for row in rows)),
        _hours_of_all(rows),
        UNKNOWN if None in most else gib(max((value for value in most if value is not None), default=0.0)),
    )
    return (*cells, gib(sum(row.disk for row in rows) / 2**30)) if trains else cells


def _hours_of_all(rows: Sequence[Row]) -> str:
    """Their sum; of some of them a lower bound."""
    known = [row.hours for row in rows if row.hours is not None]
    if len(known) == len(rows) or not sum(known):
        return hours(_total([row.hours for row in rows]))
    return f"over {hours(sum(known))}"


def _legend(rows: Sequence[Row], trains: bool) -> list[str]:
    lines = ["GiB: weights and the longest input of a run; what is free beyond that makes batches larger"]
    if trains:
        lines.append(f"{FOLDER}/…: inputs are steps; GiB and disk (checkpoints and result, GiB) are estimates")
    if sources := dict.fromkeys(row.rate for row in rows if row.rate):
        lines.append(f"hours: at the rates of {', '.join(sources)}")
    return [*lines, *notes([row.found for row in rows if row.found])]


def _total(values: list[Any]) -> float | None:
    return None if None in values else sum(values)
