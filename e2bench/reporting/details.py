"""What stands behind the tables, unrounded: every score with its interval, counts and settings, one line each."""

from __future__ import annotations

from typing import Any

from e2bench.reporting import labels, tables
from e2bench.reporting.runs import Results, Run, interval
from e2bench.reporting.table import EXACT, Column, Row, Table, percent

_RUN = [tables.RUN, tables.MODEL, tables.DATA]


def _head(run: Run, model: str) -> Row:
    """What every row begins with."""
    return {"run": run.name, "model": model, "data": labels.data(run)}


def longbench(found: Results) -> list[Table]:
    """Every LongBench task of every run: score, interval, how many samples were scored, truncated, failed."""
    counts = ("scored", "expected", "truncated", "failed", "left_out")
    rows: list[Row] = []
    for run in found.of("longbench"):
        for task, score in run.scores["tasks"].items():
            detail = tables.details(run, task)
            low, high = interval(detail)
            row = _head(run, labels.row(run)) | {"task": task, "score": score, "low": low, "high": high}
            row |= {key: detail.get(key) for key in (*counts, "metric", "version")}
            rows.append(row | {"without_context": _without_context(found, run, task)})
    columns = [*_RUN, Column("task", "Task"), *(Column(key, label, EXACT) for key, label in _SCORE)]
    columns += [Column(key, key.replace("_", " "), 0) for key in counts]
    columns += [Column("metric", "Metric"), Column("version", "Version")]
    columns += [Column("without_context", "Score without the document", EXACT)]
    note = (
        "Interval: bootstrap over samples, 95 %. Score without the document: the same model and settings answering "
        "with --no-context; what it knows without reading."
    )
    return [Table("longbench", "LongBench, task by task", columns, rows, [note])] if rows else []


_SCORE = (("score", "Score"), ("low", "Low"), ("high", "High"))


def _without_context(found: Results, run: Run, task: str) -> float | None:
    """The score of the same model at the same scale that did not see the document."""
    if labels.without_context(run):
        return None
    for other in found.of("longbench"):
        same = other.part("model") == run.part("model") and labels.run_scale(other) == labels.run_scale(run)
        if same and labels.without_context(other):
            score = other.scores["tasks"].get(task)
            return None if score is None else float(score)
    return None


def averages(found: Results) -> list[Table]:
    """All averages that the runs store, by the name of their scheme; empty where a task is missing."""
    rows: list[Row] = []
    for run in found.of("longbench"):
        stored = run.scores.get("averages")
        for scheme, values in (stored if isinstance(stored, dict) else {}).items():
            row = _head(run, labels.row(run)) | {
                "scheme": scheme,
                tables.OVER.key: labels.averages_over(run, values.values()),
            }
            rows.append(row | values)
    columns = [*_RUN, Column("scheme", "Scheme"), tables.OVER, *(Column(key, key, 2) for key in ("EN", "ZH", "All"))]
    note = (
        "e2: the plain mean over tasks without the synthetic ones, as in the paper's Table 2. longbench: LongBench's "
        "own (macro over six categories, code in both languages). category: macro over categories."
    )
    return [Table("averages", "LongBench averages under each scheme", columns, rows, [note])] if rows else []


CONTEXT = (
    Column("context_perplexity", "Perplexity of context tokens", EXACT),
    Column("context_tokens", "Context tokens", EXACT),
    Column("context_share", "Share gained (%)", EXACT, read=percent),
)


def perplexity(found: Results) -> list[Table]:
    """Every (run, window, scale) with its interval."""
    rows: list[Row] = []
    for run in found.of("ppl"):
        resolved = run.part("resolved")
        for cell in run.cells:
            low, high = interval(cell)
            row = _head(run, run.model) | {"method": labels.method(run, cell.get("method"))}
            row |= {key: cell.get(key) for key in ("window", "scale", "perplexity", "documents", "scored_tokens")}
            row |= {column.key: cell.get(column.key) for column in CONTEXT}
            row |= {"low": low, "high": high} | {key: resolved.get(key) for key in ("protocol", "stride")}
            rows.append(row | {"extrapolate": "yes" if run.manifest.get("extrapolate") else ""})
    columns = [*_RUN, Column("method", "Method"), Column("window", "Window", 0), Column("scale", "g", 2)]
    columns += [Column("perplexity", "Perplexity", EXACT), *(Column(k, k.title(), EXACT) for k in ("low", "high"))]
    columns += [Column("documents", "Documents", 0), Column("scored_tokens", "Scored tokens", 0)]
    columns += [Column("protocol", "Protocol"), Column("stride", "Stride"), Column("extrapolate", "Extrapolated")]
    columns += CONTEXT
    note = (
        "Interval: bootstrap over documents, 95 %; empty for one document. Context tokens (ppl --token-losses): those "
        "whose loss falls by more than 2 nats, to below 2, from the run's shortest to its longest length; the share "
        "is of all tokens, chosen anew at each length. LongPPL's thresholds, the model as its own evaluator."
    )
    return [Table("perplexity", "Perplexity, cell by cell", columns, rows, [note])] if rows else []


def attention(found: Results) -> list[Table]:
    """Whether the gold span stands out: its share of the attention against its share of the input."""
    rows: list[Row] = []
    for run in found.of("attention"):
        for cell in run.cells:
            gold, of_input = cell.get("gold_share"), cell.get("input_share")
            row = _head(run, run.model) | {"method": labels.method(run), **cell}
            row["ratio"] = gold / of_input if gold is not None and of_input else None
            rows.append(row | {"top_heads": _heads(cell.get("top_heads") or [])})
    columns = [*_RUN, Column("method", "Method"), Column("length", "Length", 0), Column("scale", "g", 2)]
    columns += [Column("success", "Answered (%)", 2, read=percent)]
    columns += [Column("gold_share", "Attention on the gold span (%)", EXACT, read=percent)]
    columns += [Column("input_share", "Gold span's share of the input (%)", EXACT, read=percent)]
    columns += [Column("ratio", "Ratio", 1), Column("top_heads", "Retrieval heads (layer.head %)", read=_in_percent)]
    note = "A ratio of 1 is what even attention would give. Layers and heads count from 0."
    return [Table("attention", "Attention on the answer's place in the input", columns, rows, [note])] if rows else []


def _heads(top: list[Any]) -> str:
    return ", ".join(f"{layer}.{head} {share:.2f}" for layer, head, share in top[:5])


def _in_percent(heads: str) -> str:
    """`_heads` for people."""
    pairs = (one.split() for one in heads.split(", ") if one)
    return ", ".join(f"{head} {float(share):.0%}" for head, share in pairs)


def short(found: Results) -> list[Table]:
    """Every task of the short benchmarks, run by run."""
    rows: list[Row] = []
    for run in found.of("short"):
        for task, score in run.scores["tasks"].items():
            detail = tables.details(run, task)
            row = _head(run, labels.row(run)) | {"suite": run.scores.get("suite"), "task": task}
            rows.append(row | {"accuracy": score} | {key: detail.get(key) for key in ("stderr", "scored", "scoring")})
    columns = [*_RUN, Column("suite", "Suite"), Column("task", "Task"), Column("accuracy", "Accuracy", EXACT)]
    columns += [Column("stderr", "Standard error", EXACT), Column("scored", "Samples", 0), Column("scoring", "Scoring")]
    return [Table("short", "Short benchmarks, task by task", columns, rows)] if rows else []


BUILDERS = (longbench, averages, perplexity, attention, short)
