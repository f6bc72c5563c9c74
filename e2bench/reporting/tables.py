"""Tables 1, 2, 3, 6 and 7 of the paper: its published rows, then a row for each run. Tables 4 and 5: ablations.py."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import pairwise
from typing import Any

from e2bench.reporting import labels
from e2bench.reporting.runs import Results, Run, interval, number
from e2bench.reporting.selection import primary
from e2bench.reporting.table import Column, Row, Table

PAPER = "arXiv 2401.06951"
TABLE1 = {
    "narrativeqa": "NarrativeQA",
    "qasper": "Qasper",
    "multifieldqa_en": "MultiFieldQA-en",
    "multifieldqa_zh": "MultiFieldQA-zh",
    "hotpotqa": "HotpotQA",
    "2wikimqa": "2WikiMultihopQA",
    "musique": "MuSiQue",
    "dureader": "DuReader",
    "gov_report": "GovReport",
    "qmsum": "QMSum",
}
TABLE2 = {
    "multi_news": "MultiNews",
    "vcsum": "VCSUM",
    "trec": "TREC",
    "triviaqa": "TriviaQA",
    "samsum": "SAMSum",
    "lsht": "LSHT",
    "lcc": "LCC",
    "repobench-p": "RepoBench-P",
}
# Beside Table 2's columns, measured rows only.
SYNTHETIC = {
    "passage_count": "PassageCount",
    "passage_retrieval_en": "PassageRetrieval-en",
    "passage_retrieval_zh": "PassageRetrieval-zh",
}
ZH_TASKS = ("multifieldqa_zh", "dureader", "vcsum", "lsht")  # the four of Tables 1 and 2; all others count as EN
# Table 7's columns and the names under which the suites store them (lower case, letters and digits only).
TABLE7 = {
    "PIQA": ("piqa",),
    "WSC": ("wsc",),
    "HellaSwag": ("hellaswag",),
    "SIQA": ("siqa", "socialiqa"),
    "WinoGrande": ("winogrande",),
    "Race-H": ("raceh", "racehigh", "race"),
    "Race-M": ("racem", "racemiddle"),
    "NaturalQuestions": ("naturalquestions", "nq", "nqopen"),
}
SOURCE, MODEL, RUN, DATA = (Column(key, key.title()) for key in ("source", "model", "run", "data"))
OVER = Column("averages_over", "Averages over")  # in front of them, and empty where they are the whole benchmark's
OTHER_MODELS = (
    f"Rows marked paper are {PAPER}'s; measured rows are this folder's runs. They compare only where model, samples "
    "and settings are the same."
)


HISTORY = Column("history", "Note")  # letters of FOOTNOTES at published rows
FOOTNOTES = {
    "a": "All 18 cells of this row equal published predictions of LongAlpaca-7B-16k (Yukang/LongAlpaca-7B-16k), not of "
    "Llama-2-7b-longlora-16k-ft.",
    "b": "Copied from LongBench's own README (71 of the 72 cells of these four rows).",
    "c": "Measured by others with LongBench's unchanged code, TriviaQA is 83.5, RepoBench-P 52.1 and LCC 58.7.",
    "d": "The README has TREC 71.5; with it EN is 36.48, as printed (36.49), and not 36.66.",
    "e": "All is a misprint of 30.79 = (14 EN + 4 ZH) / 18, which holds to 0.01 in every other row.",
}
_HISTORY = {
    "GPT-3.5-Turbo-16k": "b",
    "Llama2-7B-chat-4k": "b, c",
    "LongChat-v1.5-7B-32k": "b",
    "Vicuna-v1.5-7B-16k": "b",
    "LongLora-7B-16k": "a",
}
_IN_TABLE_2 = {"Llama2-7B-chat-4k": ", e", "Vicuna-v1.5-7B-16k": ", d"}


def history(name: str, rows: Sequence[Row]) -> list[str]:
    """Give the published rows of Tables 1 and 2 their letters; the footnotes of the letters given."""
    for row in rows:
        row[HISTORY.key] = _HISTORY.get(row["model"], "")
        if name == "table2":
            row[HISTORY.key] += _IN_TABLE_2.get(row["model"], "")
    given = {letter for row in rows for letter in row[HISTORY.key]}
    return [f"({letter}) {text}" for letter, text in FOOTNOTES.items() if letter in given]


def published(name: str) -> list[Row]:
    """The paper's rows of a table: numbers as float, a cell that the text lost or the paper left out as None."""
    source = resources.files("e2bench.reporting") / "published" / f"{name}.csv"
    rows = csv.DictReader(source.read_text("utf-8").splitlines())
    return [{"source": "paper", **{key: _cell(key, value) for key, value in row.items()}} for row in rows]


