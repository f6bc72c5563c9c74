"""Stored predictions to scores: per row, per task with an interval, three named averages. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from e2bench.errors import DataError
from e2bench.metrics import rouge_l, rouge_score_l, score_row
from e2bench.records import RUN, SCORES, check_folder, names_of, read_json, stored_rows, write_json
from e2bench.statistics import interval, mean
from e2bench.summary import SUMMARIES
from e2bench.task import Task

LANGUAGES = ("EN", "ZH", "All")
SCHEMES = ("e2", "longbench", "category")
NEEDED = ("pred", "answers", "all_classes")
LENGTH_BUCKETS = {"0-4k": 4000, "4-8k": 8000, "8k+": float("inf")}  # LongBench eval.py at 2e00731, `scorer_e`


def averages(scores: Mapping[str, float], tasks: Sequence[Task]) -> dict[str, dict[str, float | None]]:
    """Scores (0-100) by task name -> {scheme: {EN, ZH, All}}. None where a task of the average has no score.

    `e2`: plain mean over tasks without the synthetic ones, code counted as English: EN 14, ZH 4, All 18 (what the
        Overall columns of E²-LLM's Table 2 are, whatever its caption says).
    `longbench`: mean over the six categories of each one's mean task score; code in both languages (LongBench's README;
        GPT-3.5-Turbo-16k 44.0 EN, 44.5 ZH, 44.7 All).
    `category`: the same, but code counted as English alone, so that ZH has five categories.
    """

    def belongs(task: Task, column: str, code_in: tuple[str, ...]) -> bool:
        own = {"en": "EN", "zh": "ZH"}.get(task.language)
        return column == "All" or own == column or (task.language == "code" and column in code_in)

    def plain(chosen: list[Task]) -> float | None:
        if not chosen or any(t.name not in scores for t in chosen):
            return None
        return mean([scores[t.name] for t in chosen])

    def by_category(chosen: list[Task]) -> float | None:
        groups = sorted({t.group for t in chosen})
        means = [plain([t for t in chosen if t.group == group]) for group in groups]
        return None if None in means else mean([m for m in means if m is not None])

    rules: dict[str, tuple[Callable[[list[Task]], float | None], tuple[str, ...], bool]] = {
        "e2": (plain, ("EN",), False),
        "longbench": (by_category, ("EN", "ZH"), True),
        "category": (by_category, ("EN",), True),
    }
    return {
        scheme: {
            column: rule([t for t in tasks if belongs(t, column, code) and (synthetic or t.group != "synthetic")])
            for column in LANGUAGES
        }
        for scheme, (rule, code, synthetic) in rules.items()
    }


def score_predictions(rows: Sequence[Mapping[str, Any]], task: Task, *, where: str = "") -> list[float]:
    """Scores in [0, 1] of prediction lines, in order; failed rows (`finish` error) are left out.

    Raises DataError naming the row without a field.
    """
    scores = []
    for number, row in enumerate(rows, 1):
        if row.get("finish") == "error":
            continue
        line = f"{where or task.name}: prediction {number}"
        for name in NEEDED:
            if name not in row:
                raise DataError(f"{line} has no {name!r}; needed are {', '.join(NEEDED)}")
        classes = row["all_classes"]
        if not isinstance(row["pred"], str) or not _texts(row["answers"]):
            raise DataError(f"{line}: pred must be text and answers a list of texts")
        if classes is not None and not _texts(classes):
            raise DataError(f"{line}: all_classes must be null or a list of texts")
        try:
            scores.append(
                score_row(
                    task.metric,
                    row["pred"],
                    row["answers"],
                    all_classes=classes,
                    first_line_only=task.first_line_only,
                )
            )
        except DataError as error:
            raise DataError(f"{line}: {error}") from None
    return scores


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def by_length(lengths: Sequence[Any], values: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Scores (0-100) by LongBench-E's buckets of `length` in words; {} where a row does not tell its length.

    Raises ValueError when there are not as many lengths as values. Source: LongBench eval.py at 2e00731, `scorer_e`.
    """
    if not all(isinstance(length, int | float) for length in lengths):
        return {}
    buckets: dict[str, list[float]] = {name: [] for name in LENGTH_BUCKETS}
    for length, value in zip(lengths, values, strict=True):
        buckets[next(name for name, end in LENGTH_BUCKETS.items() if length < end)].append(value)
    return {name: {"score": 100 * sum(got) / len(got), "scored": len(got)} for name, got in buckets.items() if got}


