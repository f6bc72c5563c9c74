"""The numbers of docs/results.md, section "E² on SmolLM2", recomputed from the lines of results/smollm2-e2."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest

from e2bench.reporting.runs import scan
from e2bench.scoring.statistics import wilson

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "smollm2-e2"
SECTION = (ROOT / "docs" / "results.md").read_text("utf-8").partition("## E² on SmolLM2\n")[2].partition("\n## ")[0]
LENGTHS = (4096, 8192, 16384, 32768, 65536)
DOCUMENTS = 4

Cell = dict[str, tuple[float, int]]  # document: nats, scored tokens


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the section's table whose heading begins so: first cell: the others."""
    lines = SECTION[SECTION.index(f"| {heading} | 4k |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def cells(run: str) -> dict[int, Cell]:
    found: dict[int, Cell] = defaultdict(dict)
    for line in (RESULTS / run / "ppl.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        found[row["window"]][row["document"]] = (row["nll_sum"], row["scored_tokens"])
    return found


def perplexity(cell: Cell, documents: set[str] | None = None) -> float:
    chosen = [value for name, value in cell.items() if documents is None or name in documents]
    return math.exp(math.fsum(nats for nats, _ in chosen) / sum(count for _, count in chosen))


@pytest.mark.parametrize(
    ("label", "run"),
    [
        ("E², g = L'/L (1, 1, 2, 4, 8)", "ppl-e2"),
        ("E², g = 8", "ppl-e2-g8"),
        ("E², g = 1", "ppl-e2-ext"),
        ("untuned, g = 1", "ppl-none"),
        ("untuned, YaRN, g = L'/L", "ppl-yarn"),
    ],
)
def test_perplexities_are_those_of_the_lines_in_complete_columns_only(label: str, run: str) -> None:
    stored, shown = cells(run), table("perplexity")[label]
    for length, text in zip(LENGTHS, shown, strict=True):
        if len(stored[length]) < DOCUMENTS:
            assert text == "", (label, length)
        else:
            value = perplexity(stored[length])
            assert text == (f"{value:.2f}" if value < 100 else f"{value:,.0f}"), (label, length)


def test_the_cost_within_the_window_is_over_the_documents_of_both_runs() -> None:
    untuned, tuned = cells("ppl-none"), cells("ppl-e2")
    shared = set(untuned[8192])
    assert shared == set(untuned[4096]) and len(shared) == 3 and shared < set(tuned[8192])
    said = "the untuned model has {:.2f} and {:.2f} at 4k and 8k, the tuned one {:.2f} and {:.2f}"
    assert said.format(*(perplexity(run[n], shared) for run in (untuned, tuned) for n in (4096, 8192))) in SECTION


@pytest.mark.parametrize(
    ("label", "run"),
    [
        ("E², g = L'/L", "passkey-e2"),
        ("E², g = 8", "passkey-e2-g8"),
        ("E², g = 1", "passkey-e2-g1"),
        ("untuned, g = 1", "passkey-base"),
        ("untuned, PI, g = L'/L", "passkey-linear"),
        ("untuned, YaRN, g = L'/L", "passkey-yarn"),
    ],
)
def test_pass_keys_and_their_intervals_are_those_of_the_lines(label: str, run: str) -> None:
    hits: dict[int, list[bool]] = defaultdict(list)
    for line in (RESULTS / run / "passkey.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        found = re.search(r"\d+", row["pred"])
        hits[row["length"]].append(found is not None and found.group() == row["key"])
    for length, text in zip(LENGTHS, table("found")[label], strict=True):
        if not hits[length]:
            assert text == ""
            continue
        low, high = wilson(sum(hits[length]), len(hits[length]))
        assert len(hits[length]) == 22 and text == f"{sum(hits[length])} ({100 * low:.0f}–{100 * high:.0f})", length


def test_longbench_fell_as_said_and_none_of_its_texts_is_stored() -> None:
    means = [json.loads((RESULTS / run / "scores.json").read_text("utf-8"))["averages"]["e2"]["EN"] for run in
             ("lb-base", "lb-e2-32k")]  # fmt: skip
    assert f"went from {means[0]:.1f}\n(untuned, g = 1, 8k) to {means[1]:.1f} (E²" in SECTION
    assert not list(RESULTS.glob("lb-*/*.jsonl")) and not list(RESULTS.rglob(".lock"))


def test_the_report_leaves_partial_columns_out_and_says_so() -> None:
    found = scan(RESULTS)
    windows = {run.name: [cell["window"] for cell in run.cells] for run in found.of("ppl")}
    assert windows["ppl-none"] == [65536] and windows["ppl-yarn"] == [16384, 32768]
    assert windows["ppl-e2"] == list(LENGTHS)
    assert any("ppl-yarn: 4096, 8192 tokens hold fewer documents" in line for line in found.warnings)
    labels = {run.name: run.about.resolved_of(run.manifest)["template"] for run in found.of("passkey")}
    assert set(labels.values()) == {"e2bench"}
