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


class Configured(Texts):
    """A causal language model's sizes, native window L and own scaling. Subclasses set the attributes.

    config: the text model's.    chunked: whether a long input goes through it in chunks.
    """

    config: Any
    native_window: int
    own_scaling: RopeScaling | None
    vocab_size: int
    chunked: bool = True

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
        logits = 2 * min(chunk, SCORED_ROWS) * self.vocab_size * 4
        return (
            rows * tokens * self.kv_bytes_per_token
            + chunk * memory.activation_bytes_per_token(self.config, self.dtype.itemsize)
            + logits
        )
