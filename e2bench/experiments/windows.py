"""Sliding-window perplexity under four named protocols. One line per (document, window, scale), with sums.

A document's tokens are x[0 … T-1]; a window is a span [start, end) of them fed in one forward pass; L is the window
length, S the stride. Every protocol here is per document: windows never cross from one document into the next.

| protocol      | windows                            | scored in a window                    | mean            | BOS |
| ------------- | ---------------------------------- | ------------------------------------- | --------------- | --- |
| `press`       | [kS, kS + L), the last one shorter | tokens no earlier window scored       | over tokens     | (a) |
| `truncate`    | [0, L) alone                       | all but the first                     | over tokens     | (a) |
| `window-mean` | [kS, kS + L), full ones only (b)   | all but the first                     | over windows    | (a) |
| `yarn`        | [kS, kS + L - 1), the last shorter | tokens no earlier window scored       | over windows    | (c) |

(a) what the tokenizer adds, once at the document's start.    (b) a document shorter than L is one window.
(c) one BOS in front of every window, if the tokenizer has one; then also the document's first token is scored.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2bench.data.corpus import Chosen
from e2bench.errors import E2BenchError, RunFailed
from e2bench.experiments.context_tokens import losses_name
from e2bench.files import write_atomic
from e2bench.models.memory import is_exhausted, release_memory
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import short_length, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import row_id

if TYPE_CHECKING:
    import torch

    from e2bench.models.protocols import Scorer
    from e2bench.runs.folder import RunFolder

PROTOCOLS = ("press", "truncate", "window-mean", "yarn")


@dataclass(frozen=True)
class Window:
    """One forward pass over tokens [start, end) of a document; the tokens from `first` on (absolute) are scored."""

    start: int
    end: int
    first: int

    @property
    def scored(self) -> int:
        """How many tokens it scores."""
        return self.end - self.first


@dataclass(frozen=True)
class Protocol:
    """How a document's perplexity is defined.

    name: one of PROTOCOLS.    stride: S in tokens.    bos: prefix of every window (`yarn`), else None.
    max_windows: score only the last so many windows, that is the last max_windows · S tokens at every length (so that
        all lengths still score the same tokens); None for all.
    """

    name: str = "press"
    stride: int = 256
    bos: int | None = None
    max_windows: int | None = None

    def windows(self, tokens: int, window: int) -> list[Window]:
        """The windows of a document of `tokens` tokens (T) at window length `window` (L).

        Raises E2BenchError when nothing can be scored or the stride does not fit.
        """
        span = window - 1 if self.name == "yarn" and self.bos is not None else window
        if not 1 <= self.stride < window:
            raise E2BenchError(
                f"stride {self.stride} does not fit a window of {window}; it must lie in 1 … {window - 1}"
            )
        if tokens < 2 or span < 2:
            raise E2BenchError(f"a document of {tokens} tokens in windows of {window} has nothing to score")
        if self.name == "truncate":
            return [Window(0, min(span, tokens), 1)]
        if self.name == "window-mean":
            starts = range(0, max(tokens - span, 0) + 1, self.stride)
            made = [Window(start, min(start + span, tokens), start + 1) for start in starts]
            return made if self.max_windows is None else made[-self.max_windows :]
        made, done, start = [], 0 if self.bos is not None else 1, 0
        while done < tokens:
            end = min(start + span, tokens)
            made.append(Window(start, end, done))
            done, start = end, start + self.stride
        if self.max_windows is None:
            return made
        first = tokens - self.max_windows * self.stride
        return [Window(w.start, w.end, max(w.first, first)) for w in made if w.end > first]


@dataclass(frozen=True)
class Cell:
    """One (document, window, scale) to measure. tokens: ids of the document, cut to what is used of it."""

    document: str
    ids: Sequence[int]
    window: int
    scaling: RopeScaling
    windows: tuple[Window, ...]

    @property
    def cost(self) -> int:
        """Tokens of all its forward passes."""
        return sum(w.end - w.start for w in self.windows)


def cells_of(
    documents: Sequence[Chosen], grid: Sequence[tuple[int, RopeScaling]], protocol: Protocol, doc_tokens: int | None
) -> list[Cell]:
    """Every (document, window in tokens, scaling); documents cut to `doc_tokens` tokens, None for whole ones.

    Raises E2BenchError where `Protocol.windows` does.
    """
    cells = []
    for chosen in documents:
        ids = chosen.ids[:doc_tokens]
        for window, scaling in grid:
            windows = tuple(protocol.windows(len(ids), window))
            cells.append(Cell(chosen.document.id, ids, window, scaling, windows))
    return cells


# measuring


def items_of(cells: Sequence[Cell]) -> list[Item]:
    """One item a cell; cells of one document at one scale share a batch, in which a first window is read once."""

    def group(cell: Cell) -> tuple[Any, ...]:
        return cell.document, cell.scaling, cell.window if cell.scaling.method in BY_LENGTH else None

    return [Item("ppl", row_id(_key(cell)), cell.cost, group(cell), cell) for cell in cells]


def together(cells: Sequence[Cell]) -> Callable[[Item], int]:
    """Every cell of a group."""
    return lambda item: len(cells)


def running_note() -> Callable[[Row], str]:
    """Text beside the progress bar: the perplexity so far of the last line's length and scale."""
    running: dict[tuple[int, float], list[float]] = {}

    def note(row: Row) -> str:
        total = running.setdefault((row["window"], row["scale"]), [0.0, 0.0])
        total[0] += row["nll_sum"]
        total[1] += row["scored_tokens"]
        return f"{short_length(row['window'])} g={row['scale']:g} ppl {math.exp(min(total[0] / total[1], 700)):.3f}"

    return note


