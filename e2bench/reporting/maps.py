"""Figures that are maps: the passkey and needle grids, attention (Figure 6) and trained positions (Figures 2 and 3)."""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from e2bench.errors import DataError, one_line
from e2bench.reporting import labels
from e2bench.reporting.figures import (
    COLOURS,
    ON_MAP,
    Figure,
    Series,
    canvas,
    draw_lines,
    length_axis,
    plain,
    style,
    to_png,
)
from e2bench.reporting.runs import Results, Run, interval, reason
from e2bench.reporting.selection import primary
from e2bench.reporting.table import EXACT, Column, Row, Table

BINS = 256  # columns of an attention panel: a gold span of 34 tokens in 65,536 is then still one column wide
T = TypeVar("T")
DepthCells = dict[tuple[int, float], tuple[int, int]]  # (length, depth): (successes, trials)


def passkey(found: Results) -> list[Figure]:
    """The passkey grid."""
    title, about = (
        "Passkey retrieval by length and depth",
        "Share of trials, in percent, in which the first integer of the answer is the key.",
    )
    return _depth_maps(found, "passkey", title, about, _template_words)


def needle(found: Results) -> list[Figure]:
    """The needle grid."""
    title = "A needle in a haystack by length and depth"
    about = "Share of trials, in percent, in which the answer holds the value asked for."
    return _depth_maps(found, "needle", title, about, _hay_words)


