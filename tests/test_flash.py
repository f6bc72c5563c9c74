"""`--attn flash_attention_2`: a twin of flash-attn's function, by its documentation, under our attention and our cache.

The kernels themselves run on a GPU only; what is tried here is what they are asked, and everything around them.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from test_kvcache import CHUNKS, EXACT, MODULE, eager, states
from test_onepass import FAMILIES, ids_of, model_of
from torch import Tensor

from e2bench.models.attention import flash_kernel, grouped_attention
from e2bench.models.local import Model
from e2bench.models.names import FLASH
from e2bench.models.protocols import Prompt

GENERATIONS = {"flash_attention_2": -1, "flash_attention_3": -1, "flash_attention_4": None}  # "no limit" of each


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None, causal: bool, window_size: tuple[Any, Any]
) -> Tensor:
    """flash-attn's documentation in a few lines: (B, T, H, D); query i sees keys i + N - T - left … i + N - T + right.

    A negative limit, in the fourth generation None, is no limit; causal: nothing to the right.
    """
    left, right = (side if side is not None and side >= 0 else k.shape[1] for side in window_size)
    at = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    keys = torch.arange(k.shape[1])[None]
    seen = (keys >= at - left) & (keys <= at + (0 if causal else right))
    k, v = (part.repeat_interleave(q.shape[2] // k.shape[2], 2) for part in (k, v))
    scores = torch.einsum("bthd,bnhd->bhtn", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    return torch.einsum("bhtn,bnhd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """flash-attn's packages are there; (queries, keys) of each call."""
    calls: list[tuple[int, int]] = []

    def counted(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
        calls.append((q.shape[1], k.shape[1]))
        return flash_attn_func(q, k, v, **named)

    def with_sums(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> tuple[Tensor, None]:
        return counted(q, k, v, **named), None

    for name, package in FLASH.items():
        gives = with_sums if name == "flash_attention_4" else counted
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(flash_attn_func=gives))  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=counted, __path__=[]))  # type: ignore[misc]
    return calls


@pytest.mark.parametrize("name", FLASH)
def test_every_generation_is_asked_for_causal_attention_over_a_window(
    name: str, installed: list[tuple[int, int]]
) -> None:
    attend = flash_kernel(name)

    @given(**CHUNKS)
    def equal(seed: int, heads: int, groups: int, queries: int, past: int, window: int | None) -> None:
        query, key, value = states(seed, 2, heads, groups, queries, past + queries)
        found, _ = grouped_attention(MODULE, query, key, value, None, 0.3, sliding_window=window, kernel=attend)
        torch.testing.assert_close(found, eager(query, key, value, [past + queries] * 2, window, 0.3), **EXACT)

    equal()
    assert GENERATIONS.keys() == FLASH.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_runs_it_over_our_cache_in_batches(
    tiny_model: Model, installed: list[tuple[int, int]], family: str
) -> None:
    ours = model_of(FAMILIES[family], tiny_model.tokenizer)
    flash = Model(ours.hf, ours.tokenizer, name="flash", attention="flash_attention_2")
    calls = len(installed)
    assert flash.grouped and flash.one_pass and flash.croppable and calls  # the trial at loading agreed
    ids = ids_of(3, 97)
    prompts = [Prompt(row.tolist()[:end], 6) for row, end in zip(ids, (97, 40, 60), strict=True)]
    found = flash.token_nll(ids), flash.token_nll(ids, cached=True), _answers(flash, prompts)
    wholes = {1, 97, 40, 60}  # prompts and windows; the one token allocates the cache, and steps are our own
    assert set(installed[calls:]) == {(tokens, tokens) for tokens in wholes}
    ours.hf.set_attn_implementation(ours.ours)
    want = ours.token_nll(ids), ours.token_nll(ids, cached=True), _answers(ours, prompts)
    torch.testing.assert_close(found[:2], want[:2], rtol=1e-5, atol=1e-5)
    assert found[2] == want[2]


def _answers(model: Model, prompts: list[Prompt]) -> list[list[int]]:
    answers = dict(model.generate(prompts))
    return [answers[at].ids for at in range(len(prompts))]
