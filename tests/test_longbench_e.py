"""LongBench-E's length buckets beside a task's score, and the chat format that a preset brings."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_folders import prediction, write_lines

from e2bench.experiments.answers import chat_format
from e2bench.experiments.options import Common
from e2bench.experiments.stored import score_folder
from e2bench.scoring.averages import by_length


def test_buckets_are_below_four_thousand_below_eight_thousand_and_the_rest() -> None:
    found = by_length([0, 3999, 4000, 7999, 8000, 20000], [1, 0, 1, 1, 0, 0.5])
    assert found == {
        "0-4k": {"score": 50, "scored": 2},
        "4-8k": {"score": 100, "scored": 2},
        "8k+": {"score": 25, "scored": 2},
    }
    assert by_length([5000], [0.3]) == {"4-8k": {"score": 30, "scored": 1}}
    assert by_length([None, 1], [1, 1]) == {}


def test_scores_of_the_thirteen_tasks_are_also_told_by_length(tmp_path: Path) -> None:
    lengths, preds = (100, 5000, 9000), ("Paragraph 3", "Paragraph 3", "4")
    lines = [
        prediction("passage_retrieval_en", at, pred, length=length, finish="eos")
        for at, (pred, length) in enumerate(zip(preds, lengths, strict=True))
    ]
    failed = prediction("passage_retrieval_en", 3, "", length=100, finish="error")
    write_lines(tmp_path / "passage_retrieval_en.jsonl", [failed, *lines])
    write_lines(tmp_path / "passage_retrieval_zh.jsonl", [prediction("passage_retrieval_zh", 0, "段落3")])
    details = score_folder(tmp_path)["details"]
    scores = {name: bucket["score"] for name, bucket in details["passage_retrieval_en"]["by_length"].items()}
    assert scores == {"0-4k": 100, "4-8k": 100, "8k+": 0}
    assert "by_length" not in details["passage_retrieval_zh"]  # not one of LongBench-E's


@pytest.mark.parametrize(
    ("model", "given", "used"),
    [
        ("Llama2-7B-chat-4k", "auto", "llama2"),
        ("Llama2-7B-chat-4k", "none", "none"),
        ("LongChat-v1.5-7B-32k", "auto", "longchat"),
        ("some/model", "auto", "auto"),
        (None, "auto", "auto"),
    ],
)
def test_a_preset_brings_its_chat_format(model: str | None, given: str, used: str) -> None:
    assert chat_format(given, Common(model=model)) == used
