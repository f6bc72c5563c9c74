"""The report: tables, figures and one HTML page from run folders. Reads files, never loads a model.

- runs.py: run folders -> Run; labels.py: what things are called in every table, legend and page
- tables.py, ablations.py, details.py: runs -> Table; table.py: Table -> CSV, Markdown, LaTeX; published/: the paper's
- figures.py: Figure, and how ours look; curves.py, maps.py: runs -> Figure (PNG and the numbers drawn)
- examples.py: predictions for the browser; page.py, templates/: all of it -> index.html; output.py: the folder
"""

from __future__ import annotations

import sys
from pathlib import Path

from e2bench.report import ablations, curves, details, maps, page, tables
from e2bench.report.output import Output
from e2bench.report.runs import scan
from e2bench.report.table import WRITERS, to_csv


def write_report(results: Path, out: Path) -> list[Path]:
    """Every table and figure for which there are runs at or below `results`, and `index.html`, into `out`.

    Returns:
        The files written. What was broken or foreign in `results` is named on stderr and on the page, and skipped.
    Raises:
        DataError: `results` is absent or holds no run, or `out` holds files that no report of ours wrote.
        RunFailed, RunFolderError: `out` cannot be written.
    """
    results, out = Path(results), Path(out)
    found = scan(results)
    output = Output(out, results)
    made = [table for build in (*tables.BUILDERS, *ablations.BUILDERS) for table in build(found)]
    made.sort(key=lambda table: table.name)
    behind = [table for build in details.BUILDERS for table in build(found)]
    figures = [figure for draw in (*curves.BUILDERS, *maps.BUILDERS) for figure in draw(found)]
    figures.sort(key=lambda figure: (not figure.name.startswith("figure"), figure.name))
    html = page.render(found, made, behind, figures)
    for table in made:
        for suffix, text in WRITERS.items():
            output.write(f"{table.name}.{suffix}", text(table))
    for table in behind:
        output.write(f"{table.name}.csv", to_csv(table))
    for figure in figures:
        output.write(f"{figure.name}.png", figure.png)
        output.write(f"{figure.name}.csv", to_csv(figure.data))
    output.write("index.html", html)
    output.close([run.name for run in found.runs], found.warnings)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return output.written
