"""The attention over our cache: no mask of N × N, no copy of grouped heads.

Shapes: B rows, H query heads, K key-value heads (H = K·G), Tq query tokens, N key tokens, D head dimension.

transformers' SDPA call repeats grouped key/value heads under a mask; on long inputs both cost more than reading the
weights. Here the G heads of a group are folded into the query axis. The function is registered as an attention
implementation without a mask function, so transformers builds no mask and looks for no packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from e2bench.models.kvcache import Step, current_step
from e2bench.models.names import FLASH

SDPA = "e2bench_sdpa"
BAND_TOKENS = 4096  # queries of a sliding window's mask; bounds memory, not results
# Causal attention of the last Tq of N tokens, each to at most `window` of them with itself: query, key, value, window,
# scaling -> (B, H, Tq, D).
PromptKernel = Callable[[Tensor, Tensor, Tensor, int | None, float | None], Tensor]


def implementation(name: str) -> str | None:
    """transformers' name for our attention with the kernels that `--attn` names; None where it has none of ours."""
    if name == "sdpa":
        return SDPA
    if name not in FLASH:
        return None
    ours = f"e2bench_fa{name[-1]}"  # what transformers finds "flash" in, it takes for a package of its own
    AttentionInterface.register(ours, partial(grouped_attention, kernel=flash_kernel(name)))
    return ours


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    kernel: PromptKernel | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of the last Tq of N tokens: (B, H, Tq, D), (B, K, N, D) -> (B, Tq, H, D).

    The signature is that of transformers' attention interface (`integrations/sdpa_attention.py`); the result equals its
    SDPA up to rounding. Raises ValueError for what this function does not compute (a mask, soft-capped scores, sinks),
    so that nothing is left out in silence. kernel: for all but decoding steps; None: SDPA.
    """
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("masks, soft-capped scores and learned sinks need --attn eager")
    window = sliding_window if sliding_window is not None and sliding_window < key.shape[2] else None
    if step := current_step():
        output = _of_a_step(step, query, key, value, window, scaling)
    else:
        output = (kernel or sdpa_kernel)(query, key, value, window, scaling)
    return output.transpose(1, 2).contiguous(), None


def sdpa_kernel(query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None) -> Tensor:
    """Torch's kernels, of each case the one that needs no N × N matrix."""
    queries, keys = query.shape[2], key.shape[2]
    if window is not None:
        return _banded(query, key, value, window, scaling)
    if queries == keys:
        key, value = _spread(query, key), _spread(query, value)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    if queries == 1 and not query.is_cuda:
        return _row_by_row(query, key, value, [(row, keys) for row in range(query.shape[0])], None, scaling)
    if queries == 1:
        return _folded(query, key, value, None, scaling)
    if query.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        bias = causal_lower_right(queries, keys)
        key, value = _spread(query, key), _spread(query, value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True)
    return _chunk_after_past(query, key, value, scaling)


def flash_kernel(name: str) -> PromptKernel:
    """flash-attn's `flash_attn_func` of the generation that `--attn` names, on a GPU, in 16 bits.

    It takes grouped heads and sliding windows as they are, and aligns its causal mask at the last key.
    """
    kernel = import_module(FLASH[name]).flash_attn_func
    everything = None if name == "flash_attention_4" else -1

    def attend(query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None) -> Tensor:
        band = (everything, everything) if window is None else (window - 1, 0)
        states = (part.transpose(1, 2) for part in (query, key, value))
        output = kernel(*states, softmax_scale=scaling, causal=True, window_size=band)
        attended: Tensor = output[0] if isinstance(output, tuple) else output  # some give the log-sum-exp, too
        return attended.transpose(1, 2)

    return attend


def _of_a_step(
    step: Step, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None
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


AttentionInterface.register(SDPA, grouped_attention)
