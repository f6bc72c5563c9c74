"""`e2bench results`."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, printable
from e2bench.reporting.flat import SHARE, flat_table
from e2bench.reporting.lm_eval import results_json
from e2bench.reporting.table import to_csv
from e2bench.rope.windows import short_length
from e2bench.terminal import quoted, say_next

SHOWN = ("task", "length", "scale", "method", "metric", "value", "95 %", "n")
NUMBERS = ("length", "scale", "value", "95 %", "n")  # a narrow terminal breaks the others, between words
OF_A_RUN = ("model", "length", "scale", "method")  # said once where all numbers of a run have the same


def run(folders: list[Path], *, as_csv: bool, as_json: bool, as_lm_eval: bool) -> None:
    """Print the flat table; what was skipped is named on stderr. as_lm_eval: one run as lm-eval's results.json."""
    if as_csv + as_json + as_lm_eval > 1:
        raise E2BenchError("--csv, --json and --lm-eval are formats; give one of them")
    if as_lm_eval:
        if len(folders) > 1:
            raise E2BenchError(f"--lm-eval takes one run, {len(folders)} were given")
        print(json.dumps(results_json(folders[0]), indent=2, ensure_ascii=False))
        return
    table, found = flat_table(*folders)
    for warning in found.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if as_csv:
        print(to_csv(table), end="")
        return
    if as_json:
        keys = [column.key for column in table.columns]
        print(json.dumps([{key: row.get(key) for key in keys} for row in table.rows], indent=1, ensure_ascii=False))
        return
    for _, rows in groupby(table.rows, key=lambda row: row["folder"]):
        _show([_cells(row) for row in rows])
    given = " ".join(map(quoted, folders))
    say_next(f"e2bench results {given} --csv unrounded, with the commit; shares are 0 to 1 there")


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's cells as people read them."""
    low, value, high = (_shown(row[name], is_share=row[SHARE]) for name in ("low", "value", "high"))
    length = "" if row["length"] is None else short_length(row["length"])
    interval = f"{low.removesuffix(' %')} – {high}" if low else ""
    texts = {name: "" if value is None else printable(str(value)) for name, value in row.items()}
    return {**texts, "length": length, "value": value, "95 %": interval}


def _show(rows: list[dict[str, str]]) -> None:
    """One run: its folder, what all of its numbers have in common, then the numbers."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    shared = {name: rows[0][name] for name in OF_A_RUN if len({row[name] for row in rows}) == 1}
    common = [shared.get("model", ""), shared.get("method", "")]
    common += [f"{name} {shared[name]}" for name in ("scale", "length") if shared.get(name)]
    console.print(f"[bold]{escape(rows[0]['folder'])}[/]  {escape(', '.join(filter(None, common)))}")
    console.print(escape(rows[0]["data"]), style="dim")
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    names = [name for name in SHOWN if name not in shared and any(row[name] for row in rows)]
    for name in names:
        shown.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name in NUMBERS)
    for row in rows:
        shown.add_row(*(escape(row[name]) for name in names))
    console.print(shown)
    console.print()


def _shown(value: float | None, *, is_share: bool) -> str:
    """Four digits; of a share percent."""
    return "" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.4g}"
