"""The numbers of scores.json: one by one for flat tables, in columns for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2bench.rope.windows import short_length

# Fields of a cell that say where a number stands, or how much it is over.
AXES = ("task", "window", "length", "scale", "method", "protocol")
COUNTS = ("documents", "trials", "samples", "scored", "scored_tokens")


@dataclass(frozen=True)
class Number:
    """One number of scores.json. None where a score has no such thing.

    length: tokens.    interval: 95 %, [low, high], in the value's unit.    n: samples, trials, … that it is over.
    is_share: whether it is from 0 to 1, and people read it in percent.
    """

    metric: str
    value: float
    task: str = ""
    length: int | None = None
    scale: Any = None
    method: str | None = None
    interval: Sequence[float] | None = None
    n: int | None = None
    is_share: bool = False


def cell_numbers(
    name: str, columns: Iterable[str], amount: str, cells: Sequence[Mapping[str, Any]], shares: Collection[str] = ()
) -> Iterator[Number]:
    """The measured columns of every cell; the interval belongs to the first of them.

    name: of the experiment: the task of cells that name none.    amount: the field that says how much is behind a cell.
    shares: columns from 0 to 1.
    """
    measured = [column for column in columns if column not in (*AXES, *COUNTS, amount)]
    for cell in cells:
        there = [column for column in measured if is_number(cell.get(column))]
        for at, column in enumerate(there):
            yield Number(
                column,
                cell[column],
                task=str(cell.get("task", name)),
                length=cell.get("length", cell.get("window")),
                scale=cell.get("scale"),
                method=cell.get("method"),
                interval=cell.get("interval") if at == 0 else None,
                n=cell.get(amount),
                is_share=column in shares,
            )


def task_numbers(scores: Mapping[str, Any]) -> Iterator[Number]:
    """The score of every task, and every average that is complete."""
    for task, value in scores["tasks"].items():
        entry = scores.get("details", {}).get(task, {})
        if is_number(value):
            metric = str(entry.get("metric") or entry.get("scoring") or "score")
            yield Number(metric, value, task=task, interval=entry.get("interval"), n=entry.get("scored"))
    for scheme, found in scores.get("averages", {}).items():
        for column, value in (found if isinstance(found, dict) else {"": found}).items():
            if is_number(value):
                yield Number(f"{scheme} {column}".strip(), value, task="average")


def is_number(value: Any) -> bool:
    """Whether a field holds an int or a float; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(
    columns: Mapping[str, str], entries: Sequence[Mapping[str, Any]], fractions: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of entries of scores.json; a column that no entry has is left out. fractions: as percent."""
    used = [(name, heading) for name, heading in columns.items() if any(name in entry for entry in entries)]
    rows = [[_cell(name, entry.get(name), name in fractions) for name, _ in used] for entry in entries]
    return [heading for _, heading in used], rows


def _cell(name: str, value: Any, is_fraction: bool = False) -> str:
    if name in ("window", "length"):
        return short_length(value)
    if name == "scored_tokens":
        return f"{value:,}"
    if isinstance(value, list):
        return " – ".join(_cell(name, v, is_fraction) for v in value)
    if is_fraction and value is not None:
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return "" if value is None else str(value)
