"""Tasks of one's own for `longbench`: rows of YAML files that `--include` names (docs/howto/add-a-task.md)."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.files import read_json
from e2bench.marked import Marked, at, check_keys, read_yaml
from e2bench.prompts.task import Task, check_fields, examples_of
from e2bench.runs.lines import RUN
from e2bench.scoring import metrics
from e2bench.settings import Settings, setting
from e2bench.tasks.longbench import BY_NAME, first_line_settled

NEEDED = ("task", "data", "prompt", "metric")
GROUP, DIGITS = "own", 12


@dataclass(frozen=True)
class Row(Settings):
    """The keys of a row."""

    task: str = setting("", "Its name: the name of its file of lines.")
    data: str = setting("", "Its .jsonl file, in LongBench's layout; beside the YAML file if relative.")
    prompt: str = setting("", "The template, with {context} and {input}.")
    metric: str = setting("", "A function of e2bench/scoring/metrics.py, by name.")
    max_new_tokens: int = setting(32, "The budget of an answer.", minimum=1)
    language: str = setting("en", "en, zh or code.", choices=("en", "zh", "code"))
    chat_template: bool = setting(True, "Whether a chat template is put around the prompt.")
    first_line_only: bool = setting(False, "Whether the answer's first line alone is scored.")
    stop_at_newline: bool = setting(False, "Whether an answer ends with its line.")

    @classmethod
    def title(cls) -> str:
        """In messages."""
        return "a task"

    @property
    def version(self) -> str:
        """Changes with whatever decides a prediction or its score."""
        decides = {name: getattr(self, name) for name in self.named() if name not in ("task", "data")}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:DIGITS]

    def as_task(self, samples: int) -> Task:
        """The row as LongBench's code takes it. samples: in its whole file."""
        return Task(
            name=self.task,
            group=GROUP,
            language=self.language,
            metric=metric(self.metric),
            max_new_tokens=self.max_new_tokens,
            samples=samples,
            chat_template=self.chat_template,
            first_line_only=self.first_line_only,
            stop_at_newline=self.stop_at_newline,
            in_longbench_e=False,
            settled=first_line_settled if self.first_line_only else None,
            source=GROUP,
            prompt_sha256="",
            repair=None,
            version=self.version,
        )


@dataclass(frozen=True)
class OwnTask:
    """A row, its task, its file and all of the file's examples."""

    row: Row
    task: Task
    file: Path
    examples: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """What run.json keeps, so that the lines can be scored without the YAML file."""
        kept = {name: getattr(self.row, name) for name in Row.named() if name not in ("task", "data")}
        return {**kept, "samples": self.task.samples}


def metric(name: str) -> metrics.Metric:
    """The metric of that name. Raises UnknownName."""
    known = metric_names()
    if name not in known:
        raise UnknownName("metric", name, known)
    found: metrics.Metric = getattr(metrics, name)
    return found


def metric_names() -> list[str]:
    """Functions of `scoring.metrics` that take a prediction, a reference and the classes."""
    takes = ["prediction", "reference", "all_classes"]
    functions = {name: one for name, one in vars(metrics).items() if inspect.isfunction(one) and name[0] != "_"}
    return [name for name, one in functions.items() if list(inspect.signature(one).parameters) == takes]


def read_own_tasks(include: Path, tasks: str) -> list[OwnTask]:
    """The tasks of a YAML file, or of every one in a folder. tasks: `all`, or names separated by commas.

    Raises E2BenchError, one line naming file and place, for a row that is none, and UnknownName for a task.
    """
    files = sorted(path for path in include.glob("*.y*ml")) if include.is_dir() else [include]
    if not files:
        raise DataError(f"{include} holds no .yaml file; --include takes a file of tasks, or a folder of such files")
    rows: dict[str, tuple[Row, Path, int]] = {}
    for file in files:
        for entry in _entries(file):
            check_keys(str(file), entry, f"setting of {Row.title()}", tuple(Row.named()))
            with at(str(file), entry.line):
                row = _row(entry)
                if row.task in rows or row.task in BY_NAME:
                    raise E2BenchError(f"there is a task {row.task!r} already; give this one another name")
                rows[row.task] = (row, file, entry.line)
    wanted = list(rows) if tasks == "all" else [name for name in (part.strip() for part in tasks.split(",")) if name]
    for name in wanted:
        if name not in rows:
            raise UnknownName("task", name, ["all", *rows], hint=f"{include} has {', '.join(rows)}")
    return [_read(*rows[name]) for name in rows if name in wanted]


def _entries(file: Path) -> list[Marked]:
    found = read_yaml(file, str(file))
    entries = [found] if isinstance(found, Marked) else found
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Marked) for entry in entries):
        raise E2BenchError(f"{file}:1: expected one task, or a list of tasks, each of `key: value` pairs")
    return entries


def _row(entry: Marked) -> Row:
    row = Row.read(entry)
    for name in NEEDED:
        if not getattr(row, name):
            raise E2BenchError(f"a task needs {', '.join(NEEDED)}; {name} is missing")
    if not re.fullmatch(r"\w[\w-]*", row.task):
        raise E2BenchError(f"task {row.task!r} is not possible: it names a file (letters, digits, _ -)")
    check_fields(row.prompt, "prompt")
    metric(row.metric)
    return row


def _read(row: Row, file: Path, line: int) -> OwnTask:
    path = file.parent / row.data
    with at(str(file), line, row.task):
        if not path.is_file():
            raise DataError(f"no file {path}; `data` is a .jsonl file, relative to the YAML file")
        examples = examples_of(path, row.as_task(0))
    return OwnTask(row, row.as_task(len(examples)), path, examples)


def stored_tasks(folder: Path) -> list[Task]:
    """The tasks of one's own that a run's run.json describes; [] where it describes none."""
    stored = read_json(folder / RUN).get("own_tasks") if (folder / RUN).exists() else None
    return [_stored(folder, name, row) for name, row in stored.items()] if isinstance(stored, dict) else []


def _stored(folder: Path, name: str, row: Any) -> Task:
    if not isinstance(row, Mapping):
        raise DataError(f"{folder / RUN}: own_tasks.{name} is no object")
    samples = row.get("samples")
    known = {key: value for key, value in row.items() if key in Row.named()}
    return Row.read({**known, "task": name}).as_task(samples if isinstance(samples, int) else 0)
