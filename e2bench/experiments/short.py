"""Short benchmarks (the paper's Table 7), zero-shot, at any scale, scored the paper's way or by lm-eval."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import DEMO, OWN, PUBLIC, DataSource
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import Experiment, Line, Plan, Sample, TaskFacts, default_folder
from e2bench.experiments.demo import demo_folder
from e2bench.experiments.numbers import shown
from e2bench.files import check_folder, file_hashes, read_json
from e2bench.rope.windows import ScaleRule, short_number
from e2bench.runs.lines import LM_EVAL, names_of, read_run, row_id, stored_rows
from e2bench.settings import setting
from e2bench.tasks.short import EXACT, NEW_TOKENS, SHORT, TABLE_7, ShortTask, select
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.experiments.options import Common
    from e2bench.models.local import Model

PAPER, LM_EVAL_SUITE = "paper", "lm-eval"
RACE_ARTICLES = 1045  # lm-eval asks one question an article of race_high


@dataclass(frozen=True)
class Inputs:
    """The chosen tasks, the rows that were read here by task, and the data: file name: SHA-256, or `public`.

    folder: of the files; None: public sets.
    """

    tasks: list[ShortTask]
    rows: dict[str, list[dict[str, Any]]]
    data: dict[str, str]
    folder: Path | None
    source: DataSource


@dataclass(frozen=True)
class Short(Experiment):
    """Table 7: short benchmarks, zero-shot, at any scale."""

    name: ClassVar[str] = "short"
    about: ClassVar[str] = "Table 7: short benchmarks, zero-shot, at any scale."
    examples: ClassVar[tuple[str, ...]] = (
        "e2bench short --model meta-llama/Llama-2-7b-hf --suite paper --out results/short",
        "e2bench short --data demo",
    )
    needs: ClassVar[str] = "Scorer"
    per_input: ClassVar[bool] = False
    agree: ClassVar[Mapping[str, bool]] = {"versions": True, "data": False}
    benchmark: ClassVar[str] = "short benchmarks"
    columns: ClassVar[Mapping[str, str]] = {
        "task": "task",
        "accuracy": "accuracy",
        "stderr": "± stderr",
        "scored": "scored",
    }

    suite: str = setting(
        PAPER, "paper (Table 7's way of scoring) or lm-eval (the harness's own).", choices=(PAPER, LM_EVAL_SUITE)
    )
    tasks: str | None = setting(None, "Names, separated by commas. Default: all.", lines="tasks")
    data: Path | None = setting(None, "Folder with piqa.jsonl, …, or demo. Default: the public sets.")
    limit: int | None = setting(None, "Only the first N rows of each task.", minimum=1, lines="limit")

    @classmethod
    def tasks_facts(cls) -> Iterator[TaskFacts]:
        """Table 7's tasks and lm-eval's; where options are ranked nothing is written."""
        for task in SHORT:
            is_written = task.scoring == EXACT
            metric, budget = ("exact match", NEW_TOKENS) if is_written else ("accuracy", None)
            yield TaskFacts(task.name, metric, "en", task.samples, budget)

    def chooses(self) -> dict[str, bool]:
        """Nothing with lm-eval: it evaluates a task whole, and its lines do not say what they were made from."""
        return super().chooses() if self.suite == PAPER else {}

    def check(self, common: Common) -> None:
        """Refuse --batch-invariant where lm-eval makes the batches."""
        super().check(common)
        if common.batch_invariant and self.suite != PAPER:
            raise E2BenchError(f"--batch-invariant is not for --suite {self.suite}, which batches itself; leave it out")

    def inputs(self, common: Common) -> Inputs:
        """The tasks that there are rows of, and the rows, but for public ones that lm-eval reads itself."""
        from e2bench.experiments import choices

        chosen = [task for task in select(self.tasks) if self.suite == PAPER or task.lm_eval]
        folder, source = self._folder()
        chosen = self._there(chosen, folder)
        rows: dict[str, list[dict[str, Any]]] = {}
        if folder is not None:
            rows = {task.name: choices.read_rows_of(folder, task, self.limit) for task in chosen}
        elif self.suite == PAPER:
            rows = {task.name: choices.hub_rows(task, self.limit) for task in chosen}
        data = dict.fromkeys(self._names(chosen), "public")
        if folder is not None:
            data = file_hashes(folder / f"{task.file}.jsonl" for task in chosen)
        return Inputs(chosen, rows, data, folder, source)

    def plan(self, model: Model, rule: ScaleRule, common: Common, inputs: Inputs) -> Plan:
        """Every row of every task, at one scale."""
        tasks = inputs.tasks
        window = rule.window(common.window)
        scaling = rule.scaling(window)
        names = self._names(tasks)
        pairs = zip(names, tasks, strict=True)
        own = [name for name, task in pairs if task.has_own_rows(inputs.rows.get(task.name, ()))]
        if inputs.source.kind == DEMO:  # which its data says
            own = []
        if own:
            say(f"{', '.join(own)}: rows of your own, not the published set's: in a column of their own, in no average")
        versions = {"versions": {task.name: task.version for task in tasks}} if self.suite == PAPER else {}
        return Plan(
            **self._work(model, common, inputs, scaling),
            resolved={
                "suite": self.suite,
                "tasks": names,
                "all_tasks": self._names(TABLE_7),
                **versions,
                "limit": self.limit,
                "method": rule.method,
                "scale": short_number(scaling.factor),
            },
            rope={"method": rule.method, "factor": short_number(scaling.factor)},
            source=inputs.source,
            data=inputs.data,
            scaling=scaling,
            length=window,
            facts={"own_rows": own} if own else {},
        )

    def _work(self, model: Model, common: Common, inputs: Inputs, scaling: Any) -> dict[str, Any]:
        """The items of the suite, what measures them, how many together."""
        if self.suite == PAPER:
            from e2bench.experiments import choices

            return {
                "items": choices.items_of([(task, inputs.rows[task.name]) for task in inputs.tasks]),
                "measure": choices.answering(model, scaling),
                "batch_size": choices.rows_together(model, scaling, common.batch_size),
                "tokens": choices.tokens_of(model),
            }
        from e2bench.experiments import harness

        scratch = tempfile.TemporaryDirectory(prefix="e2bench-")
        try:
            manager = harness.task_manager(inputs.tasks, inputs.folder, Path(scratch.name))
            items = harness.items_of(harness.load_tasks(inputs.tasks, manager), self.limit)
        except BaseException:
            scratch.cleanup()
            raise
        return {
            "items": items,
            "measure": harness.evaluating(model, manager, scaling, limit=self.limit, batch_size=common.batch_size),
            "batch_size": lambda item: len(items),
            "tokens": lambda item: None,  # lm-eval makes its requests while it runs
            "close": scratch.cleanup,
        }

    def _names(self, tasks: Sequence[ShortTask]) -> list[str]:
        """What the suite calls the tasks that it has (the harness has no RACE-Middle)."""
        if self.suite == LM_EVAL_SUITE:
            return [task.lm_eval for task in tasks if task.lm_eval]
        return [task.name for task in tasks]

    def _folder(self) -> tuple[Path | None, DataSource]:
        """The folder of NAME.jsonl files: the one given, or the demo one; None: the public sets."""
        if self.data is None:
            return None, DataSource(PUBLIC, self.benchmark)
        if str(self.data) == DEMO:
            return demo_folder(self.name), DataSource(DEMO)
        folder = check_folder(self.data, "--data takes a folder with files like piqa.jsonl, or demo")
        return folder, DataSource(OWN, folder.resolve().name)

    def _there(self, tasks: list[ShortTask], folder: Path | None) -> list[ShortTask]:
        """Tasks whose rows can be had: a file in `folder`, or a public set."""
        if folder is None:
            return [task for task in tasks if task.hub is not None or self.tasks is not None]
        there = [task for task in tasks if (folder / f"{task.file}.jsonl").is_file()]
        missing = [f"{task.file}.jsonl" for task in tasks if task not in there]
        if self.tasks is not None and missing:
            raise DataError(f"{folder} has no {missing[0]}; needed for --tasks {self.tasks}")
        if not there:
            raise DataError(f"{folder} holds none of {', '.join(dict.fromkeys(t.file for t in SHORT))} (.jsonl)")
        left_out = [task.column for task in tasks if task in TABLE_7 and task not in there]
        if left_out:
            say(f"left out, no file in {folder}: {', '.join(left_out)}")
        return there

    def folder_name(self, model: str, rule: ScaleRule, plan: Plan) -> str:
        """The suite is part of the name: its lines are other ones."""
        return f"{default_folder(self.name, model, rule)}-{self.suite}"

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Accuracy of each task with its standard error, and the plain mean over tasks."""
        from e2bench.scoring.statistics import mean

        results = folder / LM_EVAL  # beside our lines (`--suite lm-eval`)
        harness = read_json(results) if results.exists() else {}
        stored = {name: rows for name in names_of(folder) if (rows := stored_rows(folder, name))}
        details = {name: _details(name, rows, harness) for name, rows in stored.items()}
        tasks = {name: entry.pop("accuracy") for name, entry in details.items()}
        run = read_run(folder)
        expected = (run.get("resolved") or {}).get("all_tasks") or list(tasks)
        own = run.get("own_rows") or []
        complete = all(task in tasks and task not in own for task in expected)
        return {
            "suite": next((rows[0]["suite"] for rows in stored.values()), ""),
            "tasks": tasks,
            "details": details,
            "averages": {"Avg.": mean([tasks[task] for task in expected]) if complete else None},
        }

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """A row, the option taken and the right one."""
        for line in lines:
            score = _correct(line, name, strict=strict)
            texts = (str(line["prediction"]), str(line["_id"]))
            yield line, Sample(name, row_id(line), score, line["gold"], *texts, grade=score and 100 * score)

    @classmethod
    def table(cls, scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """Accuracy of each task."""
        details = scores["details"]
        entries = [{"task": name, "accuracy": v, **details.get(name, {})} for name, v in scores["tasks"].items()]
        return shown(cls.columns, entries)


def _correct(line: Line, name: str, *, strict: bool = True) -> float | None:
    """A line's `correct`, 0 to 1. Raises DataError for anything else; without `strict` None."""
    value = line["correct"]
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    if strict:
        raise DataError(f"{name}.jsonl: line {row_id(line)} has correct = {str(value)[:60]}; it must lie from 0 to 1")
    return None


def _details(name: str, rows: Sequence[Line], harness: Mapping[str, Any]) -> dict[str, Any]:
    """One task of scores.json, its `accuracy` among the details."""
    from e2bench.scoring.statistics import interval, mean

    correct = [score for row in rows if (score := _correct(row, name)) is not None]
    share = mean(correct) or 0.0
    bounds = interval(correct)
    expected = published_rows()
    return {
        "accuracy": 100 * share,
        "stderr": 100 * math.sqrt(share * (1 - share) / (len(rows) - 1)) if len(rows) > 1 else None,
        "interval": bounds and [100 * b for b in bounds],
        "scored": len(rows),
        **({"expected": expected[name]} if name in expected else {}),
        "scoring": rows[0].get("scoring", ""),
        **({"lm_eval": harness[name]} if name in harness else {}),
    }


def published_rows() -> dict[str, int]:
    """Rows of the published split of each short benchmark, by our name and by lm-eval's."""
    by_name = {str(task.lm_eval): task.samples for task in SHORT} | {task.name: task.samples for task in SHORT}
    return by_name | {"race": RACE_ARTICLES}