def score_folder(folder: Path, *, rouge_score: bool = False) -> dict[str, Any]:
    """The contents of scores.json for a run folder of ours or of LongBench's own layout. Writes nothing.

    rouge_score: also Google's rougeL beside the summaries' scores, as `rouge_score` in the details.
    Raises DataError for what is no such folder, for an unknown experiment, and naming file and row for a damaged line.
    """
    check_folder(folder, "score takes a run's folder or one with LongBench prediction files (NAME.jsonl)")
    experiment = read_json(folder / RUN).get("experiment") if (folder / RUN).exists() else "longbench"
    if experiment == "longbench":
        with damage(folder):
            return _score_longbench(folder, rouge_score)
    summarise = SUMMARIES.get(str(experiment))
    if summarise is None:
        raise DataError(f"{folder / RUN} names the experiment {experiment!r}, which e2bench does not know")
    with damage(folder):
        return summarise(folder)


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Lines that are JSON, but hold values of another kind than ours: DataError, one line."""
    try:
        with np.errstate(divide="raise", over="ignore", invalid="ignore"):
            yield
    except KeyError as error:
        raise DataError(f"{folder}: a line has no field {error}; docs/files.md says what a line holds") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise DataError(
            f"{folder}: a line holds a value of another kind than docs/files.md says ({type(error).__name__}: {error})"
        ) from None


def _score_longbench(folder: Path, rouge_score: bool) -> dict[str, Any]:
    from e2bench.tasks.longbench import BY_NAME, EVERY_TASK, LONGBENCH

    names = names_of(folder)
    present = [task for task in EVERY_TASK if task.name in names]
    if not present:
        others = sorted(p.name for p in folder.glob("*.jsonl"))
        what = f"files of unknown tasks ({', '.join(others[:3])})" if others else "no .jsonl file"
        raise DataError(
            f"{folder} holds {what}; needed are NAME.jsonl with NAME one of {', '.join(list(BY_NAME)[:4])}, …"
        )
    details = {task.name: _task_details(folder, task, rouge_score) for task in present}
    scores = {name: entry.pop("score") for name, entry in details.items()}
    known = {name: score for name, score in scores.items() if score is not None}
    return {"tasks": known, "averages": averages(known, LONGBENCH), "details": details}


def _task_details(folder: Path, task: Task, rouge_score: bool) -> dict[str, Any]:
    file = folder / f"{task.name}.jsonl"
    rows = stored_rows(folder, task.name)
    values = score_predictions(rows, task, where=str(file))
    share = mean(values)
    bounds = interval(values)
    entry: dict[str, Any] = {
        "score": None if share is None else 100 * share,
        "interval": bounds and [100 * bound for bound in bounds],
        "scored": len(values),
        "expected": task.samples,
        "truncated": sum(_truncated(r) for r in rows),
        "failed": sum(r.get("finish") == "error" for r in rows),
        "left_out": max(0, task.samples - len(rows)),
        "metric": task.metric.__name__,
        "version": task.version,
    }
    if task.in_longbench_e:
        answered = [r for r in rows if r.get("finish") != "error"]
        entry["by_length"] = by_length([r.get("length") for r in answered], values)
    if rouge_score and task.metric is rouge_l:
        google = [max(rouge_score_l(r["pred"], a) for a in r["answers"]) for r in rows if r.get("finish") != "error"]
        entry["rouge_score"] = 100 * (mean(google) or 0.0)
    return entry


def _truncated(row: Mapping[str, Any]) -> bool:
    """Whether a part of the prompt was left out; of lines that do not say so, whether fewer tokens were fed."""
    return bool(row.get("truncated", row.get("kept_tokens", 0) < row.get("prompt_tokens", 0)))


def write_scores(folder: Path, scores: Mapping[str, Any]) -> Path:
    """Put scores.json into a run's folder, whole or not at all."""
    write_json(folder / SCORES, scores)
    return folder / SCORES
