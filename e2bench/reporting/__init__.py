"""The report: tables, figures and one HTML page from run folders. Reads files, never loads a model.

- runs.py: run folders -> Run; labels.py: what things are called in every table, legend and page
- claims.py, tables.py, ablations.py, longbench2.py, ruler.py, details.py: runs -> Table; published/: the paper's rows
- table.py: Table -> CSV, Markdown, LaTeX
- figures.py: Figure, and how ours look; curves.py, maps.py, heads.py, needles.py: runs -> Figure (PNG, numbers drawn)
- samples.py: every line for the browser; settings.py: what runs differ in; page.py, templates/: all of it -> index.html
- output.py: the report's folder
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from e2bench.errors import DataError, one_line, printable
from e2bench.reporting import (
    ablations,
    claims,
    curves,
    details,
    heads,
    longbench2,
    maps,
    needles,
    page,
    ruler,
    samples,
    settings,
    tables,
)
from e2bench.reporting.output import Output
from e2bench.reporting.runs import Results, scan
from e2bench.reporting.table import WRITERS, to_csv


def write_report(results: Path | Sequence[Path], out: Path, *, live: bool = False) -> list[Path]:
    """Every table and figure for which there are runs at or below `results`, one folder or several, and `index.html`.

    live: the page asks its server for a newer one (`e2bench view`), and names what was skipped alone: it is seen often.
    Returns:
        The files written. What was broken or foreign in `results` is named on stderr and on the page, and skipped.
    Raises:
        DataError: `results` is absent or holds no run, or `out` holds files that no report of ours wrote.
        RunFailed, RunFolderError: `out` cannot be written.
    """
    folders = [results] if isinstance(results, Path) else list(results)
    found = scan(*folders)
    output = Output(out, *folders)
    content, files, parts = _without_damaged(found)
    output.begin([*(name for name, _ in files), "index.html"])
    for name, written in files:
        output.write(name, written)
    kept = samples.Kept(output.write)
    gathered = samples.write(found, kept)  # file by file: all texts at once may not fit the memory
    output.write("index.html", page.render(content, parts, gathered, kept.files, found.warnings, live=live))
    output.close([run.name for run in found.runs], found.warnings)
    for warning in [] if live else found.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    return output.written


Made = tuple[page.Content, list[tuple[str, str | bytes]], tuple[Markup, Markup, Markup]]


def _without_damaged(found: Results) -> Made:
    """What the report shows, as files and on the page.

    A run whose values break it is named and taken out of `found`, and the rest reported.
    """
    try:
        return _made(found)
    except _DAMAGE:
        suspects = [Results(runs=[run]) for run in found.runs]
        suspects += [Results(trainings=[one]) for one in found.trainings] + [
            Results(profiles=[one]) for one in found.profiles
        ]
        for suspect in suspects:
            _convict(suspect, found)
        if not (found.runs or found.trainings or found.profiles):
            raise DataError(f"nothing that can be reported is left: {found.warnings[-1]}") from None
        return _made(found)


# What a number that is a text, a list that is too short or a field that is missing leads to.
_DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)


def _convict(suspect: Results, found: Results) -> None:
    """Take the one run, training or profile of `suspect` out of `found` if the report fails on it alone."""
    try:
        _made(suspect)
    except _DAMAGE as error:
        for kind in ("runs", "trainings", "profiles"):
            for one in getattr(suspect, kind):
                getattr(found, kind).remove(one)
                name = one.name if kind == "runs" else one[0]
                found.warnings.append(
                    f"{name}: holds values of another kind than docs/files.md says "
                    f"({type(error).__name__}: {one_line(error)}); skipped"
                )


def _made(found: Results) -> Made:
    content = _content(found)
    return content, _files(content), page.sections(content)


def _content(found: Results) -> page.Content:
    """Tables, figures and the lists of runs and settings."""
    parts = (claims, tables, ablations, longbench2, ruler)
    made = [table for part in parts for build in part.BUILDERS for table in build(found)]
    made.sort(key=lambda table: (not table.name.startswith("table"), table.name))
    behind_them = (*details.BUILDERS, *longbench2.DETAILS, *ruler.DETAILS)
    behind = [table for build in behind_them for table in build(found)]
    figures = [
        figure
        for draw in (*curves.BUILDERS, *maps.BUILDERS, *heads.BUILDERS, *ruler.FIGURES, *needles.FIGURES)
        for figure in draw(found)
    ]
    figures.sort(key=lambda figure: (not figure.name.startswith("figure"), figure.name))
    return page.Content(made, behind, figures, page.overview(found), settings.of_runs(found))


def _files(content: page.Content) -> list[tuple[str, str | bytes]]:
    """(name, content) of every file but the page, its samples and the marker."""
    files: list[tuple[str, str | bytes]] = []
    files += [(f"{table.name}.{suffix}", text(table)) for table in content.tables for suffix, text in WRITERS.items()]
    files += [(f"{table.name}.csv", to_csv(table)) for table in content.details]
    files += [(f"{figure.name}.png", figure.picture.light) for figure in content.figures]
    files += [(f"{figure.name}-dark.png", figure.picture.dark) for figure in content.figures]
    return files + [(f"{figure.name}.csv", to_csv(figure.data)) for figure in content.figures]
