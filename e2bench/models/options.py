"""Log-likelihoods of several texts that begin alike: what they share goes through the model once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from e2bench.errors import DataError
from e2bench.models.body import Body
from e2bench.models.decoding import common_prefix


@torch.inference_mode()
def option_scores(model: Body, options: Sequence[Sequence[int]], first: int = 1) -> list[tuple[float, int]]:
    """(sum of log-probabilities in nats, how many tokens) of each option's ids from `first` on, at least 1.

    The ids that all options begin with go through the model once. The scaling in force is used.
    Raises DataError for an option of fewer than two tokens, or with none from `first` on.
    """
    if any(len(ids) <= first for ids in options):
        few = "fewer than two tokens" if first == 1 else f"no token behind the first {first}"
        raise DataError(f"an option has {few}: there is nothing to score")
    if not model.croppable:  # each option whole
        rows = [torch.tensor([list(ids)]) for ids in options]
        return [(-float(model.token_nll(row, first).sum(dtype=torch.float64)), row.shape[1] - first) for row in rows]
    shared = min(common_prefix(options[0], ids) for ids in options)
    cache = model.new_cache(max(map(len, options)))
    before, last = 0.0, None
    if shared:
        before, last = _read(model, options[0][:shared], cache, 0, None, first)
    scores = []
    for ids in options:
        if (beyond := cache.get_seq_length() - shared) > 0:
            cache.crop(-beyond)
        total, _ = _read(model, ids[shared:], cache, shared, last, first)
        scores.append((before + total, len(ids) - first))
    return scores


def _read(
    model: Body, ids: Sequence[int], cache: Any, start: int, last: torch.Tensor | None, first: int
) -> tuple[float, torch.Tensor]:
    """Feed ids at positions `start` …: their summed log-probability, and the last hidden state (1, 1, hidden).

    first: position of the first id that counts.
    last: hidden state of the token before, which scores the first id; None: the first id has no score.
    """
    tensor = torch.tensor([list(ids)], device=model.device)
    hidden = model.hidden(tensor, cache, start)
    states = hidden[:, :-1] if last is None else torch.cat([last, hidden[:, :-1]], dim=1)
    targets = tensor[:, 1:] if last is None else tensor
    unscored = max(0, first - start - (last is None))
    states, targets = states[:, unscored:], targets[:, unscored:]
    if targets.shape[1] == 0:
        return 0.0, hidden[:, -1:]
    return -float(model.nll(states, targets).sum(dtype=torch.float64)), hidden[:, -1:]
