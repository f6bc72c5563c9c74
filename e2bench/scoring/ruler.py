"""RULER's two metrics, and what it makes of them over lengths. No I/O, no model, no torch.

Source: scripts/eval of NVIDIA/RULER at c3f5e3b: evaluate.py (clean-up), synthetic/constants.py (metrics), README
(effective length, weighted averages). Its scorer rounds a task's score to two decimals; here nothing is rounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from e2bench.scoring.bounds import check_sample

CONTROL = re.compile(r"[\x00-\x1f]")


class ListMetric(Protocol):
    """Score in [0, 1] of one prediction against all of its references together."""

    __name__: str

    def __call__(self, prediction: str, references: Sequence[str]) -> float:
        """In [0, 1]. Raises DataError for what is too long (`bounds`)."""
        ...


def cleaned(prediction: str) -> str:
    """The answer as RULER scores it: control characters become newlines; white space at both ends is dropped."""
    return CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that the answer contains, upper and lower case alike; 0 without a reference."""
    found = _contained(prediction, references)
    return sum(found) / len(found) if found else 0.0


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 where the answer contains any of the references, upper and lower case alike, else 0."""
    return float(any(_contained(prediction, references)))


def _contained(prediction: str, references: Sequence[str]) -> list[bool]:
    check_sample(prediction, references)
    text = cleaned(prediction).lower()
    return [reference.lower() in text for reference in references]


def effective_length(means: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The longest length whose mean, and that of all shorter ones, is at least `threshold`; None where none is.

    means: (length in tokens, mean of all tasks in percent).
    """
    found = None
    for length, mean in sorted(means):
        if mean < threshold:
            break
        found = length
    return found


def weighted_mean(means: Sequence[tuple[int, float]], *, increasing: bool) -> float | None:
    """Mean over lengths with weights 1, 2, 3, …; the largest weight is the longest length's, or the shortest's.

    RULER's wAvg. (inc) and wAvg. (dec). None for no length.
    """
    ordered = [mean for _, mean in sorted(means, reverse=not increasing)]
    weights = range(1, len(ordered) + 1)
    return sum(w * mean for w, mean in zip(weights, ordered, strict=True)) / sum(weights) if ordered else None
