"""What RULER's samples are made from: words of the package wonderwords, and files of essays, words and questions."""

from __future__ import annotations

import json
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from e2bench.data.corpus import Growth
from e2bench.data.parquet import read_texts
from e2bench.errors import DataError
from e2bench.files import regular

ESSAYS, SQUAD, HOTPOTQA, ENGLISH_WORDS, PUNKT = "essays", "squad", "hotpotqa", "english_words", "punkt"


class Pairs(Sequence[str]):
    """Every `adjective-noun`, once and in sorted order, without making all six million of them."""

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self.nouns = sorted(set(nouns))
        self.groups: list[tuple[str, list[str]]] = []  # the beginning of some pairs, their ends in order
        begin: list[str] = []
        for adjective in sorted({f"{adjective}-" for adjective in adjectives}):
            if begin and adjective.startswith(begin[0]):  # `well-` and `well-off-`: their pairs are interleaved
                begin.append(adjective)
                continue
            self._close(begin)
            begin = [adjective]
        self._close(begin)
        self.ends = list(accumulate(len(ends) for _, ends in self.groups))

    def _close(self, begin: list[str]) -> None:
        if len(begin) == 1:
            self.groups.append((begin[0], self.nouns))
        elif begin:
            self.groups.append(("", sorted({adjective + noun for adjective in begin for noun in self.nouns})))

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        """The pair of an index."""
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        group = bisect_right(self.ends, at)
        begin, ends = self.groups[group]
        return begin + ends[at - (self.ends[group - 1] if group else 0)]


@dataclass(frozen=True)
class Question:
    """documents: indices of those that belong to it.    near: of others from the same article."""

    text: str
    answers: Sequence[str]
    documents: Sequence[int]
    near: Sequence[int] = ()


@dataclass(frozen=True)
class Questions:
    """Questions, and every document of their data set once, in sorted order."""

    questions: Sequence[Question]
    documents: list[str]


class MissingFile(DataError):
    """A file that RULER's samples are made from is not here and cannot be fetched."""


class Sources:
    """Words and texts, read when they are asked for.

    find: the file of `essays`, `squad`, `hotpotqa` or `english_words` in its authors' format (essays also as parquet),
        or the folder of NLTK's English parameters for `punkt`; raises MissingFile.
    """

    def __init__(self, find: Callable[[str], Path]) -> None:
        self.find = find

    @cached_property
    def pairs(self) -> Pairs:
        """What `words` are: an adjective and a noun."""
        return Pairs(word_list("adjective"), word_list("noun"))

    def vocabulary(self, seed: int) -> list[str]:
        """Single words in the seed's order."""
        words = sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})
        random.Random(seed).shuffle(words)
        return words

    @cached_property
    def many_words(self) -> list[str]:
        """The words of longer lists than `vocabulary` has."""
        return list(_json(self.find(ENGLISH_WORDS)).values())

    @cached_property
    def essay_words(self) -> list[str]:
        """All essays as one list of words."""
        return re.sub(r"\s+", " ", essay_text(self.find(ESSAYS))).split(" ")

    def sentences(self, words: int) -> list[str]:
        """The first so many words of the essays, which then begin anew, in sentences."""
        return list(self._sentences(words))

    @lru_cache(maxsize=2)  # noqa: B019 - one object a run
    def _sentences(self, words: int) -> tuple[str, ...]:
        whole = self.essay_words
        return tuple(self.split(" ".join((whole * -(-words // len(whole)))[:words]).strip()))

    @cached_property
    def _punkt(self) -> Any:
        return punkt(self.find(PUNKT))

    def split(self, text: str) -> list[str]:
        """Sentences, as NLTK's punkt cuts them."""
        return [str(sentence) for sentence in self._punkt.tokenize(text)]

    def questions(self, name: str) -> Questions:
        """SQuAD 2.0's development set without its unanswerable questions, or HotpotQA's, in the distractor setting."""
        path = self.find(name)
        try:
            return squad(_json(path)) if name == SQUAD else hotpotqa(_json(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} does not hold {name} as its authors publish it ({error!r:.80})") from None


def word_list(kind: str) -> list[str]:
    """Words of the package wonderwords (adjective, noun or verb), whose version decides RULER's samples."""
    text = (resources.files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return [line.rstrip() for line in text.splitlines()]


def squad(data: Any) -> Questions:
    """SQuAD 2.0 as published: answerable questions in order, each with its paragraph and those of its article."""
    articles = data["data"]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article["paragraphs"]})
    at = {text: index for index, text in enumerate(documents)}
    questions = []
    for article in articles:
        every = [at[paragraph["context"]] for paragraph in article["paragraphs"]]
        for own, paragraph in zip(every, article["paragraphs"], strict=True):
            near = [index for index in every if index != own]
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = [answer["text"] for answer in asked["answers"]]
                    questions.append(Question(asked["question"], answers, [own], near))
    return Questions(questions, documents)


def hotpotqa(data: Any) -> Questions:
    """HotpotQA's development set, distractor setting, as published: each question with its ten paragraphs."""
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in asked["context"]] for asked in data]
    documents = sorted({text for own in texts for text in own})
    at = {text: index for index, text in enumerate(documents)}
    questions = [
        Question(asked["question"], [asked["answer"]], [at[text] for text in own])
        for asked, own in zip(data, texts, strict=True)
    ]
    return Questions(questions, documents)


def essay_text(path: Path) -> str:
    """All essays as one text: RULER's PaulGrahamEssays.json, or a parquet file with a column `text`."""
    if path.suffix != ".parquet":
        return str(_json(path)["text"])
    return " ".join(read_texts(path, "text", Growth(path), Growth(path)))


def punkt(folder: Path) -> Any:
    """NLTK's sentence tokenizer with the English parameters in a folder (punkt_tab), which NLTK would fetch itself."""
    from nltk.tabdata import PunktDecoder
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    read, parameters = PunktDecoder(), PunktParameters()
    fields = {
        "collocations": ("collocations.tab", lambda file: set(read.tab2tups(file))),
        "sent_starters": ("sent_starters.txt", read.txt2set),
        "abbrev_types": ("abbrev_types.txt", read.txt2set),
        "ortho_context": ("ortho_context.tab", read.tab2intdict),
    }
    for field, (name, decode) in fields.items():
        with (folder / name).open(encoding="utf-8") as file:
            setattr(parameters, field, decode(file))
    tokenizer = PunktSentenceTokenizer()
    tokenizer._params = parameters
    return tokenizer


def _json(path: Path) -> Any:
    try:
        return json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {' '.join(str(error).split())[:160]}") from None
