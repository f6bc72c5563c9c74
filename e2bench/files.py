"""Read and write JSON and JSON lines, whole or not at all; turn disk errors into one line."""

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
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, RunFailed, RunFolderError


def json_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object; DataError beginning with `where` (FILE:LINE) for anything else."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); convert the file first") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, needed is an object")
    return value


def read_rows(path: Path, *, ours: bool = True) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises DataError naming file and line for a line that is none.

    ours: a last line without its newline was torn by a crash and is left out; other people's files may end so.
    """
    rows = []
    try:
        lines = regular(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines[:-1] if ours else lines, 1):
        if line.strip():
            rows.append(json_object(line, f"{path}:{number}"))
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
    """A JSON list; DataError, one line, for anything else."""
    value = _json(path)
    if not isinstance(value, list):
        raise DataError(f"{path} is a JSON {type(value).__name__}, needed is a list")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {' '.join(str(error).split())[:160]}") from None


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
