"""`e2bench score`, and the table that every scored run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, printable
from e2bench.provenance import data_label, shortfall
from e2bench.records import RUN, SCORES, read_json
from e2bench.scales import short_length
from e2bench.scoring import SCHEMES, score_folder, write_scores


def run(folder: Path, *, as_json: bool, rouge_score: bool) -> None:
    """Score a folder; print JSON and write nothing, or write scores.json and print a table."""
    _refuse_several(folder)
    scores = score_folder(folder, rouge_score=rouge_score)
    if as_json:
        print(json.dumps({"tasks": scores.get("tasks", {}), "averages": scores.get("averages", {})}))
        return
    write_scores(folder, scores)
    show(folder, scores)


def _refuse_several(folder: Path) -> None:
    runs = sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))
    if runs and not any(folder.glob("*.jsonl")):
        raise DataError(f"{folder} holds runs and is none: score one of {', '.join(runs[:6])}, or `e2bench report` all")


def show_run(folder: Path | None) -> None:
    """Print the scores of a run that has just ended; None: it was another process's, or a dry run."""
    if folder:
        show(folder, read_json(folder / SCORES))


def show(folder: Path, scores: dict[str, Any]) -> None:
    """Print scores as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=False)
    table = Table(title=escape(printable(str(folder))), title_justify="left")
    rows, columns = _longbench(scores) if "metric" in _first(scores.get("details", {})) else _other(scores)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table)
    for scheme in SCHEMES:
        if scheme in scores.get("averages", {}):
            values = scores["averages"][scheme]
            shown = "  ".join(f"{k} {'-' if v is None else format(v, '.2f')}" for k, v in values.items())
            console.print(f"{scheme:>10}: {shown}", highlight=False)
    if "Avg." in scores.get("averages", {}):  # of the short benchmarks
        average = scores["averages"]["Avg."]
        console.print("Avg. needs every task of Table 7" if average is None else f"Avg. {average:.2f}", highlight=False)
    incomplete = scores.get("averages") and any(
        None in v.values() for v in scores["averages"].values() if isinstance(v, dict)
    )
    if incomplete:
        console.print("An average is shown only when every one of its tasks has a score.", style="dim")
    run = read_json(folder / RUN) if (folder / RUN).exists() else {}
    console.print(escape(printable(f"data: {data_label(run, scores)}")), highlight=False)
    if scores.get("averages") and (short := shortfall(run, scores)):
        console.print(f"averages over {short}: not to be read beside published ones.", highlight=False)
    console.print(escape(printable(f"written: {folder / 'scores.json'}")), highlight=False, style="dim")


def _first(details: dict[str, Any]) -> dict[str, Any]:
    return next(iter(details.values()), {})


def _longbench(scores: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    rows = []
    for name, entry in scores["details"].items():
        value, bounds = scores["tasks"].get(name), entry["interval"]
        rows.append(
            [
                name,
                "-" if value is None else f"{value:.2f}",
                f"{bounds[0]:.1f} – {bounds[1]:.1f}" if bounds else "",
                f"{entry['scored']} of {entry['expected']}",
                str(entry["truncated"]),
                *([f"{entry['rouge_score']:.2f}"] if "rouge_score" in entry else []),
            ]
        )
    columns = ["task", "score", "95 % interval", "scored", "truncated"]
    return rows, [*columns, "rouge-score"] if any(len(r) > len(columns) for r in rows) else columns


COLUMNS = {  # of the experiments whose lines are measurements: field of scores.json, heading
    "cells": {
        "window": "length",
        "method": "method",
        "scale": "g",
        "perplexity": "perplexity",
        "interval": "95 % interval",
        "documents": "documents",
        "scored_tokens": "tokens",
    },
    "lengths": {
        "length": "length",
        "scale": "g",
        "accuracy": "found",
        "interval": "95 % interval",
        "strict": "strict",
        "success": "answered",
        "gold_share": "attention on gold",
        "input_share": "gold of input",
        "trials": "trials",
    },
    "tasks": {"task": "task", "accuracy": "accuracy", "stderr": "± stderr", "scored": "scored"},
}


def _other(scores: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Tables of perplexity, passkey, attention and short runs."""
    kind = next(kind for kind in COLUMNS if kind in scores)
    entries = scores[kind]
    if kind == "tasks":
        entries = [{"task": name, "accuracy": v, **scores["details"].get(name, {})} for name, v in entries.items()]
    shown = [(field, heading) for field, heading in COLUMNS[kind].items() if any(field in e for e in entries)]
    rows = [[_cell(field, entry.get(field)) for field, _ in shown] for entry in entries]
    return rows, [heading for _, heading in shown]


def _cell(field: str, value: Any) -> str:
    if field in ("window", "length"):
        return short_length(value)
    if field == "scored_tokens":
        return f"{value:,}"
    if isinstance(value, list):
        return " – ".join(_cell(field, v) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return "" if value is None else str(value)
