"""Beginnings that RULER's samples share: read once where that pays, with the same answers and logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import e2bench
from e2bench.experiments import sharing
from e2bench.files import read_json, read_rows
from e2bench.models.local import Model
from e2bench.models.protocols import Generation, Prompt
from e2bench.rope.methods import RopeScaling

IDS = st.lists(st.integers(5, 7), min_size=1, max_size=12)


@given(st.lists(IDS, min_size=1, max_size=5, unique_by=tuple))
def test_no_other_order_saves_more(several: list[list[int]]) -> None:
    def saved(order: Sequence[list[int]]) -> int:
        return sharing.shared_tokens([Prompt(ids, 1) for ids in order])

    ended = [[*ids, 9] for ids in several]  # no prompt is another one's beginning
    assert saved(sorted(ended)) == max(map(saved, permutations(ended)))


def prompts_of(tiny_model: Model, lengths: Sequence[int]) -> list[Prompt]:
    """Prompts with a beginning of so many tokens in common with all others, 120 tokens each."""
    hay = [5 + at % 90 for at in range(120)]
    return [Prompt([*hay[:at], 101 + n, *hay[at + 1 :]], 6) for n, at in enumerate(lengths)]


@torch.inference_mode()
def test_logits_behind_a_shared_beginning_are_those_of_the_whole_prompt(tiny_model: Model) -> None:
    first, second = prompts_of(tiny_model, [80, 50])
    assert tiny_model.dtype == torch.float32
    shared = sharing.shared_tokens([first, second])
    assert shared == 50
    whole, kept = tiny_model.new_cache(128), tiny_model.new_cache(128)
    want = tiny_model.head(tiny_model.prefill(second.ids, whole))
    tiny_model.prefill(first.ids, kept)
    kept.crop(shared - len(first.ids))
    got = tiny_model.head(tiny_model.prefill(second.ids, kept, shared))
    assert (got - want).abs().max() <= 1e-6 * want.abs().max().clamp(min=1)


def test_it_is_worth_it_where_more_is_saved_than_decoding_alone_costs(tiny_model: Model) -> None:
    prompts = prompts_of(tiny_model, [110, 100, 90, 80])
    assert sharing.shared_tokens(prompts) == 100 + 90 + 80
    assert sharing.is_worth(tiny_model, prompts, rows=1)  # nothing is lost
    assert not sharing.is_worth(tiny_model, prompts, rows=2)  # 4 · 6 / 2 steps of 30 tokens are more than 270
    short = [Prompt(prompt.ids, 2) for prompt in prompts]
    assert sharing.is_worth(tiny_model, short, rows=2)


@pytest.mark.parametrize("rows", [1, 4])
def test_answers_are_the_same_either_way_and_keep_their_index(tiny_model: Model, rows: int) -> None:
    prompts = prompts_of(tiny_model, [30, 110, 70, 90, 10])
    scaling = RopeScaling("linear", 2)

    def ids(*, may_share: bool) -> dict[int, list[int]]:
        found = sharing.generate(tiny_model, prompts, scaling, rows=rows, may_share=may_share)
        return {index: generation.ids for index, generation in found}

    assert ids(may_share=True) == ids(may_share=False)


class Counting:
    """Counts the prompts of each call."""

    def __init__(self, model: Model, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in ("generate", "generate_sharing"):
            patch.setattr(model, name, self._counted(name, getattr(model, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(prompts: Sequence[Prompt], scaling: RopeScaling | None = None) -> Iterator[tuple[int, Generation]]:
            self.calls.append((name, len(prompts)))
            yield from call(prompts, scaling)

        return counted


def test_a_run_shares_where_it_pays_and_gives_the_same_lines(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sharing, "STEP_TOKENS", {"cpu": 2})  # at 1k tokens nothing is gained else
    count = Counting(tiny_model, monkeypatch)
    settings: dict[str, Any] = {"lengths": "1k", "tasks": "niah_single_1,niah_multikey_2", "samples": 3, "data": "demo"}
    e2bench.run("ruler", tiny_model, out=tmp_path / "auto", chat_template="none", **settings)
    assert ("generate_sharing", 3) in count.calls and ("generate", 3) in count.calls  # noise; needles all differ
    count.calls.clear()
    e2bench.run("ruler", tiny_model, out=tmp_path / "one", chat_template="none", batch_size="1", **settings)
    assert count.calls == [("generate", 1)] * 6
    said = [read_json(tmp_path / name / "run.json")["shared_beginnings"] for name in ("auto", "one")]
    assert said == [True, False]
    for task in ("niah_single_1", "niah_multikey_2"):
        auto, one = (read_rows(tmp_path / name / f"{task}.jsonl") for name in ("auto", "one"))
        assert [row | {"seconds": 0} for row in auto] == [row | {"seconds": 0} for row in one]
