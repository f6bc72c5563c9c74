"""`e2bench compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, printable
from e2bench.experiments.compare import compare
from e2bench.runs.folder import words
from e2bench.terminal import quoted, say_next

SHOWN_CHARS = 40
FEWEST = 6  # samples that can tell two runs apart: if all of 5 changed one way, that is still chance at 2 / 2^5 > 0.05
NUMBERS = ("A", "B", "B − A", "95 % interval")  # a narrow terminal folds other columns


def run(runs: list[Path], *, tasks: str | None, allow: str | None, as_json: bool) -> None:
    """Compare every further run with the first."""
    if len(runs) < 2:
        raise E2BenchError(f"compare takes at least two runs, {len(runs)} was given")
    chosen = _names(tasks) or None
    results = [compare(runs[0], other, tasks=chosen, allow=_names(allow)) for other in runs[1:]]
    if as_json:
        print(json.dumps(results if len(results) > 1 else results[0], ensure_ascii=False))
        return
    for result in results:
        _show(result)
    say_next(f"e2bench report {' '.join(map(quoted, runs))} for a page with their answers side by side")


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    said = (f"A: {result['first']}", f"B: {result['second']}", f"in {result['unit']}, over the same samples")
    table = Table(title="\n".join(escape(printable(line)) for line in said), title_justify="left")
    columns = ("task", "samples", "A", "B", "B − A", "95 % interval", "B higher / lower")
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", overflow="fold", no_wrap=column in NUMBERS)
    for name, row in result["tasks"].items():
        bounds = row["interval"]
        clear = row["samples"] >= FEWEST and bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
        table.add_row(
            escape(printable(name)),
            str(row["samples"]),
            *(f"{row[key]:.2f}" for key in ("first", "second")),
            f"{row['difference']:+.2f}{' *' if clear else ''}",
            f"{bounds[0]:+.2f} – {bounds[1]:+.2f}" if bounds else "",
            f"{row['better']} / {row['worse']}",
        )
    console.print(table)
    for name, (first, second) in result["differing"].items():
        console.print(f"asked otherwise: {name} = {words(first)} in A, {words(second)} in B")
    console.print(
        "* A and B differ by more than the choice of samples explains: the 95 % interval of B − A does not contain 0. "
        f"Without a star these samples do not tell them apart; fewer than {FEWEST} never do.",
        style="dim",
    )
    if not result["largest"]:
        console.print("no sample changed")
        return
    largest = Table(title="largest changes", title_justify="left")
    for column in ("task", "sample", "A", "B", "reference", "answer of A", "answer of B"):
        largest.add_column(column, overflow="fold")
    for change in result["largest"]:
        texts = (change["id"], change["reference"], *change["predictions"])
        sample, reference, before, after = (escape(printable(" ".join(text.split())[:SHOWN_CHARS])) for text in texts)
        numbers = (f"{change['first']:.2f}", f"{change['second']:.2f}")
        largest.add_row(escape(printable(change["task"])), sample, *numbers, reference, before, after)
    console.print(largest)
