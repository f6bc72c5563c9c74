"""The sources of a training's text: files, their hashes, their examples; one example as token ids.

files -> examples -> token ids, once, into the cache (tokens.py) -> pieces -> mixture -> rows of R tokens (rows.py)
"""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.data.beginning import MEGABYTE, beginning_path, fetch_beginning
from e2bench.data.fetch import cache_folder
from e2bench.errors import DataError, E2BenchError, UnknownName, one_line
from e2bench.files import sha256_of
from e2bench.hub import data_file
from e2bench.runs.manifest import shareable
from e2bench.tasks.corpora import published
from e2bench.train.layouts import LAYOUTS, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label that transformers' loss leaves out
HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/([^*]+)")  # repository, revision, path
COMMIT = re.compile(r"[0-9a-f]{40}")
CACHED = (  # where the hub's client keeps a file, and where we keep the beginning of one
    re.compile(r"/datasets--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$"),
    re.compile(r"/beginnings/([^/]+)/([^/]+)/([0-9a-f]{40})/(.+)\.first-\d+MB\.jsonl$"),
)


@dataclass(frozen=True)
class Source:
    """One part of the mixture.

    files: JSON or JSON-lines files, also .gz, or parquet; `*` is expanded. `hf://datasets/OWNER/NAME@REVISION/PATH` is
    one of the hub's, fetched into its client's cache; without @REVISION the newest.    layout: `text`, `sharegpt`,
    `summary` or `completion` (layouts.py).
    megabytes: of text from the beginning of each file, which then are the hub's, in lines and at a commit: no more is
    fetched (data/beginning.py). None: whole files.
    weight: share of the training tokens, relative to the other sources.
    loss: `all` tokens, or `answers` only (the assistant's turns; the summary; the completion).
    template: `chat` (the tokenizer's own chat template) or `vicuna`; only read by `sharegpt`.
    """

    files: list[str]
    layout: str = "text"
    weight: float = 1.0
    loss: str = "all"
    template: str = "vicuna"
    megabytes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.files, str):
            raise E2BenchError(f"files is the text {self.files!r} in the recipe: it must be a list, [{self.files}]")
        if self.layout not in LAYOUTS:
            raise UnknownName("data layout", self.layout, list(LAYOUTS))
        if self.loss not in ("all", "answers"):
            raise UnknownName("loss", self.loss, ["all", "answers"])
        if self.template not in ("chat", "vicuna"):
            raise UnknownName("template", self.template, ["chat", "vicuna"])
        if self.weight <= 0:
            raise E2BenchError(f"a data source has weight {self.weight:g}: it must be above 0")
        if self.megabytes is not None and self.megabytes < 1:
            raise E2BenchError(f"a data source has megabytes {self.megabytes}: it must be at least 1")

    def paths(self, *, fetch: bool = True) -> list[Path]:
        """The files that exist. Raises DataError for a name that matches nothing.

        fetch: get files of the hub that are not in the cache yet.
        """
        found = []
        for name in self.files:
            if name.startswith(HUB):
                found.append(_from_hub(name, self.megabytes, fetch))
                continue
            if self.megabytes is not None:
                raise E2BenchError(
                    f"megabytes is for files of the hub (hf://…), and {name!r} is none; set megabytes=null"
                )
            path = Path(name).expanduser()
            matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))]
            if not matches:
                raise DataError(f"training data {name!r} does not exist; check `files` under `data` in the recipe")
            found += matches
        return found

    def fetched_bytes(self) -> int | None:
        """Of its files on the hub, at most; None where the size of one is not known without asking."""
        files = [HUB_FILE.fullmatch(name) for name in self.files]
        known = [published(parts[1], parts[3], parts[2]) for parts in files if parts]
        if self.megabytes is not None:
            return self.megabytes * MEGABYTE * len(files)
        sizes = [one.bytes for one in known if one and one.bytes]
        return sum(sizes) if len(sizes) == len(files) else None

    def hashes(self) -> list[str]:
        """SHA-256 of each file, in the order of `paths`."""
        return [_hash_of(path) for path in self.paths()]


