"""A preallocated key-value cache and the attention that reads it: no mask of N × N, no copy of grouped heads.

Shapes: B rows, H query heads, K key-value heads (H = K·G), Tq query tokens, N key tokens, D head dimension.

transformers' own cache grows by concatenation and its SDPA call repeats grouped key/value heads under a mask; on long
inputs both cost more than the weights' reading. Here each row of a batch writes into its own slice of one buffer, rows
may have different lengths, and the G heads of a group are folded into the query axis. The function is registered as an
attention implementation without a mask function, so transformers builds no mask and looks for no packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

ATTENTION = "e2bench_sdpa"
Kernel = Callable[..., Tensor]  # `decode_kernel.decode_attention`, or one with its signature
BAND_TOKENS = 4096  # queries of a sliding window's mask; bounds memory, not results


class KVLayer(CacheLayerMixin):
    """Keys and values of one layer: (B, K, capacity, D), allocated at the first write."""

    is_sliding = False
    is_croppable = True
    keys: Any  # a Tensor once allocated
    values: Any

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves this one without types
        self.rows, self.capacity, self.length = rows, capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers on the device and in the dtype of the first states seen.

        Zeros: a row shorter than its neighbours is masked, but 0 times what empty memory may hold (NaN) is NaN.
        """
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (self.rows, key_states.shape[1], self.capacity)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, K, Tq, D) states and return all of them, (rows, K, N, D) views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = _ragged
        if step is not None:
            rows, columns = step.rows.to(self.keys.device), step.lengths.to(self.keys.device) - 1  # layers over GPUs
            fed = slice(len(rows))  # behind them come rows that fill the step up
            self.keys[rows, :, columns] = key_states[fed, :, 0]
            self.values[rows, :, columns] = value_states[fed, :, 0]
            if step.kernel:  # reads each row's length on the device
                return self.keys, self.values
            return self.keys[:, :, : step.longest], self.values[:, :, : step.longest]
        end = self.length + key_states.shape[2]
        if end > self.capacity:  # one token into an empty slice would be broadcast away in silence
            raise IndexError(f"{end} tokens do not fit a cache of {self.capacity}")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def part(self, rows: slice) -> KVLayer:
        """The same memory seen as an empty cache of some of the rows."""
        view = KVLayer(len(range(self.rows)[rows]), self.capacity)
        if self.is_initialized:
            view.dtype, view.device = self.dtype, self.device
            view.keys, view.values = self.keys[rows], self.values[rows]
            view.is_initialized = True
        return view

    def get_seq_length(self) -> int:
        """Tokens written so far."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.capacity

    get_max_cache_shape = get_max_length  # its name before transformers 5.16

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key length, key offset) for code that builds masks."""
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; negative, as transformers 5 asks."""
        self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        """Forget every token, keep the memory."""
        self.length = 0


class KVCache(Cache):
    """One `KVLayer` a model layer. `rows` sequences of at most `capacity` tokens."""

    layers: list[Any]  # KVLayer

    def __init__(self, layers: int, *, rows: int = 1, capacity: int) -> None:
        super().__init__(layers=[KVLayer(rows, capacity) for _ in range(layers)])
        self.rows, self.capacity = rows, capacity

    def allocate(self, like: KVCache) -> None:
        """Allocate every layer as `like` did (its first row shows dtype, device and head shapes)."""
        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.lazy_initialization(other.keys, other.values)

    def part(self, rows: slice) -> KVCache:
        """An empty cache over the memory of some rows: a prefill through it fills this cache in place."""
        view = KVCache(0, rows=len(range(self.rows)[rows]), capacity=self.capacity)
        view.layers = [layer.part(rows) for layer in self.layers]
        return view


class _Ragged:
    """One decoding step over rows of different lengths (each counting the token now being written)."""

    def __init__(self, lengths: Tensor, rows: Tensor | None, kernel: Kernel | None) -> None:
        self.lengths, self.kernel = lengths, kernel
        self.rows = torch.arange(lengths.shape[0], device=lengths.device) if rows is None else rows
        self._masks: dict[tuple[int | None, torch.dtype, torch.device], Tensor | None] = {}

    @cached_property
    def counts(self) -> list[int]:
        """The lengths, on the host; asked for where no kernel reads them on the device."""
        found: list[int] = self.lengths.tolist()
        return found

    @cached_property
    def places(self) -> list[int]:
        """The rows of the cache, on the host."""
        found: list[int] = self.rows.tolist()
        return found

    @cached_property
    def index(self) -> slice | list[int]:
        """The rows as an index that copies nothing where they are the first ones."""
        first = slice(len(self.places))
        return first if self.places == list(range(len(self.places))) else self.places

    @cached_property
    def longest(self) -> int:
        """The most tokens of a row."""
        return max(self.counts)

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(B, 1, 1, N) added to the scores: -inf outside each row's tokens, None where every row is full."""
        key = (window, dtype, device)
        if key not in self._masks:
            self._masks[key] = self._make(window, dtype, device)
        return self._masks[key]

    def _make(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        if min(self.counts) == self.longest and (window is None or window >= self.longest):
            return None
        lengths = self.lengths.to(device)[:, None]
        columns = torch.arange(self.longest, device=device)[None]
        hidden = columns >= lengths
        if window is not None:
            hidden |= columns < lengths - window
        return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]


