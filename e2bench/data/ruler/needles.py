"""Needles in a haystack: keys and values in lines of noise, in an essay or among other needles (RULER's niah.py)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from e2bench.data.ruler.sizing import SHORT, Budget, Drawn, fitted, guess, largest
from e2bench.data.ruler.sources import Sources

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
DEPTHS = [round(100 * at / 39) for at in range(40)]  # percent of the sentences
STEPS = {"essay": 500, "noise": 25, "needle": 25}
SHORT_STEP = 5
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))


@dataclass(frozen=True)
class Needles:
    """keys × values needles in a haystack, of which the values of `queries` keys are asked for.

    haystack: noise, essay or needle.    key, value: what they are: words, numbers or uuids.
    """

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """Samples without end."""
        rng = random.Random(budget.seed)
        step = SHORT_STEP if self.haystack != "essay" and budget.window < SHORT else STEPS[self.haystack]

        def draw(size: int) -> Drawn:
            return self._draw(size, template, prefix, rng, budget.seed, sources)

        size = largest(draw, budget.fits, first=step, last=guess(draw, budget, step))
        return fitted(draw, budget, size=size, step=step)

    def _draw(self, size: int, template: str, prefix: str, rng: random.Random, seed: int, sources: Sources) -> Drawn:
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(max(self.keys, self.queries)):
            keys.append(one_of(self.key, rng, sources))
            values.append([one_of(self.value, rng, sources) for _ in range(self.values)])
        needles = [self._needle(key, value) for key, several in zip(keys, values, strict=True) for value in several]
        random.Random(seed).shuffle(needles)
        context = self._hidden(needles, size, rng, sources)
        asked = rng.sample(range(len(keys)), self.queries)
        wanted = [keys[at] for at in asked]
        query = ", ".join(wanted[:-1]) + ", and " + wanted[-1] if len(wanted) > 1 else wanted[0]
        kind = self.value
        if self.queries * self.values == 1:
            kind = kind.removesuffix("s")
            template, prefix = singular(template), singular(prefix)
        words = {"type_needle_v": kind, "query": query}
        outputs = [value for at in asked for value in values[at]]
        return Drawn(template.format(context=context, **words), prefix.format(**words), outputs)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type_needle_v=self.value, key=key, value=value)

    def _hidden(self, needles: list[str], size: int, rng: random.Random, sources: Sources) -> str:
        """The needles in a haystack of `size` units."""
        if self.haystack == "essay":
            return _in_sentences(needles, sources.sentences(size), rng)
        if self.haystack == "noise":
            lines = [NOISE] * size
        else:
            pairs = ((one_of(self.key, rng, sources), one_of(self.value, rng, sources)) for _ in range(size))
            lines = [self._needle(key, value) for key, value in pairs]
        places = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def _in_sentences(needles: list[str], sentences: list[str], rng: random.Random) -> str:
    """Needles at different ones of 40 depths, each behind the sentences that precede it."""
    depths = rng.sample(DEPTHS, len(needles))
    places = [0, *sorted(int(len(sentences) * (depth / 100)) for depth in depths), len(sentences)]
    parts: list[str] = []
    for at in range(1, len(places)):
        parts.append(" ".join(sentences[places[at - 1] : places[at]]))
        parts += needles[at - 1 : at]
    return " ".join(parts)


def singular(text: str) -> str:
    """A template's words where one value is asked for."""
    for several, one in SINGULAR:
        text = text.replace(several, one)
    return text


def one_of(kind: str, rng: random.Random, sources: Sources) -> str:
    """A number of seven digits, an adjective-noun pair or a UUID."""
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "words":
        return rng.choice(sources.pairs)
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
