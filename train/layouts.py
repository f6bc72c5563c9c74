"""From an example of a public data set to segments of text; which of them are answers decides where the loss is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError
from e2bench.prompts.chat import VICUNA_SYSTEM
from e2bench.prompts.templates import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {
    "human": "user",
    "user": "user",
    "observation": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Segment:
    """answer: trained on with `loss: answers`.    ends: an end-of-text token follows."""

    text: str
    answer: bool = False
    ends: bool = False


def text_segments(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Segment]:
    """The Pile's layout: `{"text": ..., "meta": ...}`."""
    return [Segment(_text(example, "text"), answer=True)] if _text(example, "text") else []


def summary_segments(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Segment]:
    """arXiv and PubMed of Cohan et al. 2018: an article and its abstract, strings or lists of (tagged) sentences."""
    article = _text(example, "article", "article_text")
    abstract = _text(example, "abstract", "abstract_text").replace("<S>", "").replace("</S>", "")
    return [Segment(f"{article}\n\nAbstract: "), Segment(" ".join(abstract.split()), answer=True)] if article else []


def completion_segments(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Segment]:
    """TRL's prompt-completion layout: `{"prompt": ..., "completion": ...}`, joined as they stand."""
    prompt, completion = _text(example, "prompt"), _text(example, "completion")
    return [Segment(prompt), Segment(completion, answer=True)] if prompt and completion else []


def sharegpt_segments(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Segment]:
    """ShareGPT's layout: `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}`.

    Turns before the first human one are dropped, as FastChat does.
    """
    messages = [_message(turn) for turn in example.get("conversations") or []]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    messages = [m for m in messages[:first] if m["role"] == "system"] + messages[first:]
    if not any(message["role"] == "assistant" for message in messages):
        return []
    return _vicuna(messages) if template == "vicuna" else _chat_template(messages, tokenizer)


def _message(turn: dict[str, Any]) -> dict[str, str]:
    role = turn.get("from", turn.get("role"))
    if role not in ROLES:
        raise DataError(f"a conversation has a turn from {role!r}; known: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": str(turn.get("value", turn.get("content")) or "")}


def _vicuna(messages: list[dict[str, str]]) -> list[Segment]:
    """FastChat's vicuna_v1.1: a blank after the system prompt, none after an answer's end-of-text token."""
    system = next((m["content"] for m in messages if m["role"] == "system"), VICUNA_SYSTEM)
    segments = [Segment(system)]
    for message in messages:
        if message["role"] == "user":
            lead = "" if segments[-1].ends else " "
            segments.append(Segment(f"{lead}USER: {message['content']} ASSISTANT:"))
        elif message["role"] == "assistant":
            segments.append(Segment(f" {message['content']}", answer=True, ends=True))
    return segments


def _chat_template(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The template's own text, cut where each answer begins and ends: it must render turn by turn the same."""
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; set template: vicuna for this data source")
    segments: list[Segment] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        question = _render(tokenizer, messages[:index], True)
        whole = _render(tokenizer, messages[: index + 1], False)
        if not (question.startswith(done) and whole.startswith(question)):
            raise DataError("this chat template rewrites earlier turns, so answers cannot be told apart; use vicuna")
        segments += [Segment(question[len(done) :]), Segment(whole[len(question) :], answer=True)]
        done = whole
    return segments


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], prompt: bool) -> str:
    text = rendered(tokenizer, messages, prompt=prompt)
    bos = tokenizer.bos_token
    return text.removeprefix(bos) if bos else text  # encode() puts BOS there itself


def _text(example: dict[str, Any], *names: str) -> str:
    """The first of these fields that is there: a string, or a list of strings joined by blanks."""
    value = next((example[name] for name in names if example.get(name)), "")
    return " ".join(value) if isinstance(value, list) else str(value)


LAYOUTS: dict[str, Callable[[dict[str, Any], PreTrainedTokenizerBase, str], list[Segment]]] = {
    "text": text_segments,
    "sharegpt": sharegpt_segments,
    "summary": summary_segments,
    "completion": completion_segments,
}