def _from_hub(name: str, megabytes: int | None, fetch: bool) -> Path:
    """The file, or its beginning, in the cache.

    Raises E2BenchError for another form of name, DataError where it cannot be had or has not the published hash.
    """
    parts = HUB_FILE.fullmatch(name)
    if not parts:
        raise E2BenchError(
            f"{name!r} is no file of a data set on the hub; write hf://datasets/OWNER/NAME@REVISION/PATH, one a file"
        )
    repo, revision, path = parts.groups()
    known = published(repo, path, revision)
    command = f"hf download {repo} {path} --repo-type dataset" + (f" --revision {revision}" if revision else "")
    if known and known.megabytes == megabytes:
        command = f"e2bench data {known.name}"
    elif megabytes is not None:
        command = "the same command again"
    try:
        if megabytes is not None:
            return _beginning(repo, path, revision, megabytes, fetch)
        found = data_file(repo, path, revision, fetch=fetch)
    except DataError as reason:
        raise DataError(
            f"training data {name} cannot be had: {reason}; on a machine with a network: {command}"
        ) from None
    if known and known.sha256 not in (None, _hash_of(found)):
        raise DataError(f"{found} has not the published SHA-256 of {name}; delete it and give the command again")
    return found


def _beginning(repo: str, path: str, revision: str | None, megabytes: int, fetch: bool) -> Path:
    if revision is None or not COMMIT.fullmatch(revision):
        raise E2BenchError(f"megabytes needs the file's commit: hf://datasets/{repo}@COMMIT/{path}, 40 hex digits")
    target = beginning_path(cache_folder(), repo, revision, path, megabytes)
    if fetch:
        return fetch_beginning(cache_folder(), repo, revision, path, megabytes)
    if not target.exists():
        raise DataError("not fetched yet")
    return target


def _recorded(path: Path) -> str:
    """A file's name in e2_config.json; of the hub's with the commit that was read, as a recipe takes it."""
    parts = next(filter(None, (pattern.search(path.as_posix()) for pattern in CACHED)), None)
    return "hf://datasets/{}/{}@{}/{}".format(*parts.groups()) if parts else path.name


def _hash_of(path: Path) -> str:
    return _hash_at(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)  # a start asks twice: for the record, and for the key of the tokens
def _hash_at(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


def data_hashes(sources: list[Source]) -> dict[str, str]:
    """File name -> SHA-256 of its bytes; the path as given where several files have one name, the hub's as `hf://…`."""
    hashes = [pair for source in sources for pair in zip(source.paths(), source.hashes(), strict=True)]
    names = Counter(_recorded(path) for path, _ in hashes)
    return {_recorded(path) if names[_recorded(path)] == 1 else shareable(path): digest for path, digest in hashes}


def documents(source: Source, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Segment]]:
    """The segments of every example of the source's layout, in the order of its files; others are left out."""
    for example in _examples(source):
        segments = LAYOUTS[source.layout](example, tokenizer, source.template)
        if segments:
            yield segments


def _examples(source: Source) -> Iterator[dict[str, Any]]:
    """The examples, file by file. Raises DataError where one is neither JSON lines nor parquet, as its name says."""
    for path in source.paths():
        kind = "parquet" if path.suffix == ".parquet" else "json"
        yield from _read(path, kind, _recorded(path))


def _read(path: Path, kind: str, name: str) -> Iterator[dict[str, Any]]:
    """The examples of one file, by `datasets`, which has many ways to say that it cannot be read."""
    from datasets import load_dataset

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # what it logs, the error below says
    file = glob.escape(str(path))  # `datasets` looks for patterns in what it is given
    try:
        yield from load_dataset(kind, data_files=[file], split="train", streaming=True)
    except Exception as error:
        reason = one_line(error.__cause__ or error)[:200]
        what = "parquet" if kind == "parquet" else "JSON lines"
        raise DataError(f"{name} cannot be read as {what}: {reason}") from None


def encode(
    batch: list[list[Segment]], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool
) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids of each document, and which of them are trained on.

    BOS if the tokenizer has one, the segments, EOS where a segment asks for it and at the end.
    """
    texts = [segment.text for segments in batch for segment in segments]
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    for segments in batch:
        input_ids, trained = list(bos), [not answers_only] * len(bos)
        for number, segment in enumerate(segments):
            ids = next(encoded)
            if segment.ends or number == len(segments) - 1:
                ids = [*ids, tokenizer.eos_token_id]
            input_ids += ids
            trained += [segment.answer or not answers_only] * len(ids)
        yield input_ids, trained
