"""Factors that LongRoPE's search found for a model (arXiv 2402.13753): one divisor for each inverse frequency."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.files import read_json

MOST = 1e30  # of a factor; one of no such size is meant
MSCALES = ("short_mscale", "long_mscale")  # the factor on cos and sin for each list: Phi-3.5-MoE, and engines
NATIVE = "original_max_position_embeddings"
PLACES = ("rope_parameters", "rope_scaling")  # where a checkpoint's config.json has them


@dataclass(frozen=True)
class Factors:
    """d/2 divisors for inputs of up to L tokens, and those for longer ones.

    attention: the factor on cos and sin; None: sqrt(1 + ln g / ln L), as transformers has it for Phi-3.
    native: L in tokens of the model that they were searched for, where the file says it.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    attention: float | None = None
    native: int | None = field(default=None, compare=False, repr=False)  # who they are for is no part of what they are

    def parameters(self) -> dict[str, Any]:
        """The same in the words of transformers' `rope_parameters`."""
        lists = {"short_factor": list(self.short), "long_factor": list(self.long)}
        return lists if self.attention is None else {**lists, "attention_factor": self.attention}

    def check(self, frequencies: int, native: int) -> None:
        """Raise E2BenchError for a model with another number of inverse frequencies, or another L (`native`)."""
        if len(self.long) != frequencies:
            raise E2BenchError(
                f"--factors has {len(self.long)} factors, and the model {frequencies} rotary frequencies: "
                "they were searched for another model"
            )
        if self.native is not None and self.native != native:
            raise E2BenchError(
                f"--factors says {NATIVE} = {self.native}, and the model's L is {native}: short and long factors would "
                f"change places at another length than searched; give --native-window {self.native} if that is the "
                "model's, else other factors"
            )


def read_factors(path: Path) -> Factors:
    """The factors in a JSON file: `long_factor` and, if it has one, `short_factor` (else all 1), `attention_factor`.

    They stand at the top, or in `rope_parameters` or `rope_scaling`: a checkpoint's config.json will do, or its
    folder. Raises E2BenchError for a file without them, for what are no positive numbers, and for
    a file with mscales, whose frequencies alone would be another model's.
    """
    path = path / "config.json" if path.is_dir() else path
    stored = read_json(path)
    places = [one for one in (stored, *map(stored.get, PLACES)) if isinstance(one, dict)]
    found = next((one for one in places if "long_factor" in one), None)
    if found is None:
        raise E2BenchError(
            f"{path} has no long_factor; give a JSON file with long_factor and short_factor, such as the config.json "
            "of a LongRoPE checkpoint"
        )
    long = _numbers(found["long_factor"], path, "long_factor")
    short = _numbers(found.get("short_factor", [1.0] * len(long)), path, "short_factor")
    if len(short) != len(long):
        raise E2BenchError(f"{path}: {len(short)} numbers in short_factor, {len(long)} in long_factor")
    if mscales := [name for name in MSCALES if found.get(name) is not None]:
        raise E2BenchError(
            f"{path} has {' and '.join(mscales)}, a factor on cos and sin for each list, which --factors does not set; "
            "leave --method and --factors out to run that checkpoint as it is, or write its one attention_factor"
        )
    attention = found.get("attention_factor")
    factor = None if attention is None else _numbers([attention], path, "attention_factor")[0]
    native = found.get(NATIVE, stored.get(NATIVE))
    return Factors(short, long, factor, native if isinstance(native, int) else None)


def _numbers(values: Any, path: Path, name: str) -> tuple[float, ...]:
    numbers = values if isinstance(values, list) else []
    good = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n <= MOST]
    if not good or len(good) != len(numbers):
        raise E2BenchError(f"{path}: {name} must be a list of positive numbers")
    return tuple(good)
