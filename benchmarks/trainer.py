"""Training speed: `e2bench train` as it is and with `compile: true`, against a bare compiled loop on the same rows.

Random weights in SmolLM2-135M's shape, bfloat16 autocast over float32 weights, fused AdamW, clipped gradients. The bare
loop has no Trainer, no E² positions and reads no data. Writes `results/benchmarks/trainer.json`. The target: 0.95 of
the bare loop's tokens a second.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import write
from transformers import TrainerCallback

from e2bench.train.finetune import make_trainer, training_arguments
from e2bench.train.loading import load_config, load_model
from e2bench.train.profiling import RandomRows
from e2bench.train.recipe import Recipe, build_recipe, load_recipe
from e2bench.train.step import compile_step, loss_alone, without_mask

TINY = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip


class Clock(TrainerCallback):
    """Seconds from the end of step `first` to the end of the last one; nothing is waited for in between."""

    def __init__(self, first: int) -> None:
        self.first, self.started, self.seconds = first, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.first, state.max_steps):
            wait()
            self.started, self.seconds = time.perf_counter(), time.perf_counter() - self.started


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def through_trainer(recipe: Recipe, first: int) -> float:
    """Tokens a second of E² training as `e2bench train` does it."""
    clock = Clock(first)
    rows = RandomRows(load_config(recipe).vocab_size, recipe.train_window)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder))
        arguments.save_strategy, arguments.report_to = "no", []
        make_trainer(recipe, arguments, rows, callbacks=[clock]).train()
    return (recipe.steps - first) * recipe.batch_size * recipe.train_window / clock.seconds


def bare(recipe: Recipe, first: int) -> float:
    """Tokens a second of a compiled loop at plain positions."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(recipe).to(device).train()
    model.config.use_cache = False
    without_mask(model, recipe)
    loss_alone(model)
    compile_step(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(model.config.vocab_size, (recipe.micro_batch, recipe.train_window), device=device)
    parts = recipe.batch_size // recipe.micro_batch
    started = 0.0
    for step in range(1, recipe.steps + 1):
        for _ in range(parts):
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids)["loss"] / parts
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == first:
            wait()
            started = time.perf_counter()
    wait()
    return (recipe.steps - first) * recipe.batch_size * recipe.train_window / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="a tiny shape, to try the script")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    shape, window = (TINY, 64) if given.cpu else (load_recipe("smollm2").base_config, 4096)
    values = {
        "name": "speed", "model": shape, "tokenizer": "none", "data": [{"files": ["none"]}], "steps": given.steps,
        "train_window": window, "micro_batch": given.micro_batch, "batch_size": 2 * given.micro_batch,
        "per_sample": True, "compile": True,
    }  # fmt: skip
    first = given.steps // 3
    result: dict[str, Any] = {"train_window": window, "micro_batch": given.micro_batch}
    cases = {"bare": (bare, True), "compiled": (through_trainer, True), "plain": (through_trainer, False)}
    for name, (run, compiled) in cases.items():
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result[name] = {"tokens_per_s": round(run(build_recipe({**values, "compile": compiled}), first))}
        if torch.cuda.is_available():
            result[name]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(name, result[name], flush=True)
    result["compiled / bare"] = result["compiled"]["tokens_per_s"] / result["bare"]["tokens_per_s"]
    write("trainer", result, given.out)


if __name__ == "__main__":
    main()
