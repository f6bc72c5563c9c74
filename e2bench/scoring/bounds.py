"""How much text is scored: some metrics take the product of two texts' lengths in time and memory.

The bounds lie far above what models answer, and no score below them changes. What lies beyond is refused by name: a
score of a part of an answer would be another number, and 0, which LongBench's own scorer gives where ROUGE-L breaks
off, would be a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable

from e2bench.errors import DataError

MOST_CHARS = 1 << 20  # of an answer: about 250,000 tokens
MOST_PAIRED = 1 << 32  # characters of an answer times those of all that it is compared with
LEAST_TEXT = 64  # what a text that it is compared with counts as at least: every one takes a pass over the answer


def check_sample(prediction: str, texts: Iterable[str]) -> None:
    """Raise DataError for an answer that is too long, by itself or for the references and class names beside it."""
    if len(prediction) > MOST_CHARS:
        raise DataError(f"an answer of {len(prediction):,} characters; at most {MOST_CHARS:,} are scored: cut it")
    others = sum(max(len(text), LEAST_TEXT) for text in texts)
    if len(prediction) * others > MOST_PAIRED:
        raise DataError(
            f"an answer of {len(prediction):,} characters beside references and class names of {others:,}; the product "
            f"may be {MOST_PAIRED:,}: cut the answer"
        )


def check_work(steps: int, most: int, metric: str) -> None:
    """Raise DataError where a metric would take more than `most` of its own steps."""
    if steps > most:
        raise DataError(f"{metric} of so long an answer takes {steps:,} steps, and {most:,} are the most: cut it")
