"""The 13 tasks of RULER (arXiv 2404.06654; NVIDIA/RULER at c3f5e3b).

Order and arguments as in its scripts/synthetic.yaml; templates, answer prefixes and budgets from
scripts/data/synthetic/constants.py, quoted (Apache-2.0); metrics from scripts/eval/synthetic/constants.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from e2bench.data.ruler.chains import Chains
from e2bench.data.ruler.needles import Needles
from e2bench.data.ruler.questions import Questions
from e2bench.data.ruler.sizing import Budget, Drawn
from e2bench.data.ruler.sources import ENGLISH_WORDS, ESSAYS, HOTPOTQA, PUNKT, SQUAD, Sources
from e2bench.data.ruler.words import CommonWords, FrequentWords
from e2bench.errors import E2BenchError, UnknownName
from e2bench.scoring.ruler import ListMetric, string_match_all, string_match_part

REPOSITORY, REVISION = "NVIDIA/RULER", "c3f5e3b"
SEED = 42  # RULER's; `--seed N` adds N to it
SAMPLES = 500  # of a task at a length
THRESHOLD = 85.6  # of the mean of a length that still counts: Llama-2-7B-chat's at 4k
DEMO = "-demo"  # behind the name of a task over other texts than RULER's


class Maker(Protocol):
    """What a task's samples are drawn by."""

    def samples(self, template: str, prefix: str, budget: Budget, sources: Sources) -> Iterator[Drawn]:
        """Samples in RULER's order."""
        ...


@dataclass(frozen=True)
class RulerTask:
    """One row.

    needs: files that its samples are made from, beside words.    long_needs: the same, in some windows of 96k and more.
    """

    name: str
    group: str
    maker: Maker
    template: str
    answer_prefix: str
    max_new_tokens: int
    metric: ListMetric
    needs: tuple[str, ...]
    long_needs: tuple[str, ...]
    version: str  # changes with any prompt, draw or metric

    @property
    def is_demo(self) -> bool:
        """Whether it runs over other texts than RULER's."""
        return self.name.endswith(DEMO)

    @property
    def hides_needles(self) -> bool:
        """Whether its references stand in the prompt, each at a depth of its own."""
        return isinstance(self.maker, Needles)

    def as_demo(self) -> RulerTask:
        """The same over other texts, under another name: its scores are not RULER's."""
        return self if self.is_demo else replace(self, name=f"{self.name}{DEMO}")


_NEEDLES = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
)
_CHAINS = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned "
    "the value {query}, they are: ",
)
_COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
)
_FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
)
_QUESTIONS = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}",
    " Answer:",
)


def _needles(name: str, maker: Needles) -> RulerTask:
    needs = (ESSAYS, PUNKT) if maker.haystack == "essay" else ()
    return RulerTask(name, "retrieval", maker, *_NEEDLES, 128, string_match_all, needs, (), "1")


RULER = (
    _needles("niah_single_1", Needles("noise")),
    _needles("niah_single_2", Needles("essay")),
    _needles("niah_single_3", Needles("essay", value="uuids")),
    _needles("niah_multikey_1", Needles("essay", keys=4)),
    _needles("niah_multikey_2", Needles("needle")),
    _needles("niah_multikey_3", Needles("needle", key="uuids", value="uuids")),
    _needles("niah_multivalue", Needles("essay", values=4)),
    _needles("niah_multiquery", Needles("essay", queries=4)),
    RulerTask("vt", "multi-hop tracing", Chains(chains=1, hops=4), *_CHAINS, 30, string_match_all, (), (), "1"),
    RulerTask(
        "cwe",
        "aggregation",
        CommonWords(common=10, often=30, seldom=3),
        *_COMMON,
        120,
        string_match_all,
        (),
        (ENGLISH_WORDS,),
        "1",
    ),
    RulerTask("fwe", "aggregation", FrequentWords(letters=6), *_FREQUENT, 50, string_match_all, (), (), "1"),
    RulerTask("qa_1", "question answering", Questions(SQUAD), *_QUESTIONS, 32, string_match_part, (SQUAD,), (), "1"),
    RulerTask(
        "qa_2", "question answering", Questions(HOTPOTQA), *_QUESTIONS, 32, string_match_part, (HOTPOTQA,), (), "1"
    ),
)
BY_NAME = {
    task.name: task for row in RULER for task in ([row, row.as_demo()] if row.needs or row.long_needs else [row])
}


def select(names: str) -> list[RulerTask]:
    """Tasks by name, in RULER's order: `all`, or names separated by commas. Raises UnknownName or E2BenchError."""
    wanted = [name for name in names.replace(" ", "").split(",") if name]
    for name in wanted:
        if name != "all" and name not in BY_NAME:
            raise UnknownName("task", name, ["all", *BY_NAME])
    if not wanted:
        raise E2BenchError(f"no task in {names!r}; give all, or some of {', '.join(row.name for row in RULER)}")
    chosen = {row.name for row in RULER} if "all" in wanted else set()
    return [task for task in BY_NAME.values() if task.name in chosen | set(wanted)]
