"""Fetch public data sets into the cache: pinned, checksummed, unpacked without leaving their folder."""

from __future__ import annotations

import fnmatch
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from e2bench.errors import DataError
from e2bench.files import file_hashes, read_json, sha256_of, write_json
from e2bench.hub import OFFLINE, is_online

SUMS = "sha256.json"  # beside what was unpacked: the hash of each file
MAX_UNPACKED_BYTES = 8 << 30
MAX_MEMBERS = 10_000


@dataclass(frozen=True)
class Archive:
    """One file of a data-set repository on the Hugging Face hub.

    sha256: of the file; None where it is not known beforehand: then the hub's own checksum for `revision` is used.
    members: which files of a zip archive are taken out, as a glob over their paths; None for a file used as it is.
    """

    name: str
    repo: str
    filename: str
    revision: str
    sha256: str | None
    members: str | None
    about: str


def cache_folder() -> Path:
    """Where fetched data sets live: $E2BENCH_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("E2BENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "e2bench"


def fetch(archive: Archive) -> Path:
    """The data set's folder (or file) in the cache, fetched first if it is not there.

    Raises DataError when it cannot be fetched or its checksum differs.
    """
    target = cache_folder() / f"{archive.name}-{archive.revision[:12]}"
    if not target.exists():
        downloaded = _download(archive)
        if expected := archive.sha256 or hub_hash(downloaded):
            verify(downloaded, expected)
        if archive.members is None:
            return downloaded
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            unpack(downloaded, beside, archive.members)
            write_json(beside / SUMS, file_hashes(sorted(beside.iterdir())))
            beside.replace(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return target


def is_verified(archive: Archive, fetched: Path) -> bool:
    """Whether what `fetch` gave is, file by file, what was verified when it was fetched."""
    if fetched.is_file():
        expected = archive.sha256 or hub_hash(fetched)
        return expected is not None and sha256_of(fetched) == expected
    sums = fetched / SUMS
    return sums.is_file() and file_hashes(p for p in sorted(fetched.iterdir()) if p != sums) == read_json(sums)


def _download(archive: Archive) -> Path:
    """The file in the hub's cache, fetched if it is not there yet."""
    from huggingface_hub import hf_hub_download

    online = is_online()
    try:
        return Path(hf_hub_download(archive.repo, archive.filename, repo_type="dataset", revision=archive.revision))
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split()).partition(". ")[0][:200] if online else OFFLINE
        raise DataError(
            f"{archive.name} cannot be fetched from the hub ({archive.repo}): {reason}; with a network: e2bench data "
            f"{archive.name}; without: --data FOLDER (your own copy) or --data demo (comes with e2bench)"
        ) from None


def hub_hash(cached: Path) -> str | None:
    """The SHA-256 that the hub gave for a large file: in its cache a link to a blob of that name, also offline."""
    name = cached.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def verify(path: Path, sha256: str) -> None:
    """Raises DataError when a file's SHA-256 is not the expected one."""
    found = sha256_of(path)
    if found != sha256:
        raise DataError(f"{path} has SHA-256 {found[:16]}…, expected {sha256[:16]}…; delete it and fetch again")


def unpack(archive: Path, folder: Path, members: str) -> None:
    """The members of a zip archive that match the glob, each directly into `folder`.

    Raises DataError for members that leave the folder, repeat a name, are links, or unpack to more than 8 GiB.
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = [m for m in file.infolist() if fnmatch.fnmatch(m.filename, members) and not m.is_dir()]
            if len(chosen) > MAX_MEMBERS or sum(m.file_size for m in chosen) > MAX_UNPACKED_BYTES:
                raise DataError(
                    f"{archive} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; it is not what it says"
                )
            for member in chosen:
                _unpack_one(file, member, folder)
    except _BROKEN as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    if not any(folder.iterdir()):
        raise DataError(f"{archive} holds nothing that matches {members}")


# What zipfile lets through, beside its own error, of the libraries below it and of headers that make no sense.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    OSError,
    RuntimeError,
    ValueError,
)


def _unpack_one(file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    path = PurePosixPath(member.filename)
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or is_link:
        raise DataError(f"{file.filename}: member {member.filename!r} leaves its folder; nothing is taken from it")
    target = folder / path.name
    if target.exists():
        raise DataError(f"{file.filename}: two members are called {path.name!r}")
    written = 0
    with file.open(member) as source, target.open("wb") as out:
        while block := source.read(1 << 20):
            written += len(block)
            if written > member.file_size:  # the header lied
                raise DataError(f"{file.filename}: member {member.filename!r} is larger than its header says")
            out.write(block)
