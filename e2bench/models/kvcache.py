"""A preallocated key-value cache whose rows may have different lengths.

Shapes: B rows, K key-value heads, Tq query tokens, N key tokens, D head dimension.

transformers' own cache grows by concatenation, which on long inputs costs more than reading the weights. Here each row
of a batch writes into its own slice of one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Kernel = Callable[..., Tensor]  # `decode_kernel.decode_attention`, or one with its signature


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
        if step := current_step():
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


class Step:
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


_step: Step | None = None


@contextmanager
def ragged(lengths: Tensor, rows: Tensor | None = None, kernel: Kernel | None = None) -> Iterator[None]:
    """Forward passes inside decode one token a row.

    lengths: (B,) int64, tokens of each row with the new one.    rows: (B,) int64, places in the cache (the first B).
    kernel: what attends, over all rows of the cache; None: matrix products on a CPU, a mask on a GPU.
    """
    global _step
    _step = Step(lengths, rows, kernel)
    try:
        yield
    finally:
        _step = None


def current_step() -> Step | None:
    """The decoding step of the forward pass that runs; None outside `ragged`."""
    return _step
