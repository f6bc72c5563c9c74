"""Lines that are measurements already -> the contents of scores.json: perplexity, passkey, attention, short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from e2bench.errors import DataError
from e2bench.records import LM_EVAL, RUN, names_of, read_json, stored_rows
from e2bench.statistics import interval, mean, ratio_interval, wilson

Rows = list[dict[str, Any]]
RACE_ARTICLES = 1045  # lm-eval asks one question an article of race_high


def perplexity(folder: Path) -> dict[str, Any]:
    """Perplexity of each (window, scale) with a bootstrap 95 % interval over documents."""
    cells = []
    for (window, scale), rows in _grouped(_lines(folder, "ppl"), "window", "scale"):
        over_windows = rows[0]["protocol"] in ("window-mean", "yarn")
        sums, counts = ("mean_sum", "windows") if over_windows else ("nll_sum", "scored_tokens")
        nats = np.array([row[sums] for row in rows])
        weight = np.array([row[counts] for row in rows])
        bounds = ratio_interval(nats, weight)
        cells.append(
            {
                "window": window,
                "scale": scale,
                "method": rows[0]["method"],
                "protocol": rows[0]["protocol"],
                "perplexity": _exp(nats.sum() / weight.sum()),
                "interval": bounds and [_exp(bound) for bound in bounds],
                "documents": len(rows),
                "scored_tokens": int(sum(row["scored_tokens"] for row in rows)),
            }
        )
    return {"cells": cells}


def _exp(nats: float) -> float:
    return math.exp(min(float(nats), 700.0))


def passkey(folder: Path) -> dict[str, Any]:
    """Accuracy of each (length, scale) with Wilson's 95 % interval."""
    lengths = []
    for (length, scale), rows in _grouped(_lines(folder, "passkey"), "length", "scale"):
        hits = sum(bool(row["success"]) for row in rows)
        lengths.append(
            {
                "length": length,
                "scale": scale,
                "accuracy": hits / len(rows),
                "interval": wilson(hits, len(rows)),
                "strict": sum(bool(row["strict"]) for row in rows) / len(rows),
                "trials": len(rows),
            }
        )
    return {"lengths": lengths}


def attention(folder: Path) -> dict[str, Any]:
    """Success, and attention on the gold span against its share of the input, for each (length, scale)."""
    lengths = []
    for (length, scale), rows in _grouped(_lines(folder, "attention"), "length", "scale"):
        lengths.append(
            {
                "length": length,
                "scale": scale,
                "success": sum(bool(row["success"]) for row in rows) / len(rows),
                "gold_share": mean([row["gold_share"] for row in rows]),
                "input_share": mean([row["input_share"] for row in rows]),
                "top_heads": rows[0]["top_heads"],
                "trials": len(rows),
            }
        )
    return {"lengths": lengths}


def short(folder: Path) -> dict[str, Any]:
    """Accuracy of each task with its standard error, and the plain mean over tasks."""
    tasks, details, suite = {}, {}, ""
    results = folder / LM_EVAL  # beside our lines (`--suite lm-eval`)
    harness = read_json(results) if results.exists() else {}
    expected_rows = _published_rows()
    for name in names_of(folder):
        rows = stored_rows(folder, name)
        correct = [float(row["correct"]) for row in rows]
        share = mean(correct)
        if share is None:
            continue
        suite = rows[0]["suite"]
        tasks[name] = 100 * share
        stderr = 100 * math.sqrt(share * (1 - share) / (len(rows) - 1)) if len(rows) > 1 else None
        bounds = interval(correct)
        details[name] = {
            "stderr": stderr,
            "interval": bounds and [100 * b for b in bounds],
            "scored": len(rows),
            **({"expected": expected_rows[name]} if name in expected_rows else {}),
            "scoring": rows[0].get("scoring", ""),
            **({"lm_eval": harness[name]} if name in harness else {}),
        }
    run = read_json(folder / RUN)
    expected = (run.get("resolved") or {}).get("all_tasks") or list(tasks)
    own = run.get("own_rows") or []
    complete = all(task in tasks and task not in own for task in expected)
    return {
        "suite": suite,
        "tasks": tasks,
        "details": details,
        "averages": {"Avg.": mean([tasks[task] for task in expected]) if complete else None},
    }


def _published_rows() -> dict[str, int]:
    """Rows of the published split of each short benchmark, by our name and by lm-eval's."""
    from e2bench.tasks.short import SHORT

    by_name = {str(task.lm_eval): task.samples for task in SHORT} | {task.name: task.samples for task in SHORT}
    return by_name | {"race": RACE_ARTICLES}


def _lines(folder: Path, name: str) -> Rows:
    rows = stored_rows(folder, name)
    if not rows:
        raise DataError(f"{folder} holds no finished line in {name}.jsonl; run the experiment first")
    return rows


def _grouped(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], Rows]]:
    """Rows by their values of `keys`, in growing order."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(dict(row))
    by_value: Callable[[tuple[tuple[Any, ...], Rows]], Any] = lambda pair: pair[0]  # noqa: E731
    return sorted(groups.items(), key=by_value)


# Experiments whose lines are already measurements: how each is summed up.
SUMMARIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ppl": perplexity,
    "passkey": passkey,
    "attention": attention,
    "short": short,
}
