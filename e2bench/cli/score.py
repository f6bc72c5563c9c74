"""`e2bench score`, and the table that every scored run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, RunFailed, printable
from e2bench.experiments.provenance import data_label, shortfall
from e2bench.experiments.stored import experiment_of, score_folder, write_scores
from e2bench.files import make_folder, read_json
from e2bench.runs.lines import RUN, SCORES, read_run
from e2bench.scoring.averages import SCHEMES
from e2bench.terminal import quoted, say_next

AVERAGES = (
    "e2: over tasks, as the paper's tables; longbench: over task groups, code in EN and ZH; category: code in EN alone"
)


def run(folder: Path, *, as_json: bool, rouge_score: bool, out: Path | None = None) -> None:
    """Score a folder; print JSON and write nothing, or write scores.json (into `out` where given) and print a table."""
    _refuse_several(folder)
    scores = score_folder(folder, rouge_score=rouge_score)
    if as_json:
        print_json(folder, scores)
    else:
        if out is not None:
            make_folder(out)
        show(folder, scores, write_scores(out or folder, scores))
    check_failed(folder, scores)


def print_json(folder: Path, scores: dict[str, Any]) -> None:
    """Scores by task with their averages, or the cells of an experiment that has lengths; unrounded."""
    cells = experiment_of(folder).cells
    names = [cells] if cells else ["tasks", "averages"]
    print(json.dumps({name: scores.get(name, {}) for name in names}, ensure_ascii=False))


def check_failed(folder: Path, scores: dict[str, Any]) -> None:
    """Raise RunFailed for a run some of whose samples failed: those that are left may be the easy ones."""
    details = scores.get("details")
    entries = details.items() if isinstance(details, dict) else ()
    if failed := {name: entry["failed"] for name, entry in entries if entry.get("failed")}:
        few = ", ".join(f"{count} of {name}" for name, count in list(failed.items())[:4])
        raise RunFailed(
            f"{folder}: {sum(failed.values())} samples failed ({few}), so there is no average over their tasks; drop "
            "their lines (finish: error) and give the run's command again"
        )


def _refuse_several(folder: Path) -> None:
    runs = sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))
    if runs and not any(folder.glob("*.jsonl")):
        raise DataError(f"{folder} holds runs and is none: score one of {', '.join(runs[:6])}, or `e2bench report` all")


def show_run(folder: Path | None, *, as_json: bool = False) -> None:
    """Print the scores of a run that has just ended; None: it was another process's, or a dry run."""
    if not folder:
        return
    scores = read_json(folder / SCORES)
    if as_json:
        print_json(folder, scores)
    else:
        show(folder, scores)
    check_failed(folder, scores)


def show(folder: Path, scores: dict[str, Any], written: Path | None = None) -> None:
    """Print scores as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=False)
    table = Table(title=escape(printable(str(folder))), title_justify="left")
    of = experiment_of(folder)
    columns, rows = of.table(scores)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table)
    for line in of.closing(scores):
        console.print(escape(printable(line)), highlight=False)
    for scheme in SCHEMES:
        if scheme in scores.get("averages", {}):
            values = scores["averages"][scheme]
            shown = "  ".join(f"{k} {'-' if v is None else format(v, '.2f')}" for k, v in values.items())
            console.print(f"{scheme:>10}: {shown}", highlight=False)
    if any(scheme in scores.get("averages", {}) for scheme in SCHEMES):
        console.print(f"[dim]{AVERAGES}[/]", highlight=False)
    if "Avg." in scores.get("averages", {}):  # of the short benchmarks
        average = scores["averages"]["Avg."]
        console.print("Avg. needs every task of Table 7" if average is None else f"Avg. {average:.2f}", highlight=False)
    averages = [
        v for each in scores.get("averages", {}).values() for v in (each.values() if isinstance(each, dict) else [each])
    ]
    if None in averages:
        console.print("An average is shown only when every one of its tasks has a score.", style="dim")
    run = read_run(folder) if (folder / RUN).exists() else {}
    console.print(escape(printable(f"data: {data_label(run, scores, of)}")), highlight=False)
    if any(average is not None for average in averages) and (short := shortfall(run, scores)):
        console.print(f"averages over {short}: not to be read beside published ones.", highlight=False)
    console.print(
        escape(printable(f"written: {written or folder / SCORES}")), highlight=False, style="dim", soft_wrap=True
    )
    say_next(f"e2bench report {quoted(folder)} for its page", f"e2bench compare {quoted(folder)} OTHER_RUN")
