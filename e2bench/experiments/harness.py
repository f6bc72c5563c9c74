"""Short benchmarks through lm-evaluation-harness itself, on a model that we loaded, at any scale.

Prompts, requests, batching, metrics and standard errors are lm-eval's own code; nothing of them is touched. Local data
enters by a task file that includes the built-in one and replaces its data alone.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError, E2BenchError
from e2bench.files import read_json, read_rows, write_atomic, write_json
from e2bench.hub import is_online
from e2bench.prompts.task import lm_eval_tasks
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import LM_EVAL
from e2bench.tasks.short import ShortTask
from e2bench.terminal import without_bars

if TYPE_CHECKING:
    from e2bench.models.local import Model
    from e2bench.runs.folder import RunFolder

# lm-eval's task: its file below lm_eval/tasks, the split it scores (0.4.13).
FILES = {
    "piqa": ("piqa/piqa.yaml", "validation"),
    "wsc": ("super_glue/wsc/default.yaml", "validation"),
    "wsc273": ("wsc273/default.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "social_iqa": ("siqa/siqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "race": ("race/race.yaml", "test"),
    "nq_open": ("nq_open/nq_open.yaml", "validation"),
}
METRICS = ("acc", "exact_match")


def task_manager(tasks: Sequence[ShortTask], data: Path | None, work: Path) -> Any:
    """lm-eval's TaskManager: its own tasks, or with `data` those over DATA/FILE.jsonl. work: an empty folder."""
    root = lm_eval_tasks()
    is_online()  # else its data sets are retried for minutes
    from lm_eval.tasks import TaskManager

    if data is None:
        return TaskManager()
    for task in tasks:
        name = str(task.lm_eval)
        relative, split = FILES[name]
        given, rows = data / f"{task.file}.jsonl", work / f"{name}.jsonl"
        if name == "race":
            _race_articles(given, rows)
        else:  # a copy: `datasets` would take `*` in a path for a pattern, and an edited file for the one it has cached
            shutil.copyfile(given, rows)
        settings = {
            "include": str(root / relative),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(rows)}},
            "training_split": None,
        }
        write_atomic(work / f"{name}.yaml", json.dumps(settings))  # JSON is YAML
    return TaskManager(include_path=str(work), include_defaults=False)


def _race_articles(rows: Path, out: Path) -> None:
    """RACE as lm-eval reads it: one line an article, its questions as the text of a Python list."""
    articles: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(read_rows(rows, ours=False), 1):
        if missing := [key for key in ("article", "question", "options", "answer") if key not in row]:
            raise DataError(f"{rows}: object {number} has no field {missing[0]!r}, which RACE needs")
        problem = {key: row[key] for key in ("question", "options", "answer")}
        articles.setdefault(str(row["article"]), []).append(problem)
    made = [{"article": article, "problems": repr(problems)} for article, problems in articles.items()]
    write_atomic(out, "".join(json.dumps(row) + "\n" for row in made))


def harness_model(model: Model, batch_size: int | None) -> Any:
    """lm-eval's own wrapper around our loaded model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model.hf, tokenizer=model.tokenizer, batch_size=batch_size or 1, device=str(model.device.type)
    )


def load_tasks(tasks: Sequence[ShortTask], manager: Any) -> dict[str, Any]:
    """lm-eval's task objects by name. Raises DataError where their data cannot be had."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = [str(task.lm_eval) for task in tasks]
    try:
        found: dict[str, Any] = manager.load(names)["tasks"]
    except Exception as error:  # lm-eval, datasets and the hub client raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"lm-eval cannot load {', '.join(names)}: {reason}; give local data with --data DIR") from None
    return found


def items_of(loaded: dict[str, Any], limit: int | None) -> list[Item]:
    """One item a sample; a task's samples share a batch, since lm-eval evaluates a task whole."""
    return [
        Item(name, f"{name}-{number}", 1, name, name)
        for name, task in loaded.items()
        for number in range(min(len(task.eval_docs), limit or len(task.eval_docs)))
    ]


def evaluating(
    model: Model, manager: Any, scaling: RopeScaling, *, limit: int | None, batch_size: int | None
) -> Measure:
    """What runs a task through lm-eval; one line a sample in NAME.jsonl, lm-eval's results in lm-eval.json."""
    import lm_eval

    harness = lru_cache(maxsize=1)(lambda: harness_model(model, batch_size))

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        name = batch[0].payload
        with model.under(scaling, model.native_window), model.plain_attention(), without_bars():
            try:
                found = lm_eval.simple_evaluate(
                    model=harness(), tasks=[name], task_manager=manager, limit=limit, log_samples=True
                )
            except AssertionError as error:  # its own checks of the input, such as a window below its 256 new tokens
                raise E2BenchError(f"lm-eval refuses {name}: {' '.join(str(error).split())[:200]}") from None
        _keep(folder.path / LM_EVAL, name, found)
        samples = {f"{name}-{sample['doc_id']}": sample for sample in found["samples"][name]}
        for item in batch:
            yield item, _line(item, samples[item.id], scaling)

    return measure


def _keep(path: Path, name: str, found: dict[str, Any]) -> None:
    stored = read_json(path) if path.exists() else {}
    numbers = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    write_json(path, {**stored, name: {**numbers, "version": found["versions"].get(name)}})


def _line(item: Item, sample: dict[str, Any], scaling: RopeScaling) -> Row:
    metric = next(name for name in METRICS if name in sample)
    return {
        "_id": item.id,
        "dataset": item.file,
        "suite": "lm-eval",
        "prediction": _shown(sample["filtered_resps"]),
        "gold": str(sample["target"]),
        "choices": _numbers(sample["filtered_resps"]),
        "correct": float(sample[metric]),
        **({"acc_norm": float(sample["acc_norm"])} if "acc_norm" in sample else {}),
        "scale": short_number(scaling.factor),
        "scoring": f"lm-eval {metric}",
    }


def _numbers(responses: Any) -> list[float] | None:
    """Summed log-likelihoods of the options, None for a generation."""
    if isinstance(responses, list) and responses and isinstance(responses[0], list | tuple):
        return [float(response[0]) for response in responses]
    return None


def _shown(responses: Any) -> str:
    numbers = _numbers(responses)
    if numbers is not None:
        return str(max(range(len(numbers)), key=numbers.__getitem__))
    return str(responses[0] if isinstance(responses, list) and responses else responses)
