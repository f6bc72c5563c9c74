"""`e2bench tasks`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from e2bench.experiments.base import EXPERIMENTS, experiment
from e2bench.terminal import say_next

SHOWN = ("for", "task", "metric", "lang.", "samples", "budget")  # as short as 80 columns ask


def rows() -> Iterator[dict[str, Any]]:
    """The facts of every task, by experiment."""
    for name in EXPERIMENTS:
        for facts in experiment(name).tasks_facts():
            yield {"experiment": name, **facts._asdict()}


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
        numbers = (f"{value:,}" if isinstance(value, int) else value for value in row.values())
        table.add_row(*(value or "" for value in numbers))
    console = Console()
    console.print(table)
    without = ", ".join(name for name in EXPERIMENTS if "tasks" not in experiment(name).named())
    said = (
        "samples: of the public set; of ruler, a length's default. budget: tokens of an answer.",
        f"Of one task only: {without}.",
    )
    for line in said:
        console.print(line, style="dim")
    say_next("e2bench longbench --tasks NAME,NAME")
