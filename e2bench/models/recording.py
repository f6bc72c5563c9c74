"""Attention weights of the query that chooses the next token, layer by layer, without any N × N matrix.

Shapes: N input tokens, T generated tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from e2bench.errors import E2BenchError, ModelError
from e2bench.models.attention import grouped_attention
from e2bench.models.body import Body

if TYPE_CHECKING:
    from e2bench.models.protocols import Rows

ROWS = "e2bench_rows"


@dataclass(frozen=True)
class View:
    """Which layers and heads are reduced, and how. None: all of them.    keep_heads: store every head's rows too."""

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    reduction: str = "mean"
    keep_heads: bool = False


def weights_too(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`grouped_attention`, and the weights of its last query: (1, H, 1, N) float32, softmax of q·Kᵀ times scaling.

    The output is not made from the weights, so that the answer is the one that plain generation gives.
    """
    output, _ = grouped_attention(module, query, key, value, *args, **kwargs)
    scaling = kwargs.get("scaling")
    weights = last_row(query, key, scaling=scaling, sliding_window=kwargs.get("sliding_window"))
    return output, weights[None, :, None]


def last_row(query: Tensor, key: Tensor, *, scaling: float | None, sliding_window: int | None = None) -> Tensor:
    """Attention weights (H, N) of the last of (1, H, Tq, D) queries over (1, K, N, D) keys.

    One key head at a time: in float32 all of a layer's keys would double a bfloat16 cache.
    """
    _, heads, _, dim = query.shape
    exact = torch.promote_types(query.dtype, torch.float32)
    groups = query[0, :, -1].to(exact).reshape(key.shape[1], -1, dim)
    scores = torch.cat([group @ key[0, at].to(exact).T for at, group in enumerate(groups)])
    scores *= dim**-0.5 if scaling is None else scaling
    if sliding_window is not None and sliding_window < key.shape[2]:
        scores[:, : key.shape[2] - sliding_window] = -torch.inf
    return scores.softmax(-1).reshape(heads, -1)


AttentionInterface.register(ROWS, weights_too)


class Recorder:
    """Takes (H, N + i) weights layer by layer, for each generated token i, and keeps what a map needs.

    layers, heads: how many the model has.    inputs: N.    gold: first and last index of the gold span.
    """

    def __init__(self, view: View, *, layers: int, heads: int, inputs: int, gold: tuple[int, int]) -> None:
        self.view, self.inputs, self.gold = view, inputs, slice(gold[0], gold[1] + 1)
        self.layers = set(range(layers) if view.layers is None else view.layers)
        self.heads = list(range(heads) if view.heads is None else view.heads)
        self.per_head = torch.zeros(layers, heads, dtype=torch.float64)
        self.rows: list[np.ndarray] = []
        self.shares: list[float] = []
        self.kept: list[list[np.ndarray]] = []
        self._keys, self._seen = 0, 0
        self._row: Tensor | None = None

    def add(self, layer: int, weights: Tensor) -> None:
        """One layer's weights. Those of a prefill's earlier chunks see fewer than N keys and are passed over."""
        keys = weights.shape[-1]
        if keys < self.inputs:
            return
        if keys != self._keys:
            self.close()
            self._keys, self._seen = keys, 0
            if self.view.keep_heads:
                self.kept.append([])
        self.per_head[layer] += weights[:, self.gold].sum(-1).double().cpu()
        if layer not in self.layers:
            return
        chosen = weights[self.heads]
        if self.view.keep_heads:
            self.kept[-1].append(chosen[:, : self.inputs].float().cpu().numpy())
        row = chosen.sum(0) if self.view.reduction == "mean" else chosen.amax(0)
        if self._row is None:
            self._row = row
        elif self.view.reduction == "mean":
            self._row += row.to(self._row.device)
        else:
            self._row = torch.maximum(self._row, row.to(self._row.device))
        self._seen += len(self.heads)

    def close(self) -> None:
        """Finish the row of the token before: every layer has been seen."""
        if self._row is None:
            return
        row = self._row / self._seen if self.view.reduction == "mean" else self._row
        self.shares.append(float(row[self.gold].sum() / row.sum()))
        self.rows.append(row[: self.inputs].float().cpu().numpy())
        self._row = None

    def arrays(self) -> dict[str, np.ndarray]:
        """`rows` (T, N), `per_head` (layers, H) mean gold share; with keep_heads `heads` (layers, heads, T, N)."""
        per_head = (self.per_head / max(1, len(self.rows))).float().numpy()
        arrays = {"rows": np.stack(self.rows), "per_head": per_head}
        if self.view.keep_heads:
            arrays["heads"] = np.stack([np.stack(layers) for layers in self.kept]).transpose(1, 2, 0, 3)
        return arrays


@contextmanager
def recording(model: Body, recorder: Rows) -> Iterator[None]:
    """Forward passes inside give `recorder` the last query's weights of every attention layer.

    Raises E2BenchError for an attention implementation that does not show its weights.
    """
    if not model.grouped and model.attention != "eager":
        raise E2BenchError(f"--attn {model.attention} does not show its weights; use --attn sdpa (or eager)")
    modules = attention_modules(model.hf)

    def hook(module: Any, _: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is not None:
            recorder.add(int(module.layer_idx), weights[0, :, -1])

    handles = [module.register_forward_hook(hook) for module in modules]
    if model.grouped:
        model.hf.set_attn_implementation(ROWS)
    try:
        yield
        recorder.close()
    finally:
        if model.grouped:
            model.hf.set_attn_implementation(model.ours)
        for handle in handles:
            handle.remove()


def attention_modules(hf: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that attend, one a layer. Raises ModelError for a model that has none of transformers' form."""
    found = [m for m in hf.modules() if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")]
    if not found:
        raise ModelError(f"{type(hf).__name__} has no attention layers of transformers' form: no rows can be recorded")
    return found
