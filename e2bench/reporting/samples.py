"""Every answer, whole, for the page's browser: an index of what is filtered, and texts in files of their own.

The page loads `samples/index.js` when its browser comes into view and `samples/N.js` when one of its answers is shown,
as scripts that call one function: that works from a disk, where a page may not fetch. Both are arrays of JSON only, so
that no text of a model becomes code, markup or the name of a property.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from e2bench.errors import E2BenchError
from e2bench.experiments.base import EXPERIMENTS, Line, Sample, experiment
from e2bench.reporting import labels
from e2bench.reporting.runs import Results, Run, number, reason

FOLDER = "samples"
EMBEDDED_CHARS = 2_000_000  # of all files: a page that holds no more holds them itself, and can be passed on alone
FILE_CHARS = 500_000  # of one file of texts: read from a disk in milliseconds, searched in a moment
SHOWN_NAME = 200  # characters of an id, a label or a finish
_COUNTS = ("prompt_tokens", "kept_tokens", "new_tokens")
# What a line that is not as docs/files.md says leads to: its file is named and left out.
_DAMAGE = (E2BenchError, KeyError, TypeError, ValueError, OSError, AttributeError, IndexError, ArithmeticError)

Put = Callable[[str, str], object]


@dataclass
class Summary:
    """What the page itself holds of the samples. runs: (name, label); files: number of files of texts."""

    runs: list[tuple[str, str]] = field(default_factory=list)
    lines: int = 0
    files: int = 0


@dataclass
class _Column:
    """The lines of one run in one group: an entry a line in each list, texts in `files` from [number, row, line] on."""

    run: int
    at: list[int] = field(default_factory=list)  # of the group's ids
    facts: list[list[Any]] = field(default_factory=list)  # score, finish, truncated, prompt, kept and new tokens
    files: list[list[int]] = field(default_factory=list)


@dataclass
class _Group:
    """Lines that are paired: one task, or one length."""

    ids: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    columns: list[_Column] = field(default_factory=list)


class _Texts:
    """Rows of texts, put into files of about FILE_CHARS."""

    def __init__(self, put: Put) -> None:
        self.put, self.rows, self.chars, self.files = put, list[str](), 0, 0

    def add(self, texts: list[Any]) -> tuple[int, int]:
        """(file, row) of the texts."""
        encoded = to_json(texts)
        if self.rows and self.chars + len(encoded) > FILE_CHARS:
            self.close()
        self.rows.append(encoded)
        self.chars += len(encoded)
        return self.files, len(self.rows) - 1

    def close(self) -> None:
        """Write what is left."""
        if self.rows:
            self.put(f"{FOLDER}/{self.files}.js", _script(str(self.files), f"[{','.join(self.rows)}]"))
            self.files, self.rows, self.chars = self.files + 1, [], 0


class _Entry(NamedTuple):
    """What the page shows of one line. texts: of `_texts`; facts: of `_facts`."""

    task: str
    id: str
    label: str
    texts: list[Any]
    facts: list[Any]


class Kept:
    """Hands files on to `put`, and keeps what they hold as long as that is little. files: number or index: JSON."""

    def __init__(self, put: Put) -> None:
        self.put, self.files, self.chars = put, dict[str, str](), 0

    def __call__(self, name: str, content: str) -> None:
        """One file."""
        self.put(name, content)
        self.chars += len(content)
        if self.chars <= EMBEDDED_CHARS:
            key, _, rest = content.removeprefix("e2benchLoad(").partition(",")
            self.files[key.strip('"')] = rest.removesuffix(");\n")
        else:
            self.files.clear()


def write(found: Results, put: Put) -> Summary:
    """Hand every line of every run to `put(name, content)`, file by file, the index last.

    Files that cannot be read become warnings of `found`.
    """
    runs = [run for name in EXPERIMENTS if experiment(name).shows_samples for run in found.of(name)]
    names = labels.told_apart(runs, [labels.legend(run) if run.about.cells else labels.row(run) for run in runs])
    summary = Summary([(run.name, label) for run, label in zip(runs, names, strict=True)])
    groups: dict[tuple[str, str], _Group] = {}
    texts = _Texts(put)
    for at, run in enumerate(runs):
        for entries in _files(run, found):
            for task, members in groupby(sorted(entries, key=lambda entry: entry.task), key=lambda entry: entry.task):
                column = _column(at, members, groups.setdefault((run.experiment, task), _Group()), texts)
                summary.lines += len(column.at)
    texts.close()
    summary.files = texts.files
    if summary.lines:
        put(f"{FOLDER}/index.js", _script('"index"', to_json([_indexed(key, group) for key, group in groups.items()])))
    return summary


def _files(run: Run, found: Results) -> Iterator[list[_Entry]]:
    """The lines of each file of a run."""
    for name in run.files():
        try:
            lines = run.lines(name)
        except _DAMAGE as error:
            found.warnings.append(f"{run.name}/{name}.jsonl: its samples are not shown ({reason(error, run.folder)})")
            continue
        entries, why = _entries(run, name, lines)
        if why:
            found.warnings.append(
                f"{run.name}/{name}.jsonl: {len(lines) - len(entries)} lines are no samples and are not shown ({why})"
            )
        unscored = sum(entry.facts[0] is None and entry.facts[1] != "error" for entry in entries)
        if unscored:
            found.warnings.append(f"{run.name}/{name}.jsonl: {unscored} lines cannot be scored one by one")
        yield entries


def _entries(run: Run, name: str, lines: Sequence[Line]) -> tuple[list[_Entry], str]:
    """The entries of a file, and what is wrong with the first line that is none; it costs no other its place."""
    try:
        return [_entry(name, *pair) for pair in run.about.samples(run.folder, name, lines, strict=False)], ""
    except _DAMAGE:
        pass
    made: list[_Entry] = []
    why = ""
    for line in lines:
        try:
            made += [_entry(name, *pair) for pair in run.about.samples(run.folder, name, [line], strict=False)]
        except _DAMAGE as error:
            why = why or reason(error, run.folder)
    return made, why


def _column(run: int, members: Iterable[_Entry], group: _Group, texts: _Texts) -> _Column:
    column = _Column(run)
    for entry in members:
        file, row = texts.add(entry.texts)
        if not column.files or column.files[-1][0] != file:
            column.files.append([file, row, len(column.at)])
        if entry.id not in group.ids:
            group.labels.append(entry.label)
        column.at.append(group.ids.setdefault(entry.id, len(group.ids)))
        column.facts.append(entry.facts)
    group.columns.append(column)
    return column


def _entry(name: str, line: Line, sample: Sample) -> _Entry:
    task = sample.task if sample.task.partition(" ")[0] == name else f"{name} {sample.task}"  # cwe 1k, passkey 8,192
    label = str(sample.label or sample.id)[:SHOWN_NAME]
    return _Entry(task, str(sample.id)[:SHOWN_NAME], label, _texts(line, sample), _facts(line, sample))


def _texts(line: Line, sample: Sample) -> list[Any]:
    """[prediction, references, prompt, its beginning, its end]; a reference is a text, a number or a list of them."""
    several = sample.reference if isinstance(sample.reference, list) else [sample.reference]
    whole = str(line.get("prompt") or "")
    ends = ["", ""] if whole else [str(line.get(key) or "") for key in ("head", "tail")]
    return [str(sample.prediction), [str(text) for text in several], whole, *ends]


def _facts(line: Line, sample: Sample) -> list[Any]:
    """[score of 0 to 100, finish, truncated, tokens of the prompt, kept, generated]; None where a line does not say."""
    line = {"prompt_tokens": line.get("tokens"), "kept_tokens": line.get("tokens"), **line}
    prompt, kept, new = (line.get(key) if number(line.get(key)) else None for key in _COUNTS)
    truncated = line.get("truncated")
    if truncated is None and prompt is not None and kept is not None:
        truncated = kept < prompt
    grade = sample.grade  # the page's script reads JSON, which has no NaN
    score = round(float(grade), 2) if number(grade) and 0 <= grade <= 100 else None
    finish = str(line.get("finish") or "")[:SHOWN_NAME]
    return [score, finish, None if truncated is None else int(bool(truncated)), prompt, kept, new]


def _indexed(key: tuple[str, str], group: _Group) -> list[Any]:
    """[experiment, task, ids, labels or 0 where they are the ids, finishes, [[run, at, files, score, finish, …], …]]"""
    ids, finishes = list(group.ids), list(dict.fromkeys(facts[1] for c in group.columns for facts in c.facts))
    columns = []
    for column in group.columns:
        score, finish, *others = map(list, zip(*column.facts, strict=True))
        columns.append([column.run, column.at, column.files, score, list(map(finishes.index, finish)), *others])
    return [*key, ids, 0 if ids == group.labels else group.labels, finishes, columns]


def to_json(value: Any) -> str:
    """JSON that may stand in a script: no <, > or & in it, whatever the predictions hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _script(key: str, text: str) -> str:
    return f"e2benchLoad({key},{text});\n"