def _cell(key: str, value: str) -> float | str | None:
    text = key in ("model", "method", "size", "training_window")
    return value if text else float(value) if value else None


def tables_1_and_2(found: Results) -> list[Table]:
    """LongBench: one row a run, below the published ones; Table 2 ends with the averages."""
    runs = found.of("longbench")
    names = labels.told_apart(runs, [labels.row(run) for run in runs])
    tables = []
    for name, heads, averaged in (("table1", TABLE1, False), ("table2", TABLE2, True)):
        shown = [(run, label) for run, label in zip(runs, names, strict=True) if _has_any(run, heads, averaged)]
        if not shown:
            continue
        columns = [SOURCE, MODEL, HISTORY, RUN, *(_score_column(key, label, 1) for key, label in heads.items())]
        paper = published(name)
        notes = [OTHER_MODELS, *history(name, paper), *_sample_notes(shown)]
        if averaged:
            columns += [OVER, *(_score_column(key, key, 2) for key in ("EN", "ZH", "All"))]
            columns += [_score_column(key, label, 1) for key, label in SYNTHETIC.items()]
            notes += [_AVERAGES, _SYNTHETIC_NOTE, _DISAGREE, *_average_notes(shown)]
        rows = paper + [
            _longbench_row(run, label, {**heads, **(SYNTHETIC if averaged else {})}) for run, label in shown
        ]
        tables.append(Table(name, _LONGBENCH_TITLES[name], [*columns, DATA], rows, notes))
    return tables


_LONGBENCH_TITLES = {
    "table1": "Table 1. LongBench (%): single-document QA, multi-document QA, summarization",
    "table2": "Table 2. LongBench (%): summarization, few-shot learning, code; overall",
}
_AVERAGES = (
    "EN, ZH and All are plain means over the 14, 4 and 18 tasks of Tables 1 and 2 (scheme e2): what the paper's "
    "columns are by its own cells, although its caption describes a macro-average over categories."
)
_SYNTHETIC_NOTE = (
    "The paper leaves out LongBench's three synthetic tasks, in its tables and in its averages; what was measured of "
    "them stands in columns of its own behind the averages and is part of none of the three."
)
_DISAGREE = (
    "Four of the paper's rows do not agree with their own cells: Llama2-7B-chat-4k (ZH and All), Vicuna-v1.5-7B-16k "
    "(EN and All, see d), LongLora-7B-16k (ZH and All), E²-LLM-Llama2-13B-16k (EN and All). Shown as published."
)


def _score_column(key: str, label: str, decimals: int) -> Column:
    return Column(key, label, decimals, best="max")


def _has_any(run: Run, heads: dict[str, str], averaged: bool) -> bool:
    """Table 2 also takes a run that has a task of Table 1 alone: its averages say n of m there."""
    return any(run.scores["tasks"].get(key) is not None for key in ({**TABLE1, **TABLE2} if averaged else heads))


