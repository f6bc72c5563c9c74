"""Run folders below a results folder, as `docs/files.md` describes them: found, read and checked, never written.

What is broken or foreign is named in a warning and skipped, so that one bad file does not cost the report of the rest.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

from e2bench.errors import DataError, E2BenchError, one_line
from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.experiments.options import TRACKERS
from e2bench.experiments.stored import current_scores, layout_of
from e2bench.files import parse_json, read_json, read_whole
from e2bench.runs.lines import RUN, SCORES, names_of, read_run, stored_rows

MARKER = "report.json"
E2_CONFIG, PROFILE = "e2_config.json", "profile.json"
_OURS = {RUN, SCORES, E2_CONFIG, PROFILE, MARKER}
_OURS_SUFFIXES = {".jsonl", ".npz", ".md", ".log", ".lock"}


@dataclass(frozen=True)
class Run:
    """One run folder. `name` is its path below the results folder, and names the run everywhere in the report."""

    folder: Path
    name: str
    experiment: str
    manifest: dict[str, Any] = field(repr=False)
    scores: dict[str, Any] = field(repr=False)

    def part(self, name: str) -> dict[str, Any]:
        """A section of run.json that is an object (`model`, `rope`, `resolved`, ...); {} where it is not."""
        value = self.manifest.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings as they came out, those included that are younger than the run."""
        return self.about.resolved_of(self.manifest)

    @property
    def model(self) -> str:
        """The model's name, else the folder's."""
        return str(self.part("model").get("name") or self.name.rsplit("/", 1)[-1])

    @property
    def native_window(self) -> int | None:
        """L in tokens; None where run.json does not tell."""
        value = self.part("model").get("native_window")
        return int(value) if number(value) else None

    @property
    def e2(self) -> dict[str, Any] | None:
        """The model's e2_config.json where `e2bench train` made it."""
        value = self.part("model").get("e2")
        return value if isinstance(value, dict) else None

    @property
    def about(self) -> type[Experiment]:
        """The experiment's class: how its scores and lines are read."""
        return experiment(self.experiment)

    @property
    def complete(self) -> bool:
        """False while `ended` is null; folders in a benchmark's own layout do not say, and count as complete."""
        return not self.manifest or self.manifest.get("ended") is not None

    def files(self) -> list[str]:
        """Names of the files of lines that the run's last call asked for."""
        return names_of(self.folder)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The finished pieces of work in `NAME.jsonl`, of all processes.

        Raises:
            DataError: a line is no JSON object; the message names file and line.
        """
        return stored_rows(self.folder, name)

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """What the run's tables and figures draw: the `cells` of ppl, the `lengths` of ruler, passkey and attention."""
        return checked_cells(self)


@dataclass
class Results:
    """What a report reads: runs sorted by name (g4 before g16), trainings' settings, profiles, and what was skipped."""

    runs: list[Run] = field(default_factory=list)
    trainings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    profiles: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def of(self, experiment: str) -> list[Run]:
        """The runs of one experiment, in order of name."""
        return [run for run in self.runs if run.experiment == experiment]


def scan(*results: Path) -> Results:
    """Every run, training and profile at any depth below `results`, or in it.

    Of several folders each one's name stands before its runs' names.
    Raises:
        DataError: one of `results` is no folder, or nothing in them can be reported.
    """
    found = Results()
    for root in results:
        if not root.is_dir():
            raise DataError(f"no results folder {root}; give the folder that holds the runs")
        before = root.resolve().name if len(results) > 1 else ""
        for folder, names, in_training in _folders(root):
            name = "/".join(filter(None, (before, _name(folder, root))))
            _read_folder(found, folder, names, name, in_training)
    found.runs.sort(key=lambda run: _text_and_numbers(run.name))
    if not (found.runs or found.profiles or found.trainings):
        skipped = f" ({found.warnings[0]})" if found.warnings else ""
        where = " or ".join(map(str, results))
        raise DataError(f"no run in {where}{skipped}; run one of {', '.join(EXPERIMENTS)} first")
    return found


def _text_and_numbers(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]


