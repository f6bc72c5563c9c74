"""Fit a prompt into a token budget by leaving out its middle.

M is the input limit in tokens, I the prompt's tokens. The paper (section 5.2) writes the kept part with indices that
overshoot M; LongBench's code is the protocol: pred.py:56-62 at THUDM/LongBench 2e00731.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from e2bench.errors import E2BenchError, UnknownName
from e2bench.prompts.chat import ChatWrapper

MODES = ("official", "ids")
JOINED = "joined"  # LongBench v2's


class Codec(Protocol):
    """Text to token ids and back; a loaded model's tokenizer, or a server's."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        ...


@dataclass(frozen=True)
class Fitted:
    """ids: what is fed. text: the same before tokenizing. prompt_tokens: I, before truncation and wrapping.

    truncated: whether a part of the prompt was left out.
    """

    ids: list[int]
    text: str
    prompt_tokens: int
    truncated: bool = False

    @property
    def kept_tokens(self) -> int:
        """Tokens really fed, wrapper included."""
        return len(self.ids)


def input_limit(window: int, max_new_tokens: int) -> int:
    """Official limit M for a window: 1000 a 1,024 tokens, less 500; below 1,024 the window less the task's budget.

    Raises E2BenchError for a window that `check_budget` refuses.
    """
    check_budget(window, max_new_tokens)
    return 1000 * (window // 1024) - 500 if window >= 1024 else window - max_new_tokens


def check_budget(window: int, max_new_tokens: int) -> None:
    """Raise E2BenchError when a window cannot hold the budget and two tokens of input, the first and the last."""
    if window < max_new_tokens + 2:
        raise E2BenchError(
            f"window {window} is too small: the task generates up to {max_new_tokens} tokens; "
            f"give a --window of at least {max_new_tokens + 2}"
        )


def truncate_middle(ids: list[int], limit: int) -> list[int]:
    """The first ⌊limit/2⌋ and the last ⌈limit/2⌉ ids; all of them when they fit. len(result) <= limit (limit >= 0)."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head) :]


def fit(
    prompt: str,
    codec: Codec,
    *,
    limit: int,
    room: int,
    mode: str = "official",
    wrap: ChatWrapper | None = None,
) -> Fitted:
    """A rendered prompt as the ids to feed, at most `room` of them.

    `official`: tokenize the unwrapped prompt with special tokens; if longer than `limit`, decode the first and the last
    ⌊limit/2⌋ ids without special tokens, join the two texts, then wrap and tokenize again. Decoding and re-encoding is
    not the identity, so the result may differ from `limit` by a few tokens.
    `joined`: the same with the first ⌊limit/2⌋ and the last ⌈limit/2⌉ ids, decoded together (LongBench v2's pred.py).
    `ids`: wrap, tokenize once, keep `truncate_middle` of the ids; nothing is decoded.
    limit: M in tokens.    room: window less budget; what is still longer loses more of its middle, so that kept tokens
        and budget never exceed the window.    wrap: the chat template around the prompt.
    Raises UnknownName for another mode.
    """
    if mode not in (*MODES, JOINED):
        raise UnknownName("truncation", mode, [*MODES, JOINED])
    ids = codec.encode(prompt)
    prompt_tokens = len(ids)
    text = prompt
    if mode == "official" and prompt_tokens > limit:
        half = limit // 2
        text = codec.decode(ids[:half]) + codec.decode(ids[prompt_tokens - half :])
    elif mode == JOINED and prompt_tokens > limit:
        text = codec.decode(truncate_middle(ids, limit))
    if wrap is not None:
        text = wrap.apply(text)
    if wrap is not None or text is not prompt:
        ids = codec.encode(text, special_tokens=wrap is None or wrap.special_tokens)
    bound = min(limit, room) if mode == "ids" else room
    kept = truncate_middle(ids, bound)
    return Fitted(kept, text, prompt_tokens, prompt_tokens > limit or len(kept) < len(ids))
