"""Texts of a parquet file, within limits that its own headers are held to before anything is unpacked.

A few hundred bytes can hold one text a million times, or a page of 2 GiB. The footer says what a column unpacks to, and
may lie; pyarrow makes room for what the header of each page says, so that is what counts here.
Format: apache/parquet-format, parquet.thrift (PageHeader), in Thrift's compact protocol.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from e2bench.errors import DataError

ROWS = 64  # read at a time
BOOLS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12  # Thrift's types
LEAST_PAGE = 1 << 10  # what a page counts as at least: an empty one takes time, too


class Growing(Protocol):
    """Counts what a file unpacks to."""

    def take(self, size: int) -> None:
        """So many bytes more. Raises DataError for too many."""


def read_texts(path: Path, column: str, pages: Growing, texts: Growing) -> Iterator[Any]:
    """What a column holds, row by row: texts, or what else somebody put there.

    pages, texts: count what the column's pages unpack to, and what its rows hold.
    Raises DataError for a file that cannot be read, has no such column, or unpacks to more than the two allow.
    """
    from pyarrow import parquet

    check_pages(path, column, pages)
    with _readable(path, column), parquet.ParquetFile(path, read_dictionary=[column]) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
            for value in batch.column(column):
                text = value.as_py()
                texts.take(len(text) if isinstance(text, str) else 0)
                yield text


def check_pages(path: Path, column: str, pages: Growing) -> None:
    """Count what each page of a column unpacks to, and read none of them. Raises DataError as `read_texts` does."""
    from pyarrow import parquet

    with (
        _readable(path, column),
        parquet.ParquetFile(path) as file,
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if column not in file.schema_arrow.names:
            raise KeyError(f"no column `{column}`")
        for group in range(file.metadata.num_row_groups):
            pieces = file.metadata.row_group(group)
            for piece in map(pieces.column, range(pieces.num_columns)):
                if piece.path_in_schema.partition(".")[0] == column:
                    for size in _page_sizes(data, piece):
                        pages.take(max(size, LEAST_PAGE))


@contextmanager
def _readable(path: Path, column: str) -> Iterator[None]:
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError, LookupError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as parquet with a `{column}` column: {error}") from None


def _page_sizes(data: mmap.mmap, piece: Any) -> Iterator[int]:
    """Unpacked bytes of each page of a column chunk. pyarrow begins and ends in the same places."""
    at = piece.data_page_offset
    if piece.has_dictionary_page and 0 < piece.dictionary_page_offset < at:
        at = piece.dictionary_page_offset
    end = at + piece.total_compressed_size
    while at < end:
        header = _Struct(data, at)
        unpacked, packed = header.integers[2], header.integers[3]
        if min(unpacked, packed) < 0:
            raise ValueError(f"a page of {min(unpacked, packed)} bytes")
        yield unpacked
        at = header.end + packed


class _Struct:
    """The integers of one Thrift struct that begins at a byte, by field number, and where it ends."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data, self.end = data, at
        self.integers: dict[int, int] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            if head & 15 in INTEGERS:
                self.integers[field] = self._integer()
            elif head & 15 not in BOOLS:  # a bool has no more than its head
                self._skip(head & 15)

    def _byte(self) -> int:
        self.end += 1
        return self._data[self.end - 1]

    def _length(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128 and shift < 63:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    def _integer(self) -> int:
        zigzag = self._length()
        return zigzag >> 1 ^ -(zigzag & 1)

    def _skip(self, kind: int) -> None:
        if kind in (*BOOLS, BYTE):
            self.end += 1
        elif kind in INTEGERS:
            self._length()
        elif kind == DOUBLE:
            self.end += 8
        elif kind == BINARY:
            length = self._length()  # which moves the end itself
            self.end += length
        elif kind in LISTS:
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._length()):
                self._skip(head & 15)
        elif kind == STRUCT:
            self.end = _Struct(self._data, self.end).end
        else:
            raise ValueError(f"a page's header has a field of type {kind}")
