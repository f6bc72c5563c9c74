"""Greedy decoding of prompts of different lengths: prefilled alone, decoded together.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from e2bench.models.body import Body
from e2bench.models.protocols import Generation, Prompt
from e2bench.models.queued import steps_for
from e2bench.models.steps import Row, Steps

WASTE = 0.1  # of the tokens of a prefill together: what shorter prompts are padded with


def common_prefix(before: Sequence[int], ids: Sequence[int]) -> int:
    """How many leading ids two prompts share; at least the last of `ids` is left to be fed."""
    most = min(len(before), len(ids) - 1)
    return next((at for at in range(most) if before[at] != ids[at]), most)


def longest(prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt with its answer."""
    return max(len(prompt.ids) + prompt.max_new_tokens for prompt in prompts)


def packs(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Neighbours whose prompts are read together: at most `tokens`, padding included, of which WASTE is padding."""
    pack: list[Row] = []
    for row in rows:
        lengths = [len(one.prompt.ids) for one in (*pack, row)]
        padded = len(lengths) * max(lengths)
        if pack and (padded > tokens or sum(lengths) < (1 - WASTE) * padded):
            yield pack
            pack = []
        pack.append(row)
    if pack:
        yield pack


class Decoder:
    """Generates with a model under the scaling in force."""

    def __init__(self, model: Body) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations of a batch: (index of the prompt, result), as each one ends.

        Prompts are prefilled alone, on a GPU short ones of about one length together; the rows are decoded together. A
        row stops at its budget, at an EOS or stop token (not before `min_new_tokens`), or once it is `settled`. The
        tokens are those of transformers' greedy `generate` one prompt at a time, up to ties in rounding.
        """
        capacity = longest(prompts)
        if self.model.grouped:
            yield from self._decode(prompts, capacity)
            return
        for index, prompt in enumerate(prompts):
            for _, generation in self._decode([prompt], capacity):
                yield index, generation

    def _decode(self, prompts: Sequence[Prompt], capacity: int) -> Iterator[tuple[int, Generation]]:
        cache = self.model.new_cache(capacity, rows=len(prompts))
        rows = [Row(index, prompt, index) for index, prompt in enumerate(prompts)]
        steps = steps_for(self.model, cache)
        steps.begin(rows, len(rows))
        following: list[int] = []
        for pack in packs(rows, self.model.packed_tokens):
            began = time.perf_counter()
            following += steps.first(self.model.head(self._read(pack, cache)), pack)
            for row in pack:
                row.seconds = (time.perf_counter() - began) / len(pack)
        yield from self._finish(steps, rows, following)

    @torch.inference_mode()
    def generate_sharing(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generation]]:
        """`generate`, one prompt after another over one cache: what a prompt shares with the one before it is kept.

        Order the prompts so that neighbours have long common beginnings. Results equal `generate` up to rounding.
        """
        cache = self.model.new_cache(longest(prompts))
        steps = steps_for(self.model, cache)
        before: Sequence[int] = []
        for index, prompt in enumerate(prompts):
            began = time.perf_counter()
            shared = common_prefix(before, prompt.ids)
            self._keep(cache, shared)
            row = Row(index, prompt)
            steps.begin([row], 1)
            following = steps.first(self.model.head(self.model.prefill(prompt.ids, cache, shared)), [row])
            row.seconds = time.perf_counter() - began
            yield from self._finish(steps, [row], following)
            before = prompt.ids

    @staticmethod
    def _keep(cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens of a one-row cache."""
        if (beyond := cache.get_seq_length() - length) > 0:
            cache.crop(-beyond)

    def _read(self, rows: Sequence[Row], cache: Any) -> Tensor:
        """Prefill neighbouring prompts into their rows of the cache; last hidden states (B, hidden)."""
        if len(rows) > 1:
            part = self._part(cache, slice(rows[0].place, rows[-1].place + 1))
            return self.model.prefill_together([row.prompt.ids for row in rows], part)
        return self.model.prefill(rows[0].prompt.ids, self._part(cache, slice(rows[0].place, rows[0].place + 1)))

    def _part(self, cache: Any, rows: slice) -> Any:
        """The cache that a prefill fills; the first one shows what the whole batch must allocate."""
        if not self.model.grouped or cache.rows == 1:
            return cache
        if not cache.layers[0].is_initialized:
            probe = self.model.new_cache(1)
            self.model.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.model.device), probe)
            cache.allocate(probe)
        return cache.part(rows)

    def _finish(self, steps: Steps, rows: Sequence[Row], following: list[int]) -> Iterator[tuple[int, Generation]]:
        """Decode rows together until each has ended."""
        while True:
            began = time.perf_counter()
            for row, token in zip(rows, following, strict=True):
                if self._append(row, token):
                    steps.end(row)
                    yield row.index, Generation(row.ids, self._text(row), row.finish, row.seconds)
            rows = [row for row in rows if not row.finish]
            if not rows:
                return
            following = steps.next(rows)
            for row in rows:  # a step's time is shared by its rows
                row.seconds += (time.perf_counter() - began) / len(rows)

    def _append(self, row: Row, token: int) -> bool:
        """Take one new token; true when the row is finished."""
        row.ids.append(token)
        if token in self.model.eos_ids or token in row.prompt.stop_ids:
            row.finish = "eos"
        elif row.prompt.settled and row.prompt.settled(self.model.decode(row.ids)):
            row.finish = "scored"
        elif len(row.ids) >= row.prompt.max_new_tokens:
            row.finish = "length"
        return bool(row.finish)

    def _text(self, row: Row) -> str:
        return self.model.decode(row.ids[:-1] if row.ids[-1] in self.model.eos_ids else row.ids)
