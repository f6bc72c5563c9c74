"""`e2bench compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, printable
from e2bench.experiments.compare import compare
from e2bench.runs.folder import words
from e2bench.terminal import quoted, say_next

SHOWN_CHARS = 100
FEWEST = 6  # samples that can tell two runs apart: if all of 5 changed one way, that is still chance at 2 / 2^5 > 0.05


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
    for line in said:
        console.print(escape(printable(line)), highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for at, column in enumerate(("task", "n", "A", "B", "B − A", "95 % interval", "up / down")):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    starred = [name for name, row in result["tasks"].items() if _is_clear(row)]
    for name, row in result["tasks"].items():
        bounds = row["interval"]
        table.add_row(
            escape(printable(name)),
            str(row["samples"]),
            *(f"{row[key]:.2f}" for key in ("first", "second")),
            f"{row['difference']:+.2f}{' *' if name in starred else ''}",
            f"{bounds[0]:+.2f} – {bounds[1]:+.2f}" if bounds else "",
            f"{row['better']} / {row['worse']}",
        )
    console.print(table)
    for name, (first, second) in result["differing"].items():
        console.print(f"asked otherwise: {name} = {words(first)} in A, {words(second)} in B")
    star = (
        "* A and B differ by more than the choice of samples explains: the 95 % interval of B − A does not contain 0. "
    )
    none = f"Without a star these samples do not tell A and B apart; fewer than {FEWEST} never do."
    console.print(f"up / down: samples in which B is higher, lower. {star if starred else ''}{none}", style="dim")
    if not result["largest"]:
        console.print("no sample changed")
        return
    console.print("\nlargest changes", highlight=False)
    for change in result["largest"]:
        _show_change(console, change)


def _is_clear(row: dict[str, Any]) -> bool:
    """Whether the samples tell the two runs apart."""
    bounds = row["interval"]
    return row["samples"] >= FEWEST and bounds is not None and (bounds[0] > 0 or bounds[1] < 0)


def _show_change(console: Any, change: dict[str, Any]) -> None:
    """One sample: its scores, its reference, both answers, each on a line that is cut at the terminal's width."""
    from rich.text import Text

    head = f"{change['task']}  {change['id']}  {change['first']:.2f} → {change['second']:.2f}"
    console.print(Text(printable(head)), soft_wrap=True)
    for name, text in zip(("reference", "A", "B"), (change["reference"], *change["predictions"]), strict=True):
        line = Text(f"  {name:<9}  {printable(' '.join(text.split())[:SHOWN_CHARS])}", style="dim")
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
