"""The numbers of docs/results.md, section "Tuning on one core", recomputed from the lines of the runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text("utf-8")
SECTION = PAGE.partition("## Tuning on one core\n")[2].partition("\n## ")[0]
TRAINING = ROOT / "results" / "smollm2-cpu" / "training"
RUNS = {
    "E², g = L'/L (1, 2)": "smollm2-cpu/ppl-e2",
    "untuned, PI (the same rotation)": "smollm2/ppl-linear",
    "untuned, NTK": "smollm2/ppl-ntk",
    "untuned, YaRN": "smollm2/ppl-yarn",
    "untuned, none": "smollm2/ppl-none",
}
WINDOWS = (4096, 16384)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def shown(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def test_perplexities_are_those_of_the_lines() -> None:
    table = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in table] == list(RUNS)
    for label, *cells in table:
        stored = lines(ROOT / "results" / RUNS[label] / "ppl.jsonl")
        for window, cell in zip(WINDOWS, cells, strict=True):
            chosen = [row for row in stored if row["window"] == window]
            nats, count = (math.fsum(row[key] for row in chosen) for key in ("nll_sum", "scored_tokens"))
            assert (len(chosen), count) == (2, 4096) and cell.strip() == shown(math.exp(nats / count)), (label, window)


def test_all_rows_scored_the_same_tokens() -> None:
    asked = [json.loads((ROOT / "results" / run / "run.json").read_text("utf-8"))["resolved"] for run in RUNS.values()]
    same = ("documents", "doc_tokens", "stride", "max_windows", "protocol", "dtype", "native_window")
    assert all(one[key] == asked[0][key] for one in asked for key in same)


def test_the_training_is_the_recipes_and_was_as_long_as_the_page_says() -> None:
    config, log = json.loads((TRAINING / "e2_config.json").read_text("utf-8")), lines(TRAINING / "train.jsonl")
    assert (config["method"], config["train_window"], config["g_max"]) == ("e2", 512, 4)
    assert [row["step"] for row in log] == list(range(1, 101)) and log[-1]["tokens"] == config["tokens"] == 204_800
    assert 43 < log[-1]["seconds"] / 60 < 45 and "44 minutes" in SECTION and "204,800" in SECTION
    collected = json.loads((TRAINING / "text.json").read_text("utf-8"))
    assert config["data"] == {"text.jsonl": collected["sha256"]}
