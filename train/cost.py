"""Hours, memory and disk of a training, on any number of GPUs, from rates that were measured on one GPU."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from e2bench.rope.config import text_config
from e2bench.train.recipe import Recipe

FLOAT32 = 4  # bytes
GPUS = (1, 8, 16, 64)
SMALLEST = 50_000_000  # parameters; below, launching kernels bounds a step, and nothing was measured


@dataclass(frozen=True)
class Measured:
    """Tokens a second of training in bfloat16 with AdamW, of all weights unless `backward` is smaller.

    backward: how many times the forward pass's operations the backward pass takes.
    Source: the runs that docs/performance.md names (torch 2.11).
    """

    what: str
    tokens_per_s: int
    matrices: int  # parameters that a token is multiplied with
    layers: int
    width: int  # of attention: heads × their dimension
    window: int = 4096
    backward: float = 2.0
    machine: str = "one H100"

    @property
    def operations_per_s(self) -> float:
        """Floating-point operations a second."""
        return self.tokens_per_s * operations(self.matrices, self.layers, self.width, self.window, self.backward)


SMALL = Measured("SmolLM2-135M through Trainer", 90_000, 134_515_008, 30, 576)
SMALL_COMPILED = Measured("SmolLM2-135M in a compiled loop", 152_883, 134_515_008, 30, 576)
SMALL_ADAPTERS = Measured(
    "SmolLM2-135M with adapters, compiled", 141_000, 134_515_008, 30, 576, backward=1.0, machine="one H200"
)
LARGE = Measured("a 1.3 B model in a plain loop", 27_005, 1_279_887_360, 24, 2048)


def operations(matrices: int, layers: int, width: int, window: int, backward: float = 2.0) -> float:
    """Operations of one token, forward and backward, in causal rows of `window` tokens.

    Two a parameter of a matrix forward, and 2 · window · width a layer for attention (half of all pairs, scores and
    values). backward: how many times the forward pass's operations it takes.
    """
    return (1 + backward) * (2.0 * matrices + 2.0 * layers * window * width)


def recipe_operations(config: PretrainedConfig, recipe: Recipe, parameters: int) -> float:
    """Operations of one token of a recipe; with checkpointing a second forward pass, with adapters half a backward."""
    text = text_config(config)
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    tied = bool(getattr(text, "tie_word_embeddings", False))
    matrices = parameters - (0 if tied else text.vocab_size * text.hidden_size)  # looking a token up multiplies nothing
    backward = (1.0 if recipe.lora else 2.0) + (1.0 if recipe.gradient_checkpointing else 0.0)
    return operations(matrices, text.num_hidden_layers, width, recipe.train_window, backward)


def rate_for(recipe: Recipe, parameters: int) -> Measured | None:
    """The measured rate nearest to a recipe; None for a model so small that none is near."""
    if parameters < SMALLEST:
        return None
    if parameters >= LARGE.matrices // 2:
        return LARGE
    if recipe.compile:
        return SMALL_ADAPTERS if recipe.lora else SMALL_COMPILED
    return SMALL


def checkpoint_bytes(recipe: Recipe, parameters: int, trained: int) -> int:
    """Of one checkpoint: float32 weights (adapters alone, with LoRA) and two moments; FSDP stores the weights twice."""
    weights = trained if recipe.lora else parameters
    copies = 2 if recipe.sharding == "fsdp" else 1
    return FLOAT32 * (copies * weights + 2 * trained)


def checkpoints_kept(recipe: Recipe) -> int:
    """How many checkpoints lie on the disk at once: the newest is complete before the oldest goes."""
    made = -(-recipe.steps // recipe.save_every)
    return made if recipe.keep is None else min(made, recipe.keep + 1)