def _depth_maps(
    found: Results, experiment: str, title: str, about: str, described: Callable[[str], str]
) -> list[Figure]:
    """Accuracy per length with its Wilson interval, above a depth by length map of every run.

    described: what stands in a run's `template` or `haystack` -> a sentence of the caption.
    """
    runs = primary(found.of(experiment))
    if not runs:
        return []
    words = runs[0].about.words  # type: ignore[attr-defined]  # of DepthGrid
    kinds = [str(run.resolved[words]) for run in runs]
    one = f"{words.title()} {kinds[0]}" if len(set(kinds)) == 1 else ""
    legends = [labels.legend(run) + ("" if one else f", {kind}") for run, kind in zip(runs, kinds, strict=True)]
    names = labels.told_apart(runs, legends)
    grids = [_grid(run, found) for run in runs]
    with style():
        per_row = min(len(runs), 3)
        rows = -(-len(runs) // per_row)
        top, maps = 2.5 + 0.2 * -(-len(runs) // 2), 2.6 * rows  # inches; the legend has two columns
        figure = canvas(max(3.1 * per_row, 6.4), top + maps)
        above, below = figure.subfigures(2, 1, height_ratios=[top, maps])  # type: ignore[misc]
        _accuracy(above, runs, names, title=one)
        cells = below.subplots(rows, per_row, squeeze=False)
        for axes in cells.flat[len(runs) :]:
            axes.set_axis_off()
        for at, (axes, grid, name) in enumerate(zip(cells.flat, grids, names, strict=False)):
            depth_map(axes, grid, name)
            axes.set_ylabel(f"Depth of the {_HIDDEN[experiment]}" if at % per_row == 0 else "")
        png = to_png(figure)
    caption = (
        f"{about} At the top all depths together, with the Wilson 95 % interval; below each depth{_trials(grids)}. "
        f"Depth 0 is the start of the input. {' '.join(sorted(set(map(described, kinds))))} E²-LLM has no such table."
    )
    data = [
        row for run, name, grid in zip(runs, names, grids, strict=True) for row in _depth_rows(run, name, grid, words)
    ]
    return [Figure(experiment, title, caption, png, Table(experiment, title, _depth_columns(words), data))]


_HIDDEN = {"passkey": "key", "needle": "needle"}


def _trials(grids: Sequence[DepthCells]) -> str:
    """How many trials a cell of the maps holds, in words."""
    counts = sorted({trials for grid in grids for _, trials in grid.values()})
    return f" ({counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} trials a cell)" if counts else ""


def _template_words(template: str) -> str:
    whose = {"landmark": "Landmark attention's words, as most papers use them", "e2bench": "e2bench's own words"}
    return f"Template {template}: {whose.get(template, 'words of its own')}."


def _hay_words(hay: str) -> str:
    whose = {"essays": "essays by Paul Graham", "demo": "docstrings of Python's standard library"}
    return f"Haystack {hay}: {whose.get(hay, 'a text of its own')}. Question and needle: RULER's niah_single_2."


def _depth_columns(words: str) -> list[Column]:
    texts = [Column(key, key.title()) for key in ("run", "series", words)]
    sizes = [Column("length", "Length", 0), Column("depth", "Depth"), Column("scale", "g", 2)]
    counts = [Column("successes", "Successes", 0), Column("trials", "Trials", 0)]
    shares = [Column(key, key.title(), 4) for key in ("accuracy", "low", "high")]
    return [*texts, *sizes, *counts, *shares, Column("data", "Data")]


def _grid(run: Run, found: Results) -> DepthCells:
    """Successes and trials by cell; {} with a warning where the lines cannot be read."""
    counts: dict[tuple[int, float], list[int]] = defaultdict(lambda: [0, 0])
    try:
        for line in run.lines(run.experiment):
            cell = counts[int(line["length"]), float(line["depth"])]
            cell[0] += bool(line["success"])
            cell[1] += 1
    except (DataError, KeyError, TypeError, ValueError) as error:
        found.warnings.append(f"{run.name}/{run.experiment}.jsonl: no depths are shown ({reason(error, run.folder)})")
        return {}
    return {key: (hits, trials) for key, (hits, trials) in counts.items()}


def _accuracy(figure: SubFigure, runs: Sequence[Run], names: Sequence[str], *, title: str) -> None:
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    series = []
    for run, name in zip(runs, names, strict=True):
        cells = sorted(run.cells, key=lambda cell: float(cell["length"]))
        ends = [interval(cell) for cell in cells]
        x, y = [cell["length"] for cell in cells], [cell["accuracy"] for cell in cells]
        series.append(Series(name, x, y, [low for low, _ in ends], [high for _, high in ends]))
    draw_lines(axes, series)
    length_axis(axes, [x for line in series for x in line.x], "Length (tokens)")
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("Accuracy, all depths")
    figure.legend(loc="outside lower center", ncols=2, handlelength=3)


def depth_map(axes: Axes, grid: DepthCells, name: str, depths: Sequence[float] = ()) -> None:
    """Lengths to the right, depths downward as one reads; each cell also says its share in percent.

    depths: the rows, those of the grid where none are given.
    """
    axes.set_title(plain(name, 44), fontsize=8.5)
    axes.grid(False)
    lengths, depths = sorted({length for length, _ in grid}), depths or sorted({depth for _, depth in grid})
    if not grid:
        axes.text(0.5, 0.5, "no depths recorded", ha="center", va="center", transform=axes.transAxes)
        return
    share = np.full((len(depths), len(lengths)), np.nan)
    for (length, depth), (hits, trials) in grid.items():
        share[depths.index(depth), lengths.index(length)] = hits / trials
    axes.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [labels.tokens(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.2g}" for depth in depths])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("Length (tokens)")
    if share.size <= 130:
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value):
                ink = "white" if value < 0.55 else "black"
                axes.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=ink, gid=ON_MAP
                )


def _depth_rows(run: Run, name: str, grid: DepthCells, words: str) -> list[Row]:
    rows: list[Row] = []
    for cell in sorted(run.cells, key=lambda cell: float(cell["length"])):
        shared = {"run": run.name, "series": name, "length": cell["length"], "scale": cell.get("scale")}
        shared |= {words: run.resolved[words], "data": labels.data(run)}
        low, high = interval(cell)
        hits = sum(hits for (length, _), (hits, _) in grid.items() if length == cell["length"])
        total = {"depth": "all", "successes": hits if grid else None, "trials": cell.get("trials")}
        rows.append(shared | total | {"accuracy": cell["accuracy"], "low": low, "high": high})
        for (length, depth), (hits, trials) in sorted(grid.items()):
            if length == cell["length"]:
                part = {"depth": f"{depth:g}", "successes": hits, "trials": trials, "accuracy": hits / trials}
                rows.append(shared | part)
    return rows


def figure_6(found: Results) -> list[Figure]:
    """Attention of every generated token over the input, one panel a length, the gold span marked."""
    return one_a_run("figure6", "attention", found, _attention_panels, _attention_figure)


def one_a_run(
    name: str,
    experiment: str,
    found: Results,
    read: Callable[[Run, Results], T],
    draw: Callable[[str, Run, T, str], Figure],
) -> list[Figure]:
    """NAME, NAME-2, …: a figure for each run of an experiment in which `read` finds something."""
    drawn = [(run, shown) for run in found.of(experiment) if (shown := read(run, found))]
    runs = [run for run, _ in drawn]
    names = labels.told_apart(runs, [labels.legend(run) for run in runs])
    return [
        replace(draw(name if not at else f"{name}-{at + 1}", run, shown, label), of=label)
        for at, ((run, shown), label) in enumerate(zip(drawn, names, strict=True))
    ]


def _attention_panels(run: Run, found: Results) -> list[tuple[dict[str, Any], NDArray[np.float32]]]:
    """(line, its rows) of one trial of each length that stored its rows."""
    panels = []
    try:
        stored = [line for line in run.lines("attention") if line.get("npz") and _file(run, line).exists()]
        panels = [(line, _rows(_file(run, line), line)) for line in one_a_length(stored)]
    except (DataError, KeyError, TypeError, ValueError, OSError) as error:
        found.warnings.append(f"{run.name}: its attention rows cannot be drawn ({reason(error, run.folder)})")
    return panels


def _file(run: Run, line: dict[str, Any]) -> Path:
    return run.folder / Path(str(line["npz"])).name  # never outside the run


def one_a_length(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each length the first trial that answers, as in the paper's figure, else the first."""
    chosen: dict[int, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: not line.get("success")):  # stable
        chosen.setdefault(line["length"], line)
    return [chosen[length] for length in sorted(chosen)]


MOST_BYTES = 1 << 30  # a small file can unpack to terabytes; 500 tokens over an input of 500k fit


def _rows(path: Path, line: dict[str, Any]) -> NDArray[np.float32]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if stored.zip.getinfo("rows.npy").file_size > MOST_BYTES:
                raise DataError(f"{path.name}: rows of more than {MOST_BYTES >> 20} MiB are not drawn")
            rows = np.asarray(stored["rows"], dtype=np.float32)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, MemoryError) as error:
        raise DataError(f"{path.name} holds no array `rows`: {one_line(error)}") from error
    first, last = line["gold"]
    if rows.ndim != 2 or not rows.size or not 0 <= first <= last < rows.shape[1]:
        raise DataError(f"{path.name}: rows of shape {rows.shape} do not hold the gold span {first}..{last}")
    return rows


def pooled(rows: NDArray[np.float32], bins: int = BINS) -> NDArray[np.float32]:
    """(generated, inputs) -> (generated, at most `bins`): the largest value of each run of inputs.

    The maximum, not the mean: one attended token among 256 would vanish in a mean.
    """
    starts = np.unique(np.linspace(0, rows.shape[1], min(bins, rows.shape[1]), endpoint=False).astype(int))
    return np.maximum.reduceat(rows, starts, axis=1)


def _attention_figure(
    name: str, run: Run, panels: Sequence[tuple[dict[str, Any], NDArray[np.float32]]], label: str
) -> Figure:
    maps = [pooled(rows) for _, rows in panels]
    heights = [0.75 + 0.05 * max(len(values), 6) for values in maps]
    # The first tokens are attention sinks: they would take the whole range of colours.
    top = max(float(rows[:, 4:].max()) for _, rows in panels if rows.shape[1] > 4) or 1.0
    with style():
        figure = canvas(7.2, 0.9 + sum(heights))
        for axes, (line, rows), values in zip(
            figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, maps, strict=True
        ):
            image = _attention_map(axes, line, rows.shape[1], values, LogNorm(top / 1000, top, clip=True))
        axes.set_xlabel("Index of the input token")
        figure.supylabel("Generated token", fontsize=9)
        bar = figure.colorbar(image, ax=figure.axes, location="bottom", shrink=0.5, pad=0.02, aspect=40, extend="both")
        bar.set_label("Attention of a generated token (largest in each column's inputs)")
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        png = to_png(figure)
    title = "Figure 6. Attention of the answer over the input"
    line = panels[0][0]
    caption = (
        f"Rows: generated tokens; columns: input tokens, {BINS} at most, each the largest value of its tokens. Orange "
        "frame and triangle: the gold span. Of each length the first answered trial whose rows are there, else the "
        f"first one. Layers {line.get('layers')}, heads {line.get('heads')}, reduction {line.get('reduction')}."
    )
    return Figure(name, title, caption, png, _attention_table(name, title, run, panels, maps))


def _attention_map(
    axes: Axes, line: dict[str, Any], inputs: int, values: NDArray[np.float32], norm: Normalize
) -> matplotlib.image.AxesImage:
    first, last = line["gold"]
    image = axes.imshow(
        values, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest", extent=(0, inputs, len(values), 0)
    )
    axes.grid(False)
    width = max(last + 1 - first, inputs / 400)  # seen also where it is thinner than a pixel
    box = Rectangle((first - inputs / 250, 0), width + inputs / 125, len(values), fill=False, edgecolor=COLOURS[1])
    box.set(linewidth=1.2, clip_on=False)
    axes.add_patch(box)
    above = axes.get_xaxis_transform()  # just above the frame, whatever its height
    axes.plot([first + width / 2], [1.04], "v", color=COLOURS[1], markersize=5, clip_on=False, transform=above)
    answered = "answered" if line.get("success") else "not answered"
    share = f"gold span [{first}, {last}]: {line.get('gold_share', float('nan')):.1%} of attention"
    axes.set_title(
        f"{labels.tokens(line['length'])}, g = {labels.scale(line.get('scale'))}, {answered}; {share}",
        loc="left",
        pad=11,
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlim=(0, inputs), ylim=(len(values), 0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=min(5, max(2, len(values) // 4)), integer=True))
    return image


def _attention_table(
    name: str,
    title: str,
    run: Run,
    panels: Sequence[tuple[dict[str, Any], NDArray[np.float32]]],
    maps: Sequence[NDArray[np.float32]],
) -> Table:
    """One line a generated token: its share on the gold span, and the columns as drawn."""
    columns = [Column("run"), *(Column(key, "", 0) for key in ("length", "tokens", "gold_first", "gold_last", "row"))]
    columns += [Column("token"), Column("gold_share", "", EXACT), Column("data")]
    columns += [Column(f"bin{at}", "", 5) for at in range(max(values.shape[1] for values in maps))]
    data: list[Row] = []
    for (line, rows), values in zip(panels, maps, strict=True):
        first, last = line["gold"]
        generated = line.get("generated") or []
        for at, drawn in enumerate(values):
            row: Row = {"run": run.name, "length": line["length"], "tokens": rows.shape[1], "row": at}
            row |= {"gold_first": first, "gold_last": last, "token": generated[at] if at < len(generated) else ""}
            row |= {"gold_share": float(rows[at, first : last + 1].sum()), "data": labels.data(run)}
            data.append(row | {f"bin{n}": float(value) for n, value in enumerate(drawn)})
    return Table(name, title, columns, data)


def figures_2_and_3(found: Results) -> list[Figure]:
    """The trained positions, drawn from `e2bench.train.e2` itself; where E² training is part of the results."""
    configs = [run.e2 for run in found.runs if run.e2] + [e2 for _, e2 in found.trainings]
    configs = [e2 for e2 in configs if e2.get("method") == "e2" and e2.get("native_window") and e2.get("train_window")]
    if not configs:
        return []
    native, train, sinks = (int(configs[0].get(key) or 0) for key in ("native_window", "train_window", "sinks"))
    by_scale = [(f"g = {g}", g, 0) for g in (2, 5, 10)]
    reach = 5 * native - train
    by_offset = [(f"g = 5, t = {t:,}", 5, t) for t in (0, max(0, reach) // 3, max(0, 2 * reach) // 3, max(0, reach))]
    texts = (
        ("figure2", "Figure 2. Trained positions at several scales g, offset t = 0", by_scale),
        ("figure3", "Figure 3. Trained positions at g = 5 with several offsets t", by_offset),
    )
    return [_positions_figure(name, title, rows, native, train, sinks) for name, title, rows in texts]


def _positions_figure(
    name: str, title: str, rows: Sequence[tuple[str, int, int]], native: int, train: int, sinks: int
) -> Figure:
    from e2bench.train.e2 import positions

    data: list[Row] = []
    with style():
        figure = canvas(7.2, 1.1 + 0.42 * len(rows))
        axes = figure.subplots()
        for at, (label, scale, offset) in enumerate(rows):
            index = positions(train, scale, offset, sinks) * scale  # index in the window g·L: m + t_m
            axes.barh(at, scale * native, height=0.5, color="#E4E4E4")
            some = np.unique(np.concatenate([np.arange(min(sinks, train)), np.linspace(0, train - 1, 160).astype(int)]))
            axes.plot(index[some], np.full(len(some), at), "|", color=COLOURS[0], markersize=12, markeredgewidth=1.1)
            spread = (float(index[sinks]), float(index[-1])) if train > sinks else (0.0, float(index[-1]))
            row: Row = {"row": label, "scale": scale, "offset": offset, "window": scale * native, "trained": train}
            data.append(row | {"sinks": sinks, "first": spread[0], "last": spread[1]})
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("Position index in the extended window of g·L tokens")
        png = to_png(figure)
    caption = (
        f"Blue: positions of one training row of R = {train:,} tokens; grey: the extended window "
        f"g·L, L = {native:,}. The first {sinks} tokens never move."
    )
    numbers = [Column(key, "", 0) for key in ("scale", "offset", "window", "trained", "sinks", "first", "last")]
    return Figure(name, title, caption, png, Table(name, title, [Column("row"), *numbers], data))


BUILDERS = (figures_2_and_3, figure_6, passkey, needle)
