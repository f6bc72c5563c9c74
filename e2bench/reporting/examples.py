"""Single predictions for the page's browser: what went in, what came out, what was right, and the score of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.experiments.base import EXPERIMENTS, Line, Sample, experiment
from e2bench.reporting import labels
from e2bench.reporting.runs import Results, Run, number, reason
from e2bench.runs.lines import names_of

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
    runs = [run for name in EXPERIMENTS if experiment(name).shows_samples for run in found.of(name)]
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
            examples = _examples(run, name)
        except (E2BenchError, KeyError, TypeError, ValueError, OSError) as error:
            why = reason(error, run.folder)
            found.warnings.append(f"{run.name}/{name}.jsonl: its examples are not shown ({why})")
            continue
        drawn.append((name, examples))
        unscored = sum(example[1] is None and example[2] != "error" for example in examples)
        if unscored:
            found.warnings.append(f"{run.name}/{name}.jsonl: {unscored} lines cannot be scored one by one")
    return drawn


def _examples(run: Run, name: str) -> list[list[Any]]:
    samples = run.about.samples(run.folder, name, run.lines(name), strict=False)
    return [_example(line, sample) for line, sample in samples]


def _example(line: Line, sample: Sample) -> list[Any]:
    """The values of FIELDS after run and task. A reference may be one text, a number, or a list of them."""
    several = sample.reference if isinstance(sample.reference, list) else [sample.reference]
    line = {"prompt_tokens": line.get("tokens"), "kept_tokens": line.get("tokens"), **line}
    counts = [line.get(key) if number(line.get(key)) else None for key in _COUNTS]
    texts = [str(sample.prediction), [str(text) for text in several]]
    ends = [line.get("head") or "", line.get("tail") or ""]
    return [sample.label, sample.grade, line.get("finish"), *counts, *texts, *ends]


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
