"""What docs/results.md says of the tiny model made in many words, recomputed from results/tiny-words."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from e2bench.files import read_json
from e2bench.scoring.statistics import wilson

ROOT = Path(__file__).parents[1]
RUN = ROOT / "results" / "tiny-words" / "passkey-e2"


def test_the_keys_found_are_those_of_the_lines() -> None:
    text = " ".join((ROOT / "docs" / "results.md").read_text("utf-8").split())
    said = re.search(r"finds (\d+), (\d+), (\d+) and (\d+) of (\d+) keys at L, 2 L, 4 L and 8 L.*?to ([\d.]+) %", text)
    assert said is not None
    lines = list(map(json.loads, (RUN / "passkey.jsonl").read_text("utf-8").splitlines()))
    trials = Counter(line["length"] for line in lines)
    found = Counter(line["length"] for line in lines if line["success"])
    assert list(map(int, said.groups()[:4])) == [found[length] for length in (512, 1024, 2048, 4096)]
    assert set(trials.values()) == {int(said[5])}
    assert said[6] == f"{100 * wilson(0, int(said[5]))[1]:.1f}"


def test_no_row_of_its_training_was_in_the_words_that_it_was_asked_in() -> None:
    e2 = read_json(ROOT / "results" / "tiny-words" / "training" / "e2_config.json")
    assert e2["wordings"]["passkey landmark"] == 0
    assert read_json(RUN / "run.json")["resolved"]["template"] == "landmark"
