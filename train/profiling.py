"""Memory and time of a training step: PI trains at the extended window, E² at its short one (the paper's Figure 1)."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from e2bench.files import make_folder, write_json
from e2bench.train.loading import load_config
from e2bench.train.plan import make_plan
from e2bench.train.recipe import Recipe

STEPS = 16  # the first four warm up


class RandomRows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows of uniform random tokens: a step's cost does not depend on the text."""

    def __init__(self, vocab_size: int, train_window: int) -> None:
        self.vocab_size, self.train_window = vocab_size, train_window

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        row = 0
        while True:
            input_ids = torch.randint(self.vocab_size, (self.train_window,), generator=generator)
            yield {"row": torch.tensor(row), "input_ids": input_ids, "labels": input_ids}
            row += 1


class StepTimer(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


def write_profile(recipe: Recipe, out: Path) -> str:
    """Measure and write `out/profile.json`; returns a line that names it. Each case runs in a process of its own."""
    make_folder(out)
    measured = []
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers would outlive its case, and warn
    for case, window in profile_cases(recipe):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured.append({**pool.apply(measure, (case,)), "window": window})
        write_json(out / "profile.json", measured)
    return f"measured: {out / 'profile.json'}"


def profile_cases(recipe: Recipe) -> list[tuple[Recipe, int]]:
    """(recipe, L') for PI at R = L' and E² at the recipe's R, L' = 2R, 4R, 8R, one row a step."""
    native = make_plan(recipe).native_window
    cases = []
    for factor in (2, 4, 8):
        window = factor * recipe.train_window
        shared: dict[str, Any] = {
            "scale": max(1, -(-window // native)),
            "batch_size": 1,
            "micro_batch": 1,
            "steps": STEPS,
        }
        cases.append((dataclasses.replace(recipe, method="pi", train_window=window, **shared), window))
        cases.append((dataclasses.replace(recipe, method="e2", **shared), window))
    return cases


def measure(recipe: Recipe) -> dict[str, Any]:
    """Median seconds and peak bytes of a step; on the CPU the peak of the whole process, Python and torch included."""
    from e2bench.train.finetune import make_trainer, training_arguments

    rows = RandomRows(load_config(recipe).get_text_config().vocab_size, recipe.train_window)
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder))
        arguments.save_strategy, arguments.logging_strategy, arguments.report_to = "no", "no", []
        make_trainer(recipe, arguments, rows, callbacks=[timer]).train()
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "method": recipe.method,
        "length": recipe.train_window,
        "seconds_per_step": statistics.median(timer.seconds[4:]),
        "peak_bytes": peak,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "attention": recipe.attention,
        "precision": recipe.precision,
        "compile": recipe.compile,
    }
