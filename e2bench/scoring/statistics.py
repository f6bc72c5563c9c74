"""Means and their 95 % intervals. What each number is the mean of is said where it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def interval(values: Sequence[float], *, seed: int = 0) -> list[float] | None:
    """Bootstrap 95 % percentile interval [low, high] of the mean, in the values' unit; None for fewer than two values.

    RESAMPLES draws with replacement from numpy's default generator of `seed`: the same values give the same interval.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


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
        drawn += data[rng.integers(0, len(data), (RESAMPLES, len(data)))].mean(axis=1)
    return [float(bound) for bound in np.percentile(drawn / len(groups), [2.5, 97.5])]


def mean(values: Sequence[float]) -> float | None:
    """Plain mean, None for none. Rounded once: Python 3.12's `sum` has other last bits than 3.11's."""
    return math.fsum(values) / len(values) if values else None


def ratio_interval(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> list[float] | None:
    """Bootstrap 95 % interval [low, high] of sum(sums) / sum(weights), (N,) each; None for fewer than two."""
    if len(sums) < 2:
        return None
    picks = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    ratios = sums[picks].sum(axis=1) / weights[picks].sum(axis=1)
    return [float(bound) for bound in np.percentile(ratios, [2.5, 97.5])]


def wilson(hits: int, trials: int, z: float = 1.959964) -> list[float]:
    """Wilson's 95 % score interval of a share (Wilson 1927): stays inside [0, 1] also for 0 and all hits."""
    share = hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if hits == 0 else max(0.0, middle - half)  # exactly: rounding leaves 6e-17
    return [low, 1.0 if hits == trials else min(1.0, middle + half)]
