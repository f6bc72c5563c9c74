"""Prompts that begin alike: their beginning is read once where that takes less time than decoding them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2bench.models.protocols import Generation, Generator, Prompt
    from e2bench.rope.methods import RopeScaling

LOOKED_AT = 16  # prompts of a batch that may share
# Tokens that are read in the time of one decoding step: SmolLM2-135M and the tiny model on a CPU 23 to 36 in float32, a
# 7B on an H100 in bfloat16 200 to 500.
STEP_TOKENS = {"cpu": 30}
GPU_STEP_TOKENS = 300
LIKELY = 0.2  # of a text's characters; below it nothing is gained


def alike(texts: Sequence[str]) -> bool:
    """Whether texts share so much of their beginning that it is worth a look at their ids."""
    shared = len(commonprefix(texts))  # noqa: RUF071 - of texts, not of paths
    return len(texts) > 1 and shared > LIKELY * max(map(len, texts))


def shared_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens that need not be read when each prompt follows the one before it."""
    from e2bench.models.decoding import common_prefix

    return sum(common_prefix(before.ids, prompt.ids) for before, prompt in pairwise(prompts))


def is_worth(model: Generator, prompts: Sequence[Prompt], rows: int) -> bool:
    """Whether reading shared beginnings once saves more than decoding `rows` prompts together; in that prompts' order.

    A server, and a function, keep beginnings themselves; some models keep none.
    """
    if model.device is None or not getattr(model, "shares", True):
        return False
    step = STEP_TOKENS.get(model.device.type, GPU_STEP_TOKENS)
    lost = sum(prompt.max_new_tokens for prompt in prompts) * (1 - 1 / min(rows, len(prompts)))
    return shared_tokens(prompts) > step * lost


def generate(
    model: Generator, prompts: Sequence[Prompt], scaling: RopeScaling, *, rows: int, may_share: bool
) -> Iterator[tuple[int, Generation]]:
    """`model.generate` over batches of `rows`, or `generate_sharing` where that is worth it: (index, result).

    The results are equal up to rounding: in float32 1e-6 of the logits.
    """
    if may_share and len(prompts) > 1:
        order = sorted(range(len(prompts)), key=lambda at: tuple(prompts[at].ids))  # neighbours share the most so
        sorted_ = [prompts[at] for at in order]
        if is_worth(model, sorted_, rows):
            for index, generation in model.generate_sharing(sorted_, scaling):
                yield order[index], generation
            return
    for first in range(0, len(prompts), rows):
        for index, generation in model.generate(prompts[first : first + rows], scaling):
            yield first + index, generation
