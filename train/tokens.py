"""Tokenised training text on disk: the files of a source are read once for a tokenizer, then mapped into memory.

A folder of the cache holds one source: `tokens.bin` (ids one after another), `trained.bin` (one byte a token, only with
`loss: answers`), `ends.npy` (D,) int64 (where each document ends), `words.npy` (D, W) bool (the evaluations' wordings
that each holds) and `about.json` (what it was made of, and the hash of each file), written last. It is called after
the hash of everything that decides its content; R is not among it, since documents are stored whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from e2bench.data.fetch import cache_folder
from e2bench.errors import DataError
from e2bench.files import disk_errors, make_folder, read_json, sha256_of, write_json
from e2bench.models.identity import tokenizer_hash
from e2bench.prompts.wording import Wording
from e2bench.terminal import say
from e2bench.train.data import Source, documents, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # of the folder; another one is made anew
ABOUT, TOKENS, TRAINED, ENDS, WORDS = "about.json", "tokens.bin", "trained.bin", "ends.npy", "words.npy"
TOGETHER = 256  # documents tokenised in one call
GIB = 2**30


@dataclass(frozen=True)
class Documents:
    """The D documents of a source.

    tokens: (T,) ids of all, one after another.    trained: (T,) bool, or None where all are.
    ends: (D,) where each one ends.    words: (D, W) bool.    most: the largest id.    folder: where they lie.
    """

    tokens: NDArray[Any]
    trained: NDArray[np.bool_] | None
    ends: NDArray[np.int64]
    words: NDArray[np.bool_]
    most: int
    folder: Path


def tokens_folder() -> Path:
    """Where tokenised text lies."""
    return cache_folder() / "tokens"


def tokenised(
    source: Source, tokenizer: PreTrainedTokenizerBase, wordings: Sequence[Wording] = (), *, makes: bool = True
) -> Documents:
    """The source's documents, from the cache; tokenised first where they are not there.

    makes: this process tokenises, and checks what is there by its hashes; others wait for it.
    Raises DataError for files without an example of the layout, and for a damaged folder.
    """
    made_of = {
        "format": FORMAT,
        "files": source.hashes(),
        "layout": source.layout,
        "loss": source.loss,
        "template": source.template,
        "tokenizer": tokenizer_hash(tokenizer),
        "wordings": [dataclasses.asdict(wording) for wording in wordings],
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    folder = tokens_folder() / key
    if not makes:
        while not (folder / ABOUT).exists():  # no collective call: tokenising may take longer than one may wait
            time.sleep(0.2)
    elif (folder / ABOUT).exists():
        _check(folder)
    else:
        _make(folder, source, tokenizer, wordings)
    return _opened(folder)


def _check(folder: Path) -> None:
    expected = read_json(folder / ABOUT).get("sha256")
    for name, digest in expected.items() if isinstance(expected, dict) else [(ABOUT, "")]:
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise DataError(f"{folder / name} is not what was written; delete the folder {folder} to tokenise anew")


def _make(folder: Path, source: Source, tokenizer: PreTrainedTokenizerBase, wordings: Sequence[Wording]) -> None:
    say(f"tokenising {', '.join(source.files)}: once, every training with this tokenizer takes it from the cache")
    beside = folder.with_name(f".{folder.name}-{os.getpid()}")
    make_folder(beside)
    try:
        with disk_errors(folder):
            about = _write(beside, source, tokenizer, wordings)
            about["sha256"] = {path.name: sha256_of(path) for path in sorted(beside.iterdir())}
            write_json(beside / ABOUT, about)
            try:
                beside.rename(folder)
            except OSError:
                if not (folder / ABOUT).exists():  # else another process was faster
                    raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sizes = [_size(path) for path in folder.parent.iterdir()]
    say(
        f"{about['tokens']:,} tokens of {about['documents']:,} documents: {_size(folder) / GIB:.2f} GiB in {folder}; "
        f"{folder.parent} now holds {sum(sizes) / GIB:.2f} GiB in {len(sizes)} folders, and any of them may be deleted"
    )


def _write(folder: Path, source: Source, tokenizer: PreTrainedTokenizerBase, wordings: Sequence[Wording]) -> Any:
    """The files of a folder but for `about.json`, whose first fields are returned."""
    dtype = _dtype(tokenizer)
    answers_only = source.loss == "answers"
    ends, words, tokens, most = [], [], 0, 0
    stream = documents(source, tokenizer)
    with (folder / TOKENS).open("wb") as ids_file, (folder / TRAINED).open("wb") as trained_file:
        while batch := list(itertools.islice(stream, TOGETHER)):
            for input_ids, trained in encode(batch, tokenizer, answers_only=answers_only):
                ids_file.write(np.asarray(input_ids, dtype).tobytes())
                if answers_only:
                    trained_file.write(bytes(trained))
                tokens += len(input_ids)
                most = max(most, *input_ids)
                ends.append(tokens)
            for segments in batch:
                text = "".join(segment.text for segment in segments)
                words.append([wording.is_in(text) for wording in wordings])
    if not ends:
        raise DataError(f"{source.paths()[0]}: no example of layout {source.layout!r} in it; check `layout`")
    if not answers_only:
        (folder / TRAINED).unlink()
    np.save(folder / ENDS, np.array(ends, np.int64))
    np.save(folder / WORDS, np.array(words, bool).reshape(len(ends), len(wordings)))
    return {"files": source.files, "dtype": dtype.__name__, "tokens": tokens, "documents": len(ends), "most": most}


def _dtype(tokenizer: PreTrainedTokenizerBase) -> type[np.uint16] | type[np.uint32]:
    largest = max(tokenizer.get_vocab().values())
    return np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32


def _opened(folder: Path) -> Documents:
    about = read_json(folder / ABOUT)
    trained = folder / TRAINED
    return Documents(
        tokens=np.memmap(folder / TOKENS, np.dtype(about["dtype"]), "r"),
        trained=np.memmap(trained, np.bool_, "r") if trained.exists() else None,
        ends=np.load(folder / ENDS),
        words=np.load(folder / WORDS),
        most=about["most"],
        folder=folder,
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
