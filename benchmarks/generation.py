"""LongBench generation: samples a second of e2bench's engine against the plain loop, in one process.

    python benchmarks/generation.py --model SMOLLM2.gguf [--limit 2] [--tasks all] [--window 4k] [--dtype bfloat16]
    python benchmarks/generation.py --model SMOLLM2.gguf --batch-invariant [--out DIR]  # what that costs, beside

The plain loop answers one sample at a time with transformers' `generate` (SDPA, its dynamic cache), up to the task's
budget or EOS. The engine is given the same prompts in the batches of a real run, with early stop and without. Both
walk through the batches together, in turn, so that a busy machine slows all three. Printed and stored: samples/s,
ratios over everything, and per batch. Targets: 2 with early stop, 1.3 without. Without data beside the checkout or in
--data, the demo examples are generated.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import LONGBENCH, alternate, write

from e2bench.models.attention import SDPA
from e2bench.models.invariant import InvariantModel
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.prompts.chat import chat_wrapper
from e2bench.prompts.task import Task, read_examples, render, templates
from e2bench.prompts.truncation import fit, input_limit
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import parse_length, scale_for_window
from e2bench.runs.items import Item
from e2bench.runs.runner import plan
from e2bench.tasks.demo import write_longbench
from e2bench.tasks.longbench import select

PLAIN, INVARIANT = "plain loop", "batch-invariant"
NAMES = ("early stop", "to the end", PLAIN)


def prompt_of(task: Task, text: str, model: Model, window: int, *, early_stop: bool) -> Prompt:
    """A prompt as `e2bench longbench` makes it."""
    budget = task.max_new_tokens
    wrap = chat_wrapper("auto", model.tokenizer) if task.chat_template else None
    fitted = fit(text, model, limit=input_limit(window, budget), room=window - budget, wrap=wrap)
    stop = frozenset(model.encode("\n", special_tokens=False)[-1:]) if task.stop_at_newline and early_stop else None
    settled = task.settled if early_stop else None
    return Prompt(fitted.ids, budget, 1 if stop else 0, stop or frozenset(), settled)


def batches_of(model: Model, tasks: list[Task], data: Path, limit: int, window: int) -> list[list[tuple[Task, str]]]:
    """(task, text) in the batches of a real run."""
    texts = templates(tasks)
    items = []
    for task in tasks:
        for example in read_examples(data, task, limit):
            text = render(texts[task.name], example)
            cost = len(text) // 4 + task.max_new_tokens
            group = (task.max_new_tokens, task.settled is None)
            items.append(Item(task.name, example["_id"], cost, group, (task, text)))
    return [[item.payload for item in batch] for batch in plan(items, lambda item: model.decode_rows(window))]


def engine(model: Model, prompts: list[Prompt], scaling: RopeScaling) -> Callable[[], int]:
    """New tokens of one batch, decoded together."""

    def call() -> int:
        model.hf.set_attn_implementation(SDPA)
        return sum(len(generation.ids) for _, generation in model.generate(prompts, scaling))

    return call


def plain_loop(model: Model, prompts: list[Prompt], scaling: RopeScaling) -> Callable[[], int]:
    """The same prompts one after another through transformers' own `generate`."""

    def call() -> int:
        model.hf.set_attn_implementation("sdpa")
        new = 0
        with model.under(scaling, 0):
            for prompt in prompts:
                ids = torch.tensor([list(prompt.ids)], device=model.device)
                eos, budget = list(model.eos_ids), prompt.max_new_tokens
                output = model.hf.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=budget, do_sample=False, eos_token_id=eos,
                    pad_token_id=eos[0],
                )  # fmt: skip
                new += output.shape[1] - ids.shape[1]
        return new

    return call


def main() -> None:
    """Time every batch three ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, .gguf or hub id; default: the embedded tiny model")
    parser.add_argument("--data", type=Path, default=LONGBENCH)
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--limit", type=int, default=2, help="samples a task")
    parser.add_argument("--window", default="4k")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-invariant", action="store_true", help="time that too, with early stop")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model, window = Model.load(ModelSpec(model=given.model, dtype=given.dtype)), parse_length(given.window)
    scaling = RopeScaling("linear", scale_for_window(window, model.native_window))
    names = (*NAMES, INVARIANT) if given.batch_invariant else NAMES
    fixed = InvariantModel(model.hf, model.tokenizer, name=model.name) if given.batch_invariant else model
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as demo:
        data = given.data if given.data.is_dir() else write_longbench(Path(demo), examples=given.limit)
        batches = batches_of(model, select(given.tasks), data, given.limit, window)
    for number, batch in enumerate(batches):
        early, full = (
            [prompt_of(task, text, model, window, early_stop=stop) for task, text in batch] for stop in (True, False)
        )
        makers = ((engine, model, early), (engine, model, full), (plain_loop, model, full), (engine, fixed, early))
        tokens = dict.fromkeys(names, 0)

        def counted(name: str, call: Callable[[], int], tokens: dict[str, int] = tokens) -> Callable[[], None]:
            return lambda: tokens.__setitem__(name, call())

        calls = {
            name: counted(name, make(by, prompts, scaling))
            for name, (make, by, prompts) in zip(names, makers, strict=False)
        }
        order = names[number % len(names) :] + names[: number % len(names)]
        times = alternate({name: calls[name] for name in order}, 1)
        row = {
            "tasks": sorted({task.name for task, _ in batch}),
            "samples": len(batch),
            "prompt_tokens": sum(len(p.ids) for p in full),
            "new_tokens": tokens,
            "seconds": {name: times[name][0] for name in names},
        }
        rows.append(row)
        shown = "  ".join(f"{name} {times[name][0]:.1f} s ({tokens[name]} tokens)" for name in names)
        print(f"{len(batch)} × {', '.join(row['tasks'])}: {shown}", flush=True)
    totals = {name: sum(row["seconds"][name] for row in rows) for name in names}
    samples = sum(row["samples"] for row in rows)
    for name in names:
        print(f"{name:>15}: {samples / totals[name]:.3f} samples/s, {totals[PLAIN] / totals[name]:.2f} × plain")
    ratios = {name: totals[PLAIN] / totals[name] for name in names if name != PLAIN}
    settings = {"model": model.name, "dtype": given.dtype, "window": window, "samples": samples, "limit": given.limit}
    write("generation", {"settings": settings, "ratios": ratios, "seconds": totals, "batches": rows}, given.out)


if __name__ == "__main__":
    main()
