"""Evaluations in the words of the training: counted by `e2bench train`, said beside the number."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from e2bench.experiments.base import EXPERIMENTS, experiment
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.provenance import data_label
from e2bench.experiments.ruler import WORDING as RULER_WORDING
from e2bench.experiments.run import trained_words
from e2bench.experiments.training import every_wording, familiar, trained_on
from e2bench.tasks.passkey import E2BENCH, LANDMARK
from e2bench.tasks.ruler import RULER
from e2bench.train.data import Source
from e2bench.train.finetune import together
from e2bench.train.miniature.retrieval import retrieval_sample
from e2bench.train.miniature.tokenizer import train_tokenizer
from e2bench.train.recipe import load_recipe
from e2bench.train.rows import PackedRows

ASKED = f"{E2BENCH.task}\nThe river is quiet.\n{E2BENCH.key_line.format(key=48213)}\n{E2BENCH.question} 48213."
FILLED = " ".join(LANDMARK.filler * 3)


def json_lines(path: Path, texts: list[str]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


@pytest.mark.parametrize(
    ("text", "landmark", "ours"),
    [
        (ASKED, True, True),  # they share key line and question
        (FILLED, True, False),
        (E2BENCH.task, False, True),
        ("They set off. Here we go. There and back again.", False, False),  # two sentences are chance
        ("A pass key opens the door.", False, False),
    ],
)
def test_a_wording_is_known_by_a_line_or_by_three_sentences_of_its_filler(
    text: str, landmark: bool, ours: bool
) -> None:
    assert (LANDMARK.wording.is_in(text), E2BENCH.wording.is_in(text)) == (landmark, ours)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_prompts_of_every_experiment_with_a_wording_hold_it(name: str) -> None:
    asked = {
        "passkey landmark": f"{LANDMARK.task} {FILLED} {LANDMARK.key_line.format(key=1)} {LANDMARK.question}",
        "passkey e2bench": ASKED,
        "ruler": RULER[0].template,
        "attention": 'Key-value pairs: … Question: What is the value of key "a"? Answer: "',
    }
    for wording in experiment(name).wordings:
        assert wording.is_in(asked[wording.name])
        assert all(json.dumps(line) == f'"{line}"' for line in (*wording.lines, *wording.filler))  # found in raw JSON


def test_training_counts_each_document_once_however_often_it_is_read(tmp_path: Path) -> None:
    texts = [ASKED, FILLED, FILLED, *(f"Nothing of the kind is here, {n}." for n in range(7))]
    tokenizer = train_tokenizer(texts, 300, tmp_path / "tokenizer")
    source = Source([str(json_lines(tmp_path / "texts.jsonl", texts))])
    rows = PackedRows([source], tokenizer, train_window=64, wordings=every_wording())
    for _ in range(2):  # a resumed run reads again from the start
        assert len(list(itertools.islice(rows, 60))) == 60  # some epochs
        assert rows.rows_with == {"passkey landmark": 3, "passkey e2bench": 1, "attention": 0, "ruler": 0}


def test_a_base_that_was_trained_on_the_words_hands_that_on() -> None:
    rows = {"passkey landmark": 2, "passkey e2bench": 0, "attention": 0}
    before = {"passkey e2bench": 5, "attention": None}
    assert together(rows, before) == {"passkey landmark": 2, "passkey e2bench": 5, "attention": None}
    assert together(rows, {}) == rows


@pytest.mark.parametrize("name", ["answers-1.jsonl", "texts.jsonl.gz"])
def test_older_checkpoints_are_told_by_their_files_and_without_them_by_name(tmp_path: Path, name: str) -> None:
    path = json_lines(tmp_path / name, [ASKED, "Other words."])
    named = {"settings": {"data": [{"files": [str(tmp_path / "*.jsonl*")]}]}}
    e2 = named | {"data": {name: hashlib.sha256(path.read_bytes()).hexdigest()}}
    assert trained_on(e2) == {"passkey landmark": 1, "passkey e2bench": 1, "attention": 0, "ruler": 0}
    json_lines(path, ["another file of that name"])
    by_name = dict.fromkeys(("passkey landmark", "passkey e2bench", "attention"))
    assert trained_on(e2) == (by_name if name.startswith("answers") else {})
    assert trained_on(e2 | {"wordings": {"attention": 0}}) == {"attention": 0}


def test_the_number_says_so_and_only_for_the_words_it_was_asked_in() -> None:
    model = {"e2": {"data": {}, "wordings": {"passkey landmark": 0, "passkey e2bench": 1234, "attention": 0}}}
    labels = {}
    for template in ("landmark", "e2bench"):
        resolved = {"template": template}
        manifest: dict[str, Any] = {"experiment": "passkey", "resolved": resolved, "model": model}
        manifest |= trained_words(PassKey.read({"template": template}), resolved, model)
        labels[template] = data_label(manifest, {})
        assert data_label({**manifest, "familiar": None}, {}) == labels[template]  # of a run.json without the field
    assert labels["landmark"] == "generated by e2bench, template landmark"
    assert labels["e2bench"].endswith(
        "in words of the model's training (1,234 rows): how far it reaches, not how well it finds"
    )
    assert trained_words(PassKey.read({}), {"template": "landmark"}, {"name": "no checkpoint of ours"}) == {}
    assert familiar(PassKey, {"template": "e2bench"}, {"passkey e2bench": None}) == {"passkey e2bench": None}


def test_no_training_sample_of_the_shipped_recipes_shares_a_sentence_with_landmarks_template() -> None:
    """The recipes of the tiny model train on `corpus.jsonl` (text of the machine) and on these samples."""
    for recipe in ("tiny-copy", "tiny-base", "tiny-e2", "tiny-ablation"):
        files = [Path(file).name for source in load_recipe(recipe).data for file in source.files]
        assert all(file == "corpus.jsonl" or file.startswith("answers-") for file in files), recipe
    task = [sentence.strip(".") for sentence in LANDMARK.task.split(". ")]
    said = [*LANDMARK.filler, *task, "The pass key is", "Remember it", "is the pass key", "What is the pass key"]
    for index in range(3000):
        _, sample = retrieval_sample(7, index, 1024)
        assert not [sentence for sentence in said if sentence in sample.text], (index, sample.text)


def test_rulers_words_are_those_of_its_templates() -> None:
    for line in RULER_WORDING.lines:
        assert any(line in task.template for task in RULER), line
    for task in RULER:
        assert RULER_WORDING.is_in(task.template), task.name
