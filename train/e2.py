"""E² positions, as pure functions: draw a scale g and an offset t, and rotate token m at (m + t_m) / g.

Symbols (E²-LLM, arXiv 2401.06951, eq. 5-8): L native window, R train window (tokens of a training row), g scale, t
position offset, L' = g·L extended window. The rivals are settings of the same functions: plain training, Position
Interpolation (PI, arXiv 2306.15595: fixed g, no offset, R = L') and PoSE (arXiv 2309.10400: fixed g, two chunks, a
skip between them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2bench.errors import E2BenchError, UnknownName

TRAIN_METHODS = ("e2", "none", "pi", "pose")


@dataclass(frozen=True)
class E2Settings:
    """What decides the positions of a training row.

    method: `e2`, `pi` (fixed `scale`, t = 0), `pose` (fixed `scale`, the skip begins anywhere) or `none` (g = 1, t
    = 0).
    offset: draw t; false is the ablation "without t".    scale: a fixed g in place of a drawn one ("without g").
    g_max: largest scale drawn.    per_sample: one (g, t) a row instead of one a step.
    sinks: first tokens that keep t = 0, the attention sinks.    seed: of the draws.
    native_window, train_window: L and R in tokens. Raises UnknownName or E2BenchError for settings that cannot be.
    """

    native_window: int
    train_window: int
    method: str = "e2"
    offset: bool = True
    scale: int | None = None
    g_max: int = 20
    per_sample: bool = False
    sinks: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in TRAIN_METHODS:
            raise UnknownName("training method", self.method, list(TRAIN_METHODS))
        if self.method in ("pi", "pose") and self.scale is None:
            raise E2BenchError(f"method {self.method!r} needs its fixed scale: add scale: 8 (or another) to the recipe")
        for name in ("native_window", "train_window", "g_max"):
            if getattr(self, name) < 1:
                raise E2BenchError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.scale is not None and self.scale < 1:
            raise E2BenchError(f"scale is {self.scale}: it must be at least 1")


@dataclass(frozen=True)
class Draw:
    """Position m of a row is rotated at (m + (offset if m >= start else 0)) / scale."""

    scale: int
    offset: int
    start: int


def max_offset(scale: int, native_window: int, train_window: int) -> int:
    """t_max = g·L - R in tokens (eq. 7), no position then leaves the extended window; 0 where R is longer than it."""
    return max(0, scale * native_window - train_window)


def draw(settings: E2Settings, step: int, sample: int = 0) -> Draw:
    """The scale and offset of one row: the same in any process, at any restart, whatever was drawn before.

    Philox is counter-based: (step, sample) is its counter and the seed its key, so nothing is kept between draws.
    step: optimizer step.    sample: row of the step; without `per_sample` every row of a step draws the same.
    Source: E²-LLM (arXiv 2401.06951), eq. 5-8 and Algorithm 1; Philox: Salmon et al., SC 2011.
    """
    if settings.method == "none":
        return Draw(1, 0, settings.sinks)
    counter = [0, 0, step, sample if settings.per_sample else 0]
    rng = np.random.Generator(np.random.Philox(key=settings.seed, counter=counter))
    scale = settings.scale or int(rng.integers(1, settings.g_max, endpoint=True))
    limit = max_offset(scale, settings.native_window, settings.train_window)
    if settings.method == "pi" or not settings.offset:
        return Draw(scale, 0, settings.sinks)
    offset = int(rng.integers(0, limit, endpoint=True))
    if settings.method == "pose":
        return Draw(scale, offset, int(rng.integers(1, max(2, settings.train_window))))
    return Draw(scale, offset, settings.sinks)


def positions(train_window: int, scale: float, offset: int, sinks: int = 4) -> NDArray[np.float32]:
    """Rotary positions (R,) float32 of a row: (m + t_m) / g, t_m = 0 for the first `sinks` tokens (eq. 5, 8).

    Integers up to 2^24 are exact in float32; the division rounds once.
    """
    m = np.arange(train_window, dtype=np.float32)
    return (m + np.where(m < sinks, np.float32(0), np.float32(offset))) / np.float32(scale)
