"""A checkpoint's chat template, rendered in a process of its own: it is a program that a stranger wrote."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from e2bench.compat import fixed_clock
from e2bench.confined import Confined

TODAY = datetime(2024, 7, 26)  # what a template that prints the date gets: Llama 3.1's own default
SECONDS, MEMORY = 10.0, 1 << 30  # of one rendering
GROWTH, MORE_CHARS = 8, 1 << 20  # a text may be so many times as long as its messages, and this longer

_child = Confined("e2bench.prompts.templates:render", seconds=SECONDS, memory=MEMORY)


def rendered(
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    *,
    template: str | None = None,
    prompt: bool = True,
    **switches: Any,
) -> str:
    """What `tokenizer.apply_chat_template` gives for messages, always on the same day.

    template: in place of the tokenizer's own.    prompt: end with what asks for an answer.    switches: variables.
    Raises E2BenchError (`confined.Beyond`) for a template that fails, or takes too long, too much memory, or writes too
    much.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        with fixed_clock(TODAY):  # a class with a format of its own: the library's code, no template
            text = tokenizer.apply_chat_template(
                list(messages), chat_template=template, add_generation_prompt=prompt, tokenize=False, **switches
            )
        return str(text)
    variables = {**tokenizer.special_tokens_map, **switches}
    chosen = tokenizer.get_chat_template(template)
    return str(_child(template=chosen, messages=list(messages), prompt=prompt, variables=variables))


def render(template: str, messages: list[dict[str, str]], prompt: bool, variables: dict[str, Any]) -> str:
    """The same in the child. Raises ValueError for a text that is far longer than its messages."""
    from transformers.utils.chat_template_utils import render_jinja_template

    random.seed(0)  # Jinja's `random` filter chooses the same every time
    with fixed_clock(TODAY):
        found: Any = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=prompt, **variables
        )
    text = str(found[0][0])  # (texts, where answers stand)
    if len(text) > GROWTH * sum(len(message["content"]) for message in messages) + MORE_CHARS:
        raise ValueError(f"it writes {len(text):,} characters around a prompt")
    return text
