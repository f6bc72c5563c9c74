"""Chat wrappers around a prompt: the tokenizer's own template, LongBench's for Llama-2, Vicuna's, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.files import read_whole
from e2bench.prompts.templates import rendered

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
MOST_TEMPLATE_BYTES = 1 << 20
OPENING, CLOSING = "<think>", "</think>"
PROBE = "one prompt, to find now what would fail after hours"


@dataclass(frozen=True)
class ChatWrapper:
    """name: for run.json.    apply: prompt -> wrapped text.    special_tokens: whether tokenizing must add BOS."""

    name: str
    apply: Callable[[str], str]
    special_tokens: bool

    @property
    def sha256(self) -> str:
        """16 hex digits of what stands around a prompt."""
        return hashlib.sha256(self.apply(PROBE).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def opens_thinking(self) -> bool:
        """Whether the wrapper leaves a thinking block open, so that an answer begins with thoughts."""
        return self.apply(PROBE).rpartition(PROBE)[2].rstrip().endswith(OPENING)


def chat_wrapper(name: str, tokenizer: Any, *, thinking: bool = True) -> ChatWrapper | None:
    """The wrapper that `--chat-template` names, None for none.

    thinking: False asks a template for an answer without a thinking block (`enable_thinking`, as Qwen 3 calls it).

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
        return ChatWrapper(name, _template(tokenizer, None, thinking), special_tokens=False)
    if not name.endswith(".jinja"):
        raise UnknownName("chat template", name, list(NAMES), hint=f"known: {', '.join(NAMES)}, or a FILE.jinja")
    try:
        template = read_whole(Path(name), MOST_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"chat template {name} cannot be read: {error}") from None
    digest = hashlib.sha256(template.encode()).hexdigest()[:8]  # a changed file is another setting
    return ChatWrapper(f"{Path(name).name} {digest}", _template(tokenizer, template, thinking), special_tokens=False)


def _template(tokenizer: Any, template: str | None, thinking: bool) -> Callable[[str], str]:
    switches: dict[str, Any] = {} if thinking else {"enable_thinking": False, "thinking": False}

    def apply(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        try:
            return rendered(tokenizer, messages, template=template, **switches)
        except Exception as error:  # a template is a program: it may fail in any way
            reason = " ".join(str(error).split())[:200]
            raise E2BenchError(f"the chat template cannot wrap a prompt: {reason}") from None

    if apply(PROBE) != apply(PROBE):
        raise E2BenchError(
            "the chat template wraps the same prompt differently each time (a random choice?); give another one with "
            "--chat-template"
        )
    return apply
