"""The list of claims: each verdict follows from a paired interval, and what was not measured says so."""

from __future__ import annotations

import csv
import json
import math
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_folders import e2_config, longbench_run, profile, write_json, write_lines
from report_folders import manifest as run_json

from e2bench.reporting import write_report
from e2bench.reporting.claims import CLAIMS, FAILS, HOLDS, OPEN, UNMEASURED, claims, verdict
from e2bench.reporting.runs import scan

LENGTHS = (512, 1024, 4096)


def ppl(folder: Path, nats: dict[int, list[float]], *, scale: int | None = None, **more: Any) -> Path:
    """A perplexity run: nats a token by length and document; g = L'/L, or a fixed one."""
    lines, cells = [], []
    for length, values in nats.items():
        g = length // 512 if scale is None else scale
        for at, value in enumerate(values):
            line = {"document": f"d{at}", "window": length, "scale": g, "nll_sum": 100 * value, "scored_tokens": 100}
            lines.append(line | {"protocol": "press", "stride": 256, "windows": 1, "tokens": 101})
        cell = {"window": length, "scale": g, "documents": len(values), "scored_tokens": 100 * len(values)}
        cells.append(cell | {"perplexity": math.exp(sum(values) / len(values))})
    write_json(folder / "run.json", run_json("ppl", **{"scale": "auto" if scale is None else scale} | more))
    write_lines(folder / "ppl.jsonl", lines)
    write_json(folder / "scores.json", {"cells": cells})
    return folder


def tuned(**changes: Any) -> dict[str, Any]:
    return {"model": "tuned", "model_part": {"e2": e2_config(**changes)}}


def by_claim(folder: Path) -> dict[str, list[dict[str, Any]]]:
    [table] = claims(scan(folder))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        found.setdefault(row["claim"], []).append(row)
    assert list(found) == [claim.text for claim in CLAIMS]
    return found


@pytest.mark.parametrize(
    ("ends", "below", "above"),
    [([-2, -1], HOLDS, FAILS), ([1, 2], FAILS, HOLDS), ([-1, 1], OPEN, OPEN), (None, OPEN, OPEN)],
)
def test_a_verdict_is_what_the_interval_says(ends: list[float] | None, below: str, above: str) -> None:
    assert (verdict(ends, below=True), verdict(ends, below=False)) == (below, above)


def test_longer_windows_are_judged_on_the_same_documents(tmp_path: Path) -> None:
    falls = {512: [3.0, 2.0, 4.0], 1024: [2.9, 1.9, 3.9], 4096: [2.5, 1.5, 3.4]}
    ppl(tmp_path / "auto", falls, **tuned())
    ppl(tmp_path / "fixed", {512: [1.0, 2.0], 4096: [1.1, 2.3]}, scale=8, **tuned())
    ppl(tmp_path / "plain", {512: [1.0, 2.0], 1024: [6.0, 7.5]}, scale=1, extrapolate=True, **tuned())
    found = by_claim(tmp_path)
    [[training], [fixed], *_, [free]] = found.values()
    assert training["verdict"] == HOLDS and training["difference"] == pytest.approx(-1.6 / 3)
    assert training["ours"] == "20.09 at 512 (g = 1), 11.78 at 4k (g = 8)"
    assert fixed["verdict"] == FAILS and fixed["difference"] == pytest.approx(0.2)
    assert fixed["low"] == pytest.approx(0.1) and fixed["high"] == pytest.approx(0.3)
    assert free["verdict"] == FAILS and free["run"] == "plain"
    assert "2.92 at 4k untuned, 2.56 at 64k" in training["paper"]  # the paper's Table 3
    assert "g = 16: 3.06 at 4k, 2.56 at 64k" in fixed["paper"]
    # an untuned run over the same documents takes the place of the tuned one at L
    ppl(tmp_path / "untuned", {512: [1.0, 1.0, 1.0]}, scale=1, model="base")
    [training] = by_claim(tmp_path)[CLAIMS[0].text]
    assert training["verdict"] == FAILS and "untuned" in training["ours"] and training["run"] == "untuned, auto"


def test_an_augmentation_is_judged_by_pairs_of_seeds(tmp_path: Path) -> None:
    for seed, whole, without in ((1, 4.0, 4.1), (2, 3.0, 3.1), (3, 3.5, 3.7)):
        ppl(tmp_path / f"whole-{seed}", {4096: [whole]}, **tuned(seed=seed))
        ppl(tmp_path / f"no-t-{seed}", {4096: [without]}, **tuned(seed=seed, offset=False))
    found = by_claim(tmp_path)
    [row] = found["Tuning without the augmentation on t is worse"]
    differences = [math.exp(b) - math.exp(a) for a, b in ((4.0, 4.1), (3.0, 3.1), (3.5, 3.7))]
    assert row["difference"] == pytest.approx(sum(differences) / 3) and row["verdict"] == HOLDS
    assert "3 seeds" in row["ours"] and row["paper"].endswith("41.74, without 39.44 (Table 4)")
    [row] = found["Tuning without the augmentation on g is worse"]
    assert row["verdict"] == UNMEASURED and "ours" not in row


def test_parts_of_a_benchmark_are_no_measurement_and_whole_ones_have_no_interval(tmp_path: Path) -> None:
    profile(tmp_path / "profile")
    longbench_run(tmp_path / "base")
    longbench_run(tmp_path / "tuned", **tuned())
    claim = "LongBench rises over the untuned model"
    [row] = by_claim(tmp_path)[claim]
    assert row["verdict"] == OPEN and row["run"] == "base, tuned"
    scores = json.loads((tmp_path / "tuned" / "scores.json").read_text())
    for entry in scores["details"].values():
        entry["expected"] = 200
    write_json(tmp_path / "tuned" / "scores.json", scores)
    [row] = by_claim(tmp_path)[claim]
    assert row["verdict"] == UNMEASURED


def test_the_list_is_a_file_and_the_pages_first_section(tmp_path: Path) -> None:
    ppl(tmp_path / "runs" / "auto", {512: [3.0, 2.0], 4096: [2.5, 1.5]}, **tuned())
    (tmp_path / "runs" / "foreign.txt").write_text("no run")
    write_report(tmp_path / "runs", tmp_path / "report")
    rows = list(csv.DictReader((tmp_path / "report" / "claims.csv").read_text("utf-8").splitlines()))
    assert [row["verdict"] for row in rows].count(HOLDS) == 1 and len(rows) == len(CLAIMS)
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    body = page[page.index("<main") :]
    places = [body.index(words) for words in ("What the paper claims", "Skipped or incomplete", "Table 3.")]
    assert places == sorted(places)
    missed = len(CLAIMS) - 1
    assert f'holds</span> 1 <span class="badge not-measured">not measured</span> {missed}' in body
    missing = unescape(body[body.index(f"Not measured here: {missed}") : places[1]])
    assert all((row["claim"] in missing) == (row["verdict"] == UNMEASURED) for row in rows)
    assert '<a href="#skipped">1 skipped or incomplete</a>' in body


def test_without_an_e2_run_there_is_no_list(tmp_path: Path) -> None:
    ppl(tmp_path / "untuned", {512: [1.0, 1.0]}, scale=1, model="base")
    assert claims(scan(tmp_path)) == []
