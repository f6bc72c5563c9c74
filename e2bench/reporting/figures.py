"""A figure of the report: the picture, and the numbers it draws. How all of them look is decided here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from e2bench.reporting import labels
from e2bench.reporting.table import Column, Table

# Okabe and Ito's colours: told apart by colour-blind readers; markers and dashes tell them apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Figure:
    """`name`.png and `name`.csv; the caption says what is drawn and what to see in it, and on what it was measured."""

    name: str
    title: str
    explanation: str
    png: bytes
    data: Table

    @property
    def caption(self) -> str:
        """The explanation, and the data of every row drawn, each once."""
        measured = dict.fromkeys(str(row["data"]) for row in self.data.rows if row.get("data"))
        return f"{self.explanation} Data: {'; '.join(measured)}." if measured else self.explanation


@dataclass(frozen=True)
class Series:
    """One line: x ascending; low and high are the ends of its interval, None where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    is_level: bool = False  # one measurement that holds for all x: drawn without markers
    data: str = ""  # what it was measured on


@contextmanager
def style() -> Iterator[None]:
    """Our rc settings, and nobody else's: a user's matplotlibrc does not reach the report."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(width: float, height: float) -> Canvas:
    """A figure in inches, laid out so that nothing overlaps. No pyplot: no global state, no display."""
    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Canvas) -> bytes:
    """The file of a figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})  # the same picture gives the same bytes
    return out.getvalue()


def plain(text: str, limit: int = 60) -> str:
    """Text that the font can draw, on one line: a letter it lacks becomes `?`, a long name loses its middle."""
    text = "".join(char if ord(char) in _glyphs() else "?" for char in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 13]}…{text[-12:]}"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def look(at: int) -> dict[str, Any]:
    """Colour, marker (hollow from the second time round) and dashes of the at-th line of a plot; 32 differ."""
    dashes = DASHES[(at // len(COLOURS) + at) % len(DASHES)]
    hollow = {"markerfacecolor": "white"} if at >= len(COLOURS) else {}
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "linestyle": dashes, **hollow}


def draw_lines(axes: Axes, series: Sequence[Series], first: int = 0) -> None:
    """Lines with their intervals as bands, paler the more of them lie on each other."""
    alpha = min(0.16, max(0.05, 0.5 / max(1, len(series))))
    for at, line in enumerate(series, first):
        axes.plot(line.x, line.y, label=plain(line.label), **look(at) | ({"marker": ""} if line.is_level else {}))
        known = [n for n, value in enumerate(line.low) if value is not None and line.high[n] is not None]
        if known:
            low, high = ([side[n] for n in known] for side in (line.low, line.high))
            x = [line.x[n] for n in known]
            axes.fill_between(x, low, high, color=look(at)["color"], alpha=alpha, linewidth=0)  # type: ignore[arg-type]
            if len(known) == 1:  # a band of no width would not be seen
                axes.vlines(x, low, high, color=look(at)["color"], alpha=0.5)  # type: ignore[arg-type]


def length_axis(axes: Axes, lengths: Sequence[float], label: str = "Evaluation window (tokens)") -> None:
    """Logarithmic lengths, labelled 4k, 8k, ... at the lengths measured, thinned where they would collide."""
    ticks = sorted(set(lengths))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_thinned(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.tokens(round(value))))
    axes.set_xlabel(label)
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)


def _thinned(ticks: Sequence[float], room: float = 0.075) -> list[float]:
    """Ticks at least `room` of the axis apart; the longest is kept, for it is the one that is read off."""
    span = np.log2(ticks[-1] / ticks[0]) or 1.0
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if np.log2(kept[-1] / tick) / span >= room:
            kept.append(tick)
    return kept[::-1]


def value_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Linear, or logarithmic where the values span more than a factor of six (a model beyond its window)."""
    axes.set_ylabel(label)
    known = [value for value in values if value > 0]
    if known and max(known) / min(known) > 6:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        decades = np.log10(max(known) / min(known))
        if decades < 3:
            steps = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 3, 5) if decades < 2 else (1, 3)
            low, high = int(np.floor(np.log10(min(known)))), int(np.ceil(np.log10(max(known))))
            axes.yaxis.set_major_locator(
                FixedLocator([step * 10.0**power for power in range(low, high + 1) for step in steps])
            )
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def legend_below(figure: Canvas, axes: Axes, columns: int = 2) -> None:
    """One legend under the axes; none where nothing has a label."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=3)


def series_table(name: str, title: str, series: Sequence[Series], x: str, y: str) -> Table:
    """The numbers of a line plot, one point a line."""
    columns = [Column("series", "Series"), Column(x, x.title(), 0), Column(y, y.title(), 6)]
    columns += [Column("low", "Low", 6), Column("high", "High", 6), Column("data", "Data")]
    rows = []
    for line in series:
        for at, (position, value) in enumerate(zip(line.x, line.y, strict=True)):
            row = {"series": line.label, x: position, y: value, "data": line.data}
            row |= {"low": line.low[at] if line.low else None, "high": line.high[at] if line.high else None}
            rows.append(row)
    return Table(name, title, columns, rows)
