"""What models behind a text interface share: a tokenizer's words, and a scaling that is not ours to set."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from e2bench.models.findings import Finding
from e2bench.models.tokenizers import unbroken
from e2bench.rope.methods import RopeScaling

LONG_TEXT, KEPT_TEXTS = 100_000, 64  # characters; the runs of a suite read the same long documents


class Texts:
    """Texts to token ids and back, by the tokenizer of a subclass."""

    tokenizer: Any
    home: Path | None = None  # of a run in progress: its folder, for what a model writes of itself

    def expect(self, work: Sequence[tuple[int, RopeScaling]]) -> None:
        """(tokens of prompt and answer, scaling) of every part of the run that is about to begin; of no matter here."""

    def close(self) -> None:
        """Give back what was taken for as long as the model is used; nothing where it is only memory."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with what the tokenizer adds (BOS) or without. Those of the last long texts are kept."""
        if len(text) < LONG_TEXT:
            return self._encode(text, special_tokens)
        kept: dict[tuple[bytes, bool], array[int]] = self.__dict__.setdefault("_kept_ids", {})
        key = sha256(text.encode("utf-8", "surrogatepass")).digest(), special_tokens
        if key not in kept:
            if len(kept) == KEPT_TEXTS:
                del kept[next(iter(kept))]
            kept[key] = array("i", self._encode(text, special_tokens))
        return kept[key].tolist()

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        with unbroken(self.tokenizer):
            ids: list[int] = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids without special tokens, not stripped."""
        with unbroken(self.tokenizer):
            return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Remote(Texts):
    """A generator whose weights are not here: no memory of ours, no frequencies to check."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def check_scaling(self, scaling: RopeScaling | None) -> None:
        """The scaling is the server's or the function's own."""

    def free_bytes(self) -> int:
        """Memory here: none is needed."""
        return 0
