"""`--batch-invariant`: an item's answer and losses have the same bits whatever is worked on beside it.

What differs with a batch, measured on a CPU (MKL and oneDNN; `tests/test_invariant.py` repeats it):
- A matrix product of 1, 2 … 8 rows adds up in another order for other numbers of rows: 3 results of one row in
  float32. With one number of rows a row's result depends neither on where it stands nor on the other rows. So every
  decoding step is filled up to `rows`; more prompts are decoded in groups.
- An activation function takes the last elements of an array, or of a thread's part of it, by other code than the rest
  (silu and gelu in float32). So it takes each row alone.
- A row's attention in a step is computed alone over its own length (`kvcache._row_by_row`). Rows of the cache begin at
  multiples of 64 bytes, whatever the longest text beside them, so that every kernel finds them aligned alike.
- A prompt is read alone and whole: a beginning shared with the one before would be read in other pieces. A window is
  scored alone, and not taken from a longer one. The options of one question may share: they always come together.
- A mixture's experts multiply as many rows as the router sends them: it is refused.
- The number of threads changes some products of many rows: it is recorded, and a run goes on with the same one only.

On a GPU the same holds by design: cuBLAS takes its kernel by the shape of a product, a product's row adds up in its own
order, `decode_kernel` cuts a row by its own length alone, and a captured graph holds the kernels that ran before. No
card has confirmed it; loading tries it there too, and `benchmarks/gpu.py --parts invariant` at length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2CLS

from e2bench.errors import ModelError
from e2bench.models.body import DECODE_ROWS
from e2bench.models.findings import OK, find
from e2bench.models.kvcache import Kernel, ragged
from e2bench.models.local import Model
from e2bench.models.pieces import TokenPieces
from e2bench.models.probe import probe_ids
from e2bench.models.protocols import Generation, Prompt
from e2bench.models.queued import decoding_kernel
from e2bench.rope.methods import RopeScaling

ALIGNED = 64  # tokens: a row of the cache is a multiple of 64 bytes then, in every dtype and head size
TOKENS, STEPS = 64, 3  # of the trial: prompt (a multiple of all DECODE_ROWS, as `_watched` asks), new tokens
ACTIVATIONS: Any = tuple({entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()})


class InvariantModel(Model):
    """A model whose answers and losses have the same bits whatever is worked on beside them.

    rows: of every decoding step; 0 while the model is tried, which runs as any other until then.
    Raises ModelError where a row's logits depend on the others all the same.
    """

    batch_invariant = True
    rows = 0
    activations: AbstractContextManager[Any] = nullcontext()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rows = DECODE_ROWS.get(self.device.type, 1) if self.grouped else 1  # else prompts are answered alone
        if self.device.type == "cpu":
            self.activations = TokenPieces([m for m in self.hf.modules() if isinstance(m, ACTIVATIONS)], 1)
        check_rows(self)
        find("batch-invariant", OK, f"the same bits whatever the batch: steps of {self.rows} rows")

    def describe(self) -> dict[str, Any]:
        """As of any model, and what the bits depend on beside it and the machine."""
        threads = {"threads": torch.get_num_threads()} if self.device.type == "cpu" else {}
        return {**super().describe(), "batch_invariant": f"steps of {self.rows} rows", **threads}

    @property
    def shares(self) -> bool:
        """False: every prompt is read whole."""
        return False

    def scoring_rows(self, tokens: int, given: int | None = None) -> int:
        """One window at a time."""
        return 1

    def token_nll(self, input_ids: Tensor, first: int = 1, *, cached: bool = False) -> Tensor:
        """As of any model, each row alone."""
        alone = super().token_nll
        return torch.cat([alone(row, first, cached=cached) for row in input_ids[:, None]])

    @property
    def packed_tokens(self) -> int:
        """0: every prompt is read alone."""
        return 0

    def reads_whole(self, tokens: int) -> bool:
        """Always in chunks: what memory is free is not the prompt's own."""
        return False

    def new_cache(self, tokens: int, rows: int = 1) -> Any:
        """As of any model, its rows aligned."""
        return super().new_cache(-(-tokens // ALIGNED) * ALIGNED, rows)

    def step(
        self, cache: Any, ids: Tensor, lengths: Tensor, rows: Tensor | None = None, kernel: Kernel | None = None
    ) -> Tensor:
        """As of any model, in a pass of `self.rows` rows: those behind the given ones attend to nothing."""
        if not self.grouped:
            return super().step(cache, ids, lengths, rows, kernel)
        filling = (0, max(0, self.rows - ids.shape[0]))
        with ragged(lengths, rows, kernel), self.activations:
            states = self.one_token(cache, F.pad(ids, filling), F.pad(lengths - 1, filling))
        return self.head(states)[: ids.shape[0]]

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """As of any model, at most `self.rows` prompts together."""
        for first in range(0, len(prompts), self.rows):
            for index, generation in super().generate(prompts[first : first + self.rows], scaling):
                yield first + index, generation


@torch.inference_mode()
def check_rows(model: InvariantModel) -> None:
    """Raise ModelError where a row's logits depend on what is decoded beside it."""
    if model.rows == 1:
        return
    kind = type(model.hf).__name__
    if model.device.type == "cuda" and decoding_kernel() is None:
        raise _refusal("without Triton, attention on a GPU depends on the longest prompt")
    alone, everywhere = _logits(model, 1), _logits(model, model.rows, alike=True)
    with _watched(model) as partial:
        beside = _logits(model, model.rows)
    if partial:
        raise _refusal(f"{kind} has experts ({min(partial)}), which take other numbers of tokens beside other prompts")
    if not (torch.equal(beside[:, -1:], alone) and torch.equal(everywhere, alone.expand_as(everywhere))):
        raise _refusal(f"{kind} gives other bits beside other prompts")


def _refusal(reason: str) -> ModelError:
    return ModelError(f"--batch-invariant: {reason}; leave it out, and give --batch-size 1: each prompt alone")


@contextmanager
def _watched(model: InvariantModel) -> Iterator[set[str]]:
    """The classes of modules that do not multiply every row of a pass by all of their weights.

    Experts do not: each has weights of its own, or those of all are one array of three dimensions.
    """
    partial: set[str] = set()

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        most = max(weight.ndim for weight in module.parameters(recurse=False))
        multiplied = [x for x in inputs[:1] if isinstance(x, Tensor) and x.is_floating_point()]  # by embeddings none
        if most > 2 or (most == 2 and any(x.shape[:-1].numel() % model.rows for x in multiplied)):
            partial.add(type(module).__name__)

    owners = (module for module in model.hf.modules() if list(module.parameters(recurse=False)))
    hooks = [module.register_forward_pre_hook(look) for module in owners]
    try:
        yield partial
    finally:
        for hook in hooks:
            hook.remove()


def _logits(model: InvariantModel, rows: int, *, alike: bool = False) -> Tensor:
    """Logits (STEPS, rows, V) of a few steps: of a prompt in the last row beside shorter ones, or (alike) in all."""
    ids = probe_ids(model, TOKENS)[0].tolist()
    prompts = [ids if alike else ids[at % 7 : at % 7 + 2 + at % 5] for at in range(rows - 1)] + [ids]
    cache = model.new_cache(TOKENS + STEPS + ALIGNED * (rows > 1), rows=rows)
    model.prefill_together(prompts, cache)  # allocates it
    model.prefill(ids, cache.part(slice(rows - 1, rows)))
    for layer in cache.layers if alike else ():
        layer.keys[:], layer.values[:] = layer.keys[-1:], layer.values[-1:]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    kernel = decoding_kernel() if model.device.type == "cuda" else None
    found = []
    for at in range(STEPS):
        fed = torch.tensor([prompt[at % len(prompt)] for prompt in prompts], device=model.device)
        found.append(model.step(cache, fed, lengths + at + 1, kernel=kernel))
    return torch.stack(found)
