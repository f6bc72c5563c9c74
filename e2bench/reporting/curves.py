"""Figures that are lines: 1 (cost of training), 4 (score by step), 5 and 7 (perplexity), and plain extrapolation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from matplotlib.axes import Axes

from e2bench.reporting import ablations, labels
from e2bench.reporting.figures import (
    Figure,
    Series,
    canvas,
    draw_lines,
    legend_below,
    length_axis,
    look,
    mark_native,
    series_table,
    style,
    to_png,
    value_axis,
    wrapped,
)
from e2bench.reporting.runs import Results, Run, interval, number
from e2bench.reporting.selection import primary
from e2bench.reporting.table import EXACT, Column, Row, Table
from e2bench.reporting.tables import is_auto, protocol


def figure_1(found: Results) -> list[Figure]:
    """Memory and time of a training step: PI at L' against E² at R."""
    rows: list[Row] = [{"run": name, **row} for name, profile in found.profiles for row in profile]
    if not rows:
        return []
    with style():
        figure = canvas(7.2, 3.1)
        left, right = figure.subplots(1, 2)
        largest = max(row["peak_bytes"] for row in rows)
        unit, bytes_each = ("GiB", 2**30) if largest >= 2 * 2**30 else ("MiB", 2**20)
        _cost_panel(left, _profile_series(rows, "peak_bytes", 1 / bytes_each), f"Peak memory ({unit})")
        _cost_panel(right, _profile_series(rows, "seconds_per_step", 1.0), "Time per step (s)")
        legend_below(figure, left, 3)
        png = to_png(figure)
    for row in rows:
        row["data"] = f"random tokens, one row a step, attention {row.get('attention') or 'not recorded'}"
    columns = [Column(key, key) for key in ("run", "method", "device", "data")]
    columns += [Column(key, key, 0) for key in ("length", "window", "peak_bytes")] + [
        Column("seconds_per_step", "", EXACT)
    ]
    title = "Figure 1. Cost of a training step by the window it extends to"
    devices = dict.fromkeys(str(row.get("device") or "a device that was not recorded") for row in rows)
    caption = (
        "Position Interpolation trains on rows as long as the window L'; E² trains on rows of R tokens whatever the "
        f"window, so its cost is one level. Measured on {', '.join(devices)}; on a CPU the peak is the whole "
        "process's, Python included. The paper's Figure 1 is a drawing without numbers."
    )
    return [Figure("figure1", title, caption, png, Table("figure1", title, columns, rows))]


def _profile_series(rows: Sequence[Row], key: str, factor: float) -> list[Series]:
    groups: dict[str, list[Row]] = defaultdict(list)
    several = len({row["run"] for row in rows}) > 1
    for row in rows:
        name = {"e2": "E²-LLM", "pi": "PI", "none": "plain"}.get(str(row["method"]), str(row["method"]))
        groups[f"{name} [{row['run']}]" if several else name].append(row)
    windows = [row["window"] for row in rows]
    series = []
    for name, group in groups.items():
        ordered = sorted(group, key=lambda row: row["window"])
        x, y = [row["window"] for row in ordered], [row[key] * factor for row in ordered]
        lengths = {row["length"] for row in group}
        name = f"{name} (rows of {labels.tokens(lengths.pop())})" if len(lengths) == 1 else f"{name} (rows of L')"
        if len(x) == 1:  # measured once, holds for every window
            series.append(Series(name, [min(windows), max(windows)], y * 2, is_level=True))
        else:
            series.append(Series(name, x, y))
    return series


def _cost_panel(axes: Axes, series: Sequence[Series], label: str) -> None:
    draw_lines(axes, series)
    length_axis(axes, [x for line in series for x in line.x], "Extended window L' (tokens)")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)


