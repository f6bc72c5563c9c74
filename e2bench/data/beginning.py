"""The beginning of a large JSON-lines file of the hub: read in ranges, unpacked, cut behind its last whole line.

The Pile's parts have 11 GB each, of which a training reads a few. What came is kept as it came until enough is there,
so that a broken download goes on where it stopped. The text follows from commit, path and size alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.files import disk_errors, make_folder, read_json, sha256_of, write_json
from e2bench.hub import OFFLINE, HubFile, hub_file, is_online, read_range

RANGE_BYTES = 16 << 20  # of one request
BLOCK_BYTES = 1 << 20  # unpacked at once
MEGABYTE = 1_000_000
PACKED = {".jsonl": None, ".gz": "gzip", ".zst": "zstd"}


def beginning_path(cache: Path, repo: str, commit: str, filename: str, megabytes: int) -> Path:
    """Where the first `megabytes` of a file's text lie, or will; the folders say which file it is."""
    return cache / "beginnings" / repo / commit / f"{filename}.first-{megabytes}MB.jsonl"


def fetch_beginning(cache: Path, repo: str, commit: str, filename: str, megabytes: int) -> Path:
    """The first `megabytes` (10^6 bytes) of a file's text at most, in whole lines; fetched if it is not there yet.

    Beside it lies `….json`: the whole file's size and SHA-256 as the hub has them, how much of it was read, and the
    text's own SHA-256. Raises DataError with the reason alone; callers say what to do.
    """
    suffix = Path(filename).suffix
    if suffix not in PACKED:
        raise DataError(f"only files in lines (.jsonl, .jsonl.gz, .jsonl.zst) have a beginning; this is {suffix}")
    target = beginning_path(cache, repo, commit, filename, megabytes)
    if target.exists():
        return target
    if not is_online():
        raise DataError(OFFLINE)
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    make_folder(target.parent)
    with disk_errors(target), WeakFileLock(target.with_suffix(".lock")):
        if not target.exists():  # another process may have fetched it meanwhile
            _fetch(target, hub_file(repo, filename, commit), PACKED[suffix], megabytes * MEGABYTE)
    return target


def check_beginning(target: Path) -> None:
    """Raise DataError for a beginning that has changed since it was written."""
    if read_json(about_path(target))["sha256"] != sha256_of(target):
        raise DataError(f"{target} is not what was fetched; delete it and fetch again")


def about_path(target: Path) -> Path:
    """Beside a beginning: what it is the beginning of."""
    return target.with_suffix(".json")


def _fetch(target: Path, whole: HubFile, codec: str | None, most: int) -> None:
    part = target.with_suffix(".part")
    with part.open("a+b") as kept:
        ranges = _Ranges(kept, whole.size, lambda start, stop: read_range(whole, start, stop))
        text = target.with_suffix(".text")
        try:
            _unpack(ranges, codec, text, most)
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            part.unlink()
            raise DataError(f"{whole.name} cannot be unpacked ({error}); give the command again") from None
    read, complete = part.stat().st_size, part.stat().st_size == whole.size
    if complete and whole.sha256 and sha256_of(part) != whole.sha256:
        part.unlink()
        raise DataError(f"{whole.name} is not what the hub says (SHA-256 {whole.sha256[:16]}…); give the command again")
    about = {"file": whole.name, "size": whole.size, "file_sha256": whole.sha256, "read": read}
    write_json(about_path(target), {**about, "sha256": sha256_of(text)})
    text.replace(target)
    part.unlink()


def _unpack(ranges: io.RawIOBase, codec: str | None, text: Path, most: int) -> None:
    """Write at most `most` bytes of text, up to the end of a line."""
    import pyarrow as pa

    source: Any = pa.PythonFile(ranges, "r")
    stream = pa.CompressedInputStream(source, codec) if codec else source
    end = size = 0  # behind the last whole line; of what is written
    with text.open("wb") as out:
        while size < most and (block := stream.read(min(BLOCK_BYTES, most - size))):
            if b"\n" in block:
                end = size + block.rindex(b"\n") + 1
            size += len(block)
            out.write(block)
        out.truncate(end if size >= most else size)  # the whole file may end without a line's end
    if not (end if size >= most else size):
        raise DataError(f"its first line is longer than {most // MEGABYTE} MB; give more `megabytes`")


class _Ranges(io.RawIOBase):
    """A file of the hub, read from its beginning: what is kept already, then range by range, each kept as it comes."""

    def __init__(self, kept: Any, size: int, read: Callable[[int, int], bytes]) -> None:
        self._kept, self._size, self._read = kept, size, read
        self._at = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        have = self._kept.seek(0, io.SEEK_END)
        if self._at >= have and have < self._size:
            self._kept.write(self._read(have, min(have + RANGE_BYTES, self._size)))
            self._kept.flush()
        self._kept.seek(self._at)
        block: bytes = self._kept.read(size)
        self._at += len(block)
        return block
