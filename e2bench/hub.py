"""The Hugging Face hub, asked only where it can answer: without a network its client retries for minutes."""

from __future__ import annotations

import os
import re
import socket
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from e2bench.errors import DataError, one_line

CONNECT_S = 1.5


@lru_cache(maxsize=1)
def is_online() -> bool:
    """Whether the hub takes a connection within 1.5 s, asked once a process. False in its clients' offline mode.

    Where it does not, they are put into that mode: they use what their caches hold and fail at once otherwise.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are imported later
        constants.HF_HUB_OFFLINE = True
        return False
    return not constants.HF_HUB_OFFLINE


def _reachable(endpoint: str) -> bool:
    """Behind a proxy only the client knows the way: then True, and the client finds out."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_connects(host, port)), daemon=True)
    thread.start()  # a thread: looking up a name takes no time limit
    thread.join(CONNECT_S)
    return found == [True]


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return True
    except OSError:
        return False


OFFLINE = "the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"


def data_file(repo: str, filename: str, revision: str | None = None, *, fetch: bool = True) -> Path:
    """A file of a data set in the client's cache, fetched if it is not there yet. revision: None is the newest.

    fetch: whether the hub may be asked. Raises DataError with the reason alone; callers say what to do.
    """
    from huggingface_hub import hf_hub_download

    online = fetch and is_online()
    try:
        found = hf_hub_download(repo, filename, repo_type="dataset", revision=revision, local_files_only=not online)
    except Exception as error:  # the hub client raises many kinds
        raise DataError(one_line(error).partition(". ")[0][:200] if online else OFFLINE) from None
    return Path(found)


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file of a data set. sha256: of large files; None for those that git itself keeps.

    name: `hf://datasets/OWNER/NAME@COMMIT/PATH`.    url: its address.    size: in bytes.
    """

    name: str
    url: str
    size: int
    sha256: str | None


def hub_file(repo: str, filename: str, commit: str) -> HubFile:
    """Ask the hub for a file's size and hash. Raises DataError with the reason alone."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, filename, repo_type="dataset", revision=commit)
    try:
        found = get_hf_file_metadata(url)
    except Exception as error:  # the hub client raises many kinds
        raise DataError(one_line(error).partition(". ")[0][:200]) from None
    if found.commit_hash != commit or not found.size:
        raise DataError(f"the hub answers with commit {found.commit_hash} and size {found.size}, asked for {commit}")
    sha256 = found.etag if found.etag and re.fullmatch(r"[0-9a-f]{64}", found.etag) else None
    return HubFile(f"hf://datasets/{repo}@{commit}/{filename}", url, found.size, sha256)


def read_range(file: HubFile, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file, this one not included. Raises DataError for anything else than these."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        answer = http_backoff("GET", file.url, headers=headers)
        hf_raise_for_status(answer)
    except Exception as error:  # the hub client raises many kinds
        raise DataError(f"{one_line(error).partition('. ')[0][:200]} (at byte {start:,} of {file.size:,})") from None
    asked, got = f"bytes {start}-{stop - 1}/{file.size}", answer.headers.get("Content-Range", "no range")
    if answer.status_code != 206 or got != asked or len(answer.content) != stop - start:
        raise DataError(f"asked for {asked}, the hub gave {got} ({len(answer.content)} bytes)")
    return bytes(answer.content)


def is_cached(repo: str, filename: str, revision: str = "main") -> bool:
    """Whether the client's cache holds a file of a model repository."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repo, filename, revision=revision), str)
    except HFValidationError:  # no name that the hub could have
        return False
