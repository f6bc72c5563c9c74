"""What experiments ask of a model: texts (`Generator`), losses too (`Scorer`), attention too (`AttentionSource`).

A loaded checkpoint is all three; a served model and a function of one's own are generators. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from e2bench.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from e2bench.models.findings import Finding
    from e2bench.rope.methods import RopeScaling
    from e2bench.rope.windows import Scale, ScaleRule


@dataclass(frozen=True)
class Prompt:
    """What to generate from. `settled` says from the text so far that no further token can change the score.

    text: what `ids` were encoded from, for servers that take only text; empty where only the ids are known.
    """

    ids: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    settled: Callable[[str], bool] | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise ModelError(
                "a prompt has no token at all: its text is empty, or the tokenizer drops it, and adds no BOS; "
                "check the data, the prompts and --tokenizer"
            )


@dataclass
class Generation:
    """ids: the new tokens with a final EOS, which `text` leaves out. finish: eos, length or scored."""

    ids: list[int]
    text: str
    finish: str
    seconds: float


class Rope(Protocol):
    """The RoPE scaling of a model, as far as it can be changed."""

    def using(self, scaling: RopeScaling | None, length: int | None = None) -> AbstractContextManager[None]:
        """Inside, a scaling is in force for inputs of `length` tokens; None: the checkpoint's own."""
        ...

    def in_force(self) -> list[float]:
        """The inverse frequencies in use; [] where they are unknown."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A model that continues prompts."""

    name: str
    tokenizer: Any
    native_window: int
    own_scaling: RopeScaling | None
    attention: str
    findings: list[Finding]
    home: Path | None  # of a run in progress: its folder, for what a model writes of itself

    @property
    def dtype(self) -> Any:
        """Of the weights; text where it is unknown."""
        ...

    @property
    def device(self) -> Any:
        """Where inputs go; None for a server or a function."""
        ...

    @property
    def rope(self) -> Rope:
        """Its RoPE scaling."""
        ...

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json."""
        ...

    def expect(self, work: Sequence[tuple[int, RopeScaling]]) -> None:
        """(tokens, scaling) of every part of the run that begins. Raises E2BenchError for one that cannot be had."""
        ...

    def close(self) -> None:
        """Give back what was taken for as long as the model is used."""
        ...

    def rule(self, scale: Scale | None, method: str | None) -> ScaleRule:
        """How g is chosen. Raises E2BenchError where the scale cannot be set from here."""
        ...

    def check_scaling(self, scaling: RopeScaling | None) -> None:
        """Raise ModelError for a scaling that would not be what it says."""
        ...

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with or without what the tokenizer adds."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids without special tokens."""
        ...

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """Estimate of the memory above the weights for `rows` inputs of `tokens`; 0 where it is unknown."""
        ...

    def free_bytes(self) -> int:
        """Memory still free where the weights are."""
        ...

    def decode_rows(self, tokens: int) -> int:
        """How many sequences of `tokens` to run together."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations as (index of the prompt, generation), each as it ends."""
        ...

    def generate_sharing(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """The same for prompts that begin alike: a shared beginning may be read once."""
        ...


@runtime_checkable
class Scorer(Generator, Protocol):
    """A model that gives losses too."""

    def under(self, scaling: RopeScaling | None, length: int) -> AbstractContextManager[None]:
        """A scaling in force inside, for inputs of `length` tokens."""
        ...

    def scoring_bytes(self, tokens: int, rows: int = 1) -> int:
        """Estimate of the memory above the weights to score `rows` windows of `tokens` together."""
        ...

    def scoring_rows(self, tokens: int, given: int | None = None) -> int:
        """How many windows of `tokens` to score together: as many as are worth it, or `given`, where they fit."""
        ...

    def token_nll(self, input_ids: Tensor, first: int = 1) -> Tensor:
        """(B, T) ids -> (B, T - first) nats: the loss of each token from `first` on."""
        ...

    def option_scores(self, options: Sequence[Sequence[int]], first: int = 1) -> list[tuple[float, int]]:
        """(summed log-probability in nats, number of scored tokens) of each option's ids from `first` on."""
        ...


class Rows(Protocol):
    """Takes attention weights as they are computed."""

    def add(self, layer: int, weights: Tensor) -> None:
        """One layer's weights of the last query: (H, keys)."""
        ...

    def close(self) -> None:
        """Every layer of the last token has been seen."""
        ...


@runtime_checkable
class AttentionSource(Scorer, Protocol):
    """A model whose attention can be seen."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def heads(self) -> int:
        """Query heads a layer."""
        ...

    def recording(self, rows: Rows) -> AbstractContextManager[None]:
        """Forward passes inside give `rows` the last query's weights of every attention layer."""
        ...