def _folders(results: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """(folder, its visible files, inside a training?) from the top down, in sorted order."""
    trainings: list[Path] = []
    waiting = [results]
    while waiting:  # os.walk calls itself for every level, and Python ends that at a thousand
        folder = waiting.pop()
        folders, names = _listed(folder)
        if RUN in names:  # where `--log` writes
            folders = [name for name in folders if name not in TRACKERS]
        if MARKER in names:
            folders = [name for name in folders if not _of_report(folder, name)]
        if "train.jsonl" in names or E2_CONFIG in names:
            trainings.append(folder)
        yield folder, names, any(folder.is_relative_to(training) for training in trainings)
        waiting += [folder / name for name in reversed(folders)]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """(names of folders, names of files) that are visible, sorted; links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_dir(), e.is_symlink()) for e in entries if not e.name.startswith("."))
    except OSError:  # not to be opened, or a path longer than the system takes
        return [], []
    return [n for n, is_dir, linked in found if is_dir and not linked], [n for n, is_dir, _ in found if not is_dir]


def _read_folder(found: Results, folder: Path, names: list[str], name: str, in_training: bool) -> None:
    for reader, needed in ((_read_run, RUN), (_read_profile, PROFILE), (_read_e2, E2_CONFIG)):
        if needed in names:
            _attempt(found, reader, folder, name)
    layout = None if RUN in names or in_training else layout_of(folder)
    if layout is not None:
        _attempt(found, partial(_read_own_layout, layout.name), folder, name)
    foreign = [] if in_training else _foreign(folder, names, is_run=RUN in names or layout is not None)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        listed = ", ".join(f"{name}/{file}" if name else file for file in foreign[:3])
        found.warnings.append(f"{listed}{more}: not files of a run, skipped")


def _attempt(found: Results, reader: Callable[[Results, Path, str], None], folder: Path, name: str) -> None:
    try:
        reader(found, folder, name)
    except (E2BenchError, OSError) as error:
        found.warnings.append(f"{name or folder.resolve().name}: {reason(error, folder)}; skipped")


def _read_run(found: Results, folder: Path, name: str) -> None:
    manifest = read_run(folder)
    named = manifest.get("experiment")
    if named not in EXPERIMENTS:
        raise DataError(f"{RUN} has experiment {named!r}, not one of {', '.join(EXPERIMENTS)}")
    run = Run(folder, name or folder.resolve().name, named, manifest, _scores(found, folder, name))
    if not run.complete:
        _drop_partial(found, run)
    _add(found, run)


def _drop_partial(found: Results, run: Run) -> None:
    """Take cells of an interrupted run out that hold less than its others: they are not over the same samples."""
    key, amount = run.about.cells, run.about.amount
    cells = run.scores.get(key) if key else None
    cells = [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []
    amounts = [cell[amount] for cell in cells if number(cell.get(amount))]
    fewer = [cell for cell in cells if number(cell.get(amount)) and cell[amount] < max(amounts)]
    if fewer:
        run.scores[key] = [cell for cell in cells if cell not in fewer]
        sizes = ", ".join(str(cell.get("window", cell.get("length"))) for cell in fewer)
        found.warnings.append(f"{run.name}: {sizes} tokens hold fewer {amount} than its other lengths; left out")


def _read_own_layout(experiment: str, found: Results, folder: Path, name: str) -> None:
    _add(found, Run(folder, name or folder.resolve().name, experiment, {}, _scores(found, folder, name)))


def _scores(found: Results, folder: Path, name: str) -> dict[str, Any]:
    """scores.json; made from the lines where it is missing, or of other lines, which is told."""
    scores, is_stale = current_scores(folder)
    if is_stale:
        found.warnings.append(
            f"{name or folder.resolve().name}: {SCORES} was of other lines; scored again for this page"
        )
    return scores


def _add(found: Results, run: Run) -> None:
    _check_scores(run)
    found.runs.append(run)
    if not run.complete:
        found.warnings.append(f"{run.name}: not complete, shown as far as it got; the command that began it goes on")


def _read_profile(found: Results, folder: Path, name: str) -> None:
    try:
        rows = parse_json(read_whole(folder / PROFILE), "it")
    except DataError as error:
        raise DataError(f"{PROFILE} is not readable JSON: {one_line(error)}") from error
    needed = ("method", "length", "window", "seconds_per_step", "peak_bytes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(needed) <= set(row) for row in rows):
        raise DataError(f"profile.json must be a list of objects with {', '.join(needed)}")
    found.profiles.append((name or folder.resolve().name, rows))


def _read_e2(found: Results, folder: Path, name: str) -> None:
    found.trainings.append((name or folder.resolve().name, read_json(folder / E2_CONFIG)))


def _check_scores(run: Run) -> None:
    if not run.about.cells:
        tasks = run.scores.get("tasks")
        if not isinstance(tasks, dict) or not all(value is None or number(value) for value in tasks.values()):
            raise DataError("scores.json has no `tasks` of numbers; score the run again: e2bench score")
    else:
        _ = run.cells


def checked_cells(run: Run) -> list[dict[str, Any]]:
    """The cells of scores.json, each with the numbers every table needs.

    Raises:
        DataError: the list is missing, or a cell lacks a number.
    """
    key, needed = run.about.cells, run.about.cell_needs
    cells = run.scores.get(key)
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise DataError(f"scores.json has no list `{key}`")
    for cell in cells:
        missing = [name for name in needed if not number(cell.get(name))]
        if missing:
            raise DataError(f"scores.json: a cell of `{key}` has no number {missing[0]!r}")
    return cells


def interval(part: dict[str, Any]) -> tuple[float, float] | tuple[None, None]:
    """The ends of an `interval` [low, high]; (None, None) where there is none.

    Raises:
        ValueError: it is something else than two numbers.
    """
    ends = part.get("interval")
    if ends is None:
        return None, None
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(number, ends)):
        raise ValueError(f"interval {ends!r} is not [low, high]")
    return ends[0], ends[1]


def number(value: object) -> TypeGuard[float]:
    """True for a finite int or float; JSON's true and false are none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def reason(error: object, folder: Path) -> str:
    """An error's message without where the results lie on this machine: a page gets passed on."""
    return one_line(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the folder")


def _name(folder: Path, results: Path) -> str:
    return "" if folder == results else folder.relative_to(results).as_posix()


def _foreign(folder: Path, names: list[str], *, is_run: bool) -> list[str]:
    """Files that belong to no run, training or report: named, so that a misplaced run is noticed."""
    known = {*_OURS, *report_files(folder), "result.json", "lm-eval.json"}  # of LongBench's scorer and of lm-eval
    known_suffixes = _OURS_SUFFIXES if is_run else _OURS_SUFFIXES - {".jsonl", ".npz"}
    return [name for name in names if name not in known and Path(name).suffix.lower() not in known_suffixes]


def _of_report(folder: Path, name: str) -> bool:
    """Whether a folder beside a report's marker holds the report's own files."""
    return any(file.startswith(f"{name}/") for file in report_files(folder))


def report_files(folder: Path) -> list[str]:
    """Names of the files that an earlier report of ours wrote into `folder`; [] where there is none."""
    try:
        marker = read_json(folder / MARKER)
    except DataError:
        return []
    files = marker.get("files") if marker.get("made_by") == "e2bench report" else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []
