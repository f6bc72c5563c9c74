"""What a recipe would do: parameters, tokens, steps and an estimate of memory, without loading any weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from e2bench.errors import DataError
from e2bench.rope.config import native_window, text_config
from e2bench.train.cost import (
    FLOAT32,
    GPUS,
    Measured,
    checkpoint_bytes,
    checkpoints_kept,
    rate_for,
    recipe_operations,
)
from e2bench.train.data import Source
from e2bench.train.e2 import max_offset
from e2bench.train.loading import add_lora, config_and_scaling
from e2bench.train.recipe import Recipe
from e2bench.train.step import frozen_matrices

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """parameters, trained: counts.    narrow: how many are held in 2 bytes.    native_window: L in tokens.

    state_bytes, activation_bytes: of one process.
    operations: floating-point operations of a token.    rate: the measured one that hours are computed from.
    base_scaling: kind of the base's own RoPE scaling, whose angles g divides; "" without one.
    """

    recipe: Recipe
    parameters: int
    trained: int
    native_window: int
    processes: int
    narrow: int
    state_bytes: int
    activation_bytes: int
    operations: float
    rate: Measured | None
    base_scaling: str = ""

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.batch_size * self.recipe.train_window

    def rows(self) -> list[tuple[str, str]]:
        """The plan as label and text, one line each."""
        recipe = self.recipe
        total = self.tokens_per_step * recipe.steps
        accumulated = recipe.batch_size // (recipe.micro_batch * self.processes)
        return [
            ("parameters", f"{self.parameters:,}, trained {self.trained:,}"),
            ("positions", self._positions()),
            ("windows", f"native L = {self.native_window:,}, train R = {recipe.train_window:,} tokens"),
            *([("base angles", self._base_angles())] if self.base_scaling else []),
            ("steps", f"{recipe.steps:,} of {recipe.batch_size} rows, {accumulated} × {recipe.micro_batch} a process"),
            ("tokens", f"{self.tokens_per_step:,} a step, {total:,} in all"),
            ("processes", f"{self.processes}, sharding {recipe.sharding}{self._missing()}"),
            ("memory", f"{self._gib(self.state_bytes)} weights, gradients and optimizer + "
                       f"{self._gib(self.activation_bytes)} activations a process (estimate)"),
            ("disk", self._disk()),
            ("data", "; ".join(self._sources())),
            *((f"{gpus} GPU{'s' * (gpus > 1)}", self._on(gpus)) for gpus in GPUS),
            ("hours from", self._source()),
        ]  # fmt: skip

    @property
    def disk_bytes(self) -> int:
        """Of the checkpoints that lie side by side, one more than are kept while it is written, and of the result."""
        one, count, final = self._disk_parts()
        return count * one + final

    def hours(self, gpus: int) -> float | None:
        """On GPUs like the one of `rate` that never wait for each other; None where nothing near was measured."""
        if self.rate is None:
            return None
        tokens = self.tokens_per_step * self.recipe.steps
        return tokens * self.operations / self.rate.operations_per_s / gpus / 3600

    def _on(self, gpus: int) -> str:
        """Cost on so many GPUs; where rows cannot be shared among them, after the changes that it names."""
        recipe = self.recipe
        rows = math.lcm(recipe.batch_size, gpus) if recipe.batch_size % gpus else recipe.batch_size
        micro = max(size for size in range(1, recipe.micro_batch + 1) if rows // gpus % size == 0)
        changes = [f"micro_batch={micro}"] if micro != recipe.micro_batch else []
        if rows != recipe.batch_size:
            steps = -(-recipe.steps * recipe.batch_size // rows)
            changes += [f"batch_size={rows} steps={steps}"]
        state = state_bytes(self.parameters, self.trained, recipe.sharding, gpus, self.narrow)
        size = self._gib(state + self.activation_bytes * micro // recipe.micro_batch)
        hours = self.hours(gpus)
        given = f" with {' '.join(changes)}" if changes else ""
        shown = "?" if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
        return f"{shown} h, {size} a GPU{given}"

    def _disk(self) -> str:
        recipe = self.recipe
        one, count, final = self._disk_parts()
        kept = "all are kept" if recipe.keep is None else f"keep: {recipe.keep}, and the one being written"
        return (
            f"{count} checkpoints of {self._gib(one)} ({kept}) + {self._gib(final)} final model = "
            f"{self._gib(self.disk_bytes)}; the data's tokens lie in the cache"
        )

    def _disk_parts(self) -> tuple[int, int, int]:
        """Bytes of a checkpoint, how many lie side by side, bytes of the result."""
        recipe = self.recipe
        one, count = checkpoint_bytes(recipe, self.parameters, self.trained), checkpoints_kept(recipe)
        width = 2 if recipe.precision == "bfloat16" else FLOAT32
        return one, count, width * (self.trained if recipe.lora else self.parameters)

    def _source(self) -> str:
        if self.rate is None:
            return "nothing measured on a model so small"
        return (
            f"{self.operations / 1e9:,.2f} GFLOP a token at {self.rate.operations_per_s / 1e12:.0f} TFLOP/s, which "
            f"{self.rate.tokens_per_s:,} tokens/s of {self.rate.what} are (measured on {self.rate.machine}); "
            "computed, without the time that GPUs wait for each other"
        )

    def _missing(self) -> str:
        absent = self.recipe.sharding == "zero2" and not find_spec("deepspeed")
        return ", which needs deepspeed: it is not installed here" if absent else ""

    def _base_angles(self) -> str:
        return (
            f"the base's own {self.base_scaling} scaling is part of its rotation: g divides its angles, and L is the "
            "window of that scaling"
        )

    def _positions(self) -> str:
        recipe = self.recipe
        if recipe.method == "none":
            return "plain (g = 1, t = 0)"
        largest = recipe.scale or recipe.g_max
        limit = max_offset(largest, self.native_window, recipe.train_window)
        scale = f"g = {recipe.scale}" if recipe.scale else f"g in 1..{recipe.g_max}"
        moved = recipe.offset and recipe.method != "pi"
        return f"{recipe.method}, {scale}, " + (f"t in 0..{limit:,} at g = {largest}" if moved else "no offset")

    def _sources(self) -> list[str]:
        total = sum(source.weight for source in self.recipe.data)
        return [
            f"{source.weight / total:.0%} {source.layout}, loss on {source.loss}: "
            f"{', '.join(map(_short, source.files))} ({_found(source)})"
            for source in self.recipe.data
        ]

    @staticmethod
    def _gib(size: int) -> str:
        return f"{size / GIB:.2f} GiB"


def make_plan(recipe: Recipe, processes: int = 1) -> Plan:
    """Shapes on torch's meta device and arithmetic; needs the base's config, not its weights."""
    config, base_scaling = config_and_scaling(recipe, written=True)
    with torch.device("meta"):
        model: Any = add_lora(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), recipe)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    narrow = sum(p.numel() for p in frozen_matrices(model, recipe))
    return Plan(
        recipe=recipe,
        parameters=parameters,
        trained=trained,
        native_window=recipe.native_window or native_window(config),
        processes=processes,
        narrow=narrow,
        state_bytes=state_bytes(parameters, trained, recipe.sharding, processes, narrow),
        activation_bytes=activation_bytes(config, recipe),
        operations=recipe_operations(config, recipe, parameters),
        rate=rate_for(recipe, parameters),
        base_scaling=base_scaling,
    )


def state_bytes(parameters: int, trained: int, sharding: str, processes: int, narrow: int = 0) -> int:
    """Weights (4 bytes a parameter), gradients (4) and AdamW's two moments (8) of one process, all float32.

    narrow: parameters that are held in 2 bytes (`frozen_matrices`).
    ZeRO-2 shards gradients and moments over the processes, FSDP the weights as well (Rajbhandari et al., arXiv
    1910.02054).
    """
    weights, rest = FLOAT32 * (parameters - narrow) + 2 * narrow, 3 * FLOAT32 * trained
    if sharding == "zero2":
        return weights + rest // processes
    return (weights + rest) // processes if sharding == "fsdp" else weights + rest


def activation_bytes(config: PretrainedConfig, recipe: Recipe) -> int:
    """Activations kept for the backward pass of one micro-batch, and the logits; depends on R alone, not on L'.

    34 bytes per token, layer and hidden unit in 16 bits without stored attention (Korthikanti et al., arXiv
    2205.05198), twice that in float32; with checkpointing 2 bytes, and one layer in full. Logits: float32, with
    gradient and softmax.
    """
    text = text_config(config)
    tokens = recipe.micro_batch * recipe.train_window
    width = 1 if recipe.precision == "bfloat16" else 2
    layer = 34 * width * tokens * text.hidden_size
    kept = 2 * width * tokens * text.hidden_size
    layers = text.num_hidden_layers
    body = layers * kept + layer if recipe.gradient_checkpointing else layers * layer
    return int(body + 3 * FLOAT32 * tokens * text.vocab_size)


def _short(name: str) -> str:
    """A file's name, a commit in it by its first digits."""
    return re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}/", r"@\1/", name)


def _found(source: Source) -> str:
    limit = f"of each the first {source.megabytes:,} MB, " if source.megabytes else ""
    try:
        return f"{limit}{len(source.paths(fetch=False))} files"
    except DataError:
        size = source.fetched_bytes()
        return f"{limit}not there yet" + (f": {size / 1e9:.1f} GB to fetch" if size else "")
