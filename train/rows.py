"""Training rows of R tokens from tokenised documents: pieces, their order, the mixture, the packing.

Only lengths are looked at to find what is in a row, so that a resumed run passes over the rows it has seen in seconds.
Row n is the same in every process and after every restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from e2bench.errors import DataError
from e2bench.prompts.wording import Wording
from e2bench.train.data import IGNORED, Source
from e2bench.train.tokens import Documents, tokenised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_ROWS = 16  # rows that wait for a document short enough to fit
ORDER = 1 << 64  # in the key of the generator that orders pieces: draws of g and t have keys below


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a source."""

    source: int
    start: int
    stop: int


class PackedRows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows `{"row": n, "input_ids": (R,), "labels": (R,)}`, from row `first_row` on.

    whole_documents: a document that fits into R is never cut in two; the rest of a row is padded and not trained on.
        Otherwise pieces follow one another without a gap.
    cross_documents: tokens attend to earlier documents of their row. Otherwise rows also hold `position_ids` that
        begin anew with every document, from which transformers makes the block-diagonal mask.
    vocabulary: embedding rows of the model; data with a token beyond them is refused. None: not checked.
    wordings: of evaluations; `rows_with` counts the documents read so far that hold them, each once.
    makes: see `tokenised`.
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
        first_row: int = 0,
        vocabulary: int | None = None,
        wordings: Sequence[Wording] = (),
        makes: bool = True,
    ) -> None:
        if not sources:
            raise DataError("the recipe names no training data; list files under `data`")
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token, which marks where a document ends; set eos_token")
        self.weights, self.train_window, self.seed = [source.weight for source in sources], train_window, seed
        self.whole_documents, self.cross_documents, self.first_row = whole_documents, cross_documents, first_row
        self.wordings, self.rows_with = wordings, {wording.name: 0 for wording in wordings}
        self.padding = tokenizer.eos_token_id
        self.documents = [tokenised(source, tokenizer, wordings, makes=makes) for source in sources]
        for documents in self.documents:
            if vocabulary is not None and documents.most >= vocabulary:
                raise DataError(
                    f"the training data holds the token {tokenizer.convert_ids_to_tokens([documents.most])[0]!r} (id "
                    f"{documents.most}), and the model has {vocabulary:,} embedding rows; the tokenizer is another "
                    "model's: check it"
                )
        for source, documents in zip(sources, self.documents, strict=True):
            if not len(cut(documents, train_window)):
                raise DataError(f"{source.paths()[0]}: no token in it to train on with loss: {source.loss}")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.rows_with = dict.fromkeys(self.rows_with, 0)
        pieces = mixture([self._pieces(index) for index in range(len(self.documents))], self.weights)
        pack = pack_whole if self.whole_documents else pack_gapless
        for number, row in itertools.islice(enumerate(pack(pieces, self.train_window)), self.first_row, None):
            yield self._tensors(number, row)

    def _pieces(self, index: int) -> Iterator[Piece]:
        """Endless pieces of one source: each once an epoch, every epoch in another order."""
        documents = self.documents[index]
        pieces = cut(documents, self.train_window)
        starts, stops = pieces.T.tolist()
        unread = self._with_words(documents, pieces[:, 0])
        for epoch in itertools.count():
            for place in _order(len(pieces), self.seed, index, epoch):
                if epoch == 0 and place in unread:
                    self._count(documents, unread, place)
                yield Piece(index, starts[place], stops[place])

    @staticmethod
    def _with_words(documents: Documents, starts: NDArray[np.int64]) -> dict[int, int]:
        """Piece: document, for those of documents that hold an evaluation's words."""
        of = np.searchsorted(documents.ends, starts, side="right")
        holding = np.flatnonzero(documents.words.any(axis=1))
        places = np.flatnonzero(np.isin(of, holding))
        return dict(zip(places.tolist(), of[places].tolist(), strict=True))

    def _count(self, documents: Documents, unread: dict[int, int], place: int) -> None:
        """Count the document of a piece, which then is read, whatever other pieces it has."""
        document = unread[place]
        for wording, holds in zip(self.wordings, documents.words[document], strict=True):
            self.rows_with[wording.name] += int(holds)
        for other in [other for other, of in unread.items() if of == document]:
            del unread[other]

    def _tensors(self, number: int, row: list[Piece]) -> dict[str, torch.Tensor]:
        lengths = [piece.stop - piece.start for piece in row]
        padding = self.train_window - sum(lengths)
        ids = np.full(self.train_window, self.padding, np.int64)
        labels = np.full(self.train_window, IGNORED, np.int64)
        at = 0
        for piece, length in zip(row, lengths, strict=True):
            documents, here = self.documents[piece.source], slice(at, at + length)
            ids[here] = documents.tokens[piece.start : piece.stop]
            trained = documents.trained
            labels[here] = ids[here] if trained is None else np.where(
                trained[piece.start : piece.stop], ids[here], IGNORED
            )  # fmt: skip
            at += length
        tensors = {
            "row": torch.tensor(number),
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
        }
        if not self.cross_documents:
            parts = [torch.arange(length) for length in (*lengths, padding)]
            tensors["position_ids"] = torch.cat(parts)
            starts = tensors["position_ids"] == 0  # what a document begins with does not follow from the one before
            tensors["labels"] = tensors["labels"].masked_fill(starts, IGNORED)
        return tensors