def measuring(
    model: Scorer, protocol: Protocol, batch_size: int | None = None, *, keep_losses: bool = False
) -> Measure:
    """What turns cells into lines: sums of nats, so that any mean can be recomputed.

    batch_size: windows a forward pass where so many fit; None for as many as are worth it.
    keep_losses: whether each token's loss goes into a file beside, which the line names.
    The measuring raises RunFailed naming the document whose loss is not finite.
    """

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        prefix = None
        # The longest window first: its first pass holds the shorter ones' first scores.
        for item in sorted(batch, key=lambda one: -one.payload.window):
            line, prefix, losses = _cell_line(model, item.payload, protocol, batch_size, prefix)
            yield item, {**line, "losses": _kept(folder, line, losses)} if keep_losses else line

    return measure


def _kept(folder: RunFolder, line: Row, losses: Sequence[torch.Tensor]) -> str:
    """The name of the file into which the losses of a line are written."""
    import numpy as np

    name = losses_name(line["document"], line["window"], line["scale"])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, nll=np.concatenate([part.float().numpy() for part in losses]))
    write_atomic(folder.path / name, buffer.getvalue())
    return name


def _key(cell: Cell) -> dict[str, object]:
    return {"document": cell.document, "window": cell.window, "scale": short_number(cell.scaling.factor)}


def _cell_line(
    model: Scorer, cell: Cell, protocol: Protocol, batch_size: int | None, prefix: torch.Tensor | None
) -> tuple[Row, torch.Tensor | None, Sequence[torch.Tensor]]:
    """A cell's record, the first window's scores, which a shorter window at its scale can use, and all scores."""
    nll_sum = mean_sum = 0.0
    scored = 0
    with model.under(cell.scaling, cell.window):
        windows = list(cell.windows)
        parts: list[torch.Tensor] = []
        if windows[0].start == 0 and windows[0].first <= 1:
            prefix = _first_scores(model, cell, windows[0], protocol, prefix)
            parts.append(prefix[: windows[0].scored])
            windows = windows[1:]
        parts += [
            part for batch in _batches(windows, model, batch_size) for part in _scores(model, cell, batch, protocol)
        ]
    for part in parts:
        total = float(part.double().sum())
        if not math.isfinite(total):
            raise RunFailed(
                f"document {cell.document}: the loss at window {cell.window}, g {cell.scaling.factor:g} is {total}: "
                "not a finite number; try --dtype float32"
            )
        nll_sum += total
        mean_sum += total / part.numel()
        scored += part.numel()
    line = {
        **_key(cell),
        "method": cell.scaling.method,
        "stride": protocol.stride,
        "protocol": protocol.name,
        "nll_sum": nll_sum,
        "scored_tokens": scored,
        "windows": len(parts),
        "mean_sum": mean_sum,
        "tokens": len(cell.ids),
    }
    return line, prefix, parts


def _first_scores(
    model: Scorer, cell: Cell, window: Window, protocol: Protocol, prefix: torch.Tensor | None
) -> torch.Tensor:
    """Scores of a window at the document's start: a prefix of a longer one's, since attention is causal."""
    if prefix is not None and prefix.numel() >= window.scored and not getattr(model, "batch_invariant", False):
        return prefix
    return next(_scores(model, cell, [window], protocol))


def _batches(windows: Sequence[Window], model: Scorer, batch_size: int | None) -> Iterator[list[Window]]:
    """Windows of equal length and equal number of scored tokens, batched: no padding, no mask."""
    for (length, _), group in itertools.groupby(windows, lambda w: (w.end - w.start, w.scored)):
        alike, rows = list(group), model.scoring_rows(length, batch_size)
        yield from (alike[at : at + rows] for at in range(0, len(alike), rows))


def _scores(model: Scorer, cell: Cell, batch: Sequence[Window], protocol: Protocol) -> Iterator[torch.Tensor]:
    """Per window of a batch: the nats of its scored tokens, 1-D, on the CPU."""
    import torch

    prefix = [] if protocol.bos is None else [protocol.bos]
    rows = torch.tensor([[*prefix, *cell.ids[w.start : w.end]] for w in batch])
    first = batch[0].first - batch[0].start + len(prefix)
    yield from _halving(model, rows, first)


def _halving(model: Scorer, rows: torch.Tensor, first: int) -> torch.Tensor:
    """Losses (B, T - first) on the CPU; on out-of-memory in two halves."""
    import torch

    try:
        return model.token_nll(rows, first=first).cpu()
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not is_exhausted(error):
            raise
    release_memory()
    return torch.cat([_halving(model, part, first) for part in rows.chunk(2)])
