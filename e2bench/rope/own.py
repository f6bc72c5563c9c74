"""A checkpoint's own scaled angles as a native rotation: theta's inverse frequencies, each over one fixed divisor.

E² divides the angles that a model was trained with. Those of a base with llama3 or yarn scaling, over g, are no llama3
or yarn rotation with another factor. A config can say them as `longrope` with the same list for short and long inputs:
divisor × g for each frequency, at every length. transformers takes the factor on cos and sin from `attention_factor`,
vLLM from `short_mscale` and `long_mscale` (phi3_long_rope_scaled_rope.py at 17d618b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from e2bench.rope.factors import MSCALES, Factors


@dataclass(frozen=True)
class FixedAngles:
    """divisors: d/2, at least 1, of theta's inverse frequencies at g = 1.    attention: the factor on cos and sin."""

    divisors: tuple[float, ...]
    attention: float

    def parameters(self, g: float, native: int) -> dict[str, Any]:
        """The angles over g in the words of `rope_parameters`, but for theta. native: L in tokens."""
        divided = tuple(g * one for one in self.divisors)
        return {
            "rope_type": "longrope",
            "factor": float(g),
            "original_max_position_embeddings": native,
            **Factors(divided, divided, self.attention).parameters(),
            **dict.fromkeys(MSCALES, self.attention),
        }


def fixed_angles(parameters: dict[str, Any]) -> FixedAngles | None:
    """What `FixedAngles.parameters` wrote, whatever its g; None for other parameters.

    A scaling found by LongRoPE's search leaves the fastest frequencies nearly alone: some of its factors are below g.
    """
    g, attention = parameters.get("factor"), parameters.get("attention_factor")
    factors = parameters.get("long_factor")
    if parameters.get("rope_type") != "longrope" or not g or attention is None or not factors:
        return None
    if factors != parameters.get("short_factor") or min(factors) < g:
        return None
    return FixedAngles(tuple(one / g for one in factors), float(attention))
