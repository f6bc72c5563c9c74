"""RULER's samples for a run: which texts they are made from, how long they may be, where they are kept. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.data.fetch import cache_folder, fetch, is_verified
from e2bench.data.ruler import store
from e2bench.data.ruler.sizing import Budget
from e2bench.data.ruler.sources import PUNKT, MissingFile, Sources
from e2bench.data.source import DEMO, GENERATED, OWN, DataSource
from e2bench.errors import DataError
from e2bench.files import check_folder, sha256_of
from e2bench.models.protocols import Prompt
from e2bench.prompts.chat import ChatWrapper
from e2bench.prompts.truncation import Codec
from e2bench.rope.windows import short_length
from e2bench.tasks.corpora import RULER as FILES
from e2bench.tasks.demo import DemoTexts
from e2bench.tasks.ruler import RulerTask
from e2bench.terminal import say

GENERATOR = "RULER's generator"
# The names that RULER's own scripts give to the files in scripts/data/synthetic/json.
OWN_NAMES = {
    "essays": "PaulGrahamEssays.json",
    "squad": "squad.json",
    "hotpotqa": "hotpotqa.json",
    "english_words": "english_words.json",
    "punkt": "punkt_tab/english",
}


@dataclass(frozen=True)
class Haystack:
    """One sample: its task, its length in tokens (the answer's included), and where it is kept."""

    task: RulerTask
    length: int
    stored: store.Stored

    @property
    def id(self) -> str:
        """Names the line of this sample in its task's file."""
        return f"{self.length}-{self.stored.number}"


class Feed:
    """Prompts as they are fed: the chat template around the question, the answer prefix behind both."""

    def __init__(self, codec: Codec, wrapper: ChatWrapper | None) -> None:
        self.codec, self.wrapper = codec, wrapper

    def text(self, question: str, prefix: str) -> str:
        """The whole prompt."""
        return (question if self.wrapper is None else self.wrapper.apply(question)) + prefix

    def ids(self, text: str) -> list[int]:
        """Token ids of a whole prompt, BOS included where the model expects one."""
        return self.codec.encode(text, special_tokens=self.wrapper is None or self.wrapper.special_tokens)

    def tokens(self, question: str, prefix: str) -> int:
        """Tokens by which samples are sized: those that are fed; without a template less BOS, as RULER counts."""
        text = self.text(question, prefix)
        return len(self.codec.encode(text, special_tokens=False) if self.wrapper is None else self.ids(text))

    def check(self, one: Haystack, sample: dict[str, Any]) -> None:
        """Raise DataError for a sample that does not fit its length, made with another tokenizer or template."""
        tokens = self.tokens(sample["input"], sample["answer_prefix"])
        if tokens + one.task.max_new_tokens > one.length:
            raise DataError(
                f"{one.stored.path}:{one.stored.number + 1} has {tokens} tokens as it is fed, and "
                f"{one.task.max_new_tokens} of an answer do not fit {one.length} with it: make the samples with this "
                "tokenizer and chat template (--write-samples), or give --chat-template none"
            )

    def prompt(self, one: Haystack, *, early_stop: bool) -> Prompt:
        """What to generate from; it is over once the answer holds every reference that counts.

        Raises DataError for a sample that does not fit its length.
        """
        sample, task = one.stored.read(), one.task
        self.check(one, sample)
        text = self.text(sample["input"], sample["answer_prefix"])

        def settled(answer: str) -> bool:
            return task.metric(answer, sample["outputs"]) == 1

        return Prompt(self.ids(text), task.max_new_tokens, settled=settled if early_stop else None, text=text)


@dataclass(frozen=True)
class Maker:
    """Makes samples, or finds them where they were made before.

    tokenizer: hex digits that tell it from others.    seed: of the draws.
    data: a folder of RULER's own source files, or of samples as LENGTH/TASK.jsonl; `demo`; None: the public files.
    """

    feed: Feed
    tokenizer: str
    seed: int
    data: Path | None

    def __post_init__(self) -> None:
        """Raise DataError for a `data` that is no folder."""
        if self.data is not None and str(self.data) != DEMO:
            check_folder(self.data, "--data takes RULER's own files, samples as LENGTH/TASK.jsonl, or demo")

    @property
    def is_ready(self) -> bool:
        """Whether `data` holds samples, made elsewhere."""
        return self.data is not None and any(self.data.glob("[0-9]*/*.jsonl"))

    def make(self, tasks: Sequence[RulerTask], lengths: Sequence[int], count: int) -> list[Haystack]:
        """The first `count` samples of each task at each length, in order. Says which tasks run over demo texts."""
        made: list[Haystack] = []
        missing: dict[str, str] = {}
        sources, demo = Sources(self.find), DemoTexts()
        for length, task in itertools.product(lengths, tasks):
            if self.is_ready:
                path = self._ready(task, length)
            else:
                try:
                    path = self._file(task, length, count, demo if task.is_demo else sources)
                except MissingFile as error:
                    task = task.as_demo()
                    missing[task.name] = str(error)
                    path = self._file(task, length, count, demo)
            made += [Haystack(task, length, one) for one in store.stored(path, count)]
        if missing:
            reason = next(iter(missing.values()))
            say(
                f"over demo texts, as their names say: {', '.join(missing)}; RULER's own texts are fetched by "
                f"e2bench data ruler ({reason})"
            )
        return made

    def _ready(self, task: RulerTask, length: int) -> Path:
        """The file of samples made elsewhere; its first one must fit with this tokenizer and chat template."""
        assert self.data is not None
        path = self.data / str(length) / f"{task.name}.jsonl"
        if not path.is_file():
            raise DataError(f"{self.data} has no {length}/{task.name}.jsonl; leave the task or the length out")
        for one in store.stored(path, 1):
            self.feed.check(Haystack(task, length, one), one.read())
        return path

    def _file(self, task: RulerTask, length: int, count: int, sources: Sources) -> Path:
        """The file of at least `count` samples in the cache, made if it is not there."""
        path = cache_folder() / "ruler" / f"{task.name}-{short_length(length)}-{self._key(task, length)}.jsonl"
        if not path.exists() or len(store.stored(path, count)) < count:
            store.write(path, self.rows(task, length, sources), count)
        return path

    def rows(self, task: RulerTask, length: int, sources: Sources) -> Iterator[dict[str, Any]]:
        """Samples as lines, without end where the task has none."""
        budget = Budget(self.feed.tokens, length, task.max_new_tokens, self.seed, task.name)
        return store.rows(task.maker.samples(task.template, task.answer_prefix, budget, sources), budget)

    def _key(self, task: RulerTask, length: int) -> str:
        """16 hex digits of what decides a task's samples at a length."""
        wrapper = self.feed.wrapper
        return store.key_of(
            {
                "task": [task.name, task.version, length, task.max_new_tokens, self.seed],
                "tokenizer": self.tokenizer,
                "chat_template": "" if wrapper is None else wrapper.sha256,
                "words": importlib.metadata.version("wonderwords"),
                "texts": platform.python_version() if task.is_demo else self.hashes([task], long=True),
            }
        )

    def find(self, name: str) -> Path:
        """A file that samples are made from, fetched if it may be. Raises MissingFile."""
        if str(self.data) == DEMO:
            raise MissingFile("--data demo")
        own = None if self.data is None else self.data / OWN_NAMES[name]
        if own is not None and (own.exists() or name != PUNKT):
            if not own.exists():
                raise MissingFile(f"{self.data} has no {OWN_NAMES[name]}")
            return own
        try:
            return fetch(FILES[name])
        except DataError as error:
            raise MissingFile(str(error).partition("; with a network")[0]) from None

    def hashes(self, tasks: Iterable[RulerTask], *, long: bool = False) -> dict[str, str]:
        """SHA-256 by name of the files that tasks are made from, those of long windows only with `long`."""
        names = {
            name for task in tasks if not task.is_demo for name in (*task.needs, *(task.long_needs if long else ()))
        }
        return {name: self._hash(name) for name in sorted(names)}

    def _hash(self, name: str) -> str:
        own = None if self.data is None else self.data / OWN_NAMES[name]
        return sha256_of(own) if own is not None and own.is_file() else str(FILES[name].sha256)

    def source(self, made: Sequence[Haystack]) -> DataSource:
        """Where these samples are from, as run.json records it."""
        tasks = {one.task for one in made}
        if any(task.is_demo for task in tasks):
            return DataSource(DEMO)
        if self.data is not None:
            return DataSource(OWN, self.data.resolve().name)
        files = (FILES[name] for name in self.hashes(tasks))
        return DataSource(GENERATED, GENERATOR, all(is_verified(file, fetch(file)) for file in files))


def tokenizer_key(tokenizer: Any) -> str:
    """16 hex digits of everything that decides a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_samples(maker: Maker, tasks: Sequence[RulerTask], lengths: Sequence[int], count: int, out: Path) -> None:
    """Write OUT/LENGTH/TASK.jsonl, as RULER's own scripts lay samples out."""
    groups: dict[Path, list[Haystack]] = {}
    for one in maker.make(tasks, lengths, count):
        groups.setdefault(out / str(one.length) / f"{one.task.name}.jsonl", []).append(one)
    for path, samples in groups.items():
        store.write(path, (sample.stored.read() for sample in samples), count)
    say(f"{len(groups)} files of up to {count} samples in {out}")
