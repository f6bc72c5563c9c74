"""A figure that ranks attention heads by how much of their attention the answer gives to its place in the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from e2bench.errors import DataError
from e2bench.reporting import labels
from e2bench.reporting.figures import COLOURS, Figure, canvas, style, to_png
from e2bench.reporting.maps import one_a_length, one_a_run
from e2bench.reporting.runs import Results, Run, reason
from e2bench.reporting.table import EXACT, Column, Row, Table

BEST = 10  # heads of a length
ANSWERED, NOT_ANSWERED = COLOURS[0], COLOURS[7]


def figure_heads(found: Results) -> list[Figure]:
    """The best heads of every attention run, a panel for each length."""
    return one_a_run("heads", "attention", found, _lines, _figure)


def _lines(run: Run, found: Results) -> list[dict[str, Any]]:
    try:
        lines = one_a_length(list(run.lines("attention")))
        for line in lines:  # numbers of somebody else's file, before anything is drawn
            line["top_heads"] = [(int(layer), int(head), float(share)) for layer, head, share in line["top_heads"]]
        return [line for line in lines if line["top_heads"]]
    except (DataError, KeyError, TypeError, ValueError, OSError) as error:
        found.warnings.append(f"{run.name}: its heads cannot be drawn ({reason(error, run.folder)})")
        return []


def _figure(name: str, run: Run, lines: Sequence[dict[str, Any]], label: str) -> Figure:
    largest = max(share for line in lines for *_, share in line["top_heads"])
    with style():
        figure = canvas(max(3.2, 1.9 * len(lines)), 2.9)
        for axes, line in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines, strict=True):
            _bars(axes, line, largest)
        figure.supxlabel("Attention of the answer's tokens on the gold span", fontsize=9)
        figure.supylabel("Layer.head", fontsize=9)
        png = to_png(figure)
    title = "Heads that look at the answer's place"
    caption = (
        f"The {BEST} heads with the largest share of their attention on the gold span, as layer.head counted from 0, "
        "in the first answered trial of each length (blue), else in the first one (grey)."
    )
    return Figure(name, title, caption, png, _table(name, title, run, lines))


def _bars(axes: Axes, line: dict[str, Any], largest: float) -> None:
    """One length. largest: share of all panels, so that bars compare across them."""
    best = line["top_heads"][:BEST]
    answered = bool(line.get("success"))
    places = list(range(len(best)))
    axes.barh(places, [share for *_, share in best], color=ANSWERED if answered else NOT_ANSWERED)
    axes.set_yticks(places, [f"{layer}.{head}" for layer, head, _ in best])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1.05 * largest or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    said = "answered" if answered else "not answered"
    axes.set_title(f"{labels.tokens(line['length'])}, g = {labels.scale(line.get('scale'))}\n{said}", loc="left")


def _table(name: str, title: str, run: Run, lines: Sequence[dict[str, Any]]) -> Table:
    columns = [Column("run"), *(Column(key, "", 0) for key in ("length", "trial")), Column("answered")]
    columns += [*(Column(key, "", 0) for key in ("rank", "layer", "head")), Column("gold_share", "", EXACT)]
    rows: list[Row] = []
    for line in lines:
        shared: Row = {"run": run.name, "length": line["length"], "trial": line.get("trial")}
        shared |= {"answered": "yes" if line.get("success") else "no", "data": labels.data(run)}
        for rank, (layer, head, share) in enumerate(line["top_heads"][:BEST], 1):
            rows.append(shared | {"rank": rank, "layer": layer, "head": head, "gold_share": share})
    return Table(name, title, [*columns, Column("data")], rows)


BUILDERS = (figure_heads,)
