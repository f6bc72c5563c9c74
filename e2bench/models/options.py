"""Log-likelihoods of several texts that begin alike: what they share goes through the model once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from e2bench.errors import DataError
from e2bench.models.decoding import common_prefix

if TYPE_CHECKING:
    from e2bench.models.local import Model


@torch.inference_mode()
def option_scores(model: Model, options: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """(sum of log-probabilities in nats, how many tokens) of each option's ids but the first.

    The ids that all options begin with go through the model once. The scaling in force is used.
    Raises DataError for an option of fewer than two tokens.
    """
    if any(len(ids) < 2 for ids in options):
        raise DataError("an option has fewer than two tokens: there is nothing to score")
    if not model.croppable:  # each option whole
        rows = [torch.tensor([list(ids)]) for ids in options]
        return [(-float(model.token_nll(row).sum(dtype=torch.float64)), row.shape[1] - 1) for row in rows]
    shared = min(common_prefix(options[0], ids) for ids in options)
    cache = model.new_cache(max(map(len, options)))
    before, last = 0.0, None
    if shared:
        before, last = _read(model, options[0][:shared], cache, 0, None)
    scores = []
    for ids in options:
        if (beyond := cache.get_seq_length() - shared) > 0:
            cache.crop(-beyond)
        total, _ = _read(model, ids[shared:], cache, shared, last)
        scores.append((before + total, len(ids) - 1))
    return scores


def _read(
    model: Model, ids: Sequence[int], cache: Any, start: int, last: torch.Tensor | None
) -> tuple[float, torch.Tensor]:
    """Feed ids at positions `start` …: their summed log-probability, and the last hidden state (1, 1, hidden).

    last: hidden state of the token before, which scores the first id; None: the first id has no score.
    """
    tensor = torch.tensor([list(ids)], device=model.device)
    hidden = model.hidden(tensor, cache, start)
    states = hidden[:, :-1] if last is None else torch.cat([last, hidden[:, :-1]], dim=1)
    targets = tensor[:, 1:] if last is None else tensor
    return -float(model.nll(states, targets).sum(dtype=torch.float64)), hidden[:, -1:]
