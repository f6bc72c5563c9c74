"""CPU time of scoring all of LongBench, as a share of what the `rouge` package needs for 400 long English summaries.

    python benchmarks/scoring.py [--data DIR] [--seed 0]

Scored are as many predictions a task as LongBench has samples, 4,750 in all, made from the real ones in DIR (a folder
of LongBench's prediction files): they are repeated in turn, and in every repetition a tenth of the words, of Chinese
characters and of code tokens change places with others of the same text, in the references of summaries and
questions too. So no two inputs are equal, and nothing kept from one row can serve another. Ours includes
loading jieba's dictionary. The package is given the same gov_report and multi_news rows, called as LongBench's
metrics.py @ 2e00731 calls it. Needs `pip install rouge==1.0.1`. Exit status 1 if the share is above a tenth.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from _common import processor

from e2bench.scoring import metrics

DATA = Path(__file__).parents[2] / "shared" / "data" / "predictions" / "minilongbench"
TENTH = 0.1
T = TypeVar("T")


class Task(NamedTuple):
    name: str
    samples: int  # of LongBench v1
    metric: metrics.Metric
    first_line_only: bool = False


TASKS = (
    *(Task(name, 200, metrics.qa_f1) for name in ("narrativeqa", "qasper", "hotpotqa", "2wikimqa", "musique")),
    Task("multifieldqa_en", 150, metrics.qa_f1),
    Task("multifieldqa_zh", 200, metrics.qa_f1_zh),
    *(Task(name, 200, metrics.rouge_l) for name in ("gov_report", "qmsum", "multi_news")),
    *(Task(name, 200, metrics.rouge_l_zh) for name in ("dureader", "vcsum")),
    Task("trec", 200, metrics.classification, first_line_only=True),
    Task("triviaqa", 200, metrics.qa_f1, first_line_only=True),
    Task("samsum", 200, metrics.rouge_l, first_line_only=True),
    Task("lsht", 200, metrics.classification, first_line_only=True),
    Task("passage_count", 200, metrics.count),
    Task("passage_retrieval_en", 200, metrics.retrieval),
    Task("passage_retrieval_zh", 200, metrics.retrieval_zh),
    *(Task(name, 500, metrics.code_similarity) for name in ("lcc", "repobench-p")),
)
LONG_SUMMARIES = ("gov_report", "multi_news")
FREE_TEXT = (metrics.qa_f1, metrics.qa_f1_zh, metrics.rouge_l, metrics.rouge_l_zh)


class Row(NamedTuple):
    prediction: str
    references: list[str]
    all_classes: list[str] | None


def perturb(text: str, rng: random.Random) -> str:
    """`text` with at least one pair, and about a tenth, of its words or Chinese characters in each other's place."""
    parts = re.findall(r"\s+|[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text)
    words = [i for i, part in enumerate(parts) if not part.isspace()]
    if len(words) < 2:
        return text
    for _ in range(1 + len(words) // 20):
        i, j = rng.sample(words, 2)
        parts[i], parts[j] = parts[j], parts[i]
    return "".join(parts)


def distinct_rows(path: Path, task: Task, rng: random.Random) -> list[Row]:
    """`task.samples` rows from a prediction file, all predictions different."""
    with path.open(encoding="utf-8") as file:
        real = [json.loads(line) for line in file if line.strip()]
    rows: list[Row] = []
    seen: set[str] = set()
    for i in range(task.samples):
        row = real[i % len(real)]
        prediction, references = row["pred"], row["answers"]
        if i >= len(real):
            prediction = perturb(prediction, rng)
            if task.metric in FREE_TEXT:
                references = [perturb(reference, rng) for reference in references]
        if prediction in seen:  # too short to be perturbed
            prediction += f" {i}"
        seen.add(prediction)
        rows.append(Row(prediction, references, row["all_classes"]))
    return rows


def score_task(task: Task, rows: list[Row]) -> None:
    for row in rows:
        metrics.score_row(
            task.metric,
            row.prediction,
            row.references,
            all_classes=row.all_classes,
            first_line_only=task.first_line_only,
        )


def score_with_package(rows: list[Row]) -> int:
    """How many of the pairs the package failed on (LongBench scores them 0)."""
    from rouge import Rouge

    failed = 0
    for row in rows:
        for reference in row.references:
            try:
                Rouge().get_scores([row.prediction], [reference], avg=True)
            except (ValueError, RecursionError):
                failed += 1
    return failed


def cpu_seconds(function: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of LongBench prediction files, all 21 tasks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    missing = [task.name for task in TASKS if not (options.data / f"{task.name}.jsonl").is_file()]
    if missing:
        parser.error(
            f"{options.data} lacks {', '.join(f'{name}.jsonl' for name in missing)}; give a folder with --data"
        )

    rng = random.Random(options.seed)
    rows = {task.name: distinct_rows(options.data / f"{task.name}.jsonl", task, rng) for task in TASKS}
    long_rows = [row for name in LONG_SUMMARIES for row in rows[name]]
    print(
        f"{sum(map(len, rows.values()))} predictions of {len(rows)} tasks, perturbed repetitions, seed {options.seed}"
    )
    print(f"{processor()}, {platform.system()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in ("e2bench", "jieba", "rouge")))

    seconds = {task.name: cpu_seconds(score_task, task, rows[task.name])[0] for task in TASKS}
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1])[:5]:
        print(f"  {name:22}{spent:8.3f} s")
    package, failed = cpu_seconds(score_with_package, long_rows)
    ours = sum(seconds.values())
    print(f"all tasks, e2bench    {ours:10.3f} s CPU")
    print(f"{len(long_rows)} summaries, rouge  {package:10.3f} s CPU ({failed} it failed on)")
    print(f"ratio                 {ours / package:10.3f}   (at most {TENTH})")
    return int(ours > TENTH * package)


if __name__ == "__main__":
    sys.exit(main())
