"""`e2bench results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from e2bench.errors import E2BenchError, printable
from e2bench.reporting.flat import SHARE, flat_table
from e2bench.reporting.lm_eval import results_json
from e2bench.reporting.table import to_csv
from e2bench.rope.windows import short_length
from e2bench.terminal import say_next

SHOWN = ("folder", "task", "length", "scale", "method", "metric", "value", "95 %", "n")


def run(folder: Path, *, as_csv: bool, as_lm_eval: bool = False) -> None:
    """Print the flat table; what was skipped is named on stderr. as_lm_eval: one run as lm-eval's results.json."""
    if as_csv and as_lm_eval:
        raise E2BenchError("--csv and --lm-eval are two formats; give one of them")
    if as_lm_eval:
        print(json.dumps(results_json(folder), indent=2, ensure_ascii=False))
        return
    table, found = flat_table(folder)
    for warning in found.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if as_csv:
        print(to_csv(table), end="")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(printable(table.title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in SHOWN:
        is_number = name in ("length", "scale", "value", "n")
        kept = name in ("metric", "value")  # a narrow terminal folds other columns
        shown.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=kept)
    for row in table.rows:
        low, value, high = (_shown(row[name], is_share=row[SHARE]) for name in ("low", "value", "high"))
        length = "" if row["length"] is None else short_length(row["length"])
        cells = {**row, "length": length, "value": value, "95 %": f"{low.removesuffix(' %')} – {high}" if low else ""}
        shown.add_row(*(escape(printable("" if cells[name] is None else str(cells[name]))) for name in SHOWN))
    Console().print(shown)
    say_next(f"e2bench results {folder} --csv unrounded, with data and commit; shares are 0 to 1 there")


def _shown(value: float | None, *, is_share: bool) -> str:
    """Four digits; of a share percent."""
    return "" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.4g}"
