"""The sources of a training's text: files, their hashes, their examples; one example as token ids.

files -> examples -> token ids, once, into the cache (tokens.py) -> pieces -> mixture -> rows of R tokens (rows.py)
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError, E2BenchError, UnknownName, one_line
from e2bench.files import sha256_of
from e2bench.hub import data_file
from e2bench.runs.manifest import shareable
from e2bench.train.layouts import LAYOUTS, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label that transformers' loss leaves out
HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/([^*]+)")  # repository, revision, path
CACHED = re.compile(r"/datasets--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$")  # where the hub's client keeps it


@dataclass(frozen=True)
class Source:
    """One part of the mixture.

    files: JSON or JSON-lines files, also .gz; `*` is expanded. `hf://datasets/OWNER/NAME@REVISION/PATH` is one of the
    hub's, fetched into its client's cache; without @REVISION the newest.    layout: `text`, `sharegpt`, `summary`
    or `completion` (layouts.py).
    weight: share of the training tokens, relative to the other sources.
    loss: `all` tokens, or `answers` only (the assistant's turns; the summary; the completion).
    template: `chat` (the tokenizer's own chat template) or `vicuna`; only read by `sharegpt`.
    """

    files: list[str]
    layout: str = "text"
    weight: float = 1.0
    loss: str = "all"
    template: str = "vicuna"

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

    def paths(self, *, fetch: bool = True) -> list[Path]:
        """The files that exist. Raises DataError for a name that matches nothing.

        fetch: get files of the hub that are not in the cache yet.
        """
        found = []
        for name in self.files:
            if name.startswith(HUB):
                found.append(_from_hub(name, fetch))
                continue
            path = Path(name).expanduser()
            matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))]
            if not matches:
                raise DataError(f"training data {name!r} does not exist; check `files` under `data` in the recipe")
            found += matches
        return found

    def hashes(self) -> list[str]:
        """SHA-256 of each file, in the order of `paths`."""
        return [_hash_at(path, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths()]


def _from_hub(name: str, fetch: bool) -> Path:
    """The file in the hub client's cache. Raises E2BenchError for another form, DataError where it cannot be had."""
    parts = HUB_FILE.fullmatch(name)
    if not parts:
        raise E2BenchError(
            f"{name!r} is no file of a data set on the hub; write hf://datasets/OWNER/NAME@REVISION/PATH, one a file"
        )
    repo, revision, path = parts.groups()
    try:
        return data_file(repo, path, revision, fetch=fetch)
    except DataError as reason:
        raise DataError(
            f"training data {name} cannot be had: {reason}; on a machine with a network: "
            f"hf download {repo} {path} --repo-type dataset" + (f" --revision {revision}" if revision else "")
        ) from None


def _recorded(path: Path) -> str:
    """A file's name in e2_config.json; of the hub's with the commit that was read, as a recipe takes it."""
    parts = CACHED.search(path.as_posix())
    return "hf://datasets/{}/{}@{}/{}".format(*parts.groups()) if parts else path.name


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
    """The examples. Raises DataError where the files are no JSON lines: `datasets` has many ways to say so."""
    from datasets import load_dataset

    files = [glob.escape(str(path)) for path in source.paths()]  # `datasets` looks for patterns in what it is given
    try:
        yield from load_dataset("json", data_files=files, split="train", streaming=True)
    except Exception as error:
        names = ", ".join(source.files)
        raise DataError(f"{names} cannot be read as JSON lines: {one_line(error.__cause__ or error)[:200]}") from None


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
