"""RoPE scaling methods: one row each, in the words of transformers' `rope_parameters`.

Symbols: L native window, L' extended window, g = L'/L scale (`factor`), d rotary dimension.
E²-LLM (arXiv 2401.06951, eq. 4) and Position Interpolation (arXiv 2306.15595) rotate position m at m / g, which is the
same as dividing the inverse frequencies by g.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from e2bench.errors import E2BenchError, UnknownName
from e2bench.rope.factors import Factors
from e2bench.rope.own import fixed_angles

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way from a factor g to inverse frequencies.

    label: in tables and legends.
    parameters: (g, L in tokens) -> `rope_parameters` for transformers' own RoPE code, without theta; None: the config's
        own are kept, so that only a checkpoint can ask for the method.
    seq_len: (g, L, tokens of the input) -> the length that transformers computes the frequencies for; None: no length.
    factor: (L, tokens of the input) -> the factor for that input; None: g itself.
    by_length: whether the frequencies follow each input's length, so that a batch holds one prompt.
    in_config: whether a config says the same at every length (export, servers).
    plain_at_one: whether g = 1 is the pretrained rotation.    searched: whether it needs factors from a file.
    """

    name: str
    label: str
    parameters: Callable[[float, int], Parameters] | None
    seq_len: Callable[[float, int, int], int] | None = None
    factor: Callable[[int, int], float] | None = None
    by_length: bool = False
    in_config: bool = True
    plain_at_one: bool = True
    searched: bool = False

    @property
    def own(self) -> bool:
        """Whether only a checkpoint's config can ask for it."""
        return self.parameters is None


def _default(g: float, native: int) -> Parameters:
    return {"rope_type": "default"}


def _linear(g: float, native: int) -> Parameters:
    return {"rope_type": "linear", "factor": float(g)}


def _yarn(g: float, native: int) -> Parameters:
    return {"rope_type": "yarn", "factor": float(g), "original_max_position_embeddings": native}


def _frozen_ntk(g: float, native: int) -> Parameters:
    """transformers' dynamic NTK frozen at g·L with factor 1: base' = base · g^(d/(d-2))."""
    return {"rope_type": "dynamic", "factor": 1.0}


def _dynamic(g: float, native: int) -> Parameters:
    return {"rope_type": "dynamic", "factor": float(g)}


def _longrope(g: float, native: int) -> Parameters:
    """Its factors come from `RopeScaling.factors`."""
    return {"rope_type": "longrope", "factor": float(g), "original_max_position_embeddings": native}


def _extended(g: float, native: int, tokens: int) -> int:
    return math.ceil(g * native)


def _needed(native: int, tokens: int) -> float:
    """Dynamic YaRN's scale: 1 up to L tokens, beyond it what they need; g only says how long inputs may be."""
    return max(1.0, tokens / native)


def _at_least_native(g: float, native: int, tokens: int) -> int:
    return max(tokens, native)


ROWS = (
    Method("none", "None", _default),
    Method("linear", "PI", _linear),  # E² too: arXiv 2306.15595, 2401.06951
    Method("ntk", "NTK", _frozen_ntk, _extended, in_config=False),
    Method("dynamic", "Dynamic NTK", _dynamic, _at_least_native, by_length=True, in_config=False, plain_at_one=False),
    Method("yarn", "YaRN", _yarn),  # arXiv 2309.00071
    Method("dynamic-yarn", "Dynamic YaRN", _yarn, factor=_needed, by_length=True, in_config=False, plain_at_one=False),
    Method(  # arXiv 2402.13753: short factors up to L tokens, long ones beyond
        "longrope",
        "LongRoPE",
        _longrope,
        _at_least_native,
        by_length=True,
        in_config=False,
        plain_at_one=False,
        searched=True,
    ),
    Method("checkpoint", "the checkpoint's own", None, plain_at_one=False),
)
BY_NAME = {row.name: row for row in ROWS}
METHODS = tuple(row.name for row in ROWS if not row.own)  # what `--method` takes
_BY_ANY_NAME = {name.lower(): row.name for row in ROWS if not row.own for name in (row.label, row.name)}
OWN_METHODS = ("yarn", "llama3", "longrope")  # scalings inside a checkpoint that a plain factor cannot replace
BY_LENGTH = tuple(row.name for row in ROWS if row.by_length)


