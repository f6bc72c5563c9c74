"""Read JSON and lines within limits, write them whole or not at all; turn disk errors into one line.

The limits are of an input, however many files and readers it has: what somebody else made may be one line of gigabytes,
millions of lines, or a hundred thousand brackets, and must not take the machine's memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from e2bench.errors import DataError, RunFailed, RunFolderError

MOST_LINE_BYTES = 128 << 20  # of a line, or of a text file that is one document
MOST_TEXT_BYTES = 4 << 20  # of a text that is tokenized whole: a million tokens; each takes about 440 bytes meanwhile
MOST_FILE_BYTES = 64 << 20  # of a file that is read whole: a config, a recipe, scores
MOST_SET_BYTES, MOST_SET_VALUES = 1 << 30, 40_000_000  # of a data set in one file: LongBench v2 has 465 MB
MOST_VALUES = 5_000_000  # commas and brackets of JSON that is held at once; a value takes up to 250 bytes
MOST_DEPTH = 100  # brackets inside brackets; Python's own limit is near 1,000, and what walks through them needs some


@dataclass
class Limits:
    """What is left of what one input may hold; shared by all files of it."""

    rows: int = 500_000
    size: int = 256 << 20
    values: int = MOST_VALUES

    def take(self, raw: bytes, where: str) -> None:
        """Count one line. Raises DataError, naming `where`, for one too many."""
        self.rows -= 1
        self.size -= len(raw)
        self.values -= _values(raw)
        if min(self.rows, self.size, self.values) < 0:
            most = Limits()
            raise DataError(
                f"{where}: the lines up to here are more than a run holds (at most {most.rows:,} lines, "
                f"{most.size >> 20} MiB, {most.values:,} values); split the file"
            )


def within(text: str, where: str, advice: str, most: int = MOST_TEXT_BYTES) -> str:
    """The text itself. Raises DataError for one of more than `most` bytes, which would be tokenized whole."""
    size = len(text) if len(text) < most // 4 else len(text.encode("utf-8", "surrogatepass"))
    if size > most:
        raise DataError(
            f"{where}: {size >> 20} MiB of text would be tokenized, and {most >> 20} are the most; {advice}"
        )
    return text


def read_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of an open file. Raises DataError for a line of more than MOST_LINE_BYTES."""
    number = 0
    while raw := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(raw) > MOST_LINE_BYTES:  # a small .gz can unpack to terabytes
            raise DataError(f"{path}:{number}: a line of more than {MOST_LINE_BYTES >> 20} MiB; split the document")
        yield number, raw


def read_whole(path: Path, most: int = MOST_FILE_BYTES) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises OSError, and DataError for a larger one."""
    with regular(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(size) if size <= most else b""  # `read` takes the memory for all that it is told
    if size > most:
        raise DataError(f"{path} has more than {most >> 20} MiB, which no such file needs")
    return raw


def parse_json(raw: bytes | str, where: str, most: int | None = None, values: int | None = None) -> Any:
    """JSON of any kind. Raises DataError beginning with `where` for what is none, too large or nested too deep.

    most, values: bytes and values (commas and brackets) that it may have; None: MOST_LINE_BYTES and MOST_VALUES.
    """
    brackets = _count(raw, "[") + _count(raw, "{")
    if len(raw) > (most or MOST_LINE_BYTES) or brackets + _count(raw, ",") > (values or MOST_VALUES):
        raise DataError(f"{where}: JSON of {len(raw) >> 20} MiB with {brackets:,} brackets; no such thing is read")
    try:
        value = json.loads(raw if isinstance(raw, str) else raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); convert the file first") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {str(error)[:120]}") from None
    if brackets > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise DataError(f"{where}: JSON with brackets inside brackets, more than {MOST_DEPTH} deep")
    return value


def _count(raw: bytes | str, char: str) -> int:
    return raw.count(char) if isinstance(raw, str) else raw.count(char.encode())


def _values(raw: bytes) -> int:
    """At least how many values JSON holds; commas inside texts count too."""
    return sum(_count(raw, char) for char in "[{,")


def _depth(value: Any) -> int:
    """Brackets inside brackets."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def json_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object; DataError beginning with `where` (FILE:LINE) for anything else."""
    value = parse_json(raw, where)
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, needed is an object")
    return value


def read_rows(path: Path, *, ours: bool = True, limits: Limits | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError naming file and line for a line that is none, or too many.

    ours: a last line without its newline was torn by a crash and is left out; other people's files may end so.
    limits: what is left of them, where several files are one input.
    """
    rows = []
    limits = limits or Limits()
    try:
        with regular(path).open("rb") as file:
            for number, line in read_lines(file, path):
                if line.strip() and (line.endswith(b"\n") or not ours):
                    limits.take(line, f"{path}:{number}")
                    rows.append(json_object(line, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return rows


def regular(path: Path) -> Path:
    """The path itself. Raises OSError for a device, a pipe or a folder, also behind a link."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path


def encode_row(row: Mapping[str, Any]) -> bytes:
    """One line; a lone surrogate becomes its JSON escape, which reads back as itself."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; DataError, one line, for anything else."""
    value = _json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, needed is an object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """A JSON list of a data set; DataError, one line, for anything else."""
    value = _json(path, MOST_SET_BYTES, MOST_SET_VALUES)
    if not isinstance(value, list):
        raise DataError(f"{path} is a JSON {type(value).__name__}, needed is a list")
    return value


def _json(path: Path, most: int = MOST_FILE_BYTES, values: int | None = None) -> Any:
    try:
        return parse_json(read_whole(path, most), "it", most, values)
    except (OSError, DataError) as error:
        reason = " ".join(str(error).split()).removeprefix("it: ")
        raise DataError(f"{path} is not readable JSON: {reason[:160]}") from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write beside and rename into place, so that a half-written file is never taken for a whole one."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # no name that could be waiting as a link
    with disk_errors(path):
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def is_beside(path: Path) -> bool:
    """Whether a file is what a killed `write_atomic` left; older versions named it by process number."""
    return re.fullmatch(r"\..+\.(jsonl?|npz)\.([0-9a-f]{16}|[0-9]+)\.tmp", path.name) is not None


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a disk can do wrong, as one line. A full disk is a failure (exit 1), an unwritable folder a mistake."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunFailed(
                f"{path}: {error.strerror}; what was finished is kept: free some space and give the same command again"
            ) from None
        raise RunFolderError(f"{path} cannot be written: {error.strerror}; choose another folder with --out") from None


def check_writable(path: Path) -> None:
    """Refuse a folder that --out names, and that could not be made or written in; nothing is made.

    Raises RunFolderError.
    """
    with disk_errors(path):
        there = next(one for one in (path, *path.parents) if one.exists())
        if not there.is_dir():
            raise RunFolderError(f"{there} is {'a file' if there.is_file() else 'no folder'}; give a folder with --out")
        if not os.access(there, os.W_OK | os.X_OK):
            raise RunFolderError(f"{there} cannot be written; choose another folder with --out")


def make_folder(path: Path) -> None:
    """The folder that --out names, and those above it. RunFolderError for a file, or where none can be made."""
    if path.is_file():
        raise RunFolderError(f"{path} is a file; give a folder with --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path, what: str) -> Path:
    """The folder itself; DataError when it is absent or no folder."""
    if not path.is_dir():
        raise DataError(f"no folder {path}; {what}")
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """File name: SHA-256."""
    return {path.name: sha256_of(path) for path in paths}