_ragged: _Ragged | None = None


@contextmanager
def ragged(lengths: Tensor, rows: Tensor | None = None, kernel: Kernel | None = None) -> Iterator[None]:
    """Forward passes inside decode one token a row.

    lengths: (B,) int64, tokens of each row with the new one.    rows: (B,) int64, places in the cache (the first B).
    kernel: what attends, over all rows of the cache; None: matrix products on a CPU, a mask on a GPU.
    """
    global _ragged
    _ragged = _Ragged(lengths, rows, kernel)
    try:
        yield
    finally:
        _ragged = None


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of the last Tq of N tokens: (B, H, Tq, D), (B, K, N, D) -> (B, Tq, H, D).

    The signature is that of transformers' attention interface (`integrations/sdpa_attention.py`); the result equals its
    SDPA up to rounding. Raises ValueError for what this function does not compute (a mask, soft-capped scores, sinks),
    so that nothing is left out in silence.
    """
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("masks, soft-capped scores and learned sinks need --attn eager")
    queries, keys = query.shape[2], key.shape[2]
    window = sliding_window if sliding_window is not None and sliding_window < keys else None
    if _ragged is not None:
        output = _of_a_step(_ragged, query, key, value, window, scaling)
    elif window is not None:
        output = _banded(query, key, value, window, scaling)
    elif queries == keys:
        key, value = _spread(query, key), _spread(query, value)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    elif queries == 1 and not query.is_cuda:
        output = _row_by_row(query, key, value, [(row, keys) for row in range(query.shape[0])], None, scaling)
    elif queries == 1:
        output = _folded(query, key, value, None, scaling)
    elif query.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        bias = causal_lower_right(queries, keys)
        key, value = _spread(query, key), _spread(query, value)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True)
    else:
        output = _chunk_after_past(query, key, value, scaling)
    return output.transpose(1, 2).contiguous(), None


def _of_a_step(
    step: _Ragged, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None
) -> Tensor:
    """One token a row, each row over its own length; rows that only fill the step up get zeros."""
    rows = step.lengths.shape[0]
    query, filling = query[:rows], query.shape[0] - rows
    if step.kernel:
        output = step.kernel(query, key, value, step.lengths, scaling, window)
    elif not query.is_cuda:
        output = _row_by_row(query, key, value, list(zip(step.places, step.counts, strict=True)), window, scaling)
    else:
        mask = step.mask(window, query.dtype, query.device)
        output = _folded(query, key[step.index], value[step.index], mask, scaling)
    return F.pad(output, (0, 0, 0, 0, 0, 0, 0, filling)) if filling else output


def _spread(query: Tensor, states: Tensor) -> Tensor:
    """Keys or values (B, K, N, D) as the kernel for `query` takes them: (B, H, N, D) in float32 on a GPU.

    Flash and cuDNN kernels take float16 and bfloat16 only. Of the others one holds no N × N matrix, and in many
    versions of torch it takes no grouped heads: the call would fall through to the one that does.
    """
    if not query.is_cuda or query.dtype.itemsize < 4:
        return states
    return expanded(states, query.shape[1])


def expanded(states: Tensor, heads: int) -> Tensor:
    """(B, K, N, D) -> (B, H, N, D): each key head once for every query head of its group."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], 1)


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """One query token a row: the G heads of a group become G query rows of their key head."""
    rows, heads, _, dim = query.shape
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], dim)
    output = F.scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, heads, 1, value.shape[-1])


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, read: list[tuple[int, int]], window: int | None, scaling: float | None
) -> Tensor:
    """`_folded` on the CPU, where SDPA with so few queries takes 3 times as long (float32 and bfloat16 alike).

    read: for each query its row of the keys, and how many tokens of it. Two matrix products a row, the keys first:
    (K, N, D) × (K, D, G), then a softmax in at least float32. Each row reads the tokens it has and no others, so none
    is masked; in bfloat16 a whole batch at once would be copied first.
    """
    rows, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    groups = (query * (dim**-0.5 if scaling is None else scaling)).reshape(rows, kv_heads, heads // kv_heads, dim)
    exact = torch.promote_types(query.dtype, torch.float32)
    output = query.new_empty(rows, kv_heads, heads // kv_heads, value.shape[-1])
    for at, (row, end) in enumerate(read):
        seen = slice(0 if window is None else max(0, end - window), end)
        scores = torch.bmm(key[row, :, seen], groups[at].transpose(1, 2)).transpose(1, 2)
        shares = scores.to(exact).softmax(-1).to(value.dtype)
        output[at] = torch.bmm(shares, value[row, :, seen])
    return output.reshape(rows, heads, 1, value.shape[-1])


def _banded(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float | None) -> Tensor:
    """Sliding-window attention, a block of queries at a time: the mask is block × (window + block), never Tq × N."""
    queries, keys = query.shape[2], key.shape[2]
    block = min(window, BAND_TOKENS)
    blocks = []
    for begin in range(0, queries, block):
        end = min(begin + block, queries)
        last = keys - queries + end  # one after the last key that this block sees
        first = max(0, last - (end - begin) - window + 1)
        ahead = (
            torch.arange(first, last, device=query.device)[None]
            - torch.arange(last - (end - begin), last, device=query.device)[:, None]
        )
        mask = (ahead <= 0) & (ahead > -window)
        near, values = key[:, :, first:last], value[:, :, first:last]
        if query.is_cuda:  # its one kernel that takes masks takes no grouped heads in many versions of torch
            near, values = expanded(near, query.shape[1]), expanded(values, query.shape[1])
        part = query[:, :, begin:end]
        output = F.scaled_dot_product_attention(part, near, values, attn_mask=mask, scale=scaling, enable_gqa=True)
        blocks.append(output)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


def _chunk_after_past(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """A chunk of Tq queries after N - Tq earlier tokens, on the CPU.

    Two flash calls, the past in full and the chunk causally, joined by their log-sum-exp (FlashAttention's own block
    rule): SDPA alone would need a Tq × N mask.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, heads, queries, dim = query.shape
    groups, past = heads // key.shape[1], key.shape[2] - queries
    folded = query.reshape(rows, key.shape[1], groups * queries, dim)
    before, lse_before = flash(folded, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scaling)
    own_key, own_value = expanded(key[:, :, past:], heads), expanded(value[:, :, past:], heads)
    within, lse_within = flash(query, own_key, own_value, 0.0, True, scale=scaling)
    share = torch.sigmoid(lse_before.reshape(rows, heads, queries) - lse_within)[..., None]
    before = before.reshape(rows, heads, queries, -1)
    exact = torch.promote_types(query.dtype, torch.float32)
    return torch.lerp(within.to(exact), before.to(exact), share.to(exact)).to(query.dtype)


AttentionInterface.register(ATTENTION, grouped_attention)
