"""Tables of the report: the paper's numbers, measured rows beside them, and what each file format does to text."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from report_folders import longbench_run, ppl_run, short_run

from e2bench.reporting import tables
from e2bench.reporting.runs import scan
from e2bench.reporting.table import Column, Table, to_csv, to_latex, to_markdown


def the_table(results: Path, name: str) -> Table:
    found = scan(results)
    return next(table for build in tables.BUILDERS for table in build(found) if table.name == name)


# ------------------------------------------------------------------------------------------------- the paper's numbers


def test_overall_columns_of_table_2_are_plain_means_but_for_four_rows() -> None:
    """PROTOCOLS.md 2.5: scheme e2, tolerance 0.03 since the cells themselves are rounded to 0.1."""
    disagreeing = set()
    for first, second in zip(tables.published("table1"), tables.published("table2"), strict=True):
        assert first["model"] == second["model"]
        cells = {key: {**first, **second}[key] for key in {**tables.TABLE1, **tables.TABLE2}}
        zh = [cells[key] for key in tables.ZH_TASKS]
        en = [value for key, value in cells.items() if key not in tables.ZH_TASKS]
        assert (len(en), len(zh)) == (14, 4)
        for name, group in (("EN", en), ("ZH", zh), ("All", en + zh)):
            if abs(math.fsum(group) / len(group) - second[name]) > 0.03 + 1e-9:
                disagreeing.add(second["model"])
    named = {"Llama2-7B-chat-4k", "LongLora-7B-16k", "Vicuna-v1.5-7B-16k", "E²-LLM-Llama2-13B-16k"}
    assert disagreeing == named


def test_the_note_under_table_2_names_the_four_rows(tmp_path: Path) -> None:
    notes = " ".join(the_table(longbench_run(tmp_path / "run"), "table2").notes)
    for model in ("Llama2-7B-chat-4k", "Vicuna-v1.5-7B-16k", "LongLora-7B-16k", "E²-LLM-Llama2-13B-16k"):
        assert model in notes


def test_average_of_table_7_is_the_mean_of_its_eight_columns() -> None:
    for row in tables.published("table7"):
        mean = sum(row[column] for column in tables.TABLE7) / 8
        assert mean == pytest.approx(row["Avg."], abs=0.06)  # cells rounded to 0.1


def test_published_cells_that_the_paper_leaves_out_are_empty() -> None:
    none_7b = tables.published("table3")[0]
    assert none_7b["4096"] == 2.92
    assert none_7b["8192"] is None


# --------------------------------------------------------------------------------------------------------- Tables 1, 2


def test_measured_rows_follow_the_published_ones_in_the_papers_columns(tmp_path: Path) -> None:
    longbench_run(tmp_path / "results" / "smol", scale=2)
    table = the_table(tmp_path / "results", "table1")
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["source", "model", "history", "run", *tables.TABLE1, "data"]
    assert [row[0] for row in rows[1:]] == ["paper"] * 12 + ["measured"]
    assert rows[1][1:6] == ["GPT-3.5-Turbo-16k", "b", "", "23.6", "43.3"]
    assert rows[-1][1:4] == ["SmolLM2-135M (PI, g = 2, 4k)", "", "smol"]
    assert rows[-1][4] == f"{table.rows[-1]['narrativeqa']:.1f}"


def test_overall_is_rounded_to_two_places(tmp_path: Path) -> None:
    table = the_table(longbench_run(tmp_path / "run"), "table2")
    row = next(csv.DictReader(line for line in to_csv(table).splitlines() if not line.startswith("paper")))
    assert row["All"] == f"{table.rows[-1]['All']:.2f}"


def test_average_over_an_incomplete_set_is_empty_and_says_how_many(tmp_path: Path) -> None:
    table = the_table(longbench_run(tmp_path / "run", tasks=["qasper", "lcc", "lsht"]), "table2")
    assert [table.rows[-1][name] for name in ("EN", "ZH", "All")] == [None, None, None]
    assert any("EN 2 of 14 tasks, ZH 1 of 4 tasks, All 3 of 18 tasks" in note for note in table.notes)


def test_a_run_over_few_samples_says_so(tmp_path: Path) -> None:
    table = the_table(longbench_run(tmp_path / "run", lines=2), "table1")
    assert any("42 of 4,750 samples of its 21 tasks" in note for note in table.notes)


def test_runs_whose_settings_clash_are_both_shown_and_told_apart(tmp_path: Path) -> None:
    for name in ("official", "ids"):
        longbench_run(tmp_path / name, resolved={"window": 4096, "truncation": name})
    models = [row["model"] for row in the_table(tmp_path, "table1").rows if row["source"] == "measured"]
    assert models == ["SmolLM2-135M (4k) [truncation ids]", "SmolLM2-135M (4k) [truncation official]"]


def test_runs_with_equal_settings_are_told_apart_by_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        longbench_run(tmp_path / name)
    models = [row["model"] for row in the_table(tmp_path, "table1").rows if row["source"] == "measured"]
    assert models == ["SmolLM2-135M (4k) [a]", "SmolLM2-135M (4k) [b]"]


def test_table_6_lists_the_21_tasks_and_4750_samples(tmp_path: Path) -> None:
    table = the_table(longbench_run(tmp_path / "run"), "table6")
    assert len(table.rows) == 21
    assert sum(row["samples"] for row in table.rows) == 4750


# --------------------------------------------------------------------------------------------------------- Tables 3, 7


def test_table_3_has_a_row_per_scale_and_a_column_per_length(tmp_path: Path) -> None:
    cells = [(512, 4, 3.1), (1024, 4, 3.0), (2048, 4, 2.9), (512, 8, 3.2), (4096, 8, 2.8)]
    ppl_run(tmp_path / "fixed", cells, scale=[4, 8])
    ppl_run(tmp_path / "auto", [(512, 1, 2.88), (1024, 2, 2.67)], scale="auto")
    table = the_table(tmp_path, "table3")
    lengths = [column.key for column in table.columns if column.key.isdigit()]
    assert lengths == ["512", "1024", "2048", "4096", "8192", "16384", "32768", "65536"]
    measured = [row for row in table.rows if row["source"] == "measured"]
    assert [(row["method"], row["scale"]) for row in measured] == [("PI", "auto 1–2"), ("PI", "4"), ("PI", "8")]
    assert measured[1]["2048"] == 2.9
    assert any("auto, fixed: protocol press, stride 256, 3 documents" in note for note in table.notes)


def test_perplexity_under_two_protocols_is_told_apart(tmp_path: Path) -> None:
    for protocol in ("press", "truncate"):
        ppl_run(tmp_path / protocol, [(512, 1, 3.0)], resolved={"protocol": protocol})
    table = the_table(tmp_path, "table3")
    measured = [row["method"] for row in table.rows if row["source"] == "measured"]
    assert measured == ["None [protocol press]", "None [protocol truncate]"]
    assert "differ in protocol" in table.notes[-1]


def test_perplexity_over_other_documents_is_told_apart(tmp_path: Path) -> None:
    for name, documents in (("a", ["0f"]), ("b", ["0f"]), ("c", ["1e"])):
        ppl_run(tmp_path / name, [(512, 1, 3.0)], model=name, resolved={"documents": documents})
    notes = the_table(tmp_path, "table3").notes
    assert sum(note.startswith(("a, b: ", "c: ")) for note in notes) == 2


def test_extrapolation_runs_stay_out_of_table_3(tmp_path: Path) -> None:
    ppl_run(tmp_path / "plain", [(512, 1, 3.0)], extrapolate=True)
    assert tables.table_3(scan(tmp_path)) == []


def test_table_7_names_its_suite_and_keeps_standard_errors(tmp_path: Path) -> None:
    table = the_table(short_run(tmp_path / "run"), "table7")
    assert "suite paper" in table.title
    assert table.rows[-1]["Race-H"] == 55.0
    assert table.rows[-1]["errors"]["Race-H"] == 2.5
    assert table.rows[-1]["Avg."] == 53.5


# ------------------------------------------------------------------------------------------------------------- formats

HOSTILE = Table(
    "hostile",
    "Hostile & <b>bold</b>",
    [Column("model", "Model | name"), Column("value", "Value", 1)],
    [
        {"source": "measured", "model": "=HYPERLINK(1)", "value": -3.25},
        {"source": "measured", "model": "a|b<script>`x`_{}$%&#~^\\ 中文 E²", "value": None},
        {"source": "paper", "model": "[x]*", "value": 123456.7},
    ],
    ["50 % of <nothing> & more"],
)


def test_csv_quotes_formulas_and_leaves_numbers_alone() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(HOSTILE))))
    assert rows[1] == ["'=HYPERLINK(1)", "-3.2"]
    assert rows[2][1] == ""


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_every_formula_start_is_quoted(text: str) -> None:
    table = Table("t", "t", [Column("model")], [{"model": text}])
    assert list(csv.reader(io.StringIO(to_csv(table), newline="")))[1][0].startswith("'")


def test_markdown_keeps_its_columns_and_shows_markup_as_text() -> None:
    lines = to_markdown(HOSTILE).splitlines()
    assert lines[2] == r"| Model \| name | Value |"
    assert "<script>" not in to_markdown(HOSTILE)
    assert r"a\|b&lt;script&gt;" in lines[5]


def test_latex_escapes_every_special_character() -> None:
    text = to_latex(HOSTILE)
    assert r"a\textbar{}b\textless{}script\textgreater{}" in text
    assert r"\_\{\}\$\%\&\#\textasciitilde{}\textasciicircum{}\textbackslash{} ?? E\textsuperscript{2}" in text
    assert r"{[}x{]}{*} & 1.23e+05 \\" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_tables_compile(tmp_path: Path) -> None:
    longbench_run(tmp_path / "results" / "long")
    ppl_run(tmp_path / "results" / "ppl", [(512, 1, 3.0)])
    short_run(tmp_path / "results" / "short")
    found = scan(tmp_path / "results")
    made = [table for build in tables.BUILDERS for table in build(found)]
    assert {table.name for table in made} == {"table1", "table2", "table3", "table6", "table7"}
    body = "\n".join(to_latex(table) for table in [*made, HOSTILE])
    packages = r"\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:]
