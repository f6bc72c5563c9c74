"""What follows from a model's config alone, its weights loaded (`local`) or only planned for (`outline`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from e2bench.models import memory
from e2bench.models.texts import Texts
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import Scale, ScaleRule, scale_rule

if TYPE_CHECKING:
    import torch

CHUNK_TOKENS = 4096  # of a prefill; bounds activations, not results
SCORED_ROWS = 512  # logits rows held at once: 512 × 50k × 4 bytes = 100 MB
# On a GPU a piece fills the card with matrix products; on a CPU it is a prefill's chunk.
PIECE_TOKENS = {"cpu": 4096, "cuda": 8192}


class Configured(Texts):
    """A causal language model's sizes, native window L and own scaling. Subclasses set the attributes.

    config: the text model's.    chunked: whether a long input goes through it in chunks.
    one_pass: whether a window is scored without a cache; so it is for all but a few (the loading probe decides).
    compiled: the compiled body, if any: its MLPs run whole.
    """

    config: Any
    native_window: int
    own_scaling: RopeScaling | None
    vocab_size: int
    chunked: bool = True
    one_pass: bool = True
    compiled: Any = None

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        raise NotImplementedError

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Query heads a layer."""
        return int(self.config.num_attention_heads)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of context holds."""
        return memory.kv_bytes_per_token(self.config, self.dtype.itemsize)

    def rule(self, scale: Scale | None, method: str | None) -> ScaleRule:
        """How a run chooses g, from what `--scale` and `--method` say and the checkpoint's own scaling."""
        return scale_rule(scale, method, self.native_window, self.own_scaling)

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """Estimate above the weights: cache of `rows` × `tokens`, one chunk's activations, one block of logits."""
        chunk = min(tokens, CHUNK_TOKENS) if self.chunked else tokens
        cached = memory.cached_bytes(self.config, self.dtype.itemsize, tokens, rows, chunk)
        return cached + memory.logits_bytes(self.vocab_size, min(chunk, SCORED_ROWS))

    @property
    def piece_tokens(self) -> int:
        """Tokens that an MLP takes at once where a window is scored in one pass."""
        return PIECE_TOKENS.get(self.device.type, CHUNK_TOKENS)

    def scoring_bytes(self, tokens: int, rows: int = 1) -> int:
        """Estimate above the weights to score `rows` windows of `tokens`; in one pass no layer's states are kept."""
        if not self.one_pass:
            return self.needed_bytes(tokens, rows)
        piece = rows * tokens if self.compiled else self.piece_tokens
        states = memory.pass_bytes(self.config, self.dtype.itemsize, tokens, rows, piece)
        return states + memory.logits_bytes(self.vocab_size, min(rows * tokens, SCORED_ROWS))
