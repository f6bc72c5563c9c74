"""`e2bench doctor`."""

from __future__ import annotations

import json

from e2bench.doctor.examine import examine
from e2bench.errors import E2BenchError, printable
from e2bench.experiments.options import Common
from e2bench.models.findings import NOTE, WRONG, Finding
from e2bench.terminal import quoted, say_next

MARKS = {"ok": "ok", NOTE: "note", WRONG: "WRONG"}


def run(common: Common, *, data: str | None, as_json: bool) -> None:
    """Print what was found. Raises E2BenchError, exit 2, where a number would be wrong."""
    findings = examine(common, data=data)
    wrong = [found for found in findings if found.level == WRONG]
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [f.as_json() for f in findings]}, ensure_ascii=False, indent=1))
    else:
        _show(findings)
        if not wrong:
            say_next(f"e2bench ppl --model {quoted(common.model)}" if common.model else "e2bench ppl")
    if wrong:
        raise E2BenchError(f"doctor: {len(wrong)} of {len(findings)} checks found what would make a number wrong")


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="doctor", title_justify="left")
    for column in ("", "check", "found, what it does to a number, what to give"):
        table.add_column(column, overflow="fold")
    for found in findings:
        style = {NOTE: "yellow", WRONG: "bold red"}.get(found.level)
        said = "\n".join(filter(None, (found.found, found.effect, found.advice)))
        cells = (MARKS[found.level], found.check, said)
        table.add_row(*(escape("\n".join(map(printable, cell.split("\n")))) for cell in cells), style=style)
    Console().print(table)
