"""RULER's needles by depth: which of the things that were hidden in a long text an answer holds."""

from __future__ import annotations

from collections import defaultdict

from e2bench.errors import DataError
from e2bench.reporting import labels
from e2bench.reporting.figures import Figure, canvas, style, to_png
from e2bench.reporting.maps import DepthCells, depth_map, one_a_run
from e2bench.reporting.runs import Results, Run, reason
from e2bench.reporting.table import Column, Row, Table
from e2bench.tasks.ruler import BY_NAME

BINS = 10
PER_ROW = 4
TITLE = "RULER's needles by length and depth"
CAPTION = (
    "Share of the needles found in per cent, by where each stands in the prompt: depth 0.3 is 0.3 to 0.4 of its "
    "characters. Of several needles asked for at once (niah_multivalue, niah_multiquery) each counts alone. Depths are "
    "RULER's own draws: cells hold different numbers of needles (column trials of the CSV), empty ones none."
)


def maps(found: Results) -> list[Figure]:
    """A figure a run, a panel a needle task."""
    return one_a_run("ruler-depths", "ruler", found, _tasks, _figure)


def _tasks(run: Run, found: Results) -> dict[str, DepthCells]:
    """Task: its grid. Runs from before lines had `depths` have none."""
    try:
        grids = {name: _grid(run, name) for name in BY_NAME if name in run.files() and BY_NAME[name].hides_needles}
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        found.warnings.append(f"{run.name}: no depths of needles are shown ({reason(error, run.folder)})")
        return {}
    return {name: grid for name, grid in grids.items() if grid}


def _grid(run: Run, name: str) -> DepthCells:
    counts: dict[tuple[int, float], list[int]] = defaultdict(lambda: [0, 0])
    for line in run.lines(name):
        if line["finish"] == "error":
            continue
        for needle, depth in zip(line["outputs"], line.get("depths", ()), strict=False):
            cell = counts[int(line["length"]), min(int(depth * BINS), BINS - 1) / BINS]
            cell[0] += BY_NAME[name].metric(line["pred"], [needle]) == 1
            cell[1] += 1
    return {key: (hits, trials) for key, (hits, trials) in counts.items()}


def _figure(name: str, run: Run, tasks: dict[str, DepthCells], label: str) -> Figure:
    per_row = min(len(tasks), PER_ROW)
    rows = -(-len(tasks) // per_row)
    with style():
        figure = canvas(max(2.7 * per_row, 4.0), 2.6 * rows)
        panels = figure.subplots(rows, per_row, squeeze=False)
        for axes in panels.flat[len(tasks) :]:
            axes.set_axis_off()
        for at, (axes, (task, grid)) in enumerate(zip(panels.flat, tasks.items(), strict=False)):
            depth_map(axes, grid, task, [at / BINS for at in range(BINS)])
            axes.set_ylabel("Depth of the needle" if at % per_row == 0 else "")
        png = to_png(figure)
    data: list[Row] = [
        {"run": run.name, "series": label, "task": task, "length": length, "depth": f"{depth:g}"}
        | {"successes": hits, "trials": trials, "share": hits / trials, "data": labels.data(run)}
        for task, grid in tasks.items()
        for (length, depth), (hits, trials) in sorted(grid.items())
    ]
    columns = [Column(key, key.title()) for key in ("run", "series", "task")]
    columns += [Column("length", "Length", 0), Column("depth", "Depth")]
    columns += [Column("successes", "Successes", 0), Column("trials", "Trials", 0), Column("share", "Share", 4)]
    return Figure(name, TITLE, CAPTION, png, Table(name, TITLE, [*columns, Column("data", "Data")], data))


FIGURES = (maps,)
