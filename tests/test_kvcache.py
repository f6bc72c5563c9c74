"""The attention that needs no mask equals eager arithmetic with an explicit one; the cache keeps rows apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from e2bench.models.attention import grouped_attention
from e2bench.models.kvcache import KVCache, KVLayer, ragged

# Shapes: B rows, H query heads, K key-value heads, Tq queries, N keys, D head dimension.
MODULE = torch.nn.Identity()
EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64: only the order of sums differs


def eager(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None, scaling: float) -> Tensor:
    """softmax(q kᵀ · scaling + mask) v with the mask written out: query i of row b is token lengths[b] - Tq + i."""
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    repeats = heads // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * scaling
    for b in range(rows):
        for i in range(queries):
            at = lengths[b] - queries + i
            seen = [j <= at and (window is None or j > at - window) for j in range(keys)]
            scores[b, :, i, ~torch.tensor(seen)] = -math.inf
    return (scores.softmax(-1) @ value.repeat_interleave(repeats, 1)).transpose(1, 2)


def states(seed: int, rows: int, heads: int, groups: int, queries: int, keys: int, dim: int = 8) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, heads * groups, queries, dim), (rows, heads, keys, dim), (rows, heads, keys, dim)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


CHUNKS = {  # prompts, chunks behind a past, single tokens, under a sliding window or none
    "seed": st.integers(0, 999),
    "heads": st.integers(1, 3),
    "groups": st.integers(1, 3),
    "queries": st.integers(1, 12),
    "past": st.integers(0, 12),
    "window": st.none() | st.integers(1, 30),
}


@given(**CHUNKS, rows=st.integers(1, 2))
def test_prefill_chunks_and_single_steps_equal_eager_attention(
    seed: int, heads: int, groups: int, queries: int, past: int, window: int | None, rows: int
) -> None:
    query, key, value = states(seed, rows, heads, groups, queries, past + queries)
    found, weights = grouped_attention(MODULE, query, key, value, None, 0.3, sliding_window=window)
    assert weights is None and found.is_contiguous()
    torch.testing.assert_close(found, eager(query, key, value, [past + queries] * rows, window, 0.3), **EXACT)


@given(
    seed=st.integers(0, 999),
    groups=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 30),
)
def test_decoding_rows_of_different_lengths_equals_eager_attention(
    seed: int, groups: int, lengths: list[int], window: int | None
) -> None:
    query, key, value = states(seed, len(lengths), 2, groups, 1, max(lengths))
    with ragged(torch.tensor(lengths)):
        found, _ = grouped_attention(MODULE, query, key, value, None, 0.3, sliding_window=window)
    torch.testing.assert_close(found, eager(query, key, value, lengths, window, 0.3), **EXACT)


def test_one_step_of_several_layers_may_have_different_windows() -> None:
    query, key, value = states(1, 2, 2, 2, 1, 9)
    with ragged(torch.tensor([9, 5])):
        for window in (None, 3, None, 4):
            found, _ = grouped_attention(MODULE, query, key, value, None, 0.3, sliding_window=window)
            torch.testing.assert_close(found, eager(query, key, value, [9, 5], window, 0.3), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_after_the_past_keeps_the_precision_of_its_dtype(dtype: torch.dtype) -> None:
    query, key, value = states(2, 1, 2, 2, 33, 97, dim=16)
    want = eager(query, key, value, [97], None, 0.25)
    found, _ = grouped_attention(MODULE, query.to(dtype), key.to(dtype), value.to(dtype), None, 0.25)
    assert found.dtype == dtype
    atol = {torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]  # a few units in the last place of values near 1
    torch.testing.assert_close(found.double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("extra", [{"attention_mask": torch.zeros(1)}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_what_is_not_computed_is_refused(extra: dict[str, object]) -> None:
    query, key, value = states(3, 1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="--attn eager"):
        grouped_attention(MODULE, query, key, value, **extra)  # type: ignore[arg-type]


def test_the_cache_returns_what_was_written_in_order() -> None:
    _, key, value = states(4, 1, 2, 1, 1, 7)
    layer = KVLayer(1, 7)
    layer.update(key[:, :, :4], value[:, :, :4])
    keys, values = layer.update(key[:, :, 4:], value[:, :, 4:])
    assert torch.equal(keys, key) and torch.equal(values, value)
    assert layer.get_seq_length() == 7 and layer.get_mask_sizes(1) == (8, 0)
    layer.crop(-3)
    assert layer.get_seq_length() == 4
    keys, _ = layer.update(key[:, :, :1], value[:, :, :1])
    assert torch.equal(keys[:, :, 4], key[:, :, 0])


def test_a_cache_that_is_full_refuses_another_token() -> None:
    _, key, value = states(5, 1, 2, 1, 1, 3)
    layer = KVLayer(1, 3)
    layer.update(key, value)
    with pytest.raises(IndexError, match="4 tokens do not fit a cache of 3"):
        layer.update(key[:, :, :1], value[:, :, :1])


def test_a_row_view_fills_its_row_of_the_batch_and_no_other() -> None:
    _, key, value = states(6, 1, 2, 1, 1, 4)
    cache = KVCache(2, rows=3, capacity=6)
    probe = KVCache(2, capacity=1)
    for layer in probe.layers:
        layer.update(key[:, :, :1], value[:, :, :1])
    cache.allocate(probe)
    for layer in cache.layers:
        layer.keys.zero_(), layer.values.zero_()
    view = cache.part(slice(1, 2))
    for layer in view.layers:
        layer.update(key, value)
    assert torch.equal(cache.layers[1].keys[1, :, :4], key[0])
    assert not cache.layers[1].keys[[0, 2]].any()


def test_what_memory_held_before_does_not_reach_a_short_row() -> None:
    query, key, value = states(8, 2, 2, 2, 1, 6)
    freed = [torch.full((2, 2, 6, 8), math.nan, dtype=torch.float64) for _ in range(50)]  # likely to be handed out next
    del freed
    layer = KVLayer(2, 6)
    layer.lazy_initialization(key, value)
    layer.part(slice(1)).update(key[:1, :, :5], value[:1, :, :5])
    layer.part(slice(1, 2)).update(key[1:, :, :1], value[1:, :, :1])
    with ragged(torch.tensor([6, 2])):
        keys, values = layer.update(key[:, :, 5:], value[:, :, 5:])
        found, _ = grouped_attention(MODULE, query, keys, values, None, 0.3)
    assert found.isfinite().all()


def test_a_ragged_step_writes_each_row_at_its_own_end() -> None:
    _, key, value = states(7, 3, 2, 1, 1, 1)
    layer = KVLayer(3, 8)
    layer.lazy_initialization(key, value)
    layer.keys.zero_()
    with ragged(torch.tensor([2, 5, 8])):
        keys, _ = layer.update(key, value)
    assert keys.shape[2] == 8
    for row, column in enumerate([1, 4, 7]):
        assert torch.equal(layer.keys[row, :, column], key[row, :, 0])
    assert layer.keys.count_nonzero() == key.numel()
