"""Generation tasks: rows and examples to prediction lines. Knows no task by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from e2bench.chat import ChatWrapper
from e2bench.model import Generation, Prompt
from e2bench.processes import Processes
from e2bench.records import RunFolder
from e2bench.rope import BY_LENGTH, RopeScaling
from e2bench.runner import Item, Row, run
from e2bench.scales import PER_INPUT, ScaleRule, short_number
from e2bench.task import Example, Task, render, sample_hash
from e2bench.truncation import Fitted, fit, input_limit

SHOWN_CHARS = 300  # of each end of the prompt, kept for the report


class Generator(Protocol):
    """A loaded model or a served one."""

    tokenizer: Any

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations, each as it ends."""
        ...

    def decode_rows(self, tokens: int) -> int:
        """How many sequences of so many tokens to run together."""
        ...


@dataclass(frozen=True)
class Settings:
    """How prompts are made and fed.

    window: tokens of prompt and answer together; None: as long as each input needs (`per-input` without a window).
    input_limit: M in tokens, None for the official rule from the window.    early_stop: stop once the score is settled.
    """

    rule: ScaleRule
    window: int | None
    input_limit: int | None = None
    truncation: str = "official"
    wrapper: ChatWrapper | None = None
    with_context: bool = True
    early_stop: bool = True
    batch_size: int | None = None


@dataclass(frozen=True)
class Question:
    """One example with its row and its rendered prompt."""

    task: Task
    example: Example
    prompt: str


def predict(
    model: Generator,
    work: Sequence[tuple[Task, str, Sequence[Example]]],
    settings: Settings,
    folder: RunFolder,
    processes: Processes,
) -> None:
    """Answer every example of every (task, template, examples) and record one line each."""
    items = [
        _item(Question(task, example, render(template, example, with_context=settings.with_context)))
        for task, template, examples in work
        for example in examples
    ]

    def answer(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        fitted = [_fitted(item.payload, model, settings) for item in batch]
        for scaling, members in _by_scaling(fitted, batch, settings):
            prompts = [_prompt(batch[i].payload.task, fitted[i], model, settings) for i in members]
            for index, generation in model.generate(prompts, scaling):
                item = batch[members[index]]
                yield item, _line(item.payload, fitted[members[index]], generation, scaling)

    def rows(item: Item) -> int:
        if settings.rule.method in BY_LENGTH:
            return 1
        return settings.batch_size or model.decode_rows(settings.window or item.cost)

    run(items, answer, folder, batch_size=rows, processes=processes, title="longbench")


def _item(question: Question) -> Item:
    # Characters order the work well enough; tokenizing all of it beforehand would hold every prompt's ids at once.
    cost = len(question.prompt) // 4 + question.task.max_new_tokens
    group = (question.task.max_new_tokens, question.task.settled is None)
    return Item(question.task.name, question.example["_id"], cost, group, question, sample_hash(question.example))


def _fitted(question: Question, model: Generator, settings: Settings) -> Fitted:
    budget = question.task.max_new_tokens
    wrap = settings.wrapper if question.task.chat_template else None
    if settings.window is None:
        whole = len(question.prompt) * 4 + 4096  # tokens never outnumber bytes: no limit
        limit = settings.input_limit or whole
        return fit(question.prompt, model, limit=limit, room=whole, mode=settings.truncation, wrap=wrap)
    limit = settings.input_limit or input_limit(settings.window, budget)
    room = settings.window - budget
    return fit(question.prompt, model, limit=limit, room=room, mode=settings.truncation, wrap=wrap)


def _by_scaling(
    fitted: Sequence[Fitted], batch: Sequence[Item], settings: Settings
) -> list[tuple[RopeScaling, list[int]]]:
    """Members of a batch that share a scaling; all of them, unless g follows each input's length (paper 4.2.3)."""
    groups: dict[RopeScaling, list[int]] = {}
    for index, one in enumerate(fitted):
        tokens = one.kept_tokens + batch[index].payload.task.max_new_tokens
        window = tokens if settings.rule.kind == PER_INPUT or settings.window is None else settings.window
        groups.setdefault(settings.rule.scaling(window), []).append(index)
    return list(groups.items())


def _prompt(task: Task, fitted: Fitted, model: Generator, settings: Settings) -> Prompt:
    stop, least = frozenset[int](), 0
    if task.stop_at_newline:  # the last id of an encoded newline, and at least one token (LongBench pred.py:72-79)
        stop, least = frozenset(model.encode("\n", special_tokens=False)[-1:]), 1
    settled = task.settled if settings.early_stop else None
    return Prompt(fitted.ids, task.max_new_tokens, least, stop, settled, fitted.text)


def _line(question: Question, fitted: Fitted, generation: Generation, scaling: RopeScaling) -> Row:
    example = question.example
    return {
        "_id": example["_id"],
        "dataset": question.task.name,
        "pred": generation.text,
        "answers": example["answers"],
        "all_classes": example["all_classes"],
        "length": example["length"],
        "prompt_tokens": fitted.prompt_tokens,
        "kept_tokens": fitted.kept_tokens,
        "truncated": fitted.truncated,
        "new_tokens": len(generation.ids),
        "finish": generation.finish,
        "scale": short_number(scaling.factor),
        "seconds": round(generation.seconds, 4),
        "head": fitted.text[:SHOWN_CHARS],
        "tail": fitted.text[-SHOWN_CHARS:],
    }
