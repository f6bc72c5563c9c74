"""Chains of variables in lines of noise: which of them have a value? (RULER's variable_tracking.py)"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from e2bench.data.ruler.needles import NOISE
from e2bench.data.ruler.sizing import SHORT, Budget, Drawn, fitted, guess, largest
from e2bench.data.ruler.sources import Sources

EXAMPLE_TOKENS = 500  # that the worked example may have
EXAMPLE_STEP, SHORT_STEP, STEP = 5, 5, 10
EXAMPLE_VALUE = "12345"
EXAMPLE_LETTERS, LETTERS = 3, 5  # of a variable


@dataclass(frozen=True)
class Chains:
    """`chains` chains of `hops` assignments each; those of the first are asked for. One worked example goes before."""

    chains: int = 1
    hops: int = 4

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """Samples without end."""
        drawing = _Drawing(self, template, prefix, budget.seed)
        example = drawing.example(budget)
        step = SHORT_STEP if budget.window < SHORT else STEP
        example_tokens = budget.tokens(example, "") - budget.tokens("", "")  # a chat template is counted once

        def fits(drawn: Drawn) -> bool:
            return budget.length(drawn) + example_tokens <= budget.window

        def whole(size: int) -> Drawn:
            drawn = drawing.draw(size)
            return Drawn(drawing.varied(example) + "\n" + drawn.input, drawn.answer_prefix, drawn.outputs)

        size = largest(drawing.draw, fits, first=step, last=guess(drawing.draw, budget, step))
        return fitted(whole, budget, size=size, step=step)


class _Drawing:
    """Draws of one task and length: letters from Python's generator, values from numpy's, as RULER has it."""

    def __init__(self, task: Chains, template: str, prefix: str, seed: int) -> None:
        import numpy as np  # here: rows of tasks name this class, and the command line lists them

        self.task, self.template, self.prefix = task, template, prefix
        self.rng, self.numbers = random.Random(seed), np.random.RandomState(seed)

    def example(self, budget: Budget) -> str:
        """The worked example, its answer included, of at most `EXAMPLE_TOKENS`."""

        def draw(size: int) -> Drawn:
            return self.draw(size, is_example=True)

        own = Budget(budget.tokens, EXAMPLE_TOKENS, 0, budget.seed, budget.name)
        size = largest(draw, own.fits, first=EXAMPLE_STEP, last=guess(draw, own, EXAMPLE_STEP))
        drawn = next(fitted(draw, own, size=size, step=EXAMPLE_STEP))
        return f"{drawn.input}{drawn.answer_prefix} {' '.join(drawn.outputs)}\n"

    def draw(self, size: int, *, is_example: bool = False) -> Drawn:
        """Chains in `size` lines of noise."""
        names, chains = self._chains(is_example)
        lines = [NOISE] * size
        for chain in chains:
            for behind, place in enumerate(sorted(self.rng.sample(range(len(lines)), len(chain)))):
                lines.insert(place + behind, chain[behind])
        context = "\n".join(lines).replace(". \n", ".\n")
        words = {"query": chains[0][0].split("=")[-1].strip(), "num_v": self.task.hops + 1}
        return Drawn(self.template.format(context=context, **words), self.prefix.format(**words), names[0])

    def _chains(self, is_example: bool) -> tuple[list[list[str]], list[list[str]]]:
        """(variables, lines) of each chain. Raises ValueError for a name drawn twice, as RULER then draws anew."""
        hops = min(10, self.task.hops) if is_example else self.task.hops
        wanted = (hops + 1) * self.task.chains
        length = EXAMPLE_LETTERS if is_example else LETTERS
        variables = [self._letters(length) for _ in range(wanted)]
        while len(set(variables)) < wanted:
            variables.append(self._letters(length))
        names = [variables[at : at + hops + 1] for at in range(0, len(variables), hops + 1)]
        chains = [self._lines(chain, is_example) for chain in names]
        if len(variables) > wanted:
            raise ValueError("two variables of one name")
        return names, chains

    def _lines(self, variables: list[str], is_example: bool) -> list[str]:
        value = EXAMPLE_VALUE if is_example else self._value()
        pairs = pairwise(variables)
        return [f"VAR {variables[0]} = {value}", *(f"VAR {then} = VAR {first} " for first, then in pairs)]

    def varied(self, example: str) -> str:
        """The worked example with other variables and another value."""
        for variable in example.strip().split()[-self.task.hops - 1 :]:
            example = example.replace(variable, self._letters(len(variable)))
        return example.replace(EXAMPLE_VALUE, self._value())

    def _letters(self, count: int) -> str:
        return "".join(self.rng.choices(string.ascii_uppercase, k=count))

    def _value(self) -> str:
        return str(self.numbers.randint(10000, 99999))
