"""What a model is tried with before it is used: attention of ours or transformers', one pass against steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from e2bench.errors import ModelError
from e2bench.models.decoding import Decoder, Row
from e2bench.models.kvcache import ATTENTION
from e2bench.models.protocols import Prompt

if TYPE_CHECKING:
    from e2bench.models.local import Model


@torch.inference_mode()
def choose_attention(model: Model) -> None:
    """Use our attention where the model's code really calls it, else transformers' SDPA, one row at a time.

    Some architectures compute attention themselves (Falcon): under a name they do not know they leave the causal
    mask out, without a word. So each way is tried on a few tokens against the model's own forward pass.
    """
    ids = torch.arange(min(8, model.vocab_size), device=model.device)[None]
    want = model.hf(input_ids=ids, use_cache=False).logits
    if model.attention == "sdpa":
        model.grouped = True
        model.hf.set_attn_implementation(ATTENTION)
        if reproduces(model, want, ids):
            return
        model.grouped = False
        model.hf.set_attn_implementation(model.attention)
    if not reproduces(model, want, ids):
        raise ModelError(
            f"{type(model.hf).__name__} gives other logits in steps over a key-value cache, or changes them after "
            "its output embeddings: not supported"
        )


def reproduces(model: Model, want: Tensor, ids: Tensor) -> bool:
    """Whether one pass, and steps over a cache, give the logits `want` (1, T, V)."""
    try:
        pairs = [(model.head(model.hidden(ids)), want), *steps(model, want[0], ids[0].tolist())]
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # a cache or a call the code does not take
        return False
    tolerance = 1e-3 if model.dtype.itemsize >= 4 else 5e-2
    return all(bool((found - to.to(found)).norm() <= tolerance * to.to(found).norm()) for found, to in pairs)


def steps(model: Model, want: Tensor, ids: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, logits wanted) of one step after two prompts of different lengths, together where that is done."""
    decoder = Decoder(model)
    prompts = [Prompt(ids[:end], 1) for end in (len(ids) - 1, len(ids) // 2)]
    for members in [prompts] if model.grouped else [[prompt] for prompt in prompts]:
        cache = model.new_cache(len(ids), rows=len(members))
        rows = [Row(index, prompt, len(prompt.ids)) for index, prompt in enumerate(members)]
        for row in rows:
            model.prefill(row.prompt.ids, decoder.row(cache, row.index))
        at = [row.length for row in rows]
        yield decoder.step(cache, rows, [ids[end] for end in at]), want[at]
