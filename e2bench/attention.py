"""Attention of an answer's tokens over a long input (the paper's Figure 6), exactly and without any N × N matrix.

One JSON object of random key-value pairs stands at a chosen depth of a long text, the question for a value at the end.
The answer is generated as always (SDPA over a cache); beside it, every attention layer computes softmax(q·Kᵀ) for the
one query that chooses the next token, and that row is reduced before the next layer runs. Row i of a map is the
attention with which generated token i was chosen: its query is the token before it.

Shapes: N input tokens, T generated tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import io
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from e2bench.errors import DataError, E2BenchError, ModelError
from e2bench.kvcache import ATTENTION, grouped_attention
from e2bench.model import Model, Prompt
from e2bench.processes import Processes
from e2bench.records import RunFolder, row_id, write_atomic
from e2bench.rope import RopeScaling
from e2bench.runner import Item, Row, run
from e2bench.scales import short_number

ROWS = "e2bench_rows"
PAIRS = 3  # the paper's
TASK = "Key-value pairs: Extract the value corresponding to the specified key in the JSON object below."
QUESTION = '\n\nQuestion: What is the value of key "{key}"? Answer: "'
STYLES = ("uuid", "short")
REDUCTIONS = ("mean", "max")
SPARE_TOKENS = 8  # generated beyond the answer's own number of tokens
SNAP_TOKENS = 64  # how far a pair may move from its depth to stand between two lines
TOP_HEADS = 20
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Cell:
    """One question. ids: the input; with the answer's budget it has exactly `length` tokens.

    gold: first and last input index of the asked value's tokens.    document: id of the text around it.
    """

    length: int
    depth: float
    trial: int
    scaling: RopeScaling
    ids: tuple[int, ...]
    gold: tuple[int, int]
    answer: str
    question_tokens: int
    budget: int
    document: str

    @property
    def coordinates(self) -> dict[str, Any]:
        """What tells the cell from others."""
        scale = short_number(self.scaling.factor)
        return {"length": self.length, "depth": self.depth, "trial": self.trial, "scale": scale}


@dataclass(frozen=True)
class View:
    """Which layers and heads are reduced, and how. None: all of them.    keep_heads: store every head's rows too."""

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    reduction: str = "mean"
    keep_heads: bool = False


# the input


def make_cell(
    model: Model,
    document: str,
    text: Sequence[int],
    *,
    length: int,
    depth: float,
    trial: int,
    scaling: RopeScaling,
    seed: int = 0,
    style: str = "uuid",
    scattered: bool = False,
) -> Cell:
    """Hide three pairs in a text of token ids (special tokens first) and ask for one of them.

    scattered: each pair on its own line, the other two a third of the text before and behind; else one JSON object.
    Raises E2BenchError when `length` cannot hold the parts, DataError when the text is too short for it.
    """
    rng = random.Random(f"attention/{seed}/{length}/{depth}/{trial}")
    pairs = {_word(rng, style): _word(rng, style) for _ in range(PAIRS)}
    key = list(pairs)[rng.randrange(PAIRS)]
    answer = pairs[key]
    budget = len(model.encode(f'"{answer}"', special_tokens=False)) + SPARE_TOKENS
    question = model.encode(QUESTION.format(key=key), special_tokens=False)
    pieces = [(depth, f"\n\n{TASK} {json.dumps(pairs)}\n\n")]
    if scattered:
        places = [depth, (depth + 1 / 3) % 1, (depth + 2 / 3) % 1]
        ordered = [key, *(other for other in pairs if other != key)]
        pieces = [(d, f"\n\n{json.dumps({k: pairs[k]})}\n\n") for d, k in zip(places, ordered, strict=True)]
    encoded = [(d, *_encode_with_span(model, piece, answer)) for d, piece in sorted(pieces)]
    fixed = len(question) + sum(len(ids) for _, ids, _ in encoded)
    room = length - budget - fixed
    if room < PAIRS + 1:
        raise E2BenchError(
            f"pairs, question and answer take {fixed + budget} tokens, which leaves {max(room, 0)} of {length} for the "
            "text; give longer --lengths, or --keys short"
        )
    if len(text) < room:
        raise DataError(f"the text has {len(text):,} tokens, {room:,} are needed; give a longer one with --data")
    ids: list[int] = []
    gold, at = (0, 0), 0
    for place, piece, span in encoded:
        cut = max(at, _line_border(model, text, round(place * room), room))
        ids += text[at:cut]
        if span is not None:
            gold = (len(ids) + span[0], len(ids) + span[1])
        ids += piece
        at = cut
    ids += [*text[at:room], *question]
    return Cell(length, depth, trial, scaling, tuple(ids), gold, answer, len(question), budget, document)


def _word(rng: random.Random, style: str) -> str:
    if style == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.getrandbits(16):04x}"


