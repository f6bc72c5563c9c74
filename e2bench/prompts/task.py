"""What a task is: one row of facts, its prompt template, and how a row renders an example."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from e2bench.errors import DataError, E2BenchError
from e2bench.files import Limits, json_object, parse_json, read_lines, read_whole, within
from e2bench.scoring.metrics import Metric

MOST_TASK_BYTES = 1 << 30  # of a task's examples, which are held together
FIELDS = ("input", "context", "answers", "length", "all_classes", "_id")


@dataclass(frozen=True)
class Task:
    """One generation task in LongBench's layout. Every field is given on every row."""

    name: str
    group: str  # single_doc_qa, multi_doc_qa, summarization, few_shot, synthetic or code
    language: str  # en, zh or code
    metric: Metric
    max_new_tokens: int
    samples: int  # in the full data set
    chat_template: bool  # false: a completion task, never wrapped
    first_line_only: bool
    stop_at_newline: bool
    in_longbench_e: bool
    settled: Callable[[str], bool] | None  # text so far -> no further token can change the score
    source: str  # origin of the context, for the overview (paper, Table 6)
    prompt_sha256: str  # of the official template
    repair: tuple[str, str] | None  # what lm-eval's copy of the template lost
    version: str  # changes with any prompt or metric

    @property
    def template_name(self) -> str:
        """Whose prompt it uses: a LongBench-E task has its LongBench task's."""
        return self.name.removesuffix("_e")


Example = Mapping[str, Any]


def sample_hash(example: Mapping[str, Any]) -> str:
    """16 hex digits over everything in an example: tells two examples of one id apart."""
    return hashlib.sha256(json.dumps(example, sort_keys=True).encode()).hexdigest()[:16]


def render(template: str, example: Example, *, with_context: bool = True) -> str:
    """The prompt of one example: `{context}` and `{input}` filled in, braces inside the texts left alone."""
    context = example["context"] if with_context else ""
    return template.format(context=context, input=example["input"])


def templates(tasks: list[Task], prompts_file: Path | None = None) -> dict[str, str]:
    """Official prompt templates by task name.

    Read from `prompts_file` (LongBench's own dataset2prompt.json, or another one like it), else from the installed
    lm-eval's task files, checked against the official SHA-256 of each. Raises E2BenchError naming what differs.
    """
    given = _prompts_file(prompts_file) if prompts_file else None
    found = {}
    for task in tasks:
        if given is not None and task.template_name not in given:
            raise DataError(
                f"{prompts_file} has no prompt for {task.template_name!r}; needed is LongBench's dataset2prompt.json"
            )
        found[task.name] = given[task.template_name] if given is not None else _lm_eval_template(task)
        if given is not None:
            check_fields(found[task.name], f"{prompts_file}: the prompt for {task.name!r}")
        elif hashlib.sha256(found[task.name].encode()).hexdigest() != task.prompt_sha256:
            raise E2BenchError(
                f"the installed lm-eval's prompt for {task.name} is not LongBench's official one; "
                "install lm-eval 0.4.13, or give LongBench's dataset2prompt.json with --prompts"
            )
    return found


def _prompts_file(path: Path) -> dict[str, str]:
    try:
        prompts = parse_json(read_whole(path), "it")
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read as dataset2prompt.json: {error}") from None
    if not isinstance(prompts, dict) or not all(isinstance(v, str) for v in prompts.values()):
        raise DataError(f"{path} is not a JSON object of task name: template")
    return prompts


def check_fields(template: str, what: str) -> None:
    """Refuse attributes, conversions and widths too: `{context:>999999999999}` would fill the memory."""
    try:
        fields = [parts[1:] for parts in Formatter().parse(template) if parts[1] is not None]
    except ValueError as error:
        raise DataError(f"{what} cannot be filled in ({error}); it may hold {{context}} and {{input}} only") from None
    for name, width, conversion in fields:
        if name not in ("context", "input") or width or conversion:
            raise DataError(f"{what} cannot be filled in ({name!r}); it may hold {{context}} and {{input}} only")


def _lm_eval_template(task: Task) -> str:
    """lm_eval/tasks/longbench/NAME.yaml, field doc_to_text, as a template of ours."""
    found = lm_eval_file(f"longbench/{task.template_name}.yaml")
    if found is None:
        raise E2BenchError(
            f"lm-eval has no LongBench prompt named {task.template_name!r}; give one for {task.name} with --prompts"
        )
    template = str(found["doc_to_text"]).replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    return template.replace(*task.repair) if task.repair else template


def lm_eval_file(name: str) -> dict[str, Any] | None:
    """A file below lm_eval/tasks without importing lm_eval (which pulls in torch); None where there is none.

    Raises E2BenchError where lm-eval is not installed.
    """
    import yaml

    path = lm_eval_tasks() / name
    if not path.is_file():
        return None

    class Loader(yaml.SafeLoader):
        """Safe loading that steps over lm-eval's `!function` tags."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)
    return found


def lm_eval_tasks() -> Path:
    """The folder of lm-eval's task files. Raises E2BenchError where lm-eval is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise E2BenchError("lm-eval is not installed, and these prompts come from it: pip install 'lm-eval>=0.4.13'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def read_examples(folder: Path, task: Task, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` examples of `folder`/NAME.jsonl. Raises DataError naming file, line and what is wrong."""
    path = folder / f"{task.name}.jsonl"
    if not path.is_file():
        raise DataError(f"no file {path}; --data takes a folder with one NAME.jsonl a task (e2bench data longbench)")
    return examples_of(path, task, limit)


def examples_of(path: Path, task: Task, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` examples of a file. Raises DataError naming file, line and what is wrong."""
    examples: list[dict[str, Any]] = []
    seen: set[str] = set()
    held = Limits(size=MOST_TASK_BYTES)
    with path.open("rb") as lines:
        for number, raw in read_lines(lines, path):
            if limit is not None and len(examples) >= limit:
                break
            if not raw.strip():
                continue
            held.take(raw, f"{path}:{number}")
            example = _example(raw, f"{path}:{number}", task)
            if example["_id"] in seen:
                raise DataError(
                    f"{path}:{number}: _id {example['_id']!r} stands twice in this file; ids must be unique"
                )
            seen.add(example["_id"])
            examples.append(example)
    if not examples:
        raise DataError(f"{path} is empty: needed is one JSON object a line")
    return examples


def _example(raw: bytes, where: str, task: Task) -> dict[str, Any]:
    example = json_object(raw, where)
    for name in FIELDS:
        if name not in example:
            raise DataError(f"{where}: field {name!r} is missing; needed are {', '.join(FIELDS)}")
    if not isinstance(example["context"], str) or not isinstance(example["input"], str):
        raise DataError(f"{where}: context and input must be text")
    within(example["context"] + example["input"], where, "shorten context and input")
    answers = example["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise DataError(f"{where}: answers must be a list of at least one text")
    classes = example["all_classes"]
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise DataError(f"{where}: all_classes must be null or a list of texts")
    try:
        "".join([example["context"], example["input"], *answers]).encode("utf-8")
        for answer in answers:  # a reference that cannot be scored is found now, not after hours of generation
            task.metric("", answer, classes)
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a surrogate pair, which is no character; mend the text") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    example["_id"] = str(example["_id"])
    return example