def cut(documents: Documents, train_window: int) -> NDArray[np.int64]:
    """Pieces (P, 2), start and stop: each document in R tokens and a rest, without pieces that train on nothing."""
    begins = np.concatenate([[0], documents.ends[:-1]])
    counts = -(-(documents.ends - begins) // train_window)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, … in each document
    starts = np.repeat(begins, counts) + within * train_window
    stops = np.minimum(starts + train_window, np.repeat(documents.ends, counts))
    pieces = np.stack([starts, stops], axis=1)
    if documents.trained is None:
        return pieces
    return pieces[np.logical_or.reduceat(documents.trained, starts)]


def _order(count: int, seed: int, source: int, epoch: int) -> list[int]:
    """The numbers below `count` in an order of their own for each epoch; Philox's bits are the same in every numpy."""
    bits = np.random.Philox(key=ORDER + seed, counter=[0, 0, source, epoch]).random_raw(count)
    order: list[int] = np.argsort(bits, kind="stable").tolist()
    return order


def mixture(streams: list[Iterator[Piece]], weights: list[float]) -> Iterator[Piece]:
    """Always the source furthest behind its share of the tokens: shares hold at any point, to within a piece."""
    if len(streams) == 1:
        yield from streams[0]
    served = [0.0] * len(streams)
    while True:
        behind = min(range(len(streams)), key=lambda i: served[i] / weights[i])
        piece = next(streams[behind])
        served[behind] += piece.stop - piece.start
        yield piece


def pack_gapless(pieces: Iterable[Piece], train_window: int) -> Iterator[list[Piece]]:
    """Rows of exactly R tokens; a piece that does not fit goes on in the next row."""
    row: list[Piece] = []
    room = train_window
    for source, start, stop in pieces:
        while start < stop:
            end = min(stop, start + room)
            row.append(Piece(source, start, end))
            room -= end - start
            start = end
            if not room:
                yield row
                row, room = [], train_window


def pack_whole(pieces: Iterable[Piece], train_window: int) -> Iterator[list[Piece]]:
    """Rows of at most R tokens: best fit among OPEN_ROWS rows; when a piece fits none, the fullest is closed."""
    waiting: list[tuple[list[Piece], int]] = []  # each with its room
    row: list[Piece]
    for piece in pieces:
        length = piece.stop - piece.start
        best = min(
            (i for i, (_, room) in enumerate(waiting) if room >= length), key=lambda i: waiting[i][1], default=None
        )
        if best is None:
            if len(waiting) == OPEN_ROWS:
                fullest = min(range(OPEN_ROWS), key=lambda i: waiting[i][1])
                yield waiting.pop(fullest)[0]
            row, room = [], train_window
        else:
            row, room = waiting.pop(best)
        row.append(piece)
        if room == length:
            yield row
        else:
            waiting.append((row, room - length))
