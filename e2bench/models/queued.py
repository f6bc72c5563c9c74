"""Decoding steps on a GPU: queued ahead of the host, replayed as a CUDA graph.

A step of a small batch is bound by launching kernels, some forty a layer, not by the card. So everything of a step
stays on the device, the choice of the token too; the next one is queued before the host looks at the tokens of this
one; and after a few steps all of its kernels are captured once and then launched together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from e2bench.models.body import Body
from e2bench.models.kvcache import Kernel
from e2bench.models.memory import is_exhausted
from e2bench.models.steps import NOT_FINITE, Row, Steps, choose
from e2bench.terminal import say

BEFORE = 2  # steps before a capture: in them kernels are compiled and their plans made
WORTH = 12  # steps still to come that pay for a capture


def decoding_kernel() -> Kernel | None:
    """Our attention of one token a row; None where Triton is not installed, as on Windows."""
    try:
        from e2bench.models.decode_kernel import decode_attention
    except ImportError:
        return None
    return decode_attention


def steps_for(model: Body, cache: Any) -> Steps:
    """Queued steps for a model that is on one GPU and runs our attention; not while that is recorded."""
    devices = {p.device for p in model.hf.parameters()}
    ours = model.grouped and model.hf.config._attn_implementation == model.ours  # recording sets another one
    if ours and len(devices) == 1 and model.device.type == "cuda" and (kernel := decoding_kernel()):
        return QueuedSteps(model, cache, kernel)
    return Steps(model, cache)


class _Copy:
    """Tokens on their way to the host; a later step may overwrite the device's."""

    def __init__(self, source: Tensor) -> None:
        self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
        self._host.copy_(source, non_blocking=source.is_cuda)
        self._arrived = torch.cuda.Event() if source.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived:
            self._arrived.record()

    def tokens(self) -> list[int]:
        """Wait for them."""
        if self._arrived:
            self._arrived.synchronize()
        found: list[int] = self._host.tolist()
        return found


class QueuedSteps(Steps):
    """Every row of the cache at every step; one that has ended, or holds nothing, counts as one token long.

    A step's cost is reading the weights and the cache: rows of one token add nothing to it, and no row has to move.
    """

    def __init__(self, model: Body, cache: Any, kernel: Kernel) -> None:
        super().__init__(model, cache)
        self.kernel = kernel
        self._ids, self._alive, self._stops_at = (self._zeros() for _ in range(3))
        self._lengths, self._tokens = self._zeros() + 1, self._zeros()
        self._graph: Any = None
        self._landing: _Copy | None = None
        self._done = 0

    def _zeros(self) -> Tensor:
        return torch.zeros(self.cache.rows, dtype=torch.long, device=self.model.device)

    def begin(self, rows: Sequence[Row], places: int) -> None:
        """A new batch; what was queued for the one before is left unread."""
        before = self._stops is not None
        super().begin(rows, self.cache.rows)
        if before or self._stops is not None:  # a graph reads the mask that it was captured with
            self._graph, self._done = None, 0
        self._landing = None

    def next(self, rows: Sequence[Row]) -> list[int]:
        """The tokens of the step queued last time; before they are looked at, the next step is queued."""
        if self._landing is None:
            self._upload(rows)
            self._queue(max(row.prompt.max_new_tokens - len(row.ids) for row in rows))
        landing, self._landing = self._landing, None
        left = max(row.prompt.max_new_tokens - len(row.ids) - 1 for row in rows)
        if left > 0:
            self._queue(left)
        assert landing is not None
        found = landing.tokens()
        return self.tokens([found[row.place] for row in rows])

    def end(self, row: Row) -> None:
        """Count a row as one token long from the next step on."""
        self._alive[row.place] = 0
        self._lengths[row.place] = 1

    def _upload(self, rows: Sequence[Row]) -> None:
        host = torch.zeros(4, self.cache.rows, dtype=torch.long)
        host[1] = 1
        for row in rows:  # a step counts its own token
            host[:, row.place] = torch.tensor([row.ids[-1], row.length - 1, 1, row.stops_at])
        for target, values in zip((self._ids, self._lengths, self._alive, self._stops_at), host, strict=True):
            target.copy_(values)

    def _queue(self, left: int) -> None:
        """Queue one step and the copy of its tokens."""
        if self._graph is None and self._done >= BEFORE and left >= WORTH and self.model.graphs:
            self._capture()
        elif self._graph is not None:
            self._graph.replay()
        else:
            self._step()
        self._done += 1
        self._landing = _Copy(self._tokens)

    def _step(self) -> Tensor:
        self._lengths.add_(self._alive)
        logits = self.model.step(self.cache, self._ids, self._lengths, kernel=self.kernel)
        barred = None if self._stops is None else self._stops & (self._lengths < self._stops_at)[:, None]
        self._tokens.copy_(choose(logits, barred))
        self._ids.copy_(self._tokens.clamp(min=NOT_FINITE + 1))
        return logits

    def _capture(self) -> None:
        """One step as it was, the same captured and replayed: the graph stays if it gives the same logits."""
        before = self._lengths.clone(), self._ids.clone()
        want = self._step().clone()
        after = self._lengths.clone(), self._ids.clone(), self._tokens.clone()
        graph, failure = torch.cuda.CUDAGraph(), ""
        try:
            with torch.cuda.graph(graph):
                found = self._step()
            self._lengths.copy_(before[0])
            self._ids.copy_(before[1])
            graph.replay()
            alive = self._alive.bool()
            if not torch.allclose(found[alive], want[alive], rtol=1e-2, atol=1e-2 * float(want[alive].abs().max())):
                failure = "it gives other logits"
        except RuntimeError as error:
            if is_exhausted(error):
                raise
            failure = " ".join(str(error).split())[:160]
        if failure:
            self.model.graphs = False
            say(f"decoding steps are not captured as a CUDA graph and run as they are ({failure})")
            for target, values in zip((self._lengths, self._ids, self._tokens), after, strict=True):
                target.copy_(values)
            return
        self._graph = graph
