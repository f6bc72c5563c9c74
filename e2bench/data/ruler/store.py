"""RULER samples on the disk: made once for a tokenizer and a length, read one by one.

A sample of 128k tokens has half a million characters, and a full run has thousands of them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from e2bench.data.ruler.sizing import Budget, Drawn
from e2bench.errors import DataError
from e2bench.files import disk_errors, encode_row, json_object, make_folder


@dataclass(frozen=True)
class Stored:
    """One sample in a file: its line's first byte, and 16 hex digits of the line's SHA-256."""

    path: Path
    number: int
    offset: int
    sha256: str

    def read(self) -> dict[str, Any]:
        """The sample: input, outputs, answer_prefix, length, … Raises DataError for a line that is none."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return checked(json_object(file.readline(), f"{self.path}:{self.number + 1}"), self.path, self.number)


def rows(drawn: Iterable[Drawn], budget: Budget) -> Iterator[dict[str, Any]]:
    """Samples as lines with RULER's fields. `index` counts them; of RULER's needles it is a place in the text."""
    for index, one in enumerate(drawn):
        length = budget.length(one)
        yield {
            "index": index,
            "input": one.input,
            "outputs": one.outputs,
            "length": length,
            "length_w_model_temp": length,
            "answer_prefix": one.answer_prefix,
        }


def write(path: Path, lines: Iterable[dict[str, Any]], count: int) -> None:
    """The first `count` lines, written beside and renamed into place; not all in memory."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # no name that could be waiting as a link
    with disk_errors(path):
        try:
            with beside.open("xb") as file:
                file.writelines(encode_row(line) for line in islice(lines, count))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def stored(path: Path, count: int) -> list[Stored]:
    """The first `count` samples of a file, or as many as it has. Raises DataError where it cannot be read."""
    found: list[Stored] = []
    try:
        with path.open("rb") as file:
            offset = 0
            for line in file:
                if len(found) == count:
                    break
                if line.strip():
                    found.append(Stored(path, len(found), offset, hashlib.sha256(line).hexdigest()[:16]))
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return found


def checked(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """The row itself. Raises DataError where it lacks what a sample has."""
    where, outputs = f"{path}:{number + 1}", row.get("outputs")
    if not isinstance(row.get("input"), str) or not isinstance(row.get("answer_prefix", ""), str):
        raise DataError(f"{where}: input and answer_prefix must be text, as RULER writes them")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(text, str) for text in outputs):
        raise DataError(f"{where}: outputs must be a list of at least one text, as RULER writes it")
    return {"answer_prefix": "", **row}


def key_of(facts: Any) -> str:
    """16 hex digits that name samples by what decides them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
