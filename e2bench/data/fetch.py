"""Fetch public data sets into the cache: pinned, checksummed, unpacked without leaving their folder."""

from __future__ import annotations

import fnmatch
import hashlib
import lzma
import os
import re
import shutil
import struct
import tempfile
import time
import urllib.request
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from e2bench.data.beginning import MEGABYTE, check_beginning, fetch_beginning
from e2bench.errors import DataError
from e2bench.files import file_hashes, read_json, sha256_of, write_atomic, write_json
from e2bench.hub import OFFLINE, data_file, is_online

SUMS = "sha256.json"  # beside what was unpacked: the hash of each file
MAX_UNPACKED_BYTES = 8 << 30
MAX_MEMBERS = 10_000
ABANDONED_S = 3600  # unpacking takes seconds


@dataclass(frozen=True)
class Archive:
    """One file of a data-set repository on the Hugging Face hub, or at an address.

    url: the file's address where it is not on the hub; then `sha256` is given, and `repo` says whose it is.
    part_of: the data set of which it is one file.
    sha256: of the file; None where it is not known beforehand: then the hub's own checksum for `revision` is used.
    members: which files of a zip archive are taken out, as a glob over their paths; None for a file used as it is.
    without: what to give where there is no network.
    bytes: of what is downloaded, where it is known without asking.
    megabytes: of text that is fetched from the beginning of a large file in lines; None for the whole file.
    """

    name: str
    repo: str
    filename: str
    revision: str
    sha256: str | None
    members: str | None
    about: str
    url: str = ""
    part_of: str = ""
    without: str = "--data FOLDER (your own copy) or --data demo (comes with e2bench)"
    bytes: int | None = None
    megabytes: int | None = None

    @property
    def pin(self) -> str:
        """What says which file it is, in words."""
        if self.megabytes is not None:
            return (
                f"the first {self.megabytes:,} MB of {self.filename} of {self.repo} at {self.revision[:12]}; nobody "
                "publishes a hash of a beginning: the one of what came lies beside it"
            )
        expected = f"SHA-256 {self.sha256[:16]}…" if self.sha256 else "the hub's SHA-256 for it"
        return f"{self.filename} of {self.repo} at {self.revision[:12]}, {expected}"


def cache_folder() -> Path:
    """Where fetched data sets live: $E2BENCH_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("E2BENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "e2bench"


def fetch(archive: Archive) -> Path:
    """The data set's folder (or file) in the cache, fetched first if it is not there.

    Raises DataError when it cannot be fetched or its checksum differs.
    """
    if archive.megabytes is not None:
        return _beginning(archive, archive.megabytes)
    target = cache_folder() / f"{archive.name}-{archive.revision[:12]}"
    if not target.exists():
        downloaded = _from_address(archive) if archive.url else _download(archive)
        if expected := archive.sha256 or hub_hash(downloaded):
            verify(downloaded, expected)
        if archive.members is None:
            return downloaded
        _unpack_into(target, downloaded, archive.members)
    return target


def _beginning(archive: Archive, megabytes: int) -> Path:
    try:
        return fetch_beginning(cache_folder(), archive.repo, archive.revision, archive.filename, megabytes)
    except DataError as reason:
        raise _unfetched(archive, str(reason)) from None


def _unpack_into(target: Path, downloaded: Path, members: str) -> None:
    """Unpack beside and move into place. Of several processes that do so at once the first one's folder stands."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):  # by a killed process
        with suppress(FileNotFoundError):  # another process is as tidy, or has just moved its own into place
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unpack(downloaded, scratch / "files", members)
        write_json(scratch / "files" / SUMS, file_hashes(sorted((scratch / "files").iterdir())))
        try:
            (scratch / "files").replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def size_bytes(archive: Archive) -> int | None:
    """Of what is downloaded, as the row or else the hub says it; None where neither can be asked.

    Of a beginning those of its text: less is downloaded where the file is compressed.
    """
    if archive.megabytes is not None:
        return archive.megabytes * MEGABYTE
    if archive.bytes is not None:
        return archive.bytes

    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if archive.url or not is_online():
        return None
    url = hf_hub_url(archive.repo, archive.filename, repo_type="dataset", revision=archive.revision)
    try:
        return get_hf_file_metadata(url, timeout=5).size
    except Exception:  # the hub client raises many kinds, and a list without sizes is still a list
        return None


def is_verified(archive: Archive, fetched: Path) -> bool:
    """Whether what `fetch` gave was verified when it was fetched; looked at again, every byte, each time.

    False where nothing says what the files should be. Raises DataError for a file that has changed since.
    """
    if archive.megabytes is not None:
        check_beginning(fetched)
        return False
    if fetched.is_file():
        expected = archive.sha256 or hub_hash(fetched)
        if expected is None:
            return False
        verify(fetched, expected)
        return True
    if not (fetched / SUMS).is_file():
        return False
    sums, found = read_json(fetched / SUMS), file_hashes(p for p in sorted(fetched.iterdir()) if p.name != SUMS)
    if differing := sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name)):
        raise DataError(
            f"{fetched / differing[0]} is not what was fetched ({len(differing)} files differ); delete the folder and "
            f"fetch again: e2bench data {archive.name}"
        )
    return True


def _download(archive: Archive) -> Path:
    """The file in the hub's cache, fetched if it is not there yet."""
    try:
        return data_file(archive.repo, archive.filename, archive.revision)
    except DataError as reason:
        raise _unfetched(archive, str(reason)) from None


def _from_address(archive: Archive) -> Path:
    """The file at `url` in our own cache, fetched and verified if it is not there yet."""
    path = cache_folder() / "files" / f"{archive.name}-{archive.revision[:12]}{Path(archive.filename).suffix}"
    if path.exists():
        return path
    if not is_online():
        raise _unfetched(archive, OFFLINE)
    try:
        with urllib.request.urlopen(archive.url, timeout=60) as answer:
            content = answer.read(MAX_UNPACKED_BYTES)
    except (OSError, ValueError) as error:
        raise _unfetched(archive, " ".join(str(error).split())[:200]) from None
    found = hashlib.sha256(content).hexdigest()
    if found != archive.sha256:
        raise _unfetched(archive, f"its SHA-256 is {found[:16]}…, expected {str(archive.sha256)[:16]}…")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _unfetched(archive: Archive, reason: str) -> DataError:
    where = archive.url or f"the hub ({archive.repo})"
    return DataError(
        f"{archive.name} cannot be fetched from {where}: {reason}; with a network: e2bench data "
        f"{archive.part_of or archive.name}; without: {archive.without}"
    )


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
