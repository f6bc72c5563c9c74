"""A table of the report, and the same table as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2bench.errors import printable

EXACT = 6  # decimals of a number that stands unrounded: more than any interval is wide; zeros at its end are left out
Row = dict[str, Any]  # column key: value; "source" is "paper" or "measured"; "intervals": {key: (low, high)}


@dataclass(frozen=True)
class Column:
    """A column of numbers where `decimals` is given, of text where it is None. `key` heads it in the CSV.

    best: `max` or `min`, where one end of the column is the better one.
    read: how people read a value, where that is not what files hold: a share as percent.
    """

    key: str
    label: str = ""
    decimals: int | None = None
    best: str = ""
    read: Callable[[Any], str] | None = None

    @property
    def heading(self) -> str:
        """What stands above the column."""
        return self.label or self.key

    def text(self, value: object) -> str:
        """The cell as files hold it: rounded; empty for None."""
        if value is None:
            return ""
        if self.decimals is None or not isinstance(value, (int, float)):
            return str(value)
        if abs(value) >= 1e5:  # a perplexity of 10^5 has no meaningful decimals, and would tear the column apart
            return f"{value:.3g}"
        if self.decimals < EXACT:
            return f"{value:.{self.decimals}f}"
        shown = f"{value:.{self.decimals}f}".rstrip("0").rstrip(".")
        return shown if value == 0 or shown.strip("-") != "0" else f"{value:.3g}"


@dataclass
class Table:
    """`name` is the file's stem. Rows keep unrounded values; each writer rounds."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def text(self, row: Row, column: Column) -> str:
        """A cell as people read it: rounded, with its error where the row has one."""
        value, error = row.get(column.key), row.get("errors", {}).get(column.key)
        shown = column.read(value) if column.read and value is not None else column.text(value)
        return f"{shown} ± {column.text(error)}" if shown and error is not None else shown

    @property
    def shown(self) -> list[Column]:
        """Columns with anything in them; CSV keeps the others too."""
        return [column for column in self.columns if any(column.text(row.get(column.key)) for row in self.rows)]

    def best(self) -> set[tuple[int, str]]:
        """(row, column key) of the best measured number of each column, as shown, where two differ.

        Only rows measured on the same data are compared, and every row that shows the best number has it.
        """
        groups: dict[object, list[int]] = {}
        for at, row in enumerate(self.rows):
            if row.get("source") == "measured":
                groups.setdefault(row.get("data"), []).append(at)
        found: set[tuple[int, str]] = set()
        for column in (column for column in self.columns if column.best):
            choose = max if column.best == "max" else min
            for members in groups.values():
                values = {at: self.rows[at].get(column.key) for at in members}
                numbers = {at: value for at, value in values.items() if isinstance(value, int | float)}
                if len({column.text(value) for value in numbers.values()}) > 1:
                    top = column.text(choose(numbers.values()))
                    found |= {(at, column.key) for at, value in numbers.items() if column.text(value) == top}
        return found


def percent(share: float) -> str:
    """A share of 0 to 1 as percent, to three digits."""
    return f"{100 * share:.3g}"


def to_csv(table: Table) -> str:
    """RFC 4180, UTF-8, all columns; a column with errors is followed by KEY_error.

    Text that a spreadsheet would take for a formula gets a leading quote.
    """
    with_errors = {key for row in table.rows for key in row.get("errors", {})}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [[column.key, f"{column.key}_error"][: 1 + (column.key in with_errors)] for column in table.columns]
    writer.writerow([csv_text(key) for keys in heads for key in keys])
    for row in table.rows:
        cells = []
        for column in table.columns:
            cells.append(_csv_cell(column, row.get(column.key)))
            if column.key in with_errors:
                cells.append(column.text(row.get("errors", {}).get(column.key)))
        writer.writerow(cells)
    return out.getvalue()


def _csv_cell(column: Column, value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return column.text(value) if is_number else csv_text(column.text(value))


FORMULA_STARTS = (*"=+-@＝＋－＠", "\t", "\r", "\n")


def csv_text(text: str) -> str:
    """OWASP's rule for CSV injection: = + - @, also full-width, tab and line ends start a formula in a spreadsheet."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the writer quotes for a line feed alone
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def to_markdown(table: Table) -> str:
    """A GitHub table with the title above and the notes below it."""
    columns = table.shown
    lines = [f"**{markdown_text(table.title)}**", ""]
    lines.append(_markdown_row([column.heading for column in columns]))
    lines.append("|" + "|".join(" --- " if column.decimals is None else " ---: " for column in columns) + "|")
    lines += [_markdown_row([table.text(row, column) for column in columns]) for row in table.rows]
    lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def markdown_text(text: str) -> str:
    """Text on one line whose characters mean themselves in Markdown, markup included."""
    text = printable(" ".join(text.split()))
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    return text.replace("<", "&lt;").replace(">", "&gt;")


def to_latex(table: Table) -> str:
    """A booktabs table: needs \\usepackage{booktabs} and, where it is wide, graphicx; compiles with pdflatex."""
    columns = table.shown
    rows = [[latex_text(table.text(row, column)) for column in columns] for row in table.rows]
    sources = [row.get("source") for row in table.rows]
    body = []
    for at, cells in enumerate(rows):
        if at and sources[at] != sources[at - 1]:
            body.append(r"\midrule")
        body.append(" & ".join(cells) + r" \\")
    heading = " & ".join(latex_text(column.heading) for column in columns) + r" \\"
    alignment = "".join("l" if column.decimals is None else "r" for column in columns)
    caption = latex_text(" ".join([table.title.rstrip(".") + ".", *table.notes]))
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ it would start an optional argument
    "]": "{]}",
    "*": "{*}",  # likewise
    '"': r"\char34{}",  # \textquotedbl is unknown to LaTeX's default font encoding
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "²": r"\textsuperscript{2}",
    "·": r"\(\cdot\)",
    "×": r"\(\times\)",
    "±": r"\(\pm\)",
    "≥": r"\(\ge\)",
    "≤": r"\(\le\)",
    "−": r"\(-\)",
    "–": "--",
    "…": r"\dots{}",
    "’": "'",
    "′": "'",
    "→": r"\(\to\)",
    "Σ": r"\(\Sigma\)",
    "∞": r"\(\infty\)",
    "\N{NO-BREAK SPACE}": "~",
}


def latex_text(text: str) -> str:
    """Text that pdflatex takes whatever is in it; a letter beyond Latin-1 that has no macro here becomes `?`."""

    def escaped(char: str) -> str:
        if char in _LATEX:
            return _LATEX[char]
        return char if " " <= char <= "~" or ("À" <= char <= "ÿ" and char not in "ÐðÞþ") else "?"

    return "".join(escaped(char) for char in " ".join(text.split()))


WRITERS: Mapping[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
