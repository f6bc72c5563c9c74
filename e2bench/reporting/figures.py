"""A figure of the report: the picture, and the numbers it draws. How all of them look is decided here."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from e2bench.reporting import labels
from e2bench.reporting.table import EXACT, Column, Table

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


class Picture(NamedTuple):
    """The PNG of a figure on a light ground and on a dark one."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Figure:
    """`name`.png and `name`.csv; the caption says what is drawn and what to see in it, and on what it was measured.

    of: the run it shows, where each run has a figure of this title.
    """

    name: str
    title: str
    explanation: str
    picture: Picture
    data: Table
    of: str = ""

    @property
    def heading(self) -> str:
        """The title, and what tells it from others of the same title."""
        return f"{self.title}: {self.of}" if self.of else self.title

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


def to_png(figure: Canvas) -> Picture:
    """The files of a figure. It cannot be drawn on afterwards: its colours are the dark ones then."""
    light = _png(figure)
    figure.set_layout_engine("none")  # the layout is found, and the same for both
    _darken(figure)
    return Picture(light, _png(figure))


def _png(figure: Canvas) -> bytes:
    out = io.BytesIO()
    # Without the version of matplotlib the same picture gives the same bytes.
    figure.savefig(out, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return out.getvalue()


DARK_PAPER = "#16181b"  # as in templates/page.css
ON_MAP = "on a map"  # gid of text whose ink depends on the colour of a map's cell: it stays as it is


def _darken(figure: Canvas) -> None:
    """Grey, white and black change places; dark colours get lighter, and a map in blues begins with dark."""
    formats = [(axis, axis.get_major_formatter()) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for artist in figure.findobj():
        if artist.get_gid() == ON_MAP:
            continue
        if isinstance(artist, Text):
            artist.set_color(_dark(artist.get_color()))
            if box := artist.get_bbox_patch():  # no child of its own
                box.set_facecolor(_dark(box.get_facecolor()))
        elif isinstance(artist, Line2D):
            # Read before one is set: a marker's colours may be those of its line.
            line, edge, face = artist.get_color(), artist.get_markeredgecolor(), artist.get_markerfacecolor()
            artist.set(color=_dark(line), markeredgecolor=_dark(edge), markerfacecolor=_dark(face))
        elif isinstance(artist, Patch):
            artist.set_edgecolor(_dark(artist.get_edgecolor()))
            artist.set_facecolor(_dark(artist.get_facecolor()))
        elif isinstance(artist, Collection) and artist.get_array() is None:
            artist.set_edgecolor([_dark(colour) for colour in artist.get_edgecolor()])
            artist.set_facecolor([_dark(colour) for colour in artist.get_facecolor()])
        elif isinstance(artist, AxesImage) and artist.get_cmap().name == "Blues":
            artist.set_cmap("Blues_r")
    for axis, form in formats:  # a new colour map takes the ones of its bar away
        axis.set_major_formatter(form)


def _dark(colour: Any) -> Any:
    """A grey's counterpart on a dark ground; a colour that is too dark for it, lighter."""
    red, green, blue, alpha = to_rgba(colour)
    if max(red, green, blue) - min(red, green, blue) > 0.02:
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        return colour if brightness > 0.4 else (*(part + 0.3 * (1 - part) for part in (red, green, blue)), alpha)
    low, high = to_rgba(DARK_PAPER)[:3], (0.91, 0.91, 0.91)
    return (*(end + (start - end) * red for start, end in zip(low, high, strict=True)), alpha)


def plain(text: str, limit: int = 60) -> str:
    """Text that the font can draw, on one line: a letter it lacks becomes `?`, a long name loses its middle."""
    text = "".join(char if ord(char) in _glyphs() else "?" for char in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 13]}…{text[-12:]}"


def wrapped(text: str, width: int = 56, lines: int = 3) -> str:
    """A heading on a few lines, so that the picture's edge does not cut it."""
    return textwrap.fill(plain(text, width * lines - 12), width)


def legend_name(text: str) -> str:
    """A line's name in a legend; matplotlib leaves out names that begin with an underscore, so a blank goes before."""
    name = plain(text)
    return f" {name}" if name.startswith("_") else name


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def look(at: int) -> dict[str, Any]:
    """Colour, marker (hollow from the second time round) and dashes of the at-th line of a plot; 32 differ."""
    dashes = DASHES[(at // len(COLOURS) + at) % len(DASHES)]
    hollow = {"markerfacecolor": "white"} if at >= len(COLOURS) else {}
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "linestyle": dashes, **hollow}


MOST_BANDS = 4  # more bands lie on each other and hide which is whose
WIDEST = 1.25  # from the first point to the last of those side by side, as a factor of the length


def draw_lines(axes: Axes, series: Sequence[Series], places: Sequence[int] | None = None) -> None:
    """Lines with their intervals: as bands, or as points and bars side by side where there are many lines.

    places: of their looks, where several panels show the same lines.
    """
    with_interval = [line for line in series if any(value is not None for value in line.low)]
    as_bars = len(with_interval) > MOST_BANDS
    step = min(1.025, WIDEST ** (1 / max(len(with_interval) - 1, 1)))  # lengths are on a logarithmic axis
    for at, line in zip(places or range(len(series)), series, strict=True):
        known = [n for n, value in enumerate(line.low) if value is not None and line.high[n] is not None]
        apart = step ** (with_interval.index(line) - (len(with_interval) - 1) / 2) if as_bars and known else 1.0
        x = [place * apart for place in line.x]  # a bar goes through its point
        axes.plot(x, line.y, label=legend_name(line.label), **look(at) | ({"marker": ""} if line.is_level else {}))
        low, high = ([side[n] for n in known] for side in (line.low, line.high))
        x, colour = [x[n] for n in known], look(at)["color"]
        if as_bars:
            axes.vlines(x, low, high, color=colour, alpha=0.6, linewidth=1.2)  # type: ignore[arg-type]
        elif known:
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)  # type: ignore[arg-type]
            if len(known) == 1:  # a band of no width would not be seen
                axes.vlines(x, low, high, color=colour, alpha=0.5)  # type: ignore[arg-type]


def mark_native(axes: Axes, windows: Sequence[int]) -> None:
    """A dotted line at every native window L."""
    for window in windows:
        axes.axvline(window, color="#555555", linewidth=1, linestyle=":")
        at_the_end = axes.transAxes.inverted().transform(axes.transData.transform((window, 1)))[0] > 0.8
        axes.annotate(
            f"L = {labels.tokens(window)}",
            (window, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if at_the_end else 4, 0),
            textcoords="offset points",
            ha="right" if at_the_end else "left",
            va="top",
            fontsize=8,
            color="#555555",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


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
        inches = 0.75 + 0.075 * max(map(len, names))  # of one entry; a wider legend would be cut off
        columns = max(1, min(columns, int(figure.get_size_inches()[0] / inches)))
        figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=3)


def series_table(name: str, title: str, series: Sequence[Series], x: str, y: str) -> Table:
    """The numbers of a line plot, one point a line."""
    columns = [Column("series", "Series"), Column(x, x.title(), 0), Column(y, y.title(), EXACT)]
    columns += [Column("low", "Low", EXACT), Column("high", "High", EXACT), Column("data", "Data")]
    rows = []
    for line in series:
        for at, (position, value) in enumerate(zip(line.x, line.y, strict=True)):
            row = {"series": line.label, x: position, y: value, "data": line.data}
            row |= {"low": line.low[at] if line.low else None, "high": line.high[at] if line.high else None}
            rows.append(row)
    return Table(name, title, columns, rows)
