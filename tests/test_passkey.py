"""Passkey: prompts of exact length, keys that depend on their cell alone, the two criteria, shared prefixes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2bench.errors import E2BenchError
from e2bench.experiments.depths import asking, depths_of, items_of, line_of, together
from e2bench.experiments.passkey import PassKey, build_prompt, first_integer, key_of, make_cells, settled
from e2bench.files import read_rows
from e2bench.models.local import Model
from e2bench.rope.methods import RopeScaling
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest
from e2bench.runs.processes import Processes
from e2bench.runs.runner import run
from e2bench.scoring.statistics import wilson
from e2bench.tasks.passkey import E2BENCH, LANDMARK, TEMPLATES, PassKeyTemplate

GRID = [(160, RopeScaling("linear", 2)), (321, RopeScaling("linear", 3))]


@given(
    template=st.sampled_from(list(TEMPLATES.values())),
    tokens=st.integers(300, 900),
    depth=st.floats(0, 1),
    key=st.integers(10000, 99999),
)
@settings(max_examples=60)
def test_a_prompt_has_exactly_its_target_of_tokens(
    tiny_model: Model, template: PassKeyTemplate, tokens: int, depth: float, key: int
) -> None:
    ids = build_prompt(tiny_model, template, tokens, depth, str(key))
    assert len(ids) == tokens


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_filler_is_whole_sentences_and_the_key_is_said_twice(tiny_model: Model, template: PassKeyTemplate) -> None:
    text = tiny_model.decode(build_prompt(tiny_model, template, 400, 0.5, "48213")).strip()
    task, before, line, after, question = text.split("\n")
    assert (task.strip(), question) == (template.task, template.question)
    assert line.count("48213") == 2
    for part in (before, after):
        sentences = part.replace(". ", ".|").split("|")
        assert set(sentences) <= {*template.filler, *template.spare}
    assert abs(len(before) - len(after)) < 120  # in the middle


def test_a_length_too_short_for_the_parts_is_refused(tiny_model: Model) -> None:
    with pytest.raises(E2BenchError, match="passkey prompt has at least"):
        build_prompt(tiny_model, LANDMARK, 20, 0.5, "12345")


def test_a_cells_key_depends_on_the_cell_alone() -> None:
    keys = {
        (length, depth, trial): key_of(0, length, depth, trial)
        for length in (1, 2)
        for depth in (0.0, 0.5)
        for trial in (0, 1)
    }
    assert len(set(keys.values())) == len(keys)
    assert all(len(key) == 5 and key[0] != "0" for key in keys.values())
    assert key_of(0, 1, 0.5, 1) == keys[1, 0.5, 1]
    assert key_of(1, 1, 0.5, 1) != keys[1, 0.5, 1]


def test_depths_are_evenly_spaced_from_first_to_last() -> None:
    assert depths_of(11) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert depths_of(1) == [0.0]


@pytest.mark.parametrize(
    ("pred", "success"),
    [(" 12345. It", True), ("the key 12345", True), (" 123456", False), (" 1234", False), ("", False), ("no", False)],
)
def test_success_is_the_first_integer_being_the_key(pred: str, success: bool) -> None:
    assert (first_integer(pred) == "12345") is success


def test_settled_waits_for_the_end_of_the_first_number() -> None:
    assert not settled(" 1234")
    assert settled(" 12345.")
    assert not settled("no number. ")


def test_the_strict_criterion_is_the_keys_own_ids(tiny_model: Model) -> None:
    cell = next(iter(make_cells(tiny_model, GRID[:1], LANDMARK, depths=[0.0], trials=1, seed=0)))
    own = list(cell.answer_ids)
    assert tiny_model.decode(own).strip() == cell.key
    assert line_of(PassKey(), cell, f" {cell.key}.", [*own, 5])["strict"]
    assert not line_of(PassKey(), cell, f" {cell.key}.", [5, *own])["strict"]


def test_sharing_prefixes_gives_the_answers_of_single_prompts(tiny_model: Model, tmp_path: Path) -> None:
    cells = list(make_cells(tiny_model, GRID, E2BENCH, depths=depths_of(3), trials=2, seed=0))
    contents = manifest("passkey", settings={}, resolved={})
    with RunFolder(tmp_path / "run", contents) as folder:
        run(
            items_of(PassKey.name, cells),
            asking(tiny_model, PassKey(early_stop=False)),
            folder,
            batch_size=together(cells),
            processes=Processes(),
            title="passkey",
        )
    rows = read_rows(tmp_path / "run" / "passkey.jsonl")
    assert [row["tokens"] for row in rows] == [length - 16 for length, _ in GRID for _ in range(6)]
    for row, cell in zip(rows, cells, strict=True):
        from e2bench.models.protocols import Prompt

        ((_, alone),) = tiny_model.generate([Prompt(cell.ids, 16)], cell.scaling)
        assert row["pred"] == alone.text


def test_accuracy_has_wilsons_interval(tmp_path: Path) -> None:
    base = {"length": 512, "scale": 1, "depth": 0.0, "strict": False}
    lines = [{**base, "trial": t, "success": t < 8} for t in range(10)]
    (tmp_path / "passkey.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (entry,) = PassKey.summarise(tmp_path)["lengths"]
    assert entry["accuracy"] == 0.8
    # Wilson 1927 for 8 of 10 at 95 %: 0.4902 to 0.9433 (any textbook's table)
    assert entry["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_landmarks_template_is_the_fields_own_prompt() -> None:
    # epfml/landmark-attention, llama/run_test.py, generate_prompt, for a key of 12345 between blocks of filler
    block = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    parts = [LANDMARK.task, block, LANDMARK.key_line.format(key=12345), f"{block} {block}", LANDMARK.question]
    task = (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there."
    )
    key_line = "The pass key is 12345. Remember it. 12345 is the pass key."
    question = "What is the pass key? The pass key is"
    assert "\n".join(parts) == f"{task}\n{block}\n{key_line}\n{block} {block}\n{question}"
    assert " ".join(LANDMARK.filler) == block


def test_a_folder_from_before_the_template_goes_on_in_its_own_words(
    tiny_folder: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    shared = ("passkey", "--model", tiny_folder, "--lengths", 320, "--depths", 2, "--out", out)
    assert cli(*shared, "--trials", 1, "--template", "e2bench").code == 0
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["resolved"].pop("template") == manifest["settings"].pop("template") == "e2bench"
    (out / "run.json").write_text(json.dumps(manifest))
    before = (out / "passkey.jsonl").read_bytes().splitlines()
    ended = cli(*shared, "--trials", 1, "--template", "landmark")
    assert ended.code == 2
    assert "holds a run with template = e2bench, not landmark; give the --template of that run, choose" in ended.err
    ended = cli(*shared, "--trials", 2)
    assert ended.code == 0 and "goes on with --template e2bench" in ended.err
    after = (out / "passkey.jsonl").read_bytes().splitlines()
    assert len(after) == 4 and set(before) < set(after)
    assert json.loads((out / "run.json").read_text())["resolved"]["template"] == "e2bench"
    assert {entry["template"] for entry in json.loads((out / "scores.json").read_text())["lengths"]} == {"e2bench"}
    other = tmp_path / "other"
    assert cli(*shared[:-1], other, "--trials", 2).code == 0
    assert json.loads((other / "run.json").read_text())["resolved"]["template"] == "landmark"
    assert cli("compare", out, other).code == 2
