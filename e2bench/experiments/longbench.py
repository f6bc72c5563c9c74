"""LongBench v1 (arXiv 2308.14508): 21 tasks, middle truncation, official scores and averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import DEMO, OWN, PUBLIC, DataSource
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import Experiment, Line, Plan, Sample, TaskFacts
from e2bench.experiments.demo import demo_folder
from e2bench.files import check_folder, file_hashes, sha256_of
from e2bench.prompts.truncation import MODES, input_limit
from e2bench.rope.windows import ScaleRule
from e2bench.runs.lines import names_of, stored_rows
from e2bench.settings import setting
from e2bench.tasks.models import find as find_preset

if TYPE_CHECKING:
    from e2bench.experiments.answers import Question
    from e2bench.experiments.options import Common
    from e2bench.models.protocols import Generator
    from e2bench.prompts.task import Example, Task


@dataclass(frozen=True)
class Inputs:
    """questions: of all chosen tasks, in order.    data: NAME.jsonl: SHA-256, of the files when they were read.

    own: tasks of one's own, for run.json.
    """

    tasks: Sequence[Task]
    questions: Sequence[Question]
    data: Mapping[str, str]
    source: DataSource
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LongBench(Experiment):
    """LongBench v1: 21 tasks, middle truncation, official scores and averages."""

    name: ClassVar[str] = "longbench"
    about: ClassVar[str] = "LongBench v1: 21 tasks, middle truncation, official scores and averages."
    examples: ClassVar[tuple[str, ...]] = (
        "e2bench longbench --data demo --window 2k",
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --tasks trec,lcc --limit 20 --out results/g8",
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --engine vllm --out results/g8-vllm",
    )
    agree: ClassVar[Mapping[str, bool]] = {"versions": True, "data": False, "hashes": True}
    benchmark: ClassVar[str] = "LongBench"
    own_layout: ClassVar[frozenset[str]] = frozenset(("pred", "answers", "all_classes", "length"))

    tasks: str = setting("all", "all, en, zh, code, e (LongBench-E) or task names, separated by commas.", lines="tasks")
    data: Path | None = setting(None, "Folder of NAME.jsonl files, or demo. Default: the public data.")
    limit: int | None = setting(None, "Only the first N examples of each task.", minimum=1, lines="limit")
    input_limit: int | None = setting(None, "Tokens kept of a prompt. Default: 1000·⌊window/1024⌋ - 500.", minimum=2)
    truncation: str = setting("official", "official (decode, join, re-encode) or ids.", choices=MODES)
    chat_template: str = setting("auto", "auto, none, llama2, vicuna, longchat or FILE.jinja.")
    thinking: bool = setting(True, "Leave a template's thinking block on; --no-thinking asks for none.")
    include: Path | None = setting(None, "Tasks of your own: a YAML file of rows, or a folder of such files.")
    prompts: Path | None = setting(None, "LongBench's dataset2prompt.json instead of lm-eval's copies.")
    no_context: bool = setting(False, "Leave the document out: what the model knows already.", flags=("--no-context",))
    early_stop: bool = setting(True, "Stop a row once its score cannot change.")

    @classmethod
    def tasks_facts(cls) -> Iterator[TaskFacts]:
        """LongBench's tasks and those of LongBench-E."""
        from e2bench.tasks.longbench import EVERY_TASK

        for task in EVERY_TASK:
            yield TaskFacts(task.name, task.metric.__name__, task.language, task.samples, task.max_new_tokens)

    def inputs(self, common: Common) -> Inputs:
        """Prompts and examples of the chosen tasks."""
        if self.include is not None:
            return self._own_inputs(common)
        from e2bench.experiments.answers import check_budgets
        from e2bench.prompts.task import read_examples, templates
        from e2bench.tasks.longbench import select

        chosen = select(self.tasks)
        texts = templates(chosen, self.prompts)
        folder, source = self._data_folder(chosen)
        questions = [
            question_of(task, texts[task.name], example, with_context=not self.no_context)
            for task in chosen
            for example in read_examples(folder, task, self.limit)
        ]
        if common.window is not None:
            check_budgets({task.name: task.max_new_tokens for task in chosen}, common.window)
        data = file_hashes(folder / f"{task.name}.jsonl" for task in chosen)
        return Inputs(chosen, questions, data, source)

    def _own_inputs(self, common: Common) -> Inputs:
        """Prompts and examples of the tasks that `--include` names."""
        from e2bench.experiments.answers import check_budgets
        from e2bench.experiments.own_tasks import read_own_tasks

        assert self.include is not None
        for name in ("data", "prompts"):
            if getattr(self, name) is not None:
                raise E2BenchError(f"--{name} is for LongBench's tasks; with --include each task's row says its own")
        own = read_own_tasks(self.include, self.tasks)
        if common.window is not None:
            check_budgets({one.task.name: one.task.max_new_tokens for one in own}, common.window)
        questions = [
            question_of(one.task, one.row.prompt, example, with_context=not self.no_context)
            for one in own
            for example in one.examples[: self.limit]
        ]
        data = {f"{one.task.name}.jsonl": sha256_of(one.file) for one in own}
        source = DataSource(OWN, self.include.resolve().name)
        return Inputs([one.task for one in own], questions, data, source, {one.task.name: one.as_json() for one in own})

    def plan(self, model: Generator, rule: ScaleRule, common: Common, inputs: Inputs) -> Plan:
        """Every example of every task; the scale is one for the run, or follows each input."""
        from e2bench.experiments.answers import plan_of, wrapper_of

        limit = self.input_limit or preset_limit(common)

        def kept(window: int | None, budget: int) -> int | None:
            return limit or (None if window is None else input_limit(window, budget))

        return plan_of(
            inputs.questions,
            model,
            rule,
            common,
            limit=kept,
            cut=self.truncation,
            wrapper=wrapper_of(model, common, self.chat_template, thinking=self.thinking),
            early_stop=self.early_stop,
            resolved={
                "tasks": [task.name for task in inputs.tasks],
                "versions": {task.name: task.version for task in inputs.tasks},
                "limit": self.limit,
                "input_limit": limit,
                "truncation": self.truncation,
                "prompts": self._prompts_name(),
                "context": not self.no_context,
            },
            source=inputs.source,
            data=inputs.data,
            facts={"own_tasks": inputs.own} if inputs.own else {},
        )

    def _prompts_name(self) -> str:
        """Whose prompts they are, for run.json: the official ones, a file's hash, or the rows' of `--include`."""
        if self.include is not None:
            return "own"
        return "official" if self.prompts is None else sha256_of(self.prompts)

    def _data_folder(self, tasks: Sequence[Task]) -> tuple[Path, DataSource]:
        """The folder of NAME.jsonl files: the one given, the demo one, or the cached public data set."""
        if self.data is None:
            from e2bench.data.fetch import fetch, is_verified
            from e2bench.tasks.corpora import find

            archive = find("longbench")
            fetched = fetch(archive)
            return fetched, DataSource(PUBLIC, self.benchmark, is_verified(archive, fetched))
        if str(self.data) == DEMO:
            return demo_folder(self.name), DataSource(DEMO)
        check_folder(self.data, "--data takes a folder with one NAME.jsonl a task")
        missing = [task.name for task in tasks if not (self.data / f"{task.name}.jsonl").is_file()]
        there = sorted(path.stem for path in self.data.glob("*.jsonl"))
        if not there:
            raise DataError(f"{self.data} holds no NAME.jsonl file; --data takes a folder in LongBench's layout")
        if missing:
            raise DataError(
                f"{self.data} has no {missing[0]}.jsonl ({len(missing)} of {len(tasks)} tasks are missing); "
                f"give --tasks {','.join(there[:6])}{',…' if len(there) > 6 else ''}, or the whole data set"
            )
        return self.data, DataSource(OWN, self.data.resolve().name)

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Score every task's lines, and the three named averages.

        options: with `rouge_score` also Google's rougeL beside the summaries' scores, as `rouge_score` in the details.
        """
        from e2bench.experiments.own_tasks import stored_tasks
        from e2bench.scoring.averages import averages
        from e2bench.tasks.longbench import BY_NAME, EVERY_TASK, LONGBENCH

        names = names_of(folder)
        present = [task for task in (*EVERY_TASK, *stored_tasks(folder)) if task.name in names]
        if not present:
            others = sorted(p.name for p in folder.glob("*.jsonl"))
            what = f"files of unknown tasks ({', '.join(others[:3])})" if others else "no .jsonl file"
            raise DataError(
                f"{folder} holds {what}; expected NAME.jsonl with NAME one of {', '.join(list(BY_NAME)[:4])}, …"
            )
        details = {task.name: task_details(folder, task, bool(options.get("rouge_score"))) for task in present}
        scores = {name: entry.pop("score") for name, entry in details.items()}
        known = {name: score for name, score in scores.items() if score is not None}
        own = all(task.name not in BY_NAME for task in present)  # which belong to no average
        whole = {name: score for name, score in known.items() if not details[name]["failed"]}
        return {"tasks": known, "averages": {} if own else averages(whole, LONGBENCH), "details": details}

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """Answers with their scores. Raises DataError for a file of no task, and with `strict` naming a bad line."""
        from e2bench.experiments.own_tasks import stored_tasks
        from e2bench.scoring.averages import score_predictions
        from e2bench.tasks.longbench import BY_NAME

        task = {**{one.name: one for one in stored_tasks(folder)}, **BY_NAME}.get(name)
        if task is None:
            raise DataError(f"{name} is no task of LongBench")
        for number, line in enumerate(lines, 1):
            found: list[float] = []
            try:
                found = score_predictions([line], task, where=f"{folder / name}.jsonl", first=number)
            except E2BenchError:
                if strict:
                    raise
            score = found[0] if found else None
            label = str(line.get("_id", number))
            yield line, Sample(name, label, score, line["answers"], line["pred"], label, grade=score and 100 * score)

    @classmethod
    def table(cls, scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """Score, interval, number of samples and of truncated prompts of each task."""
        columns = ["task", "score", "95 % interval", "scored", "truncated"]
        google = any("rouge_score" in entry for entry in scores["details"].values())
        rows = [_row(name, scores["tasks"].get(name), entry) for name, entry in scores["details"].items()]
        return [*columns, "rouge-score"] if google else columns, rows


def question_of(task: Task, template: str, example: Example, *, with_context: bool) -> Question:
    """One example as a question whose line begins with LongBench's own fields."""
    from e2bench.experiments.answers import Question
    from e2bench.prompts.task import render, sample_hash

    name = example["_id"]
    kept = {field: example[field] for field in ("answers", "all_classes", "length")}

    def answered(text: str) -> Line:
        return {"_id": name, "dataset": task.name, "pred": text, **kept}

    return Question(
        task.name,
        name,
        sample_hash(example),
        render(template, example, with_context=with_context),
        task.max_new_tokens,
        answered,
        wrapped=task.chat_template,
        stop_at_newline=task.stop_at_newline,
        settled=task.settled,
    )


