"""Attention of one new token a row over a cache whose rows have different lengths, on a GPU: two Triton kernels.

Shapes: B rows, H query heads, K key-value heads (H = K·G), N tokens of room a row of the cache, D head dimension.

The lengths are read on the device, so the call is the same at every step: nothing is planned anew as texts grow, no
mask is made, and a CUDA graph can hold it. A row's keys are cut into splits of SPLIT tokens, which work in parallel and
are joined by their log-sum-exp (FlashDecoding, pytorch.org/blog/flash-decoding). Where a row is cut depends on nothing
but its own length, so that its result has the same bits whatever stands in the other rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 512  # tokens; a split's partial result is 1 / 256 of the keys and values it read
BLOCK = 64  # tokens of a split taken at once


@triton.jit
def _attend(
    query, key, value, lengths, partial, logsum, scale, window,
    query_row, query_head, key_row, key_head, key_token, value_row, value_head, value_token, splits,
    G: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One row, one key-value head, one split: softmax over the split's tokens, and its log-sum-exp."""
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    first = tl.maximum(length - window, 0)
    begin, end = tl.maximum(split * SPLIT, first), tl.minimum(split * SPLIT + SPLIT, length)
    group, width = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    heads = head * G + group
    there = (group < G)[:, None] & (width < D)[None, :]
    q = tl.load(query + row * query_row + heads[:, None] * query_head + width[None, :], mask=there, other=0.0)
    highest = tl.full((GROUP,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    output = tl.zeros((GROUP, WIDTH), tl.float32)
    keys, values = key + row * key_row + head * key_head, value + row * value_row + head * value_head
    for at in range(split * SPLIT, end, BLOCK):
        token = at + tl.arange(0, BLOCK)
        seen = (token >= begin) & (token < end)
        block = seen[:, None] & (width < D)[None, :]
        k = tl.load(keys + token[:, None] * key_token + width[None, :], mask=block, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen yet: exp(-inf - -inf) is NaN
        share = tl.exp(scores - base[:, None])
        kept = tl.exp(highest - base)
        v = tl.load(values + token[:, None] * value_token + width[None, :], mask=block, other=0.0)
        output = output * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision=PRECISION)
        total = total * kept + tl.sum(share, 1)
        highest = higher
    if begin < end:
        place = (row * tl.num_programs(1) * G + heads) * splits + split
        tl.store(partial + place[:, None] * D + width[None, :], output / total[:, None], mask=there)
        tl.store(logsum + place, highest + tl.log(total), mask=group < G)


@triton.jit
def _join(
    partial, logsum, lengths, output, window, splits,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One row, one query head: its splits' results by their shares, one split after the other."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row).to(tl.int32)
    first = tl.maximum(length - window, 0) // SPLIT
    width = tl.arange(0, WIDTH)
    place = (row * H + head) * splits
    highest, total = -float("inf"), 0.0
    joined = tl.zeros((WIDTH,), tl.float32)
    for split in range(first, (length + SPLIT - 1) // SPLIT):
        mass = tl.load(logsum + place + split)
        part = tl.load(partial + (place + split) * D + width, mask=width < D, other=0.0)
        higher = tl.maximum(highest, mass)
        kept, share = tl.exp(highest - higher), tl.exp(mass - higher)
        joined, total, highest = joined * kept + part * share, total * kept + share, higher
    target = output + (row * H + head) * D + width
    tl.store(target, (joined / total).to(output.dtype.element_ty), mask=width < D)


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scaling: float | None, window: int | None = None
) -> Tensor:
    """(B, H, 1, D), (B, K, N, D), (B, K, N, D), lengths (B,) of at least 1 -> (B, H, 1, D).

    Row b attends to its first lengths[b] tokens, or to the last `window` of them. Products are of the inputs' dtype,
    summed in float32; float32 inputs are multiplied as such, not as tf32.
    """
    rows, heads, _, dim = query.shape
    kv_heads, room = key.shape[1], key.shape[2]
    splits, group = triton.cdiv(room, SPLIT), heads // kv_heads
    partial = query.new_empty(rows, heads, splits, dim, dtype=torch.float32)
    logsum = query.new_empty(rows, heads, splits, dtype=torch.float32)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    width = triton.next_power_of_2(dim)
    shape: dict[str, Any] = {"D": dim, "WIDTH": width, "SPLIT": SPLIT}
    window = room if window is None else window
    _attend[(rows, kv_heads, splits)](
        query, key, value, lengths, partial, logsum, dim**-0.5 if scaling is None else scaling, window,
        query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3], splits,
        G=group, GROUP=max(16, triton.next_power_of_2(group)), BLOCK=BLOCK, PRECISION="ieee", **shape,
    )  # fmt: skip
    _join[(rows, heads)](partial, logsum, lengths, output, window, splits, H=heads, **shape)
    return output
