"""Prompts to prediction lines: what experiments share whose model answers questions. Knows no task by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import Plan
from e2bench.models.protocols import Generation, Generator, Prompt
from e2bench.prompts.chat import ChatWrapper, chat_wrapper
from e2bench.prompts.truncation import Fitted, check_budget, fit
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import PER_INPUT, ScaleRule, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.tasks.models import find as find_preset
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.data.source import DataSource
    from e2bench.experiments.options import Common
    from e2bench.runs.folder import RunFolder

SHOWN_CHARS = 300  # of each end of the prompt, kept for the report


@dataclass(frozen=True)
class Question:
    """One prompt, and what becomes of its answer.

    file, id, sample: of the line, as in `runs.items.Item`.
    answered: generated text -> the fields with which the line begins, or the question to ask next: then the line is of
        that one's answer.
    wrapped: whether the chat template goes around the prompt; not around a completion task.
    settled: text so far -> no further token can change the score.
    """

    file: str
    id: str
    sample: str
    prompt: str
    max_new_tokens: int
    answered: Callable[[str], Row | Question]
    wrapped: bool = True
    stop_at_newline: bool = False
    settled: Callable[[str], bool] | None = None


Limit = Callable[["int | None", int], "int | None"]  # (window, budget) -> M, all in tokens; None: no limit


@dataclass(frozen=True)
class Feeding:
    """How prompts are made and fed.

    window: tokens of prompt and answer together; None: as long as each input needs (`per-input` without a window).
    limit: M, the tokens kept of a prompt, from the window and the budget.    cut: how the rest is left out (`fit`).
    early_stop: stop once the score is settled.
    """

    rule: ScaleRule
    window: int | None
    limit: Limit
    cut: str = "official"
    wrapper: ChatWrapper | None = None
    early_stop: bool = True
    batch_size: int | None = None


@dataclass(frozen=True)
class _Reply:
    """What a question was fed as, and what came back."""

    fitted: Fitted
    generation: Generation
    scaling: RopeScaling


def plan_of(
    questions: Sequence[Question],
    model: Generator,
    rule: ScaleRule,
    common: Common,
    *,
    limit: Limit,
    cut: str,
    wrapper: ChatWrapper | None,
    early_stop: bool,
    resolved: Mapping[str, Any],
    source: DataSource,
    data: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a run that asks these questions; the scale is one for the run, or follows each input.

    resolved: the experiment's own entries; window, scale, chat template and early stop are added.
    Raises E2BenchError for a window below a question's budget.
    """
    window = common.window
    if window is None and rule.kind != PER_INPUT:
        window = rule.window(None)
    if window is not None:
        check_budgets({q.file: q.max_new_tokens for q in questions}, window)
    feeding = Feeding(rule, window, limit, cut, wrapper, early_stop, common.batch_size)
    scaling = None if window is None else rule.scaling(window)
    scale = PER_INPUT if rule.kind == PER_INPUT or scaling is None else short_number(scaling.factor)
    return Plan(
        items=items_of(questions),
        measure=answering(model, feeding),
        batch_size=rows_together(model, feeding),
        tokens=tokens_of(model, feeding),
        resolved={
            **resolved,
            "window": window,
            "chat_template": wrapper.name if wrapper else "none",
            "hashes": {"chat_template": wrapper.sha256} if wrapper else {},
            "early_stop": early_stop,
            "method": rule.method,
            "scale": scale,
        },
        rope={"method": rule.method, "factor": scale},
        source=source,
        data=data,
        facts=facts or {},
        scaling=scaling,
        length=window,
        window=window,
    )


def check_budgets(budgets: Mapping[str, int], window: int) -> None:
    """Refuse a window below a budget (name: new tokens) before anything is generated."""
    for name, budget in sorted(budgets.items(), key=lambda entry: -entry[1]):
        try:
            check_budget(window, budget)
        except E2BenchError as error:
            raise E2BenchError(f"{name}: {error}") from None


def wrapper_of(model: Generator, common: Common, name: str, *, thinking: bool) -> ChatWrapper | None:
    """The chat wrapper that `--chat-template` names; says so where its answers would begin with thoughts."""
    wrapper = chat_wrapper(chat_format(name, common), model.tokenizer, thinking=thinking)
    if wrapper is not None and wrapper.opens_thinking:
        say(
            "the chat template opens a thinking block: answers would be thoughts, cut off at each task's budget; "
            "--no-thinking closes it where the template can"
        )
    return wrapper


def chat_format(given: str, common: Common) -> str:
    """A preset's own chat format where `auto` leaves the choice."""
    preset = find_preset(common.model)
    return preset.chat if preset is not None and given == "auto" else given


def was_truncated(line: Mapping[str, Any]) -> bool:
    """Whether a part of the prompt was left out; of lines that do not say so, whether fewer tokens were fed."""
    return bool(line.get("truncated", line.get("kept_tokens", 0) < line.get("prompt_tokens", 0)))


def check_counts(lines: Sequence[Mapping[str, Any]], where: str, samples: int) -> None:
    """Say aloud what would count samples twice: equal lines, or more lines than the set has samples.

    Raises DataError for two lines of one `_id`.
    """
    ids = [str(line["_id"]) for line in lines if "_id" in line]
    if len(set(ids)) < len(ids):
        twice = next(one for one, count in Counter(ids).items() if count > 1)
        raise DataError(f"{where}: two lines have the _id {twice!r}; a sample would count twice")
    equal = len(lines) - len({json.dumps(line, sort_keys=True, default=str) for line in lines})
    if equal:
        say(f"{where}: {equal} lines equal another one; each counts")
    if len(lines) > samples:
        say(f"{where}: {len(lines)} lines, and the set has {samples} samples")


