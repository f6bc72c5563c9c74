"""Small data for a machine without any: LongBench's 21 tasks, documents for perplexity, texts for RULER.

The texts are made up here by a seeded generator; code and documents are the installed Python's own source files (those
that the embedded model was not trained on). Scores on them show that the bench works, not how good a model is.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from e2bench.data.fetch import cache_folder
from e2bench.data.ruler.sources import MissingFile, Question, Questions, Sources
from e2bench.data.stdlib import Document, docstrings, stdlib_documents
from e2bench.files import write_atomic
from e2bench.tasks.longbench import LONGBENCH

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Lena", "Otto")
THINGS = ("letter", "lamp", "map", "violin", "ticket", "camera", "key", "coat", "clock", "basket", "diary", "coin")
PLACES = ("the old house", "the station", "the garden", "the library", "the harbour", "the market", "the kitchen")
CLASSES = ("Person", "Place", "Number", "Date", "Reason", "Animal")
QUESTIONS = {
    "Person": "Who wrote the {0}?",
    "Place": "Where is the {0} kept?",
    "Number": "How many pages does the {0} have?",
    "Date": "When was the {0} found?",
    "Reason": "Why was the {0} sold?",
    "Animal": "Which bird sat on the {0}?",
}
ZH_NAMES = ("小明", "小红", "李华", "王芳", "张伟", "刘洋")
ZH_THINGS = ("信", "地图", "相机", "钥匙", "日记", "雨伞")
ZH_PLACES = ("旧房子", "车站", "花园", "图书馆", "码头", "厨房")
ZH_CLASSES = ("体育", "教育", "天气", "交通")
Made = tuple[str, str, list[str]]  # context, input, answers


def _fact(rng: random.Random) -> tuple[str, str, str]:
    """(sentence, question, answer)."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    return f"{name} keeps the {thing} in {place}.", f"Where does {name} keep the {thing}?", place


def _zh_fact(rng: random.Random) -> tuple[str, str, str]:
    name, thing, place = rng.choice(ZH_NAMES), rng.choice(ZH_THINGS), rng.choice(ZH_PLACES)
    return f"{name}把{thing}放在{place}里。", f"{name}把{thing}放在哪里？", place


def _paragraph(rng: random.Random, fact: Callable[[random.Random], tuple[str, str, str]], sentences: int) -> str:
    joiner = "" if fact is _zh_fact else " "
    return joiner.join(fact(rng)[0] for _ in range(sentences))


def _single(rng: random.Random, fact: Callable[[random.Random], tuple[str, str, str]]) -> Made:
    sentence, question, answer = fact(rng)
    return f"{_paragraph(rng, fact, 30)}\n{sentence}\n{_paragraph(rng, fact, 30)}", question, [answer]


def _multi(rng: random.Random, fact: Callable[[random.Random], tuple[str, str, str]], label: str) -> Made:
    sentence, question, answer = fact(rng)
    passages = [_paragraph(rng, fact, 8) for _ in range(8)]
    passages.insert(rng.randrange(8), f"{_paragraph(rng, fact, 4)} {sentence}")
    return "\n\n".join(f"{label}{number}\n{text}" for number, text in enumerate(passages, 1)), question, [answer]


def _summary(rng: random.Random, fact: Callable[[random.Random], tuple[str, str, str]], query: str = "") -> Made:
    sections = [_paragraph(rng, fact, 12) for _ in range(5)]
    mark = "。" if fact is _zh_fact else "."
    return "\n\n".join(sections), query, [" ".join(s.split(mark)[0] + mark for s in sections)]


def _trec(rng: random.Random) -> Made:
    shots = [rng.choice(CLASSES) for _ in range(24)]
    asked = rng.choice(CLASSES)
    lines = [f"Question: {QUESTIONS[c].format(rng.choice(THINGS))}\nType: {c}" for c in shots]
    return "\n".join(lines), f"Question: {QUESTIONS[asked].format(rng.choice(THINGS))}\nType:", [asked]


