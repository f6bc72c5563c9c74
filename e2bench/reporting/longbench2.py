"""LongBench v2: one table for letters in answers, one for letters ranked by likelihood; every group behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from e2bench.reporting import labels, tables
from e2bench.reporting.runs import Results, Run, interval
from e2bench.reporting.table import Column, Row, Table

EXPERIMENT = "longbench2"
COLUMNS = ("Overall", "Easy", "Hard", "Short", "Medium", "Long")  # LongBench v2's own result table
LETTERS = "longbench2-letters"
TITLES = {
    EXPERIMENT: "LongBench v2 (%): accuracy overall, by difficulty and by length",
    LETTERS: "LongBench v2 (%) as lm-eval scores it: letters by log-likelihood; not the official number",
}
NOTES = {
    EXPERIMENT: (
        "No answer is a wrong one; compensated: it counts 0.25, as in LongBench v2's result.py.",
        "Decoding is greedy; LongBench v2's own script samples at temperature 0.1. Of folders in its own layout the "
        "protocol is not recorded, but for chains of thought.",
    ),
    LETTERS: ("A prompt that is too long loses its beginning, as in lm-eval, and not its middle.",),
}


def accuracies(found: Results) -> list[Table]:
    """One row a run; a table for each of the two scores."""
    return [table for name in TITLES if (table := _table(name, found)) is not None]


def _table(name: str, found: Results) -> Table | None:
    runs = [run for run in found.of(EXPERIMENT) if name in run.scores["tasks"]]
    if not runs:
        return None
    named = ["\n".join((labels.row(run), _protocol(run, name))) for run in runs]
    rows = [
        _row(run, name, label.replace(f"\n{_protocol(run, name)}", ""))
        for run, label in zip(runs, labels.told_apart(runs, named), strict=True)
    ]
    columns = [tables.SOURCE, tables.MODEL, Column("protocol", "Protocol"), tables.RUN, tables.OVER]
    columns += [Column(key, key, 1) for key in COLUMNS]
    columns += [Column("compensated", "Compensated", 1)] if name == EXPERIMENT else []
    return Table(name, TITLES[name], [*columns, tables.DATA], rows, list(NOTES[name]))


def _row(run: Run, name: str, label: str) -> Row:
    averages = run.scores.get("averages") or {}
    plain = averages.get("plain") or {}
    row: Row = {"source": "measured", "model": label, "protocol": _protocol(run, name), "run": run.name}
    row |= {key: plain.get(key) for key in COLUMNS}
    row |= {"compensated": (averages.get("compensated") or {}).get("Overall"), "data": labels.data(run)}
    row |= {tables.OVER.key: labels.averages_over(run, plain.values()), "intervals": {}}
    details = tables.details(run, name)
    parts = {"Overall": details, **_part(details, "difficulty"), **_part(details, "length")}
    for key, part in parts.items():
        if (ends := interval(part)) != (None, None):
            row["intervals"][key.capitalize()] = ends
    return row


def _protocol(run: Run, name: str) -> str:
    return str(tables.details(run, name).get("protocol") or "not recorded")


def _part(details: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    groups = details.get("groups")
    part = groups.get(group) if isinstance(groups, dict) else None
    return part if isinstance(part, dict) else {}


def groups(found: Results) -> list[Table]:
    """Every run by difficulty, length, domain and sub-domain, unrounded."""
    rows = [row for run in found.of(EXPERIMENT) for row in _group_rows(run)]
    columns = [tables.RUN, tables.MODEL, tables.DATA, Column("score", "Score"), Column("protocol", "Protocol")]
    columns += [Column("group", "Group"), Column("value", "Value")]
    columns += [Column(key, key.title(), 6) for key in ("accuracy", "low", "high", "compensated")]
    columns += [Column("unanswered", "No answer", 0), Column("scored", "Scored", 0)]
    note = "Interval: Wilson, 95 %."
    return [Table("longbench2-groups", "LongBench v2, group by group", columns, rows, [note])] if rows else []


def _group_rows(run: Run) -> Iterator[Row]:
    for name, accuracy in run.scores["tasks"].items():
        details = tables.details(run, name)
        head = {"run": run.name, "model": labels.row(run), "data": labels.data(run), "score": name}
        head["protocol"] = _protocol(run, name)
        yield head | {"group": "all", "value": "all"} | _numbers({**details, "score": accuracy})
        for group in ("difficulty", "length", "domain", "sub_domain"):
            for value, part in _part(details, group).items():
                yield head | {"group": group, "value": value} | _numbers(part)


def _numbers(part: dict[str, Any]) -> Row:
    low, high = interval(part)
    counts = {key: part.get(key) for key in ("compensated", "unanswered", "scored")}
    return {"accuracy": part.get("score"), "low": low, "high": high, **counts}


BUILDERS = (accuracies,)
DETAILS = (groups,)
