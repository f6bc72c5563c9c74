"""A run's scores in the layout of lm-evaluation-harness' results.json (0.4.13), for what reads such files.

Only tasks that lm-eval knows, under its names and from 0 to 1 as there; no demo texts. A name is no protocol:
e2bench's LongBench has the official prompts and truncation, its RULER NVIDIA's own samples, and lm-eval differs in
both (docs/explanation.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e2bench import __version__
from e2bench.data.source import DEMO
from e2bench.errors import DataError
from e2bench.experiments.stored import current_scores, damage
from e2bench.files import read_json
from e2bench.runs.lines import LM_EVAL, read_run
from e2bench.tasks.longbench import BY_NAME as LONGBENCH

RULER = "ruler"
RULER_NAMES = {
    "vt": "ruler_vt",
    "cwe": "ruler_cwe",
    "fwe": "ruler_fwe",
    "qa_1": "ruler_qa_squad",
    "qa_2": "ruler_qa_hotpot",
}
Task = tuple[str, dict[str, Any], int, int]  # lm-eval's name, its metrics, samples that there are, samples scored


def results_json(folder: Path) -> dict[str, Any]:
    """The contents of a results.json for one run. Raises DataError where lm-eval has none of its tasks."""
    manifest = read_run(folder)
    name = str(manifest.get("experiment"))
    source = manifest.get("data_source")
    if name != RULER and isinstance(source, dict) and source.get("kind") == DEMO:  # of RULER's, tasks are named so
        raise DataError(f"{folder} was measured on demo texts, which are no task of lm-eval; run it on the public data")
    with damage(folder):
        scores, _ = current_scores(folder)
        tasks = list(_tasks(folder, name, scores))
    if not tasks:
        raise DataError(
            f"{folder} is a run of {name} without a task that lm-eval knows; it knows LongBench's, RULER's own, and "
            "those of short --suite lm-eval"
        )
    model = manifest.get("model")
    about = model if isinstance(model, dict) else {}
    return {
        "results": {task: {"alias": task, **metrics} for task, metrics, _, _ in tasks},
        "versions": {task: "e2bench" for task, *_ in tasks},
        "n-samples": {task: {"original": all_, "effective": scored} for task, _, all_, scored in tasks},
        "config": {"model": "e2bench", "model_args": {key: about.get(key) for key in ("name", "fingerprint")}},
        "model_name": about.get("name"),
        "date": manifest.get("ended"),
        "git_hash": manifest.get("commit"),
        "made_by": f"e2bench {__version__}",
    }


def _tasks(folder: Path, experiment: str, scores: Mapping[str, Any]) -> Iterator[Task]:
    if experiment == "longbench":
        for name, value in scores["tasks"].items():
            if value is not None and name in LONGBENCH:
                entry = scores["details"][name]
                yield f"longbench_{name}", {"score,none": value / 100}, entry["expected"], entry["scored"]
    elif experiment == RULER:
        for name, entry in scores["details"].items():
            cells = {length: cell for length, cell in entry["by_length"].items() if cell["score"] is not None}
            if cells and not name.endswith("-demo"):
                metrics = {f"{length},none": cell["score"] / 100 for length, cell in cells.items()}
                yield RULER_NAMES.get(name, name), metrics, entry["expected"], entry["scored"]
    elif (folder / LM_EVAL).is_file():
        for name, metrics in read_json(folder / LM_EVAL).items():
            kept = {key: value for key, value in metrics.items() if "," in key}
            count = int(metrics.get("sample_len", 0))
            yield name, kept, count, count
