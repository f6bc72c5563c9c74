"""Documents for perplexity and attention: read, choose, remember by hash. Formats as proof-pile's, text, parquet."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.files import json_object
from e2bench.hub import OFFLINE, is_online

DEFAULT_DOCS = 128  # the paper's (section 5.3)
MOST_LINE_BYTES = 256 << 20


@dataclass(frozen=True)
class Document:
    """A text, where it came from, and its hash: the first 16 hex digits of the SHA-256 of its UTF-8."""

    text: str
    where: str

    @property
    def id(self) -> str:
        """Names the document in every file."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a `.jsonl`, `.jsonl.gz`, `.txt` or `.parquet` file, or of a folder of them.

    Raises DataError naming file and line for what is not UTF-8, broken gzip, or a line without text.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".txt", ".parquet")))
        if not files:
            raise DataError(f"{path} holds no .jsonl, .jsonl.gz, .txt or .parquet file")
        for file in files:
            yield from read_documents(file)
    elif not path.is_file():
        raise DataError(
            f"no file {path}; --data takes .jsonl(.gz) lines with a `text` field, .txt, .parquet or a hub id"
        )
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".txt":
        yield Document(_decoded(path.read_bytes(), str(path)), str(path))
    else:
        yield from _json_lines(path)


def _json_lines(path: Path) -> Iterator[Document]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            while raw := lines.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(raw) > MOST_LINE_BYTES:  # a small .gz can unpack to terabytes
                    raise DataError(
                        f"{path}:{number}: a line of more than {MOST_LINE_BYTES >> 20} MiB; split the document"
                    )
                if raw.strip():
                    yield _json_document(raw, f"{path}:{number}")
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(f"{path} breaks off after line {number}: {error}; fetch the file again") from None


def _json_document(raw: bytes, where: str) -> Document:
    text = json_object(raw, where).get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no text; needed is an object with a `text` field that is not empty")
    return Document(text, where)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); convert the file first") from None


def _parquet(path: Path) -> Iterator[Document]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        table = parquet.read_table(path, columns=["text"])
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read as parquet with a `text` column: {error}") from None
    for number, text in enumerate(table.column("text").to_pylist(), 1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}: row {number} has no text")
        yield Document(text, f"{path}:{number}")


def stream(name: str) -> Iterator[Document]:
    """Documents of the `test` split of a data set on the hub. Raises DataError where it cannot be streamed."""
    if not is_online():
        raise DataError(f"no file {name}, and no data set of that name can be streamed: {OFFLINE}; give a file")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="test", streaming=True)
        for number, row in enumerate(rows, 1):
            yield Document(str(row["text"]), f"{name}:{number}")
    except Exception as error:  # hub, network and format errors are of many kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"no file {name}, and no data set of that name could be streamed: {reason}") from None


@dataclass(frozen=True)
class Chosen:
    """A document with its token ids, BOS included where the tokenizer adds one."""

    document: Document
    ids: list[int]


def choose_documents(
    documents: Iterator[Document],
    encode: Callable[[str], list[int]],
    *,
    min_tokens: int,
    docs: int | None,
    seed: int,
) -> list[Chosen]:
    """`docs` documents of at least `min_tokens`, sampled by seed; None: all of them, up to 128. In corpus order.

    Raises DataError saying how many there are, and how long, when an explicit number cannot be met or none is long
    enough. Two equal texts count once.
    """
    long_enough: dict[str, Chosen] = {}
    longest = seen = 0
    for document in documents:
        seen += 1
        if len(document.text.encode("utf-8", "surrogatepass")) < min_tokens // 2:
            continue  # far too short for any tokenizer: a token is half a byte at the very least
        ids = encode(document.text)
        longest = max(longest, len(ids))
        if len(ids) >= min_tokens:
            long_enough.setdefault(document.id, Chosen(document, ids))
    found = list(long_enough.values())
    if not found or len(found) < (docs or 1):
        raise DataError(
            f"{len(found)} of {seen} documents have at least {min_tokens:,} tokens (the longest has {longest:,}), "
            f"{docs or 1} needed; give fewer --docs, shorter --lengths or a smaller --min-tokens"
        )
    size = min(docs or DEFAULT_DOCS, len(found))
    picked = sorted(random.Random(seed).sample(range(len(found)), size))
    return [found[index] for index in picked]
