"""The numbers of docs/results.md, section "Tuning on one core", recomputed from the lines of the runs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from e2bench.scoring.statistics import wilson

RESULTS = Path(__file__).parents[1] / "results"
PAGE = (RESULTS.parent / "docs" / "results.md").read_text("utf-8")
SECTION = PAGE.partition("## Tuning on one core\n")[2].partition("\n## ")[0]
OURS = RESULTS / "smollm2-cpu"
PERPLEXITY: dict[str, tuple[str, int | None]] = {  # the run, and the g of its cells where it has several
    "E², g = L'/L (1, 1, 2, 4)": ("smollm2-cpu/ppl-e2", None),
    "E², g = 2": ("smollm2-cpu/ppl-e2-scales", 2),
    "E², g = 4": ("smollm2-cpu/ppl-e2-scales", 4),
    "E², g = 8, not seen in training": ("smollm2-cpu/ppl-e2-scales", 8),
    "plainly trained, PI (the same rotation)": ("smollm2-cpu/ppl-plain-linear", None),
    "plainly trained, NTK": ("smollm2-cpu/ppl-plain-ntk", None),
    "plainly trained, YaRN": ("smollm2-cpu/ppl-plain-yarn", None),
    "plainly trained, none": ("smollm2-cpu/ppl-plain-none", None),
    "untuned, PI": ("smollm2/ppl-linear", None),
    "untuned, NTK": ("smollm2/ppl-ntk", None),
    "untuned, YaRN": ("smollm2/ppl-yarn", None),
    "untuned, none": ("smollm2/ppl-none", None),
}
PASS_KEYS = {
    "E², g = L'/L": "passkey-e2",
    "plainly trained, PI": "passkey-plain-linear",
    "plainly trained, YaRN": "passkey-plain-yarn",
    "untuned, YaRN": "passkey-yarn",
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def resolved(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / run / "run.json").read_text("utf-8"))["resolved"]
    return found


def table(first: str) -> dict[str, list[str]]:
    """Cells by label of the table whose first heading this is."""
    rows = SECTION.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {label: numbers for label, *numbers in cells}


def shown(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def test_perplexities_are_those_of_the_lines() -> None:
    found = table("perplexity")
    assert list(found) == list(PERPLEXITY)
    for label, cells in found.items():
        run, scale = PERPLEXITY[label]
        stored = [row for row in lines(RESULTS / run / "ppl.jsonl") if scale in (None, row["scale"])]
        for window, cell in zip((4096, 8192, 16384, 32768), cells, strict=True):
            chosen = [row for row in stored if row["window"] == window]
            assert bool(chosen) == bool(cell), (label, window)
            if chosen:
                nats, count = (math.fsum(row[key] for row in chosen) for key in ("nll_sum", "scored_tokens"))
                assert (len(chosen), count) == (2, 4096) and cell == shown(math.exp(nats / count)), (label, window)


def test_all_rows_scored_the_same_tokens() -> None:
    asked = [resolved(run) for run, _ in PERPLEXITY.values()]
    same = ("documents", "doc_tokens", "stride", "max_windows", "protocol", "dtype", "native_window")
    assert all(one[key] == asked[0][key] for one in asked for key in same)


def test_pass_keys_are_those_of_the_lines() -> None:
    found = table("found, of 6")
    assert list(found) == list(PASS_KEYS)
    for label, cells in found.items():
        assert resolved(f"smollm2-cpu/{PASS_KEYS[label]}")["template"] == "landmark"
        stored = lines(OURS / PASS_KEYS[label] / "passkey.jsonl")
        assert Counter(row["length"] for row in stored) == {4096: 6, 16384: 6}
        right = Counter(row["length"] for row in stored if row["success"])
        assert cells == [str(right[length]) for length in (4096, 16384)], label
    said = re.findall(r"(\d) of 6 is (\d+) to (\d+) %", " ".join(SECTION.split()))
    assert len(said) == 3
    for count, *ends in said:
        assert ends == [f"{100 * end:.0f}" for end in wilson(int(count), 6)]


def test_both_trainings_are_the_recipes_and_differ_in_the_method_alone() -> None:
    configs = {}
    for name, minutes in (("training", 44), ("training-plain", 25)):
        config = configs[name] = json.loads((OURS / name / "e2_config.json").read_text("utf-8"))
        log = lines(OURS / name / "train.jsonl")
        assert [row["step"] for row in log] == list(range(1, 101)) and log[-1]["tokens"] == config["tokens"] == 204_800
        assert round(log[-1]["seconds"] / 60) == minutes and f"{minutes} minutes" in SECTION
        assert config["wordings"]["passkey landmark"] == 0 and config["train_window"] == 512
        collected = json.loads((OURS / "training" / "text.json").read_text("utf-8"))
        assert config["data"] == {"text.jsonl": collected["sha256"]}
    e2, plain = configs["training"]["settings"], configs["training-plain"]["settings"]
    assert (e2.pop("method"), plain.pop("method")) == ("e2", "none") and e2["g_max"] == 4
    for settings in (e2, plain):  # the text's hash is compared above; a later version names one more of its settings
        del settings["data"]
    assert e2 == plain
