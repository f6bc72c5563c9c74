"""Lists of words in which some are more frequent: RULER's common_words_extraction.py and freq_words_extraction.py."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from e2bench.data.ruler.sizing import SHORT, Budget, Drawn, fitted, largest, too_short
from e2bench.data.ruler.sources import Sources

STEP = 10
ZETA_2 = 1.6449340668482264  # pi ** 2 / 6, as scipy.special.zeta(2.0) gives it
PROBED = 4096  # words of the sample by which the number of words that fit is guessed


@dataclass(frozen=True)
class CommonWords:
    """A numbered list in which `common` words stand `often` times, the others `seldom` times; one example before.

    The size is the number of different words. In windows below 4,096 tokens they stand 6 times and once.
    """

    common: int = 10
    often: int = 30
    seldom: int = 3

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """Samples without end."""
        rng = random.Random(budget.seed)
        words = sources.vocabulary(budget.seed)
        is_short = budget.window < SHORT
        example = (20, 3, 1) if is_short else (40, 10, 3)
        often, seldom = (6, 1) if is_short else (self.often, self.seldom)

        def listed(size: int, often: int, seldom: int) -> tuple[str, list[str]]:
            every = rng.sample(words if size <= len(words) else sources.many_words, size)
            common, others = every[: self.common], every[self.common :]
            shuffled = common * often + others * seldom
            random.Random(budget.seed).shuffle(shuffled)
            return numbered(shuffled), common

        def draw(size: int) -> Drawn:
            shown, answer = listed(*example)
            context, common = listed(size, often, seldom)
            before = template.format(context=shown) + f"{prefix} {numbered(answer)}\n"
            return Drawn(before + template.format(context=context), prefix, common)

        probe = draw(PROBED)
        per_word = budget.tokens(probe.input, probe.answer_prefix) / PROBED
        size = largest(draw, budget.fits, first=STEP, last=int(budget.window // per_word) * 2)
        return fitted(draw, budget, size=size, step=STEP)


def numbered(words: list[str]) -> str:
    """1. first 2. second …"""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


@dataclass(frozen=True)
class FrequentWords:
    """A text of made-up words whose frequencies fall as rank ** -2; the three most frequent are asked for.

    The first rank is dots, which do not count.    letters: of a word.
    """

    letters: int = 6

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """Samples without end."""
        import numpy as np  # here: rows of tasks name this class, and the command line lists them

        rng = random.Random(budget.seed)
        room = budget.window - budget.new_tokens
        different, step = room // 50, max(1, room // 32)

        def text(vocabulary: list[str], size: int) -> Drawn:
            counts = size * np.arange(1, len(vocabulary) + 1) ** -2.0 / ZETA_2
            words = [word for word, count in zip(vocabulary, counts.astype(int), strict=True) for _ in range(count)]
            random.Random(budget.seed).shuffle(words)
            return Drawn(template.format(context=" ".join(words)), prefix, vocabulary[1:4])

        vocabulary = self._vocabulary(different, rng, budget.seed)
        size = room // self.letters
        while budget.tokens(text(vocabulary, size).input, prefix) < room:
            size += step
        size -= step
        while True:
            yield _shortened(text, self._vocabulary(different, rng, budget.seed), budget, size, step)

    def _vocabulary(self, different: int, rng: random.Random, seed: int) -> list[str]:
        """Made-up words in the order of their frequency."""

        def word() -> str:
            return "".join(rng.choices(string.ascii_lowercase, k=self.letters))

        words = [word() for _ in range(different)]
        while len(set(words)) < different:
            words.append(word())
        words = sorted(set(words))
        random.Random(seed).shuffle(words)
        return ["...", *words[1:]]


def _shortened(
    text: Callable[[list[str], int], Drawn], vocabulary: list[str], budget: Budget, size: int, step: int
) -> Drawn:
    """A text over one vocabulary, shorter by steps until it fits."""
    while size > 0:
        if budget.fits(drawn := text(vocabulary, size)):
            return drawn
        size -= step
    raise too_short(budget)