# the work


def items_of(questions: Sequence[Question]) -> list[Item]:
    """One item a question."""
    return [_item(question) for question in questions]


def _item(question: Question) -> Item:
    # Characters order the work well enough; tokenizing all of it beforehand would hold every prompt's ids at once.
    cost = len(question.prompt) // 4 + question.max_new_tokens
    group = (question.max_new_tokens, question.settled is None)
    return Item(question.file, question.id, cost, group, question, question.sample)


def rows_together(model: Generator, feeding: Feeding) -> Callable[[Item], int]:
    """How many prompts of an item's size to answer together."""

    def rows(item: Item) -> int:
        if feeding.rule.method in BY_LENGTH:
            return 1
        return feeding.batch_size or model.decode_rows(feeding.window or item.cost)

    return rows


def tokens_of(model: Generator, feeding: Feeding) -> Callable[[Item], int]:
    """Tokens read for an item, and its budget of new ones; a question that follows another one is left out."""
    return lambda item: _fitted(item.payload, model, feeding).kept_tokens + item.payload.max_new_tokens


def answering(model: Generator, feeding: Feeding) -> Measure:
    """What turns a batch of items into prediction lines."""

    def answer(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        next_ones: list[tuple[Item, _Reply, Question]] = []
        for index, reply in _asked([item.payload for item in batch], model, feeding):
            item = batch[index]
            found = item.payload.answered(reply.generation.text)
            if isinstance(found, Question):
                next_ones.append((item, reply, found))
            else:
                yield item, {**found, **_measured(reply)}
        for index, reply in _asked([question for _, _, question in next_ones], model, feeding):
            item, first, question = next_ones[index]
            yield item, {**_fields(question, reply), **_measured(first), **_both(first, reply)}

    return answer


def _fields(question: Question, reply: _Reply) -> Row:
    found = question.answered(reply.generation.text)
    if isinstance(found, Question):
        raise ValueError("a question that follows another one is the last")
    return found


def _asked(questions: Sequence[Question], model: Generator, feeding: Feeding) -> Iterator[tuple[int, _Reply]]:
    """(index of the question, reply) for each, those of one scaling together."""
    fitted = [_fitted(question, model, feeding) for question in questions]
    for scaling, members in _by_scaling(fitted, questions, feeding):
        prompts = [_prompt(questions[i], fitted[i], model, feeding) for i in members]
        for index, generation in model.generate(prompts, scaling):
            yield members[index], _Reply(fitted[members[index]], generation, scaling)


def _fitted(question: Question, model: Generator, feeding: Feeding) -> Fitted:
    whole = len(question.prompt) * 4 + 4096  # tokens never outnumber bytes: no limit
    room = whole if feeding.window is None else feeding.window - question.max_new_tokens
    limit = feeding.limit(feeding.window, question.max_new_tokens)
    wrap = feeding.wrapper if question.wrapped else None
    return fit(question.prompt, model, limit=whole if limit is None else limit, room=room, mode=feeding.cut, wrap=wrap)


def _by_scaling(
    fitted: Sequence[Fitted], questions: Sequence[Question], feeding: Feeding
) -> list[tuple[RopeScaling, list[int]]]:
    """Members of a batch that share a scaling; all of them, unless g follows each input's length (paper 4.2.3)."""
    groups: dict[RopeScaling, list[int]] = {}
    for index, one in enumerate(fitted):
        tokens = one.kept_tokens + questions[index].max_new_tokens
        window = tokens if feeding.rule.kind == PER_INPUT or feeding.window is None else feeding.window
        groups.setdefault(feeding.rule.scaling(window), []).append(index)
    return list(groups.items())


def _prompt(question: Question, fitted: Fitted, model: Generator, feeding: Feeding) -> Prompt:
    stop, least = frozenset[int](), 0
    if question.stop_at_newline:  # the last id of an encoded newline, and at least one token (LongBench pred.py:72-79)
        stop, least = frozenset(model.encode("\n", special_tokens=False)[-1:]), 1
    settled = question.settled if feeding.early_stop else None
    return Prompt(fitted.ids, question.max_new_tokens, least, stop, settled, fitted.text)


def _measured(reply: _Reply) -> Row:
    """The fields that every line has."""
    fitted, generation = reply.fitted, reply.generation
    return {
        "prompt_tokens": fitted.prompt_tokens,
        "kept_tokens": fitted.kept_tokens,
        "truncated": fitted.truncated,
        "new_tokens": len(generation.ids),
        "finish": generation.finish,
        "scale": short_number(reply.scaling.factor),
        "seconds": round(generation.seconds, 4),
        "head": fitted.text[:SHOWN_CHARS],
        "tail": fitted.text[-SHOWN_CHARS:],
    }


def _both(first: _Reply, last: _Reply) -> Row:
    """What two questions of one line add up to; the prompt's fields stay the first one's."""
    return {
        "truncated": first.fitted.truncated or last.fitted.truncated,
        "new_tokens": len(first.generation.ids) + len(last.generation.ids),
        "finish": last.generation.finish,
        "finish_first": first.generation.finish,
        "seconds": round(first.generation.seconds + last.generation.seconds, 4),
    }
