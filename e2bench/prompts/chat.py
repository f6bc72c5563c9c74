"""Chat wrappers around a prompt: the tokenizer's own template, LongBench's for Llama-2, Vicuna's, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError, UnknownName

VICUNA_SYSTEM = (  # FastChat 0.2.36, conversation template vicuna_v1.1
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The same conversation in transformers' form, saved beside a model that was tuned on it (`e2bench train`).
VICUNA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    f"{VICUNA_SYSTEM}"
    "{% endif %}{% set turn = namespace(lead=' ') %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ turn.lead }}USER: {{ message['content'] }} ASSISTANT:"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}{% set turn.lead = '' %}"
    "{% endif %}{% endfor %}"
)
VICUNA = ("vicuna", "longchat")  # LongBench pred.py:30-38 at 2e00731 gives both models this conversation
NAMES = ("auto", "none", "llama2", *VICUNA)


@dataclass(frozen=True)
class ChatWrapper:
    """name: for run.json.    apply: prompt -> wrapped text.    special_tokens: whether tokenizing must add BOS."""

    name: str
    apply: Callable[[str], str]
    special_tokens: bool


def chat_wrapper(name: str, tokenizer: Any) -> ChatWrapper | None:
    """The wrapper that `--chat-template` names, None for none.

    `auto` is the tokenizer's own template if it has one. `llama2` is LongBench's `[INST]…[/INST]` (pred.py:39 at
    2e00731), without a system prompt. A path ending in .jinja is a chat template in transformers' form.
    """
    if name == "none" or (name == "auto" and not getattr(tokenizer, "chat_template", None)):
        return None
    if name == "llama2":
        return ChatWrapper(name, lambda prompt: f"[INST]{prompt}[/INST]", special_tokens=True)
    if name in VICUNA:
        return ChatWrapper(name, lambda prompt: f"{VICUNA_SYSTEM} USER: {prompt} ASSISTANT:", special_tokens=True)
    if name == "auto":
        return ChatWrapper(name, _template(tokenizer, None), special_tokens=False)
    if not name.endswith(".jinja"):
        raise UnknownName("chat template", name, list(NAMES), hint=f"known: {', '.join(NAMES)}, or a FILE.jinja")
    try:
        template = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"chat template {name} cannot be read: {error}") from None
    digest = hashlib.sha256(template.encode()).hexdigest()[:8]  # a changed file is another setting
    return ChatWrapper(f"{Path(name).name} {digest}", _template(tokenizer, template), special_tokens=False)


def _template(tokenizer: Any, template: str | None) -> Callable[[str], str]:
    def apply(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        try:
            wrapped = tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
            return str(wrapped)
        except Exception as error:  # a template is a program: it may fail in any way
            reason = " ".join(str(error).split())[:200]
            raise E2BenchError(f"the chat template cannot wrap a prompt: {reason}") from None

    apply("one prompt, to find now what would fail after hours")
    return apply