def _longbench_row(run: Run, label: str, heads: dict[str, str]) -> Row:
    tasks = run.scores["tasks"]
    averages = _averages(run).get("e2", {})
    row: Row = {"source": "measured", "model": label, "run": run.name, "intervals": {}}
    row |= {key: averages.get(key) for key in ("EN", "ZH", "All")} | {key: tasks.get(key) for key in heads}
    row |= {"data": labels.data(run), OVER.key: labels.averages_over(run, averages.values())}
    for key in heads:
        ends = interval(details(run, key))
        if ends != (None, None):
            row["intervals"][key] = ends
    return row


def _averages(run: Run) -> dict[str, dict[str, float | None]]:
    averages = run.scores.get("averages")
    return averages if isinstance(averages, dict) else {}


def details(run: Run, task: str) -> dict[str, Any]:
    """The details of a task in scores.json; {} where there are none."""
    of_run = run.scores.get("details")
    of_task = of_run.get(task) if isinstance(of_run, dict) else None
    return of_task if isinstance(of_task, dict) else {}


def _average_notes(shown: Sequence[tuple[Run, str]]) -> list[str]:
    notes = []
    for run, label in shown:
        present = [key for key in {**TABLE1, **TABLE2} if run.scores["tasks"].get(key) is not None]
        zh = sum(key in ZH_TASKS for key in present)
        counts = (("EN", len(present) - zh, 14), ("ZH", zh, 4), ("All", len(present), 18))
        short = [f"{name} {n} of {m} tasks" for name, n, m in counts if n < m]
        if short:
            notes.append(f"{label}: no average over an incomplete set ({', '.join(short)}).")
    return notes


def _sample_notes(shown: Sequence[tuple[Run, str]]) -> list[str]:
    """A run over a part of the samples says so: its scores are not the benchmark's."""
    official = {row.name: row.samples for row in longbench_rows()}
    notes = []
    for run, label in shown:
        tasks = [task for task, score in run.scores["tasks"].items() if score is not None]
        scored = [n for n in (details(run, task).get("scored") for task in tasks) if number(n)]
        whole = [n for n in (official.get(task, details(run, task).get("expected")) for task in tasks) if number(n)]
        if len(scored) == len(whole) == len(tasks) and sum(scored) < sum(whole):
            notes.append(f"{label}: {sum(scored):,} of {sum(whole):,} samples of its {len(tasks)} tasks.")
    return notes


def longbench_rows() -> Sequence[Any]:
    """The rows of tasks/longbench.py."""
    from e2bench.tasks.longbench import LONGBENCH  # facts only, but it pulls in the metrics

    return LONGBENCH


def table_3(found: Results) -> list[Table]:
    """Perplexity: one row per (model, method, scale), one column per window found."""
    runs = primary([run for run in found.of("ppl") if not run.manifest.get("extrapolate")])
    measured = _told_apart([(run, row) for run in runs for row in _perplexity_rows(run)])
    if not measured:
        return []
    paper = published("table3")
    lengths = sorted({int(key) for row in (*paper, *measured) for key in row if key.isdigit()})
    columns = [
        SOURCE,
        Column("size", "Size"),
        Column("training_window", "Training window"),
        MODEL,
        Column("method", "Method"),
        Column("scale", "g"),
        RUN,
        *(Column(str(length), labels.tokens(length), 2, best="min") for length in lengths),
        DATA,
    ]
    for row in paper:
        row |= {"model": f"Llama2-{row['size']}", "scale": labels.scale(row["scale"])}
    notes = [OTHER_MODELS, _PAPER_PERPLEXITY, *_protocol_notes(runs)]
    title = "Table 3. Perplexity by evaluation window (tokens); lower is better"
    return [Table("table3", title, columns, paper + measured, notes)]


_PAPER_PERPLEXITY = (
    "Paper: 128 random proof-pile documents of at least 64k tokens, sliding window with stride 256 after Press et al.; "
    "which code and which documents is not said."
)


