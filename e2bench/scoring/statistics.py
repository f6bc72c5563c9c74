"""Means and their 95 % intervals. What each number is the mean of is said where it is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
PICKED = 1 << 20  # indices drawn at a time: 8 MiB


def interval(values: Sequence[float], *, seed: int = 0) -> list[float] | None:
    """Bootstrap 95 % percentile interval [low, high] of the mean, in the values' unit; None for fewer than two values.

    RESAMPLES draws with replacement from numpy's default generator of `seed`: the same values give the same interval.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    means = np.concatenate([data[picks].mean(axis=1) for picks in _resamples(len(data), np.random.default_rng(seed))])
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def _resamples(values: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """(rows, values) indices drawn with replacement, RESAMPLES rows in all, a few at a time.

    The generator draws the same numbers in blocks as at once, so the memory is bounded and the intervals are the same.
    """
    rows = max(1, PICKED // values)
    for start in range(0, RESAMPLES, rows):
        yield generator.integers(0, values, (min(rows, RESAMPLES - start), values))


def stratified_interval(groups: Sequence[Sequence[float]]) -> list[float] | None:
    """Bootstrap 95 % interval [low, high] of the mean of the groups' means, every group drawn from on its own.

    None where a group has fewer than two values, or there is none.
    """
    if not groups or min(map(len, groups)) < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = np.zeros(RESAMPLES)
    for group in groups:
        data = np.asarray(group, dtype=np.float64)
        drawn += np.concatenate([data[picked].mean(axis=1) for picked in _resamples(len(data), rng)])
    return [float(bound) for bound in np.percentile(drawn / len(groups), [2.5, 97.5])]


def mean(values: Sequence[float]) -> float | None:
    """Plain mean, None for none. Rounded once: Python 3.12's `sum` has other last bits than 3.11's."""
    return math.fsum(values) / len(values) if values else None


def ratio_interval(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> list[float] | None:
    """Bootstrap 95 % interval [low, high] of sum(sums) / sum(weights), (N,) each; None for fewer than two."""
    if len(sums) < 2:
        return None
    drawn = _resamples(len(sums), np.random.default_rng(0))
    ratios = np.concatenate([sums[picks].sum(axis=1) / weights[picks].sum(axis=1) for picks in drawn])
    return [float(bound) for bound in np.percentile(ratios, [2.5, 97.5])]


def perplexity_of(nats: float) -> float:
    """exp of nats a token, of at most 700 of them: what a broken model loses stays a number."""
    return math.exp(min(float(nats), 700.0))


def wilson(hits: int, trials: int, z: float = 1.959964) -> list[float]:
    """Wilson's 95 % score interval of a share (Wilson 1927): stays inside [0, 1] also for 0 and all hits."""
    share = hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if hits == 0 else max(0.0, middle - half)  # exactly: rounding leaves 6e-17
    return [low, 1.0 if hits == trials else min(1.0, middle + half)]