def _trivia(rng: random.Random) -> Made:
    def shot(with_answer: bool) -> tuple[str, str]:
        sentence, question, answer = _fact(rng)
        text = f"Passage:\n{_paragraph(rng, _fact, 6)} {sentence}\nQuestion:\n{question}\nAnswer:\n"
        return text + (f"{answer}\n" if with_answer else ""), answer

    asked, answer = shot(False)
    return "\n".join(shot(True)[0] for _ in range(5)), asked, [answer]


def _dialogue(rng: random.Random) -> Made:
    def shot() -> tuple[str, str]:
        (one, two), thing, place = rng.sample(NAMES, 2), rng.choice(THINGS), rng.choice(PLACES)
        talk = f"{one}: Have you seen my {thing}?\n{two}: It is in {place}.\n{one}: Thank you, I will fetch it."
        return talk, f"{one}'s {thing} is in {place}, as {two} says."

    shots = [f"Dialogue: {talk}\nSummary: {summary}" for talk, summary in (shot() for _ in range(8))]
    talk, summary = shot()
    return "\n".join(shots), f"Dialogue: {talk}\nSummary: ", [summary]


def _zh_news(rng: random.Random) -> Made:
    def shot() -> tuple[str, str]:
        topic = rng.choice(ZH_CLASSES)
        return f"新闻内容：\n今天的{topic}消息：{_paragraph(rng, _zh_fact, 5)}\n类别：", topic

    shots = [text + topic for text, topic in (shot() for _ in range(8))]
    text, topic = shot()
    return "\n".join(shots), text, [topic]


def _count(rng: random.Random) -> Made:
    different = [_paragraph(rng, _fact, 4) for _ in range(rng.randint(3, 8))]
    paragraphs = different + rng.choices(different, k=4)
    rng.shuffle(paragraphs)
    text = "\n\n".join(f"Paragraph {number}: {paragraph}" for number, paragraph in enumerate(paragraphs, 1))
    return text, "", [str(len(different))]


def _retrieval(rng: random.Random, fact: Callable[[random.Random], tuple[str, str, str]], label: str) -> Made:
    paragraphs = [_paragraph(rng, fact, 6) for _ in range(10)]
    number = rng.randrange(10)
    text = "\n\n".join(f"{label}{i}: {paragraph}" for i, paragraph in enumerate(paragraphs, 1))
    return text, paragraphs[number], [f"{label}{number + 1}"]


