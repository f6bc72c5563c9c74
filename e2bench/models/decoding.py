"""Greedy decoding of prompts of different lengths: prefilled alone, decoded together.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from e2bench.compat import cache_arguments
from e2bench.errors import ModelError
from e2bench.models.kvcache import ragged
from e2bench.models.protocols import Generation, Prompt
from e2bench.rope.methods import BY_LENGTH, RopeScaling

if TYPE_CHECKING:
    from e2bench.models.local import Model


@dataclass
class Row:
    """One sequence being decoded: where its result goes, its prompt, tokens in the cache, new ids, the next id."""

    index: int
    prompt: Prompt
    length: int
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    seconds: float = 0.0


def common_prefix(before: Sequence[int], ids: Sequence[int]) -> int:
    """How many leading ids two prompts share; at least the last of `ids` is left to be fed."""
    most = min(len(before), len(ids) - 1)
    return next((at for at in range(most) if before[at] != ids[at]), most)


class Decoder:
    """Generates with a loaded model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations of a batch, one `scaling` for all: (index of the prompt, result), as each one ends.

        Each prompt is prefilled alone and unpadded; the rows are decoded together. A row stops at its budget, at an EOS
        or stop token (not before `min_new_tokens`), or once it is `settled`. The tokens are those of transformers'
        greedy `generate` one prompt at a time, up to ties in rounding.
        """
        if scaling is not None and scaling.method in BY_LENGTH and len(prompts) > 1:
            raise ValueError(f"{scaling.method} depends on each input's length: one prompt a batch")
        longest = max(len(p.ids) + p.max_new_tokens for p in prompts)
        with self.model.under(scaling, longest):
            if self.model.grouped:
                yield from self._decode(prompts, longest)
                return
            for index, prompt in enumerate(prompts):
                for _, generation in self._decode([prompt], longest):
                    yield index, generation

    def _decode(self, prompts: Sequence[Prompt], capacity: int) -> Iterator[tuple[int, Generation]]:
        cache = self.model.new_cache(capacity, rows=len(prompts))
        rows: list[Row] = []
        following: list[int] = []
        for index, prompt in enumerate(prompts):
            row, token = self._begin(index, prompt, self.row(cache, index))
            rows.append(row)
            following.append(token)
        yield from self._finish(cache, rows, following)

    @torch.inference_mode()
    def generate_sharing(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """`generate`, one prompt after another over one cache: what a prompt shares with the one before it is kept.

        Order the prompts so that neighbours have long common beginnings. Results equal `generate` up to rounding.
        """
        longest = max(len(p.ids) + p.max_new_tokens for p in prompts)
        if not self.model.croppable:  # nothing can be kept of the prompt before
            for index, prompt in enumerate(prompts):
                for _, generation in self.generate([prompt], scaling):
                    yield index, generation
            return
        with self.model.under(scaling, longest):
            cache = self.model.new_cache(longest)
            before: Sequence[int] = []
            for index, prompt in enumerate(prompts):
                shared = common_prefix(before, prompt.ids)
                self._keep(cache, shared)
                row, token = self._begin(index, prompt, cache, shared)
                yield from self._finish(cache, [row], [token])
                before = prompt.ids

    @staticmethod
    def _keep(cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens of a one-row cache."""
        if (beyond := cache.get_seq_length() - length) > 0:
            cache.crop(-beyond)

    def _begin(self, index: int, prompt: Prompt, cache: Any, start: int = 0) -> tuple[Row, int]:
        """Prefill one prompt into its one-row cache: its row, and its first new token."""
        began = time.perf_counter()
        row = Row(index, prompt, len(prompt.ids))
        token = self._choose(self.model.head(self.model.prefill(prompt.ids, cache, start)), [row])[0]
        row.seconds = time.perf_counter() - began
        return row, token

    def _finish(self, cache: Any, rows: list[Row], following: list[int]) -> Iterator[tuple[int, Generation]]:
        """Decode rows together until each has ended."""
        while rows:
            began = time.perf_counter()
            for at in reversed(range(len(rows))):
                row = rows[at]
                if self._append(row, following[at]):
                    self._drop(cache, rows, following, at)
                    yield row.index, Generation(row.ids, self._text(row), row.finish, row.seconds)
            if rows:
                following = self._choose(self.step(cache, rows, following), rows)
            for row in rows:  # a step's time is shared by its rows
                row.seconds += (time.perf_counter() - began) / len(rows)

    def row(self, cache: Any, index: int) -> Any:
        """The one-row cache that prefill `index` fills; the first one shows what the whole batch must allocate."""
        if not self.model.grouped or cache.rows == 1:
            return cache
        if not cache.layers[0].is_initialized:
            probe = self.model.new_cache(1)
            self.model.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.model.device), probe)
            cache.allocate(probe)
        return cache.row(index)

    def _choose(self, logits: Tensor, rows: list[Row]) -> list[int]:
        for at, row in enumerate(rows):
            if len(row.ids) < row.prompt.min_new_tokens:
                logits[at, list(self.model.eos_ids | row.prompt.stop_ids)] = -torch.inf
        best = logits.max(-1)
        if not best.values.isfinite().all():  # argmax would answer with token 0, without a word
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise ModelError(
                f"{self.model.name} in {dtype} gives logits that are not finite; "
                "use --dtype bfloat16 or float32, or a smaller --scale"
            )
        return best.indices.tolist()

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

    def _drop(self, cache: Any, rows: list[Row], following: list[int], at: int) -> None:
        """Take a finished row out of the batch: the last row moves into its place."""
        last = len(rows) - 1
        if at != last:
            cache.move_row(last, at, rows[last].length)
            rows[at], following[at] = rows[last], following[last]
        rows.pop()
        following.pop()

    def step(self, cache: Any, rows: list[Row], tokens: list[int]) -> Tensor:
        """One forward pass of one token a row; logits (len(rows), V)."""
        for row in rows:
            row.length += 1
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        lengths = torch.tensor([row.length for row in rows], device=self.model.device)
        if not self.model.grouped:
            return self.model.head(self.model.hidden(ids, cache, rows[0].length - 1)[:, -1])
        with ragged(lengths):
            body = self.model.hf.base_model
            output = body(input_ids=ids, position_ids=lengths[:, None] - 1, **cache_arguments(body, cache))
        return self.model.head(output.last_hidden_state[:, -1])
