"""Documents for perplexity and attention: read, choose, remember by hash. Formats as proof-pile's, text, parquet."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.data.parquet import check_pages, read_texts
from e2bench.errors import DataError
from e2bench.files import MOST_LINE_BYTES, MOST_TEXT_BYTES, json_object, read_lines, read_whole, within
from e2bench.hub import OFFLINE, is_online

PLAIN = (".txt", ".md", ".tex", ".rst")  # a document a file
KINDS = f".jsonl or .jsonl.gz (lines with a `text` field), .parquet, {', '.join(PLAIN)}"
DEFAULT_DOCS = 128  # the paper's (section 5.3)
MOST_RATIO, FREE_BYTES = 200, 64 << 20  # what a packed file may grow to: so many times its size, and this anyway
TOKEN_CHARS, SPARE_TOKENS = 8, 64  # of a document's beginning: characters a token at first, tokens before the cut


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
    """Documents of a file of one of KINDS, or of a folder of them.

    Raises DataError at once for what is not there, and for parquet that its own headers betray; while reading, naming
    file and line, for what is not UTF-8, broken gzip, or a line without text.
    """
    files = _files(path)
    for file in files:
        if file.suffix == ".parquet":
            check_pages(file, "text", Growth(file))
    return (document for file in files for document in _documents(file))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no file {path}; --data takes {KINDS}, or a hub id")
    found = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet", *PLAIN)))
    if not found:
        raise DataError(f"{path} holds none of these: {KINDS}")
    return [file for one in found for file in _files(one)]


def _documents(path: Path) -> Iterator[Document]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix in PLAIN:
        yield Document(_decoded(read_whole(path, MOST_LINE_BYTES), str(path)), str(path))
    else:
        documents = _json_lines(path)
        try:
            yield next(documents)
        except StopIteration:
            return
        except DataError:
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                raise
            raise DataError(f"{path} is none of these: {KINDS}; rename plain text to .txt") from None
        yield from documents


class Growth:
    """Counts what a file unpacks to. `take` raises DataError for a file that grows as no text does."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.most = max(FREE_BYTES, MOST_RATIO * path.stat().st_size)

    def take(self, size: int) -> None:
        """So many bytes more."""
        self.size += size
        if self.size > self.most:
            raise DataError(f"{self.path} unpacks to more than {self.most >> 20} MiB, more than text can")


def _json_lines(path: Path) -> Iterator[Document]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number, growth = 0, Growth(path)
    try:
        with opener(path, "rb") as lines:
            for number, raw in read_lines(lines, path):
                growth.take(len(raw))
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
    for number, text in enumerate(read_texts(path, "text", Growth(path), Growth(path)), 1):
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


def encode_beginning(document: Document, encode: Callable[[str], list[int]], tokens: int | None) -> list[int]:
    """At least the first `tokens` ids of a document, as its whole text has them; None: all ids.

    A long text is cut at a blank and tokenized only so far that SPARE_TOKENS lie between what is used and the cut.
    Raises DataError for a text of which more than MOST_TEXT_BYTES would have to be tokenized.
    """
    text, most = document.text, max(MOST_TEXT_BYTES, 32 * (tokens or 0))
    advice = "split the document, or use less of it (--doc-tokens)"
    chars = len(text) if tokens is None else TOKEN_CHARS * (tokens + SPARE_TOKENS)
    while chars < len(text) and tokens is not None:
        cut = max(text.rfind(blank, chars // 2, chars) for blank in " \n")
        ids = encode(within(text[: cut if cut > 0 else chars], document.where, advice, most))
        if len(ids) >= tokens + SPARE_TOKENS:
            return ids
        chars *= 4
    return encode(within(text, document.where, advice, most))


def choose_documents(
    documents: Iterator[Document],
    encode: Callable[[str], list[int]],
    *,
    min_tokens: int,
    docs: int | None,
    seed: int,
    used: int | None = None,
) -> list[Chosen]:
    """`docs` documents of at least `min_tokens`, sampled by seed; None: all of them, up to 128. In corpus order.

    used: so many tokens of each are used, so that no more of a long one need be tokenized; None: all.

    Raises DataError saying how many there are, and how long, when an explicit number cannot be met or none is long
    enough. Two equal texts count once.
    """
    long_enough: dict[str, Chosen] = {}
    longest = seen = 0
    short: Document | None = None
    for document in documents:
        seen += 1
        if len(document.text.encode("utf-8", "surrogatepass")) < min_tokens // 2:
            short = document if short is None or len(document.text) > len(short.text) else short
            continue  # far too short for any tokenizer: a token is half a byte at the very least
        if document.id in long_enough:
            continue
        ids = encode_beginning(document, encode, None if used is None else max(used, min_tokens))
        longest = max(longest, len(ids))
        if len(ids) >= min_tokens:
            long_enough.setdefault(document.id, Chosen(document, ids))
    found = list(long_enough.values())
    if not found or len(found) < (docs or 1):
        longest = max(longest, len(encode_beginning(short, encode, None)) if short else 0)
        raise DataError(
            f"{len(found)} of {seen} documents have at least {min_tokens:,} tokens (the longest has {longest:,}), "
            f"{docs or 1} needed; give fewer --docs, shorter --lengths or a smaller --min-tokens"
        )
    size = min(docs or DEFAULT_DOCS, len(found))
    picked = sorted(random.Random(seed).sample(range(len(found)), size))
    return [found[index] for index in picked]
