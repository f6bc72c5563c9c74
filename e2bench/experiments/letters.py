"""Four-way questions by the log-likelihood of their letters, as lm-evaluation-harness scores them.

lm-eval's longbench2 tasks (0.4.13): the prompt ends in `Answer:`, the options are ` A` to ` D`, the most likely wins. A
prompt that is too long loses its beginning, not its middle; no chat template goes around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from e2bench.errors import E2BenchError
from e2bench.experiments.base import Plan
from e2bench.experiments.questions import fields_of, judged
from e2bench.models.protocols import Scorer
from e2bench.prompts.task import lm_eval_file, sample_hash
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import ScaleRule, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.tasks.longbench2 import LETTERS, LETTERS_NAME, LM_EVAL_FILE, LM_EVAL_SHA256, Example

if TYPE_CHECKING:
    from e2bench.data.source import DataSource
    from e2bench.experiments.options import Common
    from e2bench.runs.folder import RunFolder

SHOWN_CHARS = 300


def plan_of(
    examples: Sequence[Example],
    model: Scorer,
    rule: ScaleRule,
    common: Common,
    *,
    resolved: Mapping[str, Any],
    source: DataSource,
    data: Mapping[str, str],
) -> Plan:
    """Every question at one scale, one after the other."""
    window = rule.window(common.window)
    scaling = rule.scaling(window)
    scale = short_number(scaling.factor)
    prompt = renderer()
    return Plan(
        items=[_item(example, prompt(example)) for example in examples],
        measure=ranking(model, scaling, window),
        batch_size=lambda item: 1,
        resolved={**resolved, "window": window, "method": rule.method, "scale": scale},
        rope={"method": rule.method, "factor": scale},
        source=source,
        data=data,
        scaling=scaling,
        length=window,
        window=window,
    )


def renderer() -> Callable[[Example], str]:
    """What fills in the prompt of the installed lm-eval. Raises E2BenchError where it is not that of 0.4.13."""
    from jinja2 import Environment, StrictUndefined

    found = lm_eval_file(LM_EVAL_FILE)
    text = str((found or {}).get("doc_to_text"))
    if hashlib.sha256(text.encode()).hexdigest() != LM_EVAL_SHA256:
        raise E2BenchError("the installed lm-eval has another longbench2 prompt; install lm-eval 0.4.13")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)

    def rendered(example: Example) -> str:
        choices = [example[f"choice_{letter}"] for letter in LETTERS]
        return template.render(context=example["context"], question=example["question"], choices=choices)

    return rendered


def _item(example: Example, prompt: str) -> Item:
    cost = len(prompt) // 4 + 1
    return Item(LETTERS_NAME, example["_id"], cost, "", (fields_of(example), prompt), sample_hash(example))


def ranking(model: Scorer, scaling: RopeScaling, window: int) -> Measure:
    """What ranks the letters of each item."""

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        for item in batch:
            example, prompt = item.payload
            yield item, _line(model, scaling, window, example, prompt)

    return measure


def _line(model: Scorer, scaling: RopeScaling, window: int, example: Example, prompt: str) -> Row:
    context = len(model.encode(prompt))
    wholes = [model.encode(f"{prompt} {letter}") for letter in LETTERS]
    # lm-eval keeps the last `window` tokens that are fed: all but the letter's last one.
    options = [ids[-(window + 1) :] for ids in wholes]
    firsts = [context - len(whole) + len(ids) for whole, ids in zip(wholes, options, strict=True)]
    first = firsts[0]
    with model.under(scaling, max(map(len, options)) - 1):
        if len(set(firsts)) == 1:
            found = model.option_scores(options, first)
        else:  # letters of more tokens than others lose more of the prompt
            found = [model.option_scores([ids], at)[0] for ids, at in zip(options, firsts, strict=True)]
    scores = [total for total, _ in found]
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        **example,
        **judged(LETTERS[best], example),
        "choices": scores,
        "prompt_tokens": context,
        "kept_tokens": first,
        "truncated": first < context,
        "scale": short_number(scaling.factor),
        "tail": prompt[-SHOWN_CHARS:],
    }