def figure_4(found: Results) -> list[Figure]:
    """Scores by tuning step, one panel a measure."""
    tables = ablations.steps_table(found)
    if not tables:
        return []
    [data] = tables
    panels = _step_panels(data.rows)
    with style():
        figure = canvas(max(3.6 * len(panels), 4.8), 3.3)
        for axes, (label, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_lines(axes, series)
            axes.set_xlabel("Tuning step")
            value_axis(axes, [y for line in series for y in line.y], label)
            if label.startswith(("Passkey", "Key-value")):
                axes.set_yscale("linear")
                axes.set_ylim(-4, 104)
        legend_below(figure, figure.axes[0], 3)
        png = to_png(figure)
    title = "Figure 4. Scores by tuning step"
    caption = (
        "Every measured checkpoint of a training. The paper's Figure 4 shows LongBench for 13B; it has no numbers."
    )
    return [Figure("figure4", title, caption, png, Table("figure4", title, data.columns, data.rows))]


def _step_panels(rows: Sequence[Row]) -> list[tuple[str, list[Series]]]:
    """(axis label, lines) for LongBench, the retrieval tasks and perplexity, each at one window of its own."""
    panels: list[tuple[str, tuple[str, ...]]] = [("LongBench (%)", ("EN", "ZH", "All"))]
    panels += [(f"{label} (%)", (name,)) for name, label in ablations.RETRIEVAL.items()]
    panels += [("Perplexity", ("perplexity",))]
    drawn = []
    for label, names in panels:
        chosen = [row for row in rows if row["measure"] in names]
        if chosen:
            drawn.append((label, _step_series(chosen, several=len(names) > 1)))
    return drawn


def _step_series(rows: Sequence[Row], several: bool) -> list[Series]:
    """One line a (training, measure, window): of the windows the shortest, the middle and the longest."""
    windows = sorted({row["window"] for row in rows if row["window"]})
    shown = {windows[0], windows[len(windows) // 2], windows[-1]} if windows else {None}
    groups: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: -row["excess"]):  # the scale that just covers the window comes last
        if row["window"] in shown:
            parts = [row["method"], f"seed {row['seed']}", row["measure"] if several else ""]
            parts.append(f"at {labels.tokens(row['window'])}" if row["window"] else "")
            groups[", ".join(filter(None, parts))][row["step"]] = row
    return [
        Series(name, sorted(by_step), [by_step[step]["value"] for step in sorted(by_step)])
        for name, by_step in sorted(groups.items())
    ]


def figure_5(found: Results) -> list[Figure]:
    """Perplexity over length at several fixed scales; those beyond g_max were never seen in training."""
    curves: dict[str, list[tuple[float, Series]]] = defaultdict(list)
    natives: dict[str, list[int]] = {}
    drawn: list[Run] = []
    for run in primary(_plain_runs(found)):
        if is_auto(run, run.cells) or len({cell["scale"] for cell in run.cells}) < 2:
            continue
        g_max = (run.e2 or {}).get("g_max")
        heading = f"{run.model}, {labels.method(run)}"
        natives[heading] = _natives([run])
        drawn.append(run)
        for scale in sorted({cell["scale"] for cell in run.cells}):
            unseen = " (unseen)" if g_max and scale > g_max else ""
            cells = [cell for cell in run.cells if cell["scale"] == scale]
            curves[heading].append((scale, _curve(f"g = {scale:g}{unseen}", run, cells)))
    if not curves:
        return []
    panels = {name: [curve for _, curve in sorted(lines, key=lambda line: line[0])] for name, lines in curves.items()}
    title = "Figure 5. Perplexity at fixed scales, also beyond the largest trained one"
    caption = (
        f"{_INTERVALS} Dotted: the native window L. {_measured(drawn)} The paper's Figure 5 (g = 20, 30, 40, 50) has "
        "no numbers in its text; it reports good perplexity below 120k tokens and a decline beyond."
    )
    return [_perplexity_figure("figure5", title, caption, panels, natives)]


_INTERVALS = "Bands, or bars side by side where there are many lines: 95 % bootstrap over documents."


def _measured(runs: Sequence[Run]) -> str:
    """A sentence for each protocol and list of documents."""
    return f"Measured with {'; with '.join(dict.fromkeys(map(protocol, runs)))}."


def figure_7(found: Results) -> list[Figure]:
    """Perplexity up to the longest window, one line a method, one panel for what can be compared."""
    runs = [
        run
        for run in primary(_plain_runs(found))
        if is_auto(run, run.cells) or len({cell["scale"] for cell in run.cells}) == 1
    ]
    if not runs:
        return []
    panels: dict[str, list[Series]] = defaultdict(list)
    natives: dict[str, list[int]] = {}
    for heading, members in _comparable(runs).items():
        panels[heading] = _distinct([_curve(labels.legend(run), run, run.cells) for run in members], members)
        natives[heading] = _natives(members)
    title = "Figure 7. Perplexity up to the longest window"
    ends = any(_axis_end(series) for series in panels.values())
    beyond = f" ▲: more than {BEYOND} times the lowest value, above the axis." if ends else ""
    apart = " One panel for each data, protocol and L: only lines of one panel compare." if len(panels) > 1 else ""
    caption = (
        f"{_INTERVALS} g = L'/L means that each window has its own scale. Dotted: the native window L.{beyond}{apart} "
        f"{_measured(runs)} Ablations and trainings measured at one window are in Tables 4 and 5. The paper's Figure 7 "
        "(to 200k tokens) has no numbers in its text."
    )
    return [_perplexity_figure("figure7", title, caption, panels, natives)]


def _comparable(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs over the same documents under one protocol with one L, by what the group's panel is called.

    A checkpoint of ours that was measured at one window alone is no line, and left out beside lines.
    """
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        native = f"L = {labels.tokens(run.native_window)}" if run.native_window else ""
        groups[protocol(run), native].append(run)
    if len(groups) == 1:
        return {"": _lines(runs)}
    short = [", ".join(filter(None, (_short_protocol(group[0]), native))) for (_, native), group in groups.items()]
    if len(set(short)) < len(short):
        short = [", ".join(filter(None, key)) for key in groups]
    return dict(zip(short, map(_lines, groups.values()), strict=True))


def _lines(runs: Sequence[Run]) -> list[Run]:
    several = [run for run in runs if run.e2 is None or len({cell["window"] for cell in run.cells}) > 1]
    return several or list(runs)


def _natives(runs: Sequence[Run]) -> list[int]:
    return sorted({run.native_window for run in runs if run.native_window})


def _short_protocol(run: Run) -> str:
    """What a panel of perplexities was measured on, in a few words."""
    resolved = run.part("resolved")
    documents, used, last = (resolved.get(key) for key in ("documents", "doc_tokens", "max_windows"))
    parts = [f"{len(documents)} documents" if isinstance(documents, list) else ""]
    parts[0] += f" of {labels.tokens(used)}" if number(used) else ""
    if number(last):
        parts.append(f"last {last * resolved['stride']:,} tokens" if number(resolved.get("stride")) else "last windows")
    elif number(resolved.get("stride")):
        parts.append(f"all tokens, stride {resolved['stride']:,}")
    return ", ".join(filter(None, parts))


def extrapolation(found: Results) -> list[Figure]:
    """Scale 1 beyond the native window: does E² tuning extrapolate for free?"""
    runs = [run for run in found.of("ppl") if run.manifest.get("extrapolate")]
    if not runs:
        return []
    series = _distinct([_curve(labels.legend(run), run, run.cells) for run in runs], runs)
    title = "Plain extrapolation: perplexity at scale 1 beyond the native window"
    caption = (
        f"No interpolation at inference. {_INTERVALS} Dotted: the native window L. {_measured(runs)} Asked in the "
        "discussion of the paper: does E² tuning improve extrapolation without raising g?"
    )
    return [_perplexity_figure("extrapolation", title, caption, {"": series}, {"": _natives(runs)})]


def _plain_runs(found: Results) -> list[Run]:
    return [run for run in found.of("ppl") if not run.manifest.get("extrapolate")]


def _curve(label: str, run: Run, cells: Sequence[dict[str, Any]]) -> Series:
    ordered = sorted(cells, key=lambda cell: float(cell["window"]))
    intervals = [interval(cell) for cell in ordered]
    x, y = [cell["window"] for cell in ordered], [cell["perplexity"] for cell in ordered]
    low, high = [low for low, _ in intervals], [high for _, high in intervals]
    return Series(label, x, y, low, high, data=labels.data(run))


def _distinct(series: Sequence[Series], runs: Sequence[Run]) -> list[Series]:
    names = labels.told_apart(runs, [line.label for line in series])
    return [replace(line, label=name) for name, line in zip(names, series, strict=True)]


def _perplexity_figure(
    name: str, title: str, caption: str, panels: dict[str, list[Series]], natives: dict[str, list[int]]
) -> Figure:
    longest = max(len(panel) for panel in panels.values())
    with style():
        if len(panels) == 1:
            figure, per_row = canvas(6.4, 3.5 + 0.09 * longest), 1
        else:
            rows, per_row = -(-len(panels) // 2), 2
            figure = canvas(9.2, rows * (3.1 + 0.17 * longest))
        grid = figure.subplots(-(-len(panels) // per_row), per_row, squeeze=False).flat
        for axes in list(grid)[len(panels) :]:
            axes.set_axis_off()
        names = list(dict.fromkeys(line.label for panel in panels.values() for line in panel))
        above = 0
        for axes, (heading, series) in zip(figure.axes, panels.items(), strict=False):
            draw_lines(axes, series, [names.index(line.label) for line in series])  # the same look in every panel
            length_axis(axes, [x for line in series for x in line.x])
            hues = [look(names.index(line.label))["color"] for line in series]
            above = max(above, _perplexity_axis(axes, series, hues))
            mark_native(axes, natives.get(heading, ()))
            if len(panels) > 1:
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=3)
        for axes, heading in zip(figure.axes, panels, strict=False):
            axes.set_title(wrapped(heading), pad=6 + 9 * above)
        if len(panels) == 1:
            legend_below(figure, figure.axes[0])
        picture = to_png(figure)
    labelled = [
        replace(line, label=f"{heading}, {line.label}" if heading else line.label)
        for heading, panel in panels.items()
        for line in panel
    ]
    return Figure(name, title, caption, picture, series_table(name, title, labelled, "window", "perplexity"))


BEYOND = 4  # times the lowest value


def _axis_end(series: Sequence[Series]) -> float | None:
    """Where the vertical axis ends before its highest value: where two lines or more stay below, and would lie flat."""
    values = [y for line in series for y in line.y]
    end = BEYOND * min(values)
    stay = sum(max(line.y) <= end for line in series)
    return end if max(values) > end and stay > 1 else None


def _perplexity_axis(axes: Axes, series: Sequence[Series], hues: Sequence[str]) -> int:
    """The vertical axis; values beyond its end stand above it, each in its line's colour: on how many lines of text."""
    end = _axis_end(series)
    value_axis(axes, [y for line in series for y in line.y if end is None or y <= end], "Perplexity")
    if end is None:
        return 0
    points = [point for line in series for point in zip_longest(line.y, line.low, line.high) if point[0] <= end]
    inside = [value for point in points for value in point if value is not None]
    room = 0.05 * (max(inside) - min(inside)) or 1.0
    axes.set_ylim(min(inside) - room, max(inside) + room)
    stacked: dict[float, int] = defaultdict(int)
    for line, hue in sorted(zip(series, hues, strict=True), key=lambda pair: max(pair[0].y)):  # the highest on top
        for x, y in zip(line.x, line.y, strict=True):
            if y > end:
                at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                axes.annotate(
                    f"▲ {y:,.4g}", (x, 1), (0, 3 + 9 * stacked[x]), ha="center", fontsize=7.5, color=hue, **at
                )
                stacked[x] += 1
    return max(stacked.values())


BUILDERS = (figure_1, figure_4, figure_5, figure_7, extrapolation)
