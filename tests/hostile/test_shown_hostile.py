"""Predictions and names with control characters, markup and formulas: in the terminal, CSV, Markdown, LaTeX, HTML."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import CONTROL, MARKUP, case, hostile, little_memory, texts
from hypothesis import strategies as st

from e2bench.cli.compare import _show
from e2bench.cli.score import show
from e2bench.errors import one_line, printable
from e2bench.reporting.samples import _Texts, to_json
from e2bench.reporting.table import Column, Table, to_csv, to_latex, to_markdown

__all__ = ["little_memory"]
FORMULA = re.compile(r"^[=+\-@\t\r\n＝＋－＠]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def table(*cells: str) -> Table:
    columns = [Column("model"), Column("method"), Column("score", decimals=2)]
    rows = [{"model": a, "method": b, "score": 1.0} for a, b in zip(cells[::2], cells[1::2], strict=True)]
    return Table("table1", cells[0], columns, rows, notes=[cells[1]])


pairs = st.tuples(texts, texts)


@hostile(1200, cells=pairs)
def test_csv_holds_the_texts_and_no_formula(folder: Path, cells: tuple[str, str]) -> None:
    with case(folder):
        (_, row) = csv.reader(io.StringIO(to_csv(table(*cells)), newline=""))
        assert not any(FORMULA.match(cell) for cell in row[:2])
        plain = [cell.replace("\r\n", "\n").replace("\r", "\n").removeprefix("'") for cell in cells]
        assert [cell.removeprefix("'") for cell in row[:2]] == plain


@hostile(1200, cells=pairs)
def test_latex_has_no_command_but_ours(folder: Path, cells: tuple[str, str]) -> None:
    with case(folder):
        source = to_latex(table(*cells))
        known = set(re.findall(r"\\([A-Za-z]+)", to_latex(table("a", "b"))))
        escapes = {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "char"}
        escapes |= {"textbar", "textasciigrave", "textsuperscript", "cdot", "times", "pm", "ge", "le", "dots", "to"}
        assert set(re.findall(r"\\([A-Za-z]+)", source)) <= known | escapes | {"Sigma", "infty"}
        assert all(char == "\n" or " " <= char <= "~" or "À" <= char <= "ÿ" for char in source)
        body = re.sub(r"\\[\\{}&%$#_]", "", source)
        assert body.count("{") == body.count("}")
        comments = [line for line in source.splitlines() if re.search(r"(?<!\\)%", line)]
        assert comments == [
            r"% \usepackage{booktabs,graphicx}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        ]


@hostile(1000, cells=pairs)
def test_markdown_keeps_its_columns_and_has_no_markup(folder: Path, cells: tuple[str, str]) -> None:
    with case(folder):
        lines = to_markdown(table(*cells)).splitlines()
        rows = [line for line in lines if line.startswith("|")]
        shown = 3 if all(cells) else 2 if any(cells) else 1
        assert [len(re.findall(r"(?<!\\)\|", re.sub(r"\\\\", "", row))) for row in rows] == [shown + 1] * 3
        assert "<" not in "".join(lines) and all(line.isprintable() for line in lines)


@hostile(1000, prediction=texts, reference=texts, identity=texts)
def test_embedded_examples_end_no_script_and_read_back(
    folder: Path, prediction: str, reference: str, identity: str
) -> None:
    with case(folder):
        row = [prediction, [reference, identity], identity, prediction, reference]
        written: dict[str, str] = {}
        kept = _Texts(written.__setitem__)
        kept.add(row)
        kept.close()
        script = written["samples/0.js"]
        assert not set(script) & set("<>&\u2028\u2029")
        assert json.loads(script.removeprefix("e2benchLoad(0,").removesuffix(");\n")) == [row]
        assert json.loads(to_json([identity])) == [identity]


@hostile(600, text=texts)
def test_messages_are_one_printable_line(folder: Path, text: str) -> None:
    with case(folder):
        line = one_line(f"x {text}")
        assert line.isprintable() and len(line) <= 1001
        assert printable("plain é 一 text") == "plain é 一 text"


def safe(said: str, extra: str = "") -> bool:
    """What a terminal gets: no escape sequence, no bell, no reordering; line ends alone."""
    return all(char.isprintable() or char == "\n" or char in extra for char in said)


@hostile(150, name=texts, prediction=texts)
def test_compare_shows_predictions_and_moves_no_cursor(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, prediction: str
) -> None:
    numbers: dict[str, Any] = {"samples": 1, "first": 0.0, "second": 1.0, "difference": 1.0, "interval": None}
    change = {
        "task": name,
        "id": name,
        "first": 0.0,
        "second": 1.0,
        "reference": prediction,
        "predictions": [prediction] * 2,
    }
    row = {**numbers, "changed": 1, "better": 1, "worse": 0}
    capsys.readouterr()
    with case(folder):
        _show(
            {
                "first": name,
                "second": name,
                "unit": "points",
                "differing": {},
                "tasks": {name: row},
                "largest": [change],
            }
        )
    assert safe(capsys.readouterr().out)


@hostile(150, name=texts)
def test_scores_show_names_and_move_no_cursor(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    entry = {"interval": None, "scored": 1, "expected": 1, "truncated": 0}
    scores = {"tasks": {name: 50.0}, "details": {name: entry}, "averages": {"Avg.": None}}
    capsys.readouterr()
    with case(folder):
        show(Path(name.replace("\0", "") or "x"), scores)
    said = capsys.readouterr().out
    assert safe(said)


def test_markup_of_the_terminal_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"interval": None, "scored": 1, "expected": 1, "truncated": 0}
    scores = {"tasks": {"[b]y[/b]": 1.0}, "details": {"[b]y[/b]": entry}, "averages": {}}
    show(Path("[red]x[/red]"), scores)
    said = capsys.readouterr().out
    assert "[red]x[/red]" in said and "[b]y[/b]" in said


def test_the_texts_are_hostile() -> None:
    assert not safe(CONTROL) and any(FORMULA.match(text) for text in MARKUP)