def _row(name: str, score: float | None, entry: Mapping[str, Any]) -> list[str]:
    bounds = entry["interval"]
    return [
        name,
        "-" if score is None else f"{score:.2f}",
        f"{bounds[0]:.1f} – {bounds[1]:.1f}" if bounds else "",
        f"{entry['scored']} of {entry['expected']}",
        str(entry["truncated"]),
        *([f"{entry['rouge_score']:.2f}"] if "rouge_score" in entry else []),
    ]


def task_details(folder: Path, task: Task, rouge_score: bool) -> dict[str, Any]:
    """Score (0-100) of one task's lines, with its interval and how many were scored, truncated, failed, left out."""
    from e2bench.experiments.answers import check_counts, was_truncated
    from e2bench.scoring.averages import by_length, score_predictions
    from e2bench.scoring.metrics import rouge_l, rouge_score_l
    from e2bench.scoring.statistics import interval, mean

    rows = stored_rows(folder, task.name)
    values = score_predictions(rows, task, where=str(folder / f"{task.name}.jsonl"))
    share = mean(values)
    bounds = interval(values)
    answered = [row for row in rows if row.get("finish") != "error"]
    check_counts(rows, f"{folder / task.name}.jsonl", task.samples)
    entry: dict[str, Any] = {
        "score": None if share is None else 100 * share,
        "interval": bounds and [100 * bound for bound in bounds],
        "scored": len(values),
        "expected": task.samples,
        "truncated": sum(map(was_truncated, rows)),
        "failed": len(rows) - len(answered),
        "left_out": max(0, task.samples - len(rows)),
        "metric": task.metric.__name__,
        "version": task.version,
    }
    if task.in_longbench_e:
        entry["by_length"] = by_length([row.get("length") for row in answered], values)
    if rouge_score and task.metric is rouge_l:
        other = replace(task, metric=rouge_score_l, first_line_only=False)
        google = score_predictions(rows, other, where=str(folder / f"{task.name}.jsonl"))
        entry["rouge_score"] = 100 * (mean(google) or 0.0)
    return entry


def preset_limit(common: Common) -> int | None:
    """The prompt limit that a preset was published with, where the run keeps the preset's window."""
    preset = find_preset(common.model)
    own_window = common.window is None and common.scale is None and common.method is None
    return preset.input_limit if preset is not None and own_window else None