def _perplexity_rows(run: Run) -> list[Row]:
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in run.cells:
        by_method[labels.method(run, cell.get("method"))].append(cell)
    rows = []
    for method, cells in by_method.items():
        if is_auto(run, cells):
            scales = sorted({cell["scale"] for cell in cells})
            rows.append(_perplexity_row(run, method, f"auto {scales[0]:g}–{scales[-1]:g}", cells))
        else:
            for scale in sorted({cell["scale"] for cell in cells}):
                of_scale = [cell for cell in cells if cell["scale"] == scale]
                rows.append(_perplexity_row(run, method, labels.scale(scale), of_scale))
    return rows


def short_hash(documents: list[str]) -> str:
    """Names a list of documents, so that two runs over other ones are seen to be so."""
    return hashlib.sha256(" ".join(map(str, documents)).encode()).hexdigest()[:8]


def is_auto(run: Run, cells: Sequence[dict[str, Any]]) -> bool:
    """True where each window has its own scale (`--scale auto`): one row or line, not one per scale."""
    given = run.part("resolved").get("scale")
    if given is not None:
        return bool(given == "auto")
    pairs = sorted({(cell["window"], cell["scale"]) for cell in cells})
    return all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(pairs)) and len({scale for _, scale in pairs}) > 1


def _perplexity_row(run: Run, method: str, scale: str, cells: Sequence[dict[str, Any]]) -> Row:
    trained = (run.e2 or {}).get("train_window") or run.native_window
    row: Row = {"source": "measured", "size": labels.parameters(run.part("model").get("parameters"))}
    row |= {"training_window": labels.tokens(trained) if number(trained) else "", "model": run.model}
    row |= {"method": method, "scale": scale, "run": run.name, "data": labels.data(run), "intervals": {}}
    for cell in cells:
        key = str(int(cell["window"]))
        row[key] = float(cell["perplexity"])
        if interval(cell) != (None, None):
            row["intervals"][key] = interval(cell)
    return row


def _told_apart(rows: Sequence[tuple[Run, Row]]) -> list[Row]:
    """Rows of clashing runs (same model, method and scale) say what they differ in."""
    names = ["\n".join((row["model"], row["method"], row["scale"])) for _, row in rows]
    for (_, row), name, label in zip(rows, names, labels.told_apart([run for run, _ in rows], names), strict=True):
        row["method"] += label.removeprefix(name)
    return [row for _, row in rows]


def _protocol_notes(runs: Sequence[Run]) -> list[str]:
    """How each run was measured, runs measured alike on one line."""
    by_protocol: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        by_protocol[protocol(run)].append(run.name)
    notes = [f"{', '.join(names)}: {protocol}." for protocol, names in by_protocol.items()]
    several = ["These runs differ in protocol, stride or documents: compare within one line only."]
    return notes + (several if len(notes) > 1 else [])


def protocol(run: Run) -> str:
    """How and on what documents a perplexity run was measured."""
    resolved = run.part("resolved")
    documents = [int(cell["documents"]) for cell in run.cells if number(cell.get("documents"))]
    parts = [f"protocol {resolved.get('protocol') or 'not recorded'}"]
    parts += [f"stride {resolved['stride']}"] if resolved.get("stride") else []
    parts += [f"{max(documents)} document{'s' if max(documents) > 1 else ''}"] if documents else []
    parts += [f"list {short_hash(resolved['documents'])}"] if resolved.get("documents") else []
    parts += [f"the last windows of each, at most {resolved['max_windows']}"] if resolved.get("max_windows") else []
    files = dict.fromkeys(str(name).rpartition(":")[0] or str(name) for name in run.part("data"))  # "FILE:LINE"
    parts += [f"data {', '.join(files)}"] if 0 < len(files) <= 4 else []
    return ", ".join(parts)


