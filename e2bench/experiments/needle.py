"""A needle in a haystack of real text, on passkey's grid of lengths × depths × trials.

The question, the needle and the beginning of its answer are those of RULER's niah_single_2 (tasks/ruler.py): `One of
the special magic numbers for KEY is: VALUE.` stands somewhere in essays by Paul Graham, and VALUE is asked for. It is
found where the answer holds it, as in RULER. Where it differs from RULER: depths are a fixed grid (there random ones of
40), the essays are cut at any character, an answer has 32 tokens (there 128), and a cell's key and value depend on the
seed, the length, the depth and the trial alone. The test that gave the name (gkamradt/LLMTest_NeedleInAHaystack) hides
a sentence about San Francisco in the same essays and lets a second language model grade the answer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from e2bench.data.source import DEMO, PUBLIC, DataSource
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.depths import Cell, DepthGrid, Hidden, coordinates
from e2bench.experiments.ruler import WORDING
from e2bench.models.protocols import Generator
from e2bench.prompts.wording import Wording
from e2bench.runs.items import Row
from e2bench.settings import setting
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.data.ruler.sources import Sources
    from e2bench.experiments.grid import Grid
    from e2bench.experiments.haystacks import Feed
    from e2bench.experiments.options import Common

ESSAYS = "essays"
TASK = "niah_single_2"  # of RULER, whose words these are
MOST_CHARS = 16  # of text a token, for the search of what fits
REACH = 400  # most characters on either side in which a border is looked for
SENTENCE_REACH = (40, 1 / 40)  # for the end of a sentence: characters, or this part of the hay if that is more
SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
WORDS = re.compile(r"\s+")


@dataclass(frozen=True)
class Hay:
    """The text to hide in: at least as much as the longest length can take, or all there is."""

    name: str
    text: str
    source: DataSource

    def cut(self, chars: int) -> str:
        """The first so many characters; a text that is shorter begins anew."""
        return (f"{self.text} " * -(-chars // (len(self.text) + 1)))[:chars]

    @property
    def sha256(self) -> str:
        """Of the text that was read."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Needle(DepthGrid):
    """A needle in a haystack of real text: a grid of lengths, depths and trials."""

    name: ClassVar[str] = "needle"
    about: ClassVar[str] = "A needle in a haystack of real text: a grid of lengths, depths and trials."
    examples: ClassVar[tuple[str, ...]] = ("e2bench needle --lengths 512,1k --depths 3 --trials 1 --data demo",)
    new_tokens: ClassVar[int] = 32
    words: ClassVar[str] = "haystack"
    agree: ClassVar[Mapping[str, bool]] = {"grid": True, "data": False, "hashes": True}
    asks: ClassVar[tuple[str, ...]] = ("haystack",)
    wordings: ClassVar[tuple[Wording, ...]] = (WORDING,)
    demo_text: ClassVar[str] = "docstrings of Python's standard library"
    columns: ClassVar[Mapping[str, str]] = {
        "length": "length",
        "scale": "g",
        "haystack": "haystack",
        "accuracy": "found",
        "interval": "95 % interval",
        "trials": "trials",
    }

    data: str | None = setting(
        None, "Text to hide in: a file or folder of documents, or demo. Default: Paul Graham's essays, else demo."
    )
    chat_template: str = setting("auto", "auto, none, llama2, vicuna, longchat or FILE.jinja.")
    thinking: bool = setting(True, "Leave a template's thinking block on; --no-thinking asks for none.")

    def inputs(self, common: Common) -> Hay:
        """The text."""
        return haystack(self.data, MOST_CHARS * self.lengths[-1])

    def hide(self, model: Generator, grid: Grid, places: Sequence[float], common: Common, inputs: Hay) -> Hidden:
        """A needle in each cell's text."""
        from e2bench.experiments.answers import wrapper_of
        from e2bench.experiments.haystacks import Feed

        wrapper = wrapper_of(model, common, self.chat_template, thinking=self.thinking)
        cells = list(make_cells(Feed(model, wrapper), grid, inputs, places, self.trials, common.seed))
        resolved = {
            "haystack": inputs.name,
            "chat_template": wrapper.name if wrapper else "none",
            "hashes": {"chat_template": wrapper.sha256} if wrapper else {},
        }
        return Hidden(cells, resolved, inputs.source, {inputs.name: inputs.sha256})

    def settled(self, cell: Cell) -> Callable[[str], bool]:
        """The value is there."""
        return lambda text: cell.key in text

    def graded(self, cell: Cell, text: str, ids: Sequence[int]) -> Row:
        """Whether the answer holds the value (RULER's string_match_all)."""
        from e2bench.tasks.ruler import BY_NAME

        return {"success": BY_NAME[TASK].metric(text, [cell.key]) == 1}


