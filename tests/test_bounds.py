"""Answers of a size that no model gives: refused by name before a metric takes hours; no score below changes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2bench.errors import DataError
from e2bench.experiments.stored import score_folder
from e2bench.scoring import bounds, metrics
from e2bench.scoring.ruler import string_match_all

HUGE = {
    "qa_f1": ("w " * 600_000, "w"),
    "rouge_l": ("a b. " * 300_000, "a b c."),
    "rouge_l_zh": ("北京" * 200_000, "北京"),
    "code_similarity": ("ab" * 20_000 + "c" * 20_000, "abc" * 200),
    "classification": ("w" * 2_000_000, "w"),
    "rouge_score_l": ("a b " * 20_000, "b a " * 1_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_an_answer_that_would_take_all_time_or_memory_is_refused(name: str) -> None:
    prediction, reference = HUGE[name]
    began = time.process_time()
    with pytest.raises(DataError, match=r"cut (it|the answer)$"):
        metrics.score_row(getattr(metrics, name), prediction, [reference], all_classes=["w"])
    assert time.process_time() - began < 5


def test_a_first_line_is_scored_whatever_comes_behind_it() -> None:
    prediction = "\nthe barn\n" + "w " * 600_000
    assert metrics.score_row(metrics.qa_f1, prediction, ["barn"], first_line_only=True) == 1.0


def test_many_references_count_together() -> None:
    with pytest.raises(DataError, match="the product"):
        bounds.check_sample("x" * 100_000, ["y" * 1_000] * 100)
    bounds.check_sample("x" * 100_000, ["y" * 1_000] * 10)
    with pytest.raises(DataError, match="the product"):
        string_match_all("x" * 1_000_000, ["y"] * 1_000)


def test_rouge_of_many_sentences_is_refused_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = ". ".join(f"a {n}" for n in range(100))
    reference = ". ".join(f"{n} a" for n in range(100))
    want = metrics.rouge_l(prediction, reference)
    monkeypatch.setattr(metrics, "MOST_SENTENCE_STEPS", 100 * 300)
    assert metrics.rouge_l(prediction, reference) == want > 0
    monkeypatch.setattr(metrics, "MOST_SENTENCE_STEPS", 100 * 300 - 1)
    with pytest.raises(DataError, match=r"takes 30,000 steps"):
        metrics.rouge_l(prediction, reference)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(line=st.text("ab c", min_size=1, max_size=900), reference=st.text("ab c", min_size=1, max_size=6))
def test_a_similarity_that_lengths_alone_round_to_nothing_is_difflibs(line: str, reference: str) -> None:
    from difflib import SequenceMatcher

    want = round(100 * SequenceMatcher(None, line, reference).ratio()) / 100
    assert metrics.code_similarity(line, reference) == want


def test_a_folder_with_a_huge_answer_names_its_line(tmp_path: Path) -> None:
    line = {"pred": "the barn", "answers": ["a barn"], "all_classes": None, "length": 3}
    huge = {**line, "pred": "w " * 600_000}
    (tmp_path / "gov_report.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (line, huge)))
    with pytest.raises(DataError, match=re.escape("gov_report.jsonl: prediction 2: an answer of 1,200,000 characters")):
        score_folder(tmp_path)
    rows = [{"pred": p, "outputs": ["x"], "length": 64, "finish": "eos", "scale": 1} for p in ("x", "x" * 1_200_000)]
    (tmp_path / "gov_report.jsonl").unlink()
    (tmp_path / "niah_single_1.jsonl").write_text(
        "".join(json.dumps({"_id": str(n), "_task": "niah_single_1", **row}) + "\n" for n, row in enumerate(rows))
    )
    resolved = {"lengths": [64], "samples": 2, "tasks": ["niah_single_1"]}
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "ruler", "resolved": resolved}))
    with pytest.raises(DataError, match=r"niah_single_1\.jsonl: line 2: an answer of"):
        score_folder(tmp_path)
