"""Questions over documents, most of which do not hold the answer (RULER's qa.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from e2bench.data.ruler.sizing import Budget, Drawn, guess, largest, within
from e2bench.data.ruler.sources import Questions as Read
from e2bench.data.ruler.sources import Sources

DOCUMENT = "Document {number}:\n{text}"
STEP = 10


@dataclass(frozen=True)
class Questions:
    """A question of the data set `data`, its documents, and as many others as fit."""

    data: str

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """One sample a question."""
        read = sources.questions(self.data)
        rng = random.Random(budget.seed)

        def draw(at: int, size: int) -> Drawn:
            question = read.questions[at]
            chosen = _documents(read, at, size, rng)
            random.Random(budget.seed).shuffle(chosen)
            context = "\n\n".join(DOCUMENT.format(number=n, text=text) for n, text in enumerate(chosen, 1))
            return Drawn(template.format(context=context, query=question.text), prefix, list(question.answers))

        first = partial(draw, 0)
        size = largest(first, budget.fits, first=STEP, last=guess(first, budget, STEP))
        for at in range(len(read.questions)):
            yield within(partial(draw, at), budget, size, STEP)


def _documents(read: Read, at: int, size: int, rng: random.Random) -> list[str]:
    """Texts of the question's own documents and of others: first of its article, then of any."""
    question, every = read.questions[at], read.documents
    if size >= len(every):
        return (every * -(-size // len(every)))[:size]
    own, near = question.documents, question.near
    missing = size - len(own)
    if missing > len(near):
        known = {*own, *near}
        others = [index for index in range(len(every)) if index not in known]
        chosen = [*own, *near, *rng.sample(others, max(0, missing - len(near)))]
    else:
        chosen = [*own, *rng.sample(near, missing)]
    return [every[index] for index in chosen]
