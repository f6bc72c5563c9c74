"""Prediction lines to scores, scores to three named averages. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from e2bench.errors import DataError
from e2bench.prompts.task import Task
from e2bench.scoring.metrics import score_row
from e2bench.scoring.statistics import mean

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


def score_predictions(rows: Sequence[Mapping[str, Any]], task: Task, *, where: str = "", first: int = 1) -> list[float]:
    """Scores in [0, 1] of prediction lines, in order; failed rows (`finish` error) are left out.

    where, first: the file and the number of the first line, for messages.
    Raises DataError naming the row without a field.
    """
    scores = []
    for number, row in enumerate(rows, first):
        if row.get("finish") == "error":
            continue
        line = f"{where or task.name}: prediction {number}"
        for name in NEEDED:
            if name not in row:
                raise DataError(f"{line} has no {name!r}; expected {', '.join(NEEDED)}")
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
    if not all(isinstance(length, int | float) and length == length for length in lengths):  # NaN is none
        return {}
    buckets: dict[str, list[float]] = {name: [] for name in LENGTH_BUCKETS}
    for length, value in zip(lengths, values, strict=True):
        buckets[next(name for name, end in LENGTH_BUCKETS.items() if length < end)].append(value)
    return {name: {"score": 100 * sum(got) / len(got), "scored": len(got)} for name, got in buckets.items() if got}