def _code(rng: random.Random, files: list[str], *, cross_file: bool) -> Made:
    lines = [line for line in rng.choice(files).split("\n")[:120] if line.strip()]
    at = rng.randrange(len(lines) // 2, len(lines))
    own = "\n".join(lines[:at]) + "\n"
    if not cross_file:
        return own, "", [lines[at]]
    return "\n".join(rng.choice(files).split("\n")[:60]) + "\n", own, [lines[at]]


def _make(name: str, rng: random.Random, files: list[str]) -> Made:
    makers: dict[str, Callable[[], Made]] = {
        "dureader": lambda: _multi(rng, _zh_fact, "文章"),
        "multifieldqa_zh": lambda: _single(rng, _zh_fact),
        "qmsum": lambda: _summary(rng, _fact, "What is said about the things and their places?"),
        "vcsum": lambda: _summary(rng, _zh_fact),
        "trec": lambda: _trec(rng),
        "triviaqa": lambda: _trivia(rng),
        "samsum": lambda: _dialogue(rng),
        "lsht": lambda: _zh_news(rng),
        "passage_count": lambda: _count(rng),
        "passage_retrieval_en": lambda: _retrieval(rng, _fact, "Paragraph "),
        "passage_retrieval_zh": lambda: _retrieval(rng, _zh_fact, "段落"),
        "lcc": lambda: _code(rng, files, cross_file=False),
        "repobench-p": lambda: _code(rng, files, cross_file=True),
        "gov_report": lambda: _summary(rng, _fact),
        "multi_news": lambda: _summary(rng, _fact),
    }
    if name in makers:
        return makers[name]()
    return (
        _single(rng, _fact) if name in ("narrativeqa", "qasper", "multifieldqa_en") else _multi(rng, _fact, "Passage ")
    )


def write_longbench(folder: Path, *, examples: int = 2, seed: int = 0) -> Path:
    """Write NAME.jsonl for all 21 tasks into `folder`; the same files for the same seed and Python version."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [document.text for document in held_out_documents()]
    for task in LONGBENCH:
        rows = (_example(task.name, task.language, index, seed, files) for index in range(examples))
        write_atomic(folder / f"{task.name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def _example(name: str, language: str, index: int, seed: int, files: list[str]) -> dict[str, Any]:
    context, question, answers = _make(name, random.Random(f"demo/{seed}/{name}/{index}"), files)
    return {
        "input": question,
        "context": context,
        "answers": answers,
        "length": len(context) if language == "zh" else len(context.split()),
        "dataset": name,
        "language": language,
        "all_classes": {"trec": list(CLASSES), "lsht": list(ZH_CLASSES)}.get(name),
        "_id": f"demo-{name}-{index}",
    }


def held_out_documents() -> Iterator[Document]:
    """Standard-library files that the embedded model never saw."""
    return (document for document in stdlib_documents() if document.held_out)


def long_documents() -> list[Document]:
    """The held-out files in path order as two documents of about equal length, each of 65,536 tokens or more.

    Single files end at 24k tokens. Half of the files has some 300,000 characters, and the tokenizers in use put less
    than 4.5 characters of Python into a token.
    """
    files = list(held_out_documents())
    ends = list(itertools.accumulate(len(file.text) for file in files))
    middle = min(range(1, len(files)), key=lambda at: abs(2 * ends[at - 1] - ends[-1]))
    return [_joined(number, part) for number, part in enumerate((files[:middle], files[middle:]), 1)]


def _joined(number: int, files: list[Document]) -> Document:
    return Document(f"stdlib/part-{number}", files[0].kind, "\n\n".join(file.text for file in files), held_out=True)


def corpus_file() -> Path:
    """`long_documents` as one `.jsonl` file in the cache, written anew each time."""
    path = cache_folder() / "demo" / "corpus.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(document.line() for document in long_documents()))
    return path


class DemoTexts(Sources):
    """Stands for RULER's essays, questions and long word list: docstrings of held-out files, made-up facts, made-up words."""

    def __init__(self) -> None:
        super().__init__(_no_file)

    @cached_property
    def essay_words(self) -> list[str]:
        """The docstrings of the held-out source files as one list of words."""
        return " ".join(text for document in held_out_documents() for text in docstrings(document.text)).split()

    def split(self, text: str) -> list[str]:
        """Sentences, cut behind a full stop, a colon, a question or an exclamation mark."""
        return re.split(r"(?<=[.:?!]) ", text)

    @cached_property
    def many_words(self) -> list[str]:
        """Twenty thousand made-up words of six letters."""
        rng = random.Random("demo/words")
        return sorted({"".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(20_000)})

    def questions(self, name: str) -> Questions:
        """Who keeps what where: a document for each pair of a name and a thing."""
        rng = random.Random(f"demo/{name}")
        pairs = [(person, thing, rng.choice(PLACES)) for person in NAMES for thing in THINGS]
        documents = [
            f"{person} keeps the {thing} in {place}. {person} looks after it." for person, thing, place in pairs
        ]
        asked = [
            Question(f"Where does {person} keep the {thing}?", [place], [at])
            for at, (person, thing, place) in enumerate(pairs)
        ]
        rng.shuffle(asked)
        return Questions(asked, documents)


def _no_file(name: str) -> Path:
    raise MissingFile(f"{name}: demo texts are made, not read")