def table_6(found: Results) -> list[Table]:
    """The overview of tasks, from the rows that run them."""
    if not found.of("longbench"):
        return []
    columns = [
        Column("task", "Task"),
        Column("group", "Group"),
        Column("origin", "Source of the context"),
        Column("metric", "Metric"),
        Column("language", "Language"),
        Column("samples", "Samples", 0),
        Column("max_new_tokens", "Max new tokens", 0),
        Column("in_longbench_e", "LongBench-E"),
    ]
    rows = [
        {
            "source": "",
            "task": row.name,
            "group": str(row.group).replace("_", " "),
            "origin": row.source,
            "metric": str(getattr(row.metric, "__name__", row.metric)),
            "language": row.language,
            "samples": row.samples,
            "max_new_tokens": row.max_new_tokens,
            "in_longbench_e": "yes" if row.in_longbench_e else "",
        }
        for row in longbench_rows()
    ]
    note = (
        "From the task rows that e2bench runs. The text of the paper holds nothing of its Table 6, so its average "
        "lengths are not shown."
    )
    return [Table("table6", "Table 6. Overview of the LongBench tasks", columns, rows, [note])]


def table_7(found: Results) -> list[Table]:
    """Short benchmarks. The header names the suites; standard errors are in `intervals` as value ± error."""
    runs = found.of("short")
    if not runs:
        return []
    names = labels.told_apart(runs, [labels.row(run) for run in runs])
    measured = [_short_row(run, label) for run, label in zip(runs, names, strict=True)]
    others = sorted({key for row in measured for key in row["others"]})
    heads = [*TABLE7, *others]
    columns = [SOURCE, Column("size", "Size"), MODEL, Column("suite", "Suite"), RUN]
    columns += [*(_score_column(key, key, 1) for key in heads), OVER, _score_column("Avg.", "", 1), DATA]
    suites = sorted({row["suite"] for row in measured})
    title = f"Table 7. Short benchmarks, zero-shot (%); measured with suite {' and '.join(suites)}"
    return [Table("table7", title, columns, published("table7") + measured, [OTHER_MODELS, *_SUITES])]


_SUITES = (
    "Suite paper ranks options by the mean token log-likelihood of the whole text, as the paper's numbers suggest; "
    "suite lm-eval is lm-evaluation-harness's own number. They differ by definition.",
    "Avg. is the plain mean of a suite's tasks, and empty where one is missing or has rows that are not the published "
    "set's. Beside a measured number: one standard error.",
    "The paper's WSC is SuperGLUE's validation set (104 rows); WSC273 is another set with a column of its own.",
)


def _short_row(run: Run, label: str) -> Row:
    own = run.manifest.get("own_rows") or []
    by_column = {_short_column(task, own): task for task in run.scores["tasks"]}
    suite = str(run.scores.get("suite") or run.part("resolved").get("suite") or "not recorded")
    row: Row = {"source": "measured", "model": label, "suite": suite, "run": run.name, "errors": {}}
    row["data"] = labels.data(run)
    row["size"] = labels.parameters(run.part("model").get("parameters"))
    row["others"] = [column for column in by_column if column not in TABLE7]
    for column, task in by_column.items():
        row[column] = run.scores["tasks"][task]
        stderr = details(run, task).get("stderr")
        if number(stderr):
            row["errors"][column] = stderr
    row["Avg."] = (run.scores.get("averages") or {}).get("Avg.")
    row[OVER.key] = labels.averages_over(run, [row["Avg."]])
    return row


def _short_column(task: str, own: Sequence[str]) -> str:
    """The paper's column of a task; rows that are not the published set's, and other sets, stand in their own."""
    plain = "".join(char for char in task.lower() if char.isalnum())
    column = {"wsc273": "WSC273"} | {name: column for column, names in TABLE7.items() for name in names}
    return f"{column.get(plain, task)} (own rows)" if task in own else column.get(plain, task)


BUILDERS: tuple[Callable[[Results], list[Table]], ...] = (tables_1_and_2, table_3, table_6, table_7)
