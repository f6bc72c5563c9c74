"""How long a sample may be, and the search for how much hay fits.

A sample is as long as fits a window with its answer. Its size is a number of units: lines of noise, needles, words of
an essay, words of a list or documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from e2bench.errors import E2BenchError
from e2bench.rope.windows import short_length

SHORT = 4096  # RULER makes its tasks easier, and its steps smaller, in windows below this one
TRIES = 20  # of RULER's smallest size: words differ in tokens, so that a later draw may fit


@dataclass(frozen=True)
class Drawn:
    """One sample: the prompt, the beginning of the answer that is given with it, and the references."""

    input: str
    answer_prefix: str
    outputs: list[str]


@dataclass(frozen=True)
class Budget:
    """What a sample may cost.

    tokens: of (prompt, answer prefix) as they are fed.    window: tokens of prompt and answer together.
    new_tokens: of the answer.    seed: of every draw.    name: of the task, for messages.
    """

    tokens: Callable[[str, str], int]
    window: int
    new_tokens: int
    seed: int
    name: str = ""

    def length(self, drawn: Drawn) -> int:
        """Tokens of a sample, the answer's included."""
        return self.tokens(drawn.input, drawn.answer_prefix) + self.new_tokens

    def fits(self, drawn: Drawn) -> bool:
        """Whether a sample and its answer are within the window."""
        return self.length(drawn) <= self.window


Draw = Callable[[int], Drawn]  # size -> a sample of so many units; each call draws anew


def guess(draw: Draw, budget: Budget, units: int) -> int:
    """Three times the number of units that should fit, by the tokens of a sample of `units`."""
    drawn = draw(units)
    return int(budget.window / (budget.tokens(drawn.input, drawn.answer_prefix) / units) * 3)


def largest(draw: Draw, fits: Callable[[Drawn], bool], *, first: int, last: int) -> int:
    """The largest size that fits, found by halving `first` … `last`; `first` where none does.

    Every probe draws a sample, so the search is a part of what the seed decides.
    """
    found = first
    low, high = first, max(last, 2 * first)
    while low <= high:
        middle = (low + high) // 2
        drawn = _drawn(draw, middle)
        if drawn is not None and fits(drawn):
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def _drawn(draw: Draw, size: int) -> Drawn | None:
    """A sample, None where there is none: fewer units than things to hide, or a name drawn twice."""
    try:
        return draw(size)
    except ValueError:
        return None


def within(draw: Draw, budget: Budget, size: int, step: int) -> Drawn:
    """A sample of at most `size` units that fits: one too long is drawn again with `step` units less.

    Where a step's worth of units is too long, RULER tries for ever; here fewer are taken then, down to one.
    Raises E2BenchError where that does not fit.
    """
    tries = 0
    while True:
        drawn = _drawn(draw, size)
        if drawn is not None and budget.fits(drawn):
            return drawn
        if size > step:
            size -= step
        elif (tries := tries + 1) < TRIES:
            continue
        elif size > 1:
            size //= 2
        else:
            raise too_short(budget)


def too_short(budget: Budget) -> E2BenchError:
    """The window holds no sample of this task."""
    return E2BenchError(
        f"{budget.name}: its smallest prompt and an answer of {budget.new_tokens} tokens do not fit "
        f"{short_length(budget.window)}; give longer --lengths, or other --tasks"
    )


def fitted(draw: Draw, budget: Budget, *, size: int, step: int) -> Iterator[Drawn]:
    """Samples without end, each of `size` units or of as many fewer as it takes to fit."""
    while True:
        yield within(draw, budget, size, step)
