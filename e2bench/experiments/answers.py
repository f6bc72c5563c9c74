"""Prompts of generation tasks to prediction lines. Knows no task by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from e2bench.models.protocols import Generation, Generator, Prompt
from e2bench.prompts.chat import ChatWrapper
from e2bench.prompts.task import Example, Task, render, sample_hash
from e2bench.prompts.truncation import Fitted, fit, input_limit
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import PER_INPUT, ScaleRule, short_number
from e2bench.runs.folder import RunFolder
from e2bench.runs.items import Item, Measure, Row

SHOWN_CHARS = 300  # of each end of the prompt, kept for the report


@dataclass(frozen=True)
class Feeding:
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


def items_of(work: Sequence[tuple[Task, str, Sequence[Example]]], feeding: Feeding) -> list[Item]:
    """One item for every example of every (task, template, examples)."""
    return [
        _item(Question(task, example, render(template, example, with_context=feeding.with_context)))
        for task, template, examples in work
        for example in examples
    ]


def answering(model: Generator, feeding: Feeding) -> Measure:
    """What turns a batch of items into prediction lines."""

    def answer(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        fitted = [_fitted(item.payload, model, feeding) for item in batch]
        for scaling, members in _by_scaling(fitted, batch, feeding):
            prompts = [_prompt(batch[i].payload.task, fitted[i], model, feeding) for i in members]
            for index, generation in model.generate(prompts, scaling):
                item = batch[members[index]]
                yield item, _line(item.payload, fitted[members[index]], generation, scaling)

    return answer


def rows_together(model: Generator, feeding: Feeding) -> Callable[[Item], int]:
    """How many prompts of an item's size to answer together."""

    def rows(item: Item) -> int:
        if feeding.rule.method in BY_LENGTH:
            return 1
        return feeding.batch_size or model.decode_rows(feeding.window or item.cost)

    return rows


def _item(question: Question) -> Item:
    # Characters order the work well enough; tokenizing all of it beforehand would hold every prompt's ids at once.
    cost = len(question.prompt) // 4 + question.task.max_new_tokens
    group = (question.task.max_new_tokens, question.task.settled is None)
    return Item(question.task.name, question.example["_id"], cost, group, question, sample_hash(question.example))


def _fitted(question: Question, model: Generator, feeding: Feeding) -> Fitted:
    budget = question.task.max_new_tokens
    wrap = feeding.wrapper if question.task.chat_template else None
    if feeding.window is None:
        whole = len(question.prompt) * 4 + 4096  # tokens never outnumber bytes: no limit
        limit = feeding.input_limit or whole
        return fit(question.prompt, model, limit=limit, room=whole, mode=feeding.truncation, wrap=wrap)
    limit = feeding.input_limit or input_limit(feeding.window, budget)
    room = feeding.window - budget
    return fit(question.prompt, model, limit=limit, room=room, mode=feeding.truncation, wrap=wrap)


def _by_scaling(
    fitted: Sequence[Fitted], batch: Sequence[Item], feeding: Feeding
) -> list[tuple[RopeScaling, list[int]]]:
    """Members of a batch that share a scaling; all of them, unless g follows each input's length (paper 4.2.3)."""
    groups: dict[RopeScaling, list[int]] = {}
    for index, one in enumerate(fitted):
        tokens = one.kept_tokens + batch[index].payload.task.max_new_tokens
        window = tokens if feeding.rule.kind == PER_INPUT or feeding.window is None else feeding.window
        groups.setdefault(feeding.rule.scaling(window), []).append(index)
    return list(groups.items())


def _prompt(task: Task, fitted: Fitted, model: Generator, feeding: Feeding) -> Prompt:
    stop, least = frozenset[int](), 0
    if task.stop_at_newline:  # the last id of an encoded newline, and at least one token (LongBench pred.py:72-79)
        stop, least = frozenset(model.encode("\n", special_tokens=False)[-1:]), 1
    settled = task.settled if feeding.early_stop else None
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