def parse_method(text: str) -> str:
    """A method's name from its name or label in any case (`PI`, `YaRN`, `NTK`); another text as it is."""
    return _BY_ANY_NAME.get(text.strip().lower(), text)


def unscaled(parameters: Parameters) -> Parameters:
    """What describes the rotation whatever its scaling."""
    return {k: v for k, v in parameters.items() if k in ("rope_theta", "partial_rotary_factor")}


@dataclass(frozen=True)
class RopeScaling:
    """A scaling method and its factor g.

    method: `none` (as pretrained), `linear` (PI and E²), `ntk` (NTK-aware base, fixed), `dynamic` (NTK base from the
        length of each input), `yarn` (arXiv 2309.00071), `dynamic-yarn` (the same with the factor that each input's
        length needs; jquesnelle/yarn, scaled_rope/LlamaDynamicYaRNScaledRotaryEmbedding.py at a18e549); or what a
        checkpoint's config says: `longrope` (arXiv 2402.13753, short or long factors by the length of each input), else
        `checkpoint`.
    factor: g >= 1.    factors: of `longrope` from a file; a checkpoint's own are in its config.
    """

    method: str = "linear"
    factor: float = 1.0
    factors: Factors | None = None
    own: bool = field(default=False, compare=False)  # the checkpoint's, to be used as transformers built it

    def __post_init__(self) -> None:
        if self.method not in BY_NAME:
            raise UnknownName("RoPE method", self.method, list(METHODS))
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise E2BenchError(f"scale {self.factor:g} is not possible: it must be a finite number of at least 1")

    @property
    def row(self) -> Method:
        """The method's row."""
        return BY_NAME[self.method]

    @property
    def is_plain(self) -> bool:
        """Whether it is the pretrained rotation."""
        return self.method == "none" or (self.factor == 1 and self.row.plain_at_one)

    def for_input(self, native: int, tokens: int) -> RopeScaling:
        """The scaling with the factor for an input of so many tokens."""
        return self if self.row.factor is None else replace(self, factor=self.row.factor(native, tokens))

    def replacing(self, current: Parameters, native: int) -> Parameters:
        """`rope_parameters` in place of `current`: what else describes the rotation kept, the type and factor replaced.

        Raises ValueError for a checkpoint's own scaling, which is kept, not made; E2BenchError for missing factors, and
        for a method that would replace angles which the model was trained with (`rope.own`).
        """
        kept = unscaled(current)
        if fixed := fixed_angles(current):
            if not self.is_plain and self.method != "linear":
                raise E2BenchError(
                    f"this checkpoint was trained with the angles of a scaled base, which {self.method} would replace; "
                    "give --method linear (its own angles divided by g) or none"
                )
            return {**kept, **fixed.parameters(1.0 if self.is_plain else self.factor, native)}
        if self.is_plain:
            return {**kept, "rope_type": "default"}
        if self.row.parameters is None:
            raise ValueError(f"{self.method} is a checkpoint's own scaling")
        new = self.row.parameters(self.factor, native)
        if not self.row.searched:
            return {**kept, **new}
        if self.factors is None:
            raise E2BenchError(
                f"--method {self.method} needs factors that were searched for the model: give --factors FILE"
            )
        return {**kept, **new, **self.factors.parameters()}


def scale_for_window(window: int, native: int) -> int:
    """The smallest integer g >= 1 with g·L >= window, both in tokens (`--scale auto`; LongLoRA's rule)."""
    return max(1, -(-window // native))
