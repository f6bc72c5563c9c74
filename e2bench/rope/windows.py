"""What `--scale`, `--method`, `--window` and `--lengths` mean for a model: the rules of DESIGN in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from e2bench.errors import E2BenchError
from e2bench.rope.factors import Factors
from e2bench.rope.methods import BY_NAME, OWN_METHODS, RopeScaling, scale_for_window

K = 1024
AUTO, PER_INPUT = "auto", "per-input"


@dataclass(frozen=True)
class ScaleRule:
    """How g is chosen: fixed numbers, `auto` (smallest g that covers the window), or `per-input`.

    method: of RoPE scaling.    factors: of `longrope` from a file.    own: the checkpoint's own scaling, used as it is
        when nothing was asked for.
    """

    kind: str  # "fixed", AUTO, PER_INPUT or "own"
    values: tuple[float, ...]
    method: str
    native: int
    own: RopeScaling | None = None
    factors: Factors | None = None

    def scaling(self, window: int, value: float | None = None) -> RopeScaling:
        """The scaling for a window of so many tokens; `value` picks one of several fixed numbers (None: the first)."""
        if self.kind == "own" and self.own is not None:
            return self.own
        if self.method == "none":
            return RopeScaling("none", 1)
        if self.kind == "fixed":
            return RopeScaling(self.method, self.values[0] if value is None else value, self.factors)
        return RopeScaling(self.method, scale_for_window(window, self.native), self.factors)

    def searched(self, factors: Factors | None) -> ScaleRule:
        """The same with factors from a file. Raises E2BenchError where they are missing, or nothing takes them."""
        takes = self.kind != "own" and BY_NAME[self.method].searched
        if takes and factors is None:
            raise E2BenchError(
                f"--method {self.method} needs factors that were searched for the model: give --factors FILE"
            )
        if factors is not None and not takes:
            raise E2BenchError("--factors are LongRoPE's: give --method longrope with them")
        return replace(self, factors=factors)

    def window(self, given: int | None) -> int:
        """The window of a run in tokens: `--window` if given, else g·L, with several g the largest."""
        if given is not None:
            return given
        if self.kind == "own" and self.own is not None:
            return int(self.own.factor * self.native)
        return int(max(self.values) * self.native) if self.kind == "fixed" else self.native


def scale_rule(scale: Scale | None, method: str | None, native: int, own: RopeScaling | None) -> ScaleRule:
    """Settle `--scale` and `--method` against what the checkpoint carries.

    Not given: the checkpoint's own scaling if it has one, else auto. Given: it replaces a linear one; a checkpoint with
    yarn, llama3 or longrope is refused unless `--method` says what is meant.
    native: L in tokens.    own: what `rope.checkpoint_scaling` found.
    Raises E2BenchError for a checkpoint's own scaling that would be lost.
    """
    if scale is None and method is None and own is not None:
        return ScaleRule("own", (own.factor,), own.method, native, own)
    if method is None and own is not None and own.method in ("checkpoint", *OWN_METHODS):
        raise E2BenchError(
            f"the checkpoint has its own RoPE scaling (one of {', '.join(OWN_METHODS)}), which --scale would replace; "
            "say what is meant with --method, or leave --scale out to keep it"
        )
    chosen = scale or Scale(AUTO)
    return ScaleRule(chosen.kind, chosen.values, method or "linear", native)


@dataclass(frozen=True)
class Scale:
    """What `--scale` asks for: `fixed` with one or more values of g, `auto` or `per-input`."""

    kind: str
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{value:g}" for value in self.values) or self.kind


def parse_scale(text: str) -> Scale:
    """The scale that a text means. Raises E2BenchError for what is no number, and for a number below 1."""
    if text in (AUTO, PER_INPUT):
        return Scale(text)
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise E2BenchError(
                f"scale {text!r} is not a number; give a number of at least 1, a list of them, auto or per-input"
            ) from None
        if not math.isfinite(value) or value < 1:
            raise E2BenchError(f"scale {part} is not possible: it must be a finite number of at least 1")
        values.append(value)
    return Scale("fixed", tuple(values))


def parse_length(text: str) -> int:
    """Tokens: `4k` is 4,096, `1M` is 1,048,576; plain numbers as they are. Raises E2BenchError for anything else."""
    factor = {"k": K, "m": K * K}.get(text[-1:].lower(), 1)
    number = text if factor == 1 else text[:-1]
    try:
        tokens = float(number) * factor
    except ValueError:
        tokens = math.nan
    if not (1 <= tokens < math.inf and tokens == int(tokens)):
        raise E2BenchError(f"length {text!r} is not a number of tokens; write 4096, 4k, 4k,8k or 4k..64k")
    return int(tokens)


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths in tokens of `4k..64k` (doubling, always ending with the end point) and comma lists.

    Raises E2BenchError when they are not in growing order, each once.
    """
    lengths: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dots, last = part.partition("..")
        begin, end = parse_length(first), parse_length(last if dots else first)
        if begin > end:
            raise E2BenchError(f"lengths {part!r} run backwards; write the shorter one first")
        while begin < end:
            lengths.append(begin)
            begin *= 2
        lengths.append(end)
    if not lengths or sorted(set(lengths)) != lengths:
        raise E2BenchError(f"lengths {text!r} are not in growing order; write them from short to long, each once")
    return tuple(lengths)


def short_length(tokens: int) -> str:
    """4,096 as `4k`; what is no multiple of 1,024 as it is."""
    return f"{tokens // K}k" if tokens % K == 0 else str(tokens)


def short_number(value: float) -> int | float:
    """8.0 as 8: a scale as people write it."""
    return int(value) if float(value).is_integer() else value