def haystack(data: str | None, chars: int) -> Hay:
    """At least `chars` characters of the text that `--data` names, or all of it. Not given: essays, else demo texts."""
    from e2bench.data.fetch import fetch, is_verified
    from e2bench.data.ruler.sources import essay_text
    from e2bench.experiments.documents import corpus_source, open_corpus
    from e2bench.tasks.corpora import RULER as FILES

    if data is None:
        essays = FILES[ESSAYS]
        try:
            path = fetch(essays)
        except DataError as error:
            say(f"the hay is demo text, as every table says: {str(error).partition('; with a network')[0]}")
            data = DEMO
        else:
            text = " ".join(essay_text(path).split())
            return Hay(ESSAYS, text, DataSource(PUBLIC, "Paul Graham's essays", is_verified(essays, path)))
    if data == DEMO:
        from e2bench.tasks.demo import DemoTexts

        return Hay(DEMO, " ".join(DemoTexts().essay_words), DataSource(DEMO))
    source = corpus_source(data)
    parts, size = [], 0
    for document in open_corpus(data, source):
        parts.append(document.text.strip())
        size += len(document.text)
        if size >= chars:
            break
    if not (text := "\n\n".join(parts)).strip():
        raise DataError(f"{data} holds no text to hide a needle in")
    return Hay(source.name, text, source)


def make_cells(feed: Feed, grid: Grid, hay: Hay, depths: Sequence[float], trials: int, seed: int) -> Iterator[Cell]:
    """Every cell of the grid, the deepest first: as much hay as fits, the needle at the end of a sentence.

    Raises E2BenchError where a length has no room for question and answer.
    """
    from e2bench.tasks.demo import DemoTexts

    sizes: dict[int, int] = {}
    words = DemoTexts()  # keys are of wonderwords, whatever the hay
    for length, scaling, depth, trial in coordinates(grid, depths, trials):
        key, value = drawn(words, f"{seed}/{length}/{depth}/{trial}")
        room = length - Needle.new_tokens
        if length not in sizes:
            sizes[length] = _fitting(feed, hay, key, value, room)
        ids, size = _ids(feed, hay, sizes[length], depth, key, value), sizes[length]
        while len(ids) > room and size:  # a key of more tokens than the one that was measured
            size = max(0, size - MOST_CHARS * (len(ids) - room) // 4)
            ids = _ids(feed, hay, size, depth, key, value)
        sample = hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
        yield Cell(length, depth, trial, value, scaling, tuple(ids), sample=sample)


def drawn(words: Sources, cell: str) -> tuple[str, str]:
    """The cell's key (an adjective and a noun) and value (seven digits)."""
    from e2bench.data.ruler.needles import one_of

    rng = random.Random(f"needle/{cell}")
    return one_of("words", rng, words), one_of("numbers", rng, words)


def _ids(feed: Feed, hay: Hay, chars: int, depth: float, key: str, value: str) -> list[int]:
    """The prompt over the first `chars` characters of hay."""
    from e2bench.data.ruler.needles import NEEDLE, singular
    from e2bench.tasks.ruler import BY_NAME

    needle = NEEDLE.format(type_needle_v="numbers", key=key, value=value)
    words = {"type_needle_v": "number", "query": key}
    template, prefix = singular(BY_NAME[TASK].template), singular(BY_NAME[TASK].answer_prefix)
    context = with_needle(hay.cut(chars), needle, depth)
    return feed.ids(feed.text(template.format(context=context, **words), prefix.format(**words)))


def _fitting(feed: Feed, hay: Hay, key: str, value: str, room: int) -> int:
    """The most characters of hay with which a prompt has at most `room` tokens, found by halving."""

    def tokens(chars: int) -> int:
        return len(_ids(feed, hay, chars, 0.5, key, value))

    if (bare := tokens(0)) > room:
        raise E2BenchError(
            f"a needle's prompt has at least {bare} tokens, and {max(room, 0)} fit beside its answer; "
            "give longer --lengths"
        )
    low, high = 0, MOST_CHARS * room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle) <= room else (low, middle - 1)
    return low


def with_needle(hay: str, needle: str, depth: float) -> str:
    """The needle in the hay: at the end of the sentence next to `depth`, of a word where there is none close by."""
    at = border(hay, round(depth * len(hay)))
    before, after = hay[:at].rstrip(" "), hay[at:].lstrip(" ")
    return " ".join(part for part in (before, needle, after) if part)


def border(hay: str, at: int) -> int:
    """The place next to `at` where a sentence begins, else a word, else `at` itself; the ends stay the ends.

    A sentence that begins farther away than SENTENCE_REACH would put the needle at another depth than the grid's.
    """
    if at in (0, len(hay)):
        return at
    least, share = SENTENCE_REACH
    for pattern, reach in ((SENTENCES, min(REACH, max(least, round(share * len(hay))))), (WORDS, REACH)):
        first = max(0, at - reach)
        if places := [first + match.end() for match in pattern.finditer(hay[first : at + reach])]:
            return min(places, key=lambda place: abs(place - at))
    return at