def _encode_with_span(model: Model, text: str, value: str) -> tuple[list[int], tuple[int, int] | None]:
    """Ids of a text, and the first and last index of those that hold `value`; None where it does not occur."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise ModelError("finding a value's tokens needs a fast tokenizer (one with tokenizer.json); none is here")
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = text.find(f'"{value}"') + 1
    if start == 0:
        return list(encoded["input_ids"]), None
    end = start + len(value)
    held = [i for i, (begin, stop) in enumerate(encoded["offset_mapping"]) if begin < end and stop > start]
    return list(encoded["input_ids"]), (held[0], held[-1])


def _line_border(model: Model, text: Sequence[int], at: int, room: int) -> int:
    """The cut nearest to `at` behind a token that ends a line; `at` itself where none is near."""
    for distance in range(SNAP_TOKENS + 1):
        for cut in (at - distance, at + distance):
            if 1 < cut < room and model.decode([text[cut - 1]]).endswith("\n"):
                return cut
    return min(max(at, 1), room)  # never before BOS


# the rows


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
def recording(model: Model, recorder: Recorder) -> Iterator[None]:
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
            model.hf.set_attn_implementation(ATTENTION)
        for handle in handles:
            handle.remove()


def attention_modules(hf: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that attend, one a layer. Raises ModelError for a model that has none of transformers' form."""
    found = [m for m in hf.modules() if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")]
    if not found:
        raise ModelError(f"{type(hf).__name__} has no attention layers of transformers' form: no rows can be recorded")
    return found


# the run


def closed(text: str) -> bool:
    """The quoted value is complete."""
    return '"' in text or "\n" in text.lstrip("\n")


def measure(
    model: Model,
    cells: Sequence[Cell],
    view: View,
    folder: RunFolder,
    processes: Processes,
) -> None:
    """Answer every cell and record its rows: a line in `attention.jsonl` and an `.npz` file each."""
    heads = int(model.config.num_attention_heads)

    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        for item in batch:
            cell: Cell = item.payload
            recorder = Recorder(view, layers=model.layers, heads=heads, inputs=len(cell.ids), gold=cell.gold)
            with recording(model, recorder):
                prompt = Prompt(cell.ids, cell.budget, min_new_tokens=1, settled=closed)
                ((_, generation),) = model.generate([prompt], cell.scaling)
            arrays = recorder.arrays()
            if len(arrays["rows"]) != len(generation.ids):
                raise ModelError(f"{len(arrays['rows'])} attention rows for {len(generation.ids)} generated tokens")
            name = npz_name(cell, cells)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            write_atomic(folder.path / name, buffer.getvalue())
            yield item, _line(model, cell, view, recorder, arrays["per_head"], generation.ids, generation.text, name)

    items = [Item("attention", row_id(c.coordinates), c.length, c.coordinates["scale"], c) for c in cells]
    run(items, work, folder, batch_size=lambda item: 1, processes=processes, title="attention", note=_note)


def npz_name(cell: Cell, cells: Sequence[Cell]) -> str:
    """attention-LENGTH.npz; what varies besides the length is part of the name."""
    parts = [f"attention-{cell.length}"]
    if len({c.scaling for c in cells if c.length == cell.length}) > 1:
        parts.append(f"g{short_number(cell.scaling.factor)}")
    if len({c.depth for c in cells}) > 1:
        parts.append(f"depth{cell.depth:g}")
    if cell.trial:
        parts.append(f"trial{cell.trial}")
    return "-".join(parts) + ".npz"


def _line(
    model: Model,
    cell: Cell,
    view: View,
    recorder: Recorder,
    per_head: np.ndarray,
    ids: Sequence[int],
    text: str,
    npz: str,
) -> Row:
    ranked = sorted(np.ndindex(per_head.shape), key=lambda at: -per_head[at])[:TOP_HEADS]
    fed = model.decode(cell.ids)
    return {
        **cell.coordinates,
        "tokens": len(cell.ids),
        "method": cell.scaling.method,
        "gold": list(cell.gold),
        "answer": cell.answer,
        "pred": text,
        "success": text.split('"')[0].strip() == cell.answer,
        "layers": "all" if view.layers is None else list(view.layers),
        "heads": "all" if view.heads is None else list(view.heads),
        "reduction": view.reduction,
        "gold_share": float(np.mean(recorder.shares)),
        "input_share": (cell.gold[1] + 1 - cell.gold[0]) / len(cell.ids),
        "top_heads": [[int(layer), int(head), float(per_head[layer, head])] for layer, head in ranked],
        "npz": npz,
        "question_tokens": cell.question_tokens,
        "new_tokens": len(ids),
        "generated": [model.tokenizer.decode([token]) for token in ids],
        "source": cell.document,
        "head": fed[:SHOWN_CHARS],
        "tail": fed[-SHOWN_CHARS:],
    }


def _note(row: Row) -> str:
    ratio = row["gold_share"] / row["input_share"]
    return f"{row['length']:,} tokens: {'right' if row['success'] else 'wrong'}, gold × {ratio:.1f}"
