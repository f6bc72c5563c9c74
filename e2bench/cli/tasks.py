"""`e2bench tasks`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from e2bench.terminal import say_next

COLUMNS = ("experiment", "task", "metric", "language", "samples", "budget")
SHOWN = ("for", "task", "metric", "lang.", "samples", "budget")  # the same, as short as 80 columns ask


def rows() -> Iterator[dict[str, Any]]:
    """Every task by experiment.

    samples: of the public set, of ruler a length's. budget: tokens of an answer, None where none is written.
    """
    from e2bench.tasks.longbench import EVERY_TASK
    from e2bench.tasks.ruler import RULER, SAMPLES
    from e2bench.tasks.short import EXACT, NEW_TOKENS, SHORT

    for task in EVERY_TASK:
        metric = task.metric.__name__
        yield _row("longbench", task.name, metric, task.language, task.samples, task.max_new_tokens)
    for ruler in RULER:
        yield _row("ruler", ruler.name, ruler.metric.__name__, "en", SAMPLES, ruler.max_new_tokens)
    for one in SHORT:
        budget = NEW_TOKENS if one.scoring == EXACT else None  # options are ranked, nothing is generated
        metric = "accuracy" if budget is None else "exact match"
        yield _row("short", one.name, metric, "en", one.samples, budget)


def _row(*values: Any) -> dict[str, Any]:
    return dict(zip(COLUMNS, values, strict=True))


def run(*, as_json: bool) -> None:
    """Print the tasks."""
    found = list(rows())
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="tasks: --tasks NAME,NAME of an experiment's command",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in SHOWN:
        table.add_column(column, justify="right" if column in ("samples", "budget") else "left", no_wrap=True)
    for row in found:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in COLUMNS))
    console = Console()
    console.print(table)
    said = (
        "samples: of the public set; of ruler, a length's default. budget: tokens of an answer.",
        "longbench2 is one set of questions; ppl, passkey, needle and attention have lengths instead of tasks.",
    )
    for line in said:
        console.print(line, style="dim")
    say_next("e2bench longbench --tasks NAME,NAME")
