"""Training rows of R tokens from text, conversations and long documents with summaries, streamed from JSON lines.

files -> documents (`datasets`, shuffled) -> pieces of at most R tokens (shuffled) -> mixture by token shares -> rows.
Row n is the same in every process and after every restart; a resumed run goes on at the row where it stopped.
"""

from __future__ import annotations

import glob
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from e2bench.errors import DataError, E2BenchError, UnknownName, one_line
from e2bench.files import sha256_of
from e2bench.prompts.wording import Wording
from e2bench.runs.manifest import shareable
from e2bench.train.layouts import LAYOUTS, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label that transformers' loss leaves out
OPEN_ROWS = 16  # rows that wait for a document short enough to fit


@dataclass(frozen=True)
class Source:
    """One part of the mixture.

    files: JSON or JSON-lines files, also .gz; `*` is expanded.    layout: `text`, `sharegpt`, `summary`
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

    def paths(self) -> list[Path]:
        """The files that exist. Raises DataError for a name that matches nothing."""
        found = []
        for name in self.files:
            path = Path(name).expanduser()
            matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))]
            if not matches:
                raise DataError(f"training data {name!r} does not exist; check `files` under `data` in the recipe")
            found += matches
        return found


@dataclass
class Piece:
    """At most R tokens of one document; labels are the token itself or IGNORED."""

    input_ids: list[int]
    labels: list[int]


@dataclass
class _Row:
    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.tokens += len(piece.input_ids)


def data_hashes(sources: list[Source]) -> dict[str, str]:
    """File name -> SHA-256 of its bytes; the path as given where several files have one name."""
    paths = [path for source in sources for path in source.paths()]
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else shareable(path): sha256_of(path) for path in paths}


class PackedRows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows `{"row": n, "input_ids": (R,), "labels": (R,)}`, from row `first_row` on.

    whole_documents: a document that fits into R is never cut in two; the rest of a row is padded and not trained on.
        Otherwise pieces follow one another without a gap.
    cross_documents: tokens attend to earlier documents of their row. Otherwise rows also hold `position_ids` that
    begin anew
        with every document, from which transformers makes the block-diagonal mask.
    shuffle_buffer: documents and pieces held to draw the next one from.
    vocabulary: embedding rows of the model; a row with a token beyond them is refused. None: not checked.
    wordings: of evaluations; `rows_with` counts the documents of the first epochs, as far as read, that hold them.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_window: int,
        seed: int = 0,
        whole_documents: bool = False,
        cross_documents: bool = True,
        shuffle_buffer: int = 1000,
        first_row: int = 0,
        vocabulary: int | None = None,
        wordings: Sequence[Wording] = (),
    ) -> None:
        if not sources:
            raise DataError("the recipe names no training data; list files under `data`")
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token, which marks where a document ends; set eos_token")
        self.sources, self.tokenizer, self.train_window, self.seed = sources, tokenizer, train_window, seed
        self.whole_documents, self.cross_documents = whole_documents, cross_documents
        self.shuffle_buffer, self.first_row, self.vocabulary = shuffle_buffer, first_row, vocabulary
        self.wordings, self.rows_with = wordings, {wording.name: 0 for wording in wordings}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.rows_with = dict.fromkeys(self.rows_with, 0)
        streams = [self._pieces(index, source) for index, source in enumerate(self.sources)]
        pieces = _mixture(streams, [source.weight for source in self.sources])
        pack = _pack_whole if self.whole_documents else _pack_gapless
        rows = itertools.islice(enumerate(pack(pieces, self.train_window)), self.first_row, None)
        for number, row in rows:
            yield self._tensors(number, row)

    def _tensors(self, number: int, row: _Row) -> dict[str, torch.Tensor]:
        padding = self.train_window - row.tokens
        if padding:
            row.add(Piece([self.tokenizer.eos_token_id] * padding, [IGNORED] * padding))
        most = max(i for p in row.pieces for i in p.input_ids)
        if self.vocabulary is not None and most >= self.vocabulary:
            raise DataError(
                f"the training data holds the token {self.tokenizer.convert_ids_to_tokens([most])[0]!r} (id {most}), "
                f"and the model has {self.vocabulary:,} embedding rows; the tokenizer is another model's: check it"
            )
        tensors = {
            "row": torch.tensor(number),
            "input_ids": torch.tensor([i for p in row.pieces for i in p.input_ids]),
            "labels": torch.tensor([i for p in row.pieces for i in p.labels]),
        }
        if not self.cross_documents:
            tensors["position_ids"] = torch.cat([torch.arange(len(p.input_ids)) for p in row.pieces])
            starts = tensors["position_ids"] == 0  # what a document begins with does not follow from the one before
            tensors["labels"] = tensors["labels"].masked_fill(starts, IGNORED)
        return tensors

    def _pieces(self, index: int, source: Source) -> Iterator[Piece]:
        """Endless pieces of one source: every document once an epoch, every epoch in another order."""
        from datasets import load_dataset

        files = [glob.escape(str(path)) for path in source.paths()]  # `datasets` looks for patterns in what it is given
        examples = load_dataset("json", data_files=files, split="train", streaming=True)
        rng = random.Random(f"{self.seed}:{index}")
        for epoch in itertools.count():
            seed = self.seed + 1000 * index + epoch
            documents = self._documents(examples.shuffle(seed=seed, buffer_size=self.shuffle_buffer), source, epoch)
            pieces = itertools.chain.from_iterable(cut(document, self.train_window) for document in documents)
            piece = None
            for piece in _shuffled(pieces, self.shuffle_buffer, rng):
                yield piece
            if piece is None:
                raise DataError(f"{source.paths()[0]}: no example of layout {source.layout!r} in it; check `layout`")

    def _documents(self, examples: Iterable[dict[str, Any]], source: Source, epoch: int) -> Iterator[Piece]:
        for example in _readable(examples, source):
            segments = LAYOUTS[source.layout](example, self.tokenizer, source.template)
            if segments:
                if epoch == 0:
                    self._look_through("".join(segment.text for segment in segments))
                yield encode(segments, self.tokenizer, answers_only=source.loss == "answers")

    def _look_through(self, text: str) -> None:
        for wording in self.wordings:
            self.rows_with[wording.name] += wording.is_in(text)


def _readable(examples: Iterable[dict[str, Any]], source: Source) -> Iterator[dict[str, Any]]:
    """The examples. Raises DataError where the files are no JSON lines: `datasets` has many ways to say so."""
    try:
        yield from examples
    except Exception as error:
        files = ", ".join(source.files)
        raise DataError(f"{files} cannot be read as JSON lines: {one_line(error.__cause__ or error)[:200]}") from None


def encode(segments: list[Segment], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool) -> Piece:
    """One document: BOS if the tokenizer has one, the segments, EOS where a segment asks for it and at the end."""
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    input_ids, labels = list(bos), [IGNORED] * len(bos) if answers_only else list(bos)
    for number, segment in enumerate(segments):
        ids = tokenizer(segment.text, add_special_tokens=False, verbose=False)["input_ids"]
        if segment.ends or number == len(segments) - 1:
            ids = [*ids, tokenizer.eos_token_id]
        input_ids += ids
        labels += [IGNORED] * len(ids) if answers_only and not segment.answer else ids
    return Piece(input_ids, labels)


def cut(document: Piece, train_window: int) -> Iterator[Piece]:
    """The document in pieces of R tokens, the last one shorter; those without a token to train on are left out."""
    for start in range(0, len(document.input_ids), train_window):
        piece = Piece(document.input_ids[start : start + train_window], document.labels[start : start + train_window])
        if any(label != IGNORED for label in piece.labels):
            yield piece


def _shuffled(pieces: Iterable[Piece], size: int, rng: random.Random) -> Iterator[Piece]:
    """Every piece once, each drawn from a buffer of `size`, so that a long document does not fill whole steps."""
    buffer: list[Piece] = []
    for piece in pieces:
        buffer.append(piece)
        if len(buffer) > size:
            yield _drawn(buffer, rng)
    while buffer:
        yield _drawn(buffer, rng)


def _drawn(buffer: list[Piece], rng: random.Random) -> Piece:
    place = rng.randrange(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


def _mixture(streams: list[Iterator[Piece]], weights: list[float]) -> Iterator[Piece]:
    """Always the source furthest behind its share of the tokens: shares hold at any point, to within a piece."""
    served = [0.0] * len(streams)
    while True:
        behind = min(range(len(streams)), key=lambda i: served[i] / weights[i])
        piece = next(streams[behind])
        served[behind] += len(piece.input_ids)
        yield piece


def _pack_gapless(pieces: Iterator[Piece], train_window: int) -> Iterator[_Row]:
    row = _Row()
    for piece in pieces:
        while piece.input_ids:
            room = train_window - row.tokens
            row.add(Piece(piece.input_ids[:room], piece.labels[:room]))
            piece = Piece(piece.input_ids[room:], piece.labels[room:])
            if row.tokens == train_window:
                yield row
                row = _Row()


def _pack_whole(pieces: Iterator[Piece], train_window: int) -> Iterator[_Row]:
    """Best fit among OPEN_ROWS rows; when a piece fits none of them, the fullest is closed."""
    waiting: list[_Row] = []
    for piece in pieces:
        fitting = [row for row in waiting if row.tokens + len(piece.input_ids) <= train_window]
        row = max(fitting, key=lambda r: r.tokens, default=None)
        if row is None:
            if len(waiting) == OPEN_ROWS:
                fullest = max(waiting, key=lambda r: r.tokens)
                waiting.remove(fullest)
                yield fullest
            row = _Row()
            waiting.append(row)
        row.add(piece)
        if row.tokens == train_window:
            waiting.remove(row)
            yield row
