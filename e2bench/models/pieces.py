"""Modules that treat each token alone, run a piece of the tokens at a time.

A window is scored in one pass without a key-value cache: no layer's keys and values are needed once the layer is done.
What remains is a few arrays of tokens × hidden size and, in the MLP, of tokens × intermediate size, which is several
times wider. In pieces the MLP's arrays have a fixed size, whatever the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# What families call the part of a layer that mixes no tokens. The loading probe tries it; where nothing of these names
# is found, the part runs whole: more memory, the same numbers.
TOKENWISE = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


def tokenwise(hf: torch.nn.Module) -> list[torch.nn.Module]:
    """A model's modules of these names."""
    return [module for name, module in hf.named_modules() if name.rpartition(".")[2] in TOKENWISE]


class TokenPieces:
    """Modules that mix no tokens; inside `with`, each takes at most `tokens` of a longer input at once."""

    def __init__(self, modules: Iterable[torch.nn.Module], tokens: int) -> None:
        self.modules, self.tokens = list(modules), tokens
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = [vars(module).get("forward") for module in self.modules]  # accelerate may have put one there
        for module in self.modules:
            module.forward = self._cut(module.forward)

    def __exit__(self, *exception: object) -> None:
        for module, before in zip(self.modules, self._before, strict=True):
            del module.forward
            if before is not None:
                module.forward = before

    @contextmanager
    def of(self, tokens: int) -> Iterator[None]:
        """Pieces of another size inside: the loading probe tries them on a short input."""
        self.tokens, kept = tokens, self.tokens
        try:
            yield
        finally:
            self.tokens = kept

    def _cut(self, whole: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def forward(hidden: Tensor) -> Any:
            """(B, T, hidden) -> (B, T, hidden); what gives more than that (a router's scores) runs whole."""
            tokens = hidden.reshape(1, -1, hidden.shape[-1])
            if tokens.shape[1] <= self.tokens:
                return whole(hidden)
            output = torch.empty_like(tokens)
            for begin in range(0, tokens.shape[1], self.tokens):
                piece = whole(tokens[:, begin : begin + self.tokens])
                if not isinstance(piece, Tensor):
                    return whole(hidden)
                output[:, begin : begin + self.tokens] = piece
            return output.view(hidden.shape)

        return forward
