"""Single predictions for the page's browser: what went in, what came out, what was right, and the score of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.records import names_of
from e2bench.reporting import labels
from e2bench.reporting.runs import Results, Run, number, reason
from e2bench.reporting.tables import longbench_rows

Line = dict[str, Any]
# One list an example, in this order; run and task are indices into the names.
_COUNTS = ("prompt_tokens", "kept_tokens", "new_tokens")
FIELDS = ("run", "task", "id", "score", "finish", *_COUNTS, "prediction", "references", "head", "tail")
PAGE_CHARS = 24_000_000  # of embedded text: more would not open in two seconds
_LIMITS = (4000, 2000, 1000, 500, 250)  # characters of a prediction or reference, the largest that fits is taken
_MOST_REFERENCES = 8


@dataclass
class Examples:
    """`rows` by FIELDS; `limit`: characters after which a text was cut; `left_out`: examples there was no room for."""

    runs: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    limit: int = _LIMITS[0]
    shortened: int = 0
    left_out: int = 0


def collect(found: Results, page_chars: int = PAGE_CHARS) -> Examples:
    """Every stored example of every run, shortened and thinned where a page could not hold them all."""
    gathered = Examples()
    runs = [run for experiment in _READERS for run in found.of(experiment)]
    gathered.runs = labels.told_apart(runs, [labels.row(run) for run in runs])
    tasks: dict[str, int] = {}
    for at, run in enumerate(runs):
        for task, lines in _lines(run, found):
            index = tasks.setdefault(task, len(tasks))
            gathered.rows += [[at, index, *values] for values in lines]
    gathered.tasks = list(tasks)
    _fit(gathered, page_chars)
    return gathered


def _lines(run: Run, found: Results) -> list[tuple[str, list[list[Any]]]]:
    """(task, its examples) of a run; a file that cannot be read is named and left out."""
    drawn = []
    for name in names_of(run.folder):
        try:
            examples = _READERS[run.experiment](run, name)
        except (E2BenchError, KeyError, TypeError, ValueError, OSError) as error:
            why = reason(error, run.folder)
            found.warnings.append(f"{run.name}/{name}.jsonl: its examples are not shown ({why})")
            continue
        drawn.append((name, examples))
        unscored = sum(example[1] is None and example[2] != "error" for example in examples)
        if unscored:
            found.warnings.append(f"{run.name}/{name}.jsonl: {unscored} lines cannot be scored one by one")
    return drawn


def _longbench(run: Run, name: str) -> list[list[Any]]:
    task = {row.name: row for row in longbench_rows()}.get(name.removesuffix("_e"))  # LongBench-E scores alike
    if task is None:
        raise ValueError(f"{name} is no task of LongBench")
    return [
        _example(line, line.get("_id", at), _score(task, line), line["pred"], line["answers"])
        for at, line in enumerate(run.lines(name), 1)
    ]


def _score(task: Any, line: Line) -> float | None:
    """0-100; None for a failed line, and for one whose references the metric cannot read."""
    from e2bench.metrics import score_row

    if line.get("finish") == "error":
        return None
    classes, first_line_only = line.get("all_classes"), task.first_line_only
    try:
        share = score_row(
            task.metric, line["pred"], line["answers"], all_classes=classes, first_line_only=first_line_only
        )
    except E2BenchError:
        return None
    return 100 * share


def _short(run: Run, name: str) -> list[list[Any]]:
    lines = run.lines(name)
    return [_example(line, line["_id"], 100 * line["correct"], line["prediction"], line["gold"]) for line in lines]


def _passkey(run: Run, name: str) -> list[list[Any]]:
    return [_cell(line, line["key"]) for line in run.lines(name)]


def _attention(run: Run, name: str) -> list[list[Any]]:
    return [_cell(line, line["answer"]) for line in run.lines(name)]


def _cell(line: Line, answer: object) -> list[Any]:
    where = f"{line['length']} tokens, depth {line.get('depth'):.2g}, trial {line.get('trial')}"
    line = {"prompt_tokens": line.get("tokens"), "kept_tokens": line.get("tokens"), **line}
    return _example(line, where, 100 * bool(line["success"]), line["pred"], answer)


_READERS: dict[str, Callable[[Run, str], list[list[Any]]]] = {
    "longbench": _longbench,
    "short": _short,
    "passkey": _passkey,
    "attention": _attention,
}


def _example(line: Line, name: object, score: float | None, prediction: object, references: object) -> list[Any]:
    """The values of FIELDS after run and task. A reference may be one text, a number, or a list of them."""
    several = references if isinstance(references, list) else [references]
    counts = [line.get(key) if number(line.get(key)) else None for key in _COUNTS]
    texts = [str(prediction), [str(text) for text in several]]
    return [str(name), score, line.get("finish"), *counts, *texts, line.get("head") or "", line.get("tail") or ""]


def _fit(gathered: Examples, page_chars: int) -> None:
    """Cut long texts to the largest limit that fits the page; if none does, keep evenly spaced examples."""
    limit = next((limit for limit in _LIMITS if _size(gathered.rows, limit) <= page_chars), _LIMITS[-1])
    size = _size(gathered.rows, limit)
    if size > page_chars:
        step = -(-size // page_chars)
        kept = gathered.rows[::step]
        gathered.left_out = len(gathered.rows) - len(kept)
        gathered.rows = kept
    gathered.limit = limit
    for row in gathered.rows:
        prediction, references = row[8], row[9]
        row[8], row[9] = _cut(prediction, limit), [_cut(text, limit) for text in references[:_MOST_REFERENCES]]
        row[10], row[11] = str(row[10])[:600], str(row[11])[-600:]
        gathered.shortened += row[8] != prediction or row[9] != references


def _size(rows: Sequence[list[Any]], limit: int) -> int:
    texts = ([row[8], *row[9][:_MOST_REFERENCES], str(row[10]), str(row[11])] for row in rows)
    return sum(min(len(text), limit) + 12 for group in texts for text in group) + 60 * len(rows)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def to_json(gathered: Examples) -> str:
    """JSON that may stand inside a script element: no <, > or & in it, whatever the predictions hold."""
    data = {
        "runs": gathered.runs,
        "tasks": gathered.tasks,
        "fields": FIELDS,
        "rows": [[round(value, 2) if isinstance(value, float) else value for value in row] for row in gathered.rows],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
