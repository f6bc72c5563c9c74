"""Decoding steps: each takes every row of a batch one token on.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from e2bench.errors import ModelError
from e2bench.models.body import Body
from e2bench.models.protocols import Prompt

NOT_FINITE = -1  # stands for the token of a row whose logits are not numbers


@dataclass
class Row:
    """One sequence being decoded: which prompt, its row of the cache, the new ids."""

    index: int
    prompt: Prompt
    place: int = 0
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens in the cache once every new one was fed."""
        return len(self.prompt.ids) + len(self.ids)

    @property
    def stops_at(self) -> int:
        """The length from which on a stop token is taken."""
        return len(self.prompt.ids) + self.prompt.min_new_tokens


def choose(logits: Tensor, barred: Tensor | None = None) -> Tensor:
    """(B, V) logits -> (B,) the likeliest token that is not barred (B, V); NOT_FINITE where there is none."""
    if barred is not None:
        logits = logits.masked_fill(barred, -torch.inf)
    best = logits.max(-1)
    return torch.where(best.values.isfinite(), best.indices, NOT_FINITE)


class Steps:
    """The steps of the batches that share one cache. Only rows that are still alive are computed."""

    def __init__(self, model: Body, cache: Any) -> None:
        self.model, self.cache = model, cache
        self._stops: Tensor | None = None

    def begin(self, rows: Sequence[Row], places: int) -> None:
        """A new batch in the first `places` rows of the cache."""
        self._stops = None
        if any(row.prompt.min_new_tokens for row in rows):
            self._stops = torch.zeros(places, self.model.vocab_size, dtype=torch.bool, device=self.model.device)
            for row in rows:
                self._stops[row.place, list(self.model.eos_ids | row.prompt.stop_ids)] = True

    def first(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """The tokens that follow prompts, from the logits (B, V) of their last ones."""
        barred = None
        if self._stops is not None:
            early = torch.tensor([row.length < row.stops_at for row in rows], device=logits.device)
            barred = self._stops[[row.place for row in rows]] & early[:, None]
        return self.tokens(choose(logits, barred).tolist())

    def next(self, rows: Sequence[Row]) -> list[int]:
        """Feed each row its last token: the tokens that follow."""
        device = self.model.device
        ids = torch.tensor([row.ids[-1] for row in rows], device=device)
        lengths = torch.tensor([row.length for row in rows], device=device)
        places = torch.tensor([row.place for row in rows], device=device)
        return self.first(self.model.step(self.cache, ids, lengths, places), rows)

    def end(self, row: Row) -> None:
        """A row has ended."""

    def tokens(self, found: list[int]) -> list[int]:
        """`found` itself. Raises ModelError for NOT_FINITE: argmax would answer with token 0, without a word."""
        if NOT_FINITE in found:
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise ModelError(
                f"{self.model.name} in {dtype} gives logits that are not finite; "
                "use --dtype bfloat16 or float32, or a smaller --scale"
            )
        return found
