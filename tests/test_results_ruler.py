"""The numbers of docs/results.md, section "RULER of SmolLM2", recomputed from the lines of results/smollm2/ruler-*."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2bench.scoring.ruler import string_match_all

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "docs" / "results.md").read_text("utf-8").partition("## RULER of SmolLM2\n")[2].partition("\n## ")[0]
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ")]
TASKS = ROWS[0][1:7]
LENGTHS = {"1k": 1024, "2k": 2048, "4k": 4096, "8k = L": 8192, "16k": 16384}
RUNS = {"g = 1": "none", "PI": "pi", "YaRN": "yarn"}
SAMPLES = {"none": 5, "pi": 2, "yarn": 2}


@pytest.mark.parametrize("row", ROWS[2:], ids=lambda row: row[0])
def test_each_score_is_that_of_its_lines(row: list[str]) -> None:
    length, which = row[0].split(", ")[:2]
    run = RUNS[which]
    means = []
    for task, shown in zip(TASKS, row[1:7], strict=True):
        path = ROOT / "results" / "smollm2" / f"ruler-{run}" / f"{task}.jsonl"
        lines = list(map(json.loads, path.read_text("utf-8").splitlines()))
        wanted = {f"{LENGTHS[length]}-{sample}" for sample in range(SAMPLES[run])}
        chosen = [line for line in lines if line["_id"] in wanted]
        assert len(chosen) == SAMPLES[run]
        means.append(sum(100 * string_match_all(line["pred"], line["outputs"]) for line in chosen) / len(chosen))
        assert shown == f"{means[-1]:.0f}", task
    assert row[7] == f"{sum(means) / len(means):.1f}"
