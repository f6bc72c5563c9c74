"""RULER in the report: means by length beside published ones, every task at every length, and maps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from e2bench.reporting import labels, tables
from e2bench.reporting.figures import ON_MAP, Figure, Series, canvas, draw_lines, length_axis, plain, style, to_png
from e2bench.reporting.runs import Results, Run, interval
from e2bench.reporting.table import EXACT, Column, Row, Table
from e2bench.scoring.ruler import effective_length, weighted_mean
from e2bench.tasks.ruler import BY_NAME, RULER, THRESHOLD

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)  # of the published rows
AVERAGES = ("Avg", "wAvg (inc)", "wAvg (dec)")
NOTES = (
    "Rows marked published are those of NVIDIA/RULER's README at c3f5e3b: 500 samples of each of the 13 tasks at every "
    "length, its own chat formats. They compare with measured rows of the same tasks, samples and chat format only.",
    f"Effective: the longest length whose mean, and that of all shorter ones, is at least {THRESHOLD} (Llama-2-7B-chat "
    "at 4k). wAvg: lengths weighted 1, 2, 3, … up to the longest (inc) or the shortest (dec). All of them need the 13 "
    "tasks under RULER's own names at every length of the run.",
)


def means(found: Results) -> list[Table]:
    """One row a run, below the published ones, one column a length."""
    runs = found.of("ruler")
    if not runs:
        return []
    names = labels.told_apart(runs, [labels.legend(run) for run in runs])
    rows = [_published(row) for row in tables.published("ruler")]
    rows += [_measured(run, name) for run, name in zip(runs, names, strict=True)]
    lengths = sorted({*LENGTHS, *(int(cell["length"]) for run in runs for cell in run.cells)})
    columns = [tables.SOURCE, tables.MODEL, tables.RUN, Column("tasks", "Tasks"), Column("samples", "Samples")]
    columns += [Column(str(length), labels.tokens(length), 1) for length in lengths]
    columns += [Column("effective", "Effective"), tables.OVER, *(Column(key, key, 1) for key in AVERAGES), tables.DATA]
    title = "RULER. Mean over tasks by length (%)"
    return [Table("ruler", title, columns, rows, list(NOTES))]


def _published(row: Row) -> Row:
    known = [(length, float(row[str(length)])) for length in LENGTHS if row[str(length)] is not None]
    row |= {"source": "published", "tasks": f"{len(RULER)} of {len(RULER)}", "samples": "500 each"}
    row["effective"] = _effective(effective_length(known, THRESHOLD))
    if len(known) == len(LENGTHS):
        inc, dec = (weighted_mean(known, increasing=up) for up in (True, False))
        row |= dict(zip(AVERAGES, (sum(mean for _, mean in known) / len(known), inc, dec), strict=True))
    return row


def _effective(length: int | None) -> str:
    return f"below {labels.tokens(LENGTHS[0])}" if length is None else labels.tokens(length)


def _measured(run: Run, name: str) -> Row:
    averages = run.scores.get("averages", {}).get("ruler", {})
    details = run.scores["details"]
    own = sum(task.name in details for task in RULER)
    demo = sum(BY_NAME[task].is_demo for task in details)
    row: Row = {"source": "measured", "model": name, "run": run.name, "data": labels.data(run), "intervals": {}}
    row["tasks"] = f"{own} of {len(RULER)}" + (f", {demo} demo" if demo else "")
    row["samples"] = _samples(details)
    for cell in run.cells:
        key = str(int(cell["length"]))
        row[key] = cell["score"]
        if interval(cell) != (None, None):
            row["intervals"][key] = interval(cell)
    whole = averages.get("Avg") is not None
    shortest = min(int(cell["length"]) for cell in run.cells)
    effective = run.scores.get("effective_length")
    if whole:
        row["effective"] = labels.tokens(effective) if effective else f"below {labels.tokens(shortest)}"
    return (
        row
        | {key: averages.get(key) for key in AVERAGES}
        | {tables.OVER.key: labels.averages_over(run, averages.values())}
    )


def _samples(details: dict[str, Any]) -> str:
    """Samples of a task at a length, in words."""
    counts = {cell["scored"] for entry in details.values() for cell in entry["by_length"].values()}
    return f"{min(counts)} each" if len(counts) == 1 else f"{min(counts)} to {max(counts)} each"


def cells(found: Results) -> list[Table]:
    """Every task of every run at every length, unrounded."""
    rows: list[Row] = []
    for run in found.of("ruler"):
        for task, entry in run.scores["details"].items():
            for length, cell in entry["by_length"].items():
                low, high = interval(cell)
                row: Row = {"run": run.name, "model": labels.legend(run), "data": labels.data(run), "task": task}
                row |= {"length": int(length), "score": cell["score"], "low": low, "high": high}
                rows.append(row | {"scored": cell["scored"]} | {key: entry[key] for key in ("metric", "version")})
    columns = [tables.RUN, tables.MODEL, tables.DATA, Column("task", "Task"), Column("length", "Length", 0)]
    columns += [Column(key, key.title(), EXACT) for key in ("score", "low", "high")]
    columns += [Column("scored", "Samples", 0), Column("metric", "Metric"), Column("version", "Version")]
    note = "Interval: bootstrap over samples, 95 %."
    return [Table("ruler-tasks", "RULER, task by task and length", columns, rows, [note])] if rows else []


def maps(found: Results) -> list[Figure]:
    """Means by length with their intervals, above a task by length map of every run."""
    runs = found.of("ruler")
    if not runs:
        return []
    names = labels.told_apart(runs, [labels.legend(run) for run in runs])
    with style():
        per_row = min(len(runs), 2)
        rows = -(-len(runs) // per_row)
        top, below_inches = 2.6 + 0.2 * -(-len(runs) // 2), (1.0 + 0.21 * len(RULER)) * rows
        figure = canvas(max(4.4 * per_row, 6.4), top + below_inches)
        above, below = figure.subfigures(2, 1, height_ratios=[top, below_inches])  # type: ignore[misc]
        _curves(above, runs, names)
        panels = below.subplots(rows, per_row, squeeze=False)
        for axes in panels.flat[len(runs) :]:
            axes.set_axis_off()
        for axes, run, name in zip(panels.flat, runs, names, strict=False):
            _map(axes, run, name)
        png = to_png(figure)
    caption = (
        "Score of each task at each length in percent (share of the references found), and the mean over the tasks of "
        f"a run with its 95 % interval (bootstrap within each task). Dashed: {THRESHOLD}, which a length must reach to "
        "count as effective. Tasks named -demo ran over other texts than RULER's."
    )
    title = "RULER by task and length"
    return [Figure("ruler-map", title, caption, png, _numbers(runs, names, title))]


def _numbers(runs: Sequence[Run], names: Sequence[str], title: str) -> Table:
    """What the figure draws: a line for each mean and each cell."""
    rows: list[Row] = []
    for run, name in zip(runs, names, strict=True):
        parts = [("mean", cell["length"], cell) for cell in run.cells]
        for task, entry in run.scores["details"].items():
            parts += [(task, int(length), cell) for length, cell in entry["by_length"].items()]
        for task, length, cell in parts:
            low, high = interval(cell)
            row: Row = {"run": run.name, "series": name, "task": task, "length": length, "score": cell["score"]}
            rows.append(row | {"low": low, "high": high, "data": labels.data(run)})
    columns = [Column("run", "Run"), Column("series", "Series"), Column("task", "Task"), Column("length", "Length", 0)]
    columns += [*(Column(key, key.title(), 4) for key in ("score", "low", "high")), Column("data", "Data")]
    return Table("ruler-map", title, columns, rows)


def _curves(figure: SubFigure, runs: Sequence[Run], names: Sequence[str]) -> None:
    axes = figure.subplots()
    series = []
    for run, name in zip(runs, names, strict=True):
        ordered = sorted(run.cells, key=lambda cell: float(cell["length"]))
        ends = [interval(cell) for cell in ordered]
        x, y = [cell["length"] for cell in ordered], [cell["score"] for cell in ordered]
        series.append(Series(name, x, y, [low for low, _ in ends], [high for _, high in ends]))
    draw_lines(axes, series)
    axes.axhline(THRESHOLD, color="#7F7F7F", linewidth=1, linestyle=(0, (5, 3)))
    length_axis(axes, [x for line in series for x in line.x], "Length (tokens)")
    axes.set_ylim(-4, 104)
    axes.set_ylabel("Mean of the run's tasks (%)")
    figure.legend(loc="outside lower center", ncols=2, handlelength=3)


def _map(axes: Axes, run: Run, name: str) -> None:
    """Tasks downward in RULER's order, lengths to the right; each cell also says its number."""
    details = run.scores["details"]
    tasks = [task for task in BY_NAME if task in details]
    lengths = sorted(int(cell["length"]) for cell in run.cells)
    values = np.full((len(tasks), len(lengths)), np.nan)
    for row, task in enumerate(tasks):
        for length, cell in details[task]["by_length"].items():
            if cell["score"] is not None:
                values[row, lengths.index(int(length))] = cell["score"]
    axes.set_title(plain(name, 44), fontsize=8.5)
    axes.grid(False)
    axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(lengths)), [labels.tokens(length) for length in lengths])
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(length=0, labelsize=7.5)
    axes.set_xlabel("Length (tokens)")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if value < 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink, gid=ON_MAP)


BUILDERS = (means,)
DETAILS = (cells,)
FIGURES = (maps,)
