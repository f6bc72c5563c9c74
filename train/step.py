"""What makes a training step fast and leaves its numbers as they are: no mask, the loss alone, torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from e2bench.errors import E2BenchError
from e2bench.extras import require
from e2bench.train.recipe import Recipe

BACKEND = "inductor"
CAUSAL = "e2bench_causal_sdpa"  # SDPA, known to transformers without a mask function

AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def without_mask(model: Any, recipe: Recipe) -> None:
    """Let SDPA do causal attention without a mask, where a row is one sequence and no layer's window is shorter.

    transformers looks through `position_ids` for packed sequences before it leaves the mask out, which waits for the
    device in every pass; inside a compiled graph it cannot look, and always makes a mask of R × R.
    """
    windows = (
        getattr(owner, name, None)
        for owner in (model.config.get_text_config(), *model.modules())
        for name in ("sliding_window", "attention_chunk_size")
    )
    shorter = any(isinstance(window, int) and 0 < window < recipe.train_window for window in windows)
    own = not type(model)._supports_attention_backend  # computes attention itself, and may need the mask
    if recipe.attention == "sdpa" and recipe.cross_documents and not shorter and not own:
        model.set_attn_implementation(CAUSAL)


def loss_alone(model: nn.Module) -> None:
    """Let the model return its loss without the logits, which Trainer would copy to float32 and never read."""

    def drop(module: nn.Module, args: Any, output: Any) -> Any:
        return {"loss": output.loss} if getattr(output, "loss", None) is not None else None

    model.register_forward_hook(drop)


def frozen_matrices(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """Parameters that a recipe holds in bfloat16, to which autocast would cast them at every use anew.

    Those of matrices that adapters leave as they are. Not of one that is the embedding too: looking a token up is not
    autocast. Not with sharding: its parts have one precision.
    """
    if recipe.lora is None or recipe.precision != "bfloat16" or recipe.sharding != "none":
        return []
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = (m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in embedded)
    return [p for matrix in matrices for p in matrix.parameters(recurse=False) if not p.requires_grad]


def compile_step(model: Any) -> None:
    """Compile the layers and the loss in place: hooks, names of weights and checkpoints stay as they are.

    The layers have one code, which is compiled once: a whole pass of 30 layers takes minutes. A draw reaches them as
    the cosines and sines they take in. fullgraph: what cannot be traced, and a graph too many, is an error that
    `compiling` tells, not a step that silently runs as it is.
    """
    if not torch.cuda.is_available() and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise E2BenchError("compile: true needs a C++ compiler and found none; install g++ or set compile=false")
    how: dict[str, Any] = {"backend": BACKEND, "dynamic": False, "fullgraph": True}
    for layer in max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len):
        layer.compile(**how)
    model.loss_function = torch.compile(model.loss_function, **how)


@contextmanager
def compiling() -> Iterator[None]:
    """A compiler's failure inside, as one line."""
    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise E2BenchError(f"compile: the step cannot be compiled ({reason}); set compile=false") from error


def check_liger(model_type: str) -> None:
    """Raise E2BenchError where liger-kernel, its device or its kernels for this kind of model are missing.

    transformers would say so in its log, and train without them.
    """
    require("liger_kernel", "liger", "liger: true")
    if not torch.cuda.is_available():
        raise E2BenchError("liger: true needs a GPU and found none; set liger=false")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise E2BenchError(f"liger: true has no kernels for the model type {model_type!r}; set liger=false")
