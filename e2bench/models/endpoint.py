"""HTTP to an OpenAI-compatible server: retries with back-off, event streams, one clear line for each wrong answer.

Works with vLLM, SGLang, llama.cpp's server and `transformers serve`. A server that is busy (429), failing (5xx), slow
or gone is asked again; one that answers with something else is a mistake to be told at once.
"""

from __future__ import annotations

import json
import os
import random
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from e2bench.errors import E2BenchError, ModelError, RunFailed

T = TypeVar("T")
KEYS = ("E2BENCH_API_KEY", "OPENAI_API_KEY")
LONGEST_WAIT_S = 30.0
SHOWN_CHARS = 200
MOST_BYTES = 64 << 20  # of one answer: 32k tokens streamed with all their JSON are a tenth of it


class Broken(Exception):
    """An answer that a second try may mend: nothing, half of it, a busy or failing server."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Refused(ModelError):
    """The server understood and declined (4xx): asking again changes nothing."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


def api_key() -> str | None:
    """The key, from the environment alone; it is never stored, printed or logged."""
    name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()  # a mounted secret ends in a newline
    if not (key.isascii() and key.isprintable()):
        raise E2BenchError(f"the key in {name} holds characters that no HTTP header can carry; set it again")
    return key


class Endpoint:
    """One server at `url` (ending in /v1). Thread-safe; `close` ends every request in flight.

    timeout_s: longest silence inside an answer.    attempts: tries of one request.    backoff_s: first pause, doubled
    at every further try and spread at random by up to a half, at most 30 s; a Retry-After of the server goes before.
    """

    def __init__(self, url: str, *, timeout_s: float = 600.0, attempts: int = 7, backoff_s: float = 0.5) -> None:
        self.url = checked_url(url)
        self.attempts, self.backoff_s = attempts, backoff_s
        self._key = api_key()
        self._closed = threading.Event()
        host = urlsplit(self.url).hostname or ""
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx.Limits(max_connections=None),
            trust_env=host not in ("localhost", "127.0.0.1", "::1"),  # no proxy to one's own machine
        )
        weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """End what is in flight; no further request is made."""
        self._closed.set()
        self._client.close()

    # one request

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object. Raises Refused for 4xx, Broken or an httpx error for what a second try may mend."""
        with self._client.stream("GET", self.url + path) as response:
            text = self._whole(response)
            self._check(response, text)
            return self._object(text, response)

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The JSON objects of an answer: those of an event stream as they come, or the only one of a plain answer."""
        with self._client.stream("POST", self.url + path, json=dict(body)) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                text = self._whole(response)
                self._check(response, text)
                yield self._object(text, response)
                return
            self._check(response, "")
            for line in _lines(self._pieces(response)):
                data = line[5:].decode("utf-8", "replace").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield self._object(data, response)

    def _whole(self, response: httpx.Response) -> str:
        return b"".join(self._pieces(response)).decode("utf-8", "replace")

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """An answer's bytes, unpacked, as they come; no server can fill the memory, by size or by compression."""
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > MOST_BYTES:
                raise ModelError(f"{self.url} sends an answer of more than {MOST_BYTES >> 20} MiB; is it a model's?")
            yield piece

    def _check(self, response: httpx.Response, text: str) -> None:
        status = response.status_code
        if status == 429 or status >= 500:
            raise Broken(f"status {status}: {self._reason(text)}", _retry_after(response))
        if response.is_redirect:
            target = response.headers.get("location", "elsewhere")
            raise Refused(status, "redirect", f"{self.url} redirects to {target}; give that address to --model")
        if status in (401, 403):
            raise Refused(
                status,
                "key",
                f"{self.url} refuses access (status {status}); set the key in {KEYS[0]} in the environment",
            )
        if status >= 400:
            reason = self._reason(text)
            raise Refused(status, reason, f"{self.url} refuses the request (status {status}): {reason}")

    def _object(self, text: str, response: httpx.Response) -> dict[str, Any]:
        if not text.strip():
            raise Broken("an empty answer")
        if text.lstrip()[:1] == "<" or "text/html" in response.headers.get("content-type", ""):
            raise ModelError(
                f"{self.url} answers with a web page, not with JSON; --model takes the address of an OpenAI-compatible "
                "endpoint, which ends in /v1"
            )
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise Broken(f"an answer that is not whole JSON: {self._shown(text[-60:])!r}") from None
        if not isinstance(value, dict):
            raise ModelError(f"{self.url} answers with a JSON {type(value).__name__}, needed is an object")
        if value.get("error") and "choices" not in value:
            raise Broken(self._reason(text))
        return value

    def _reason(self, text: str) -> str:
        """What a server says about an error: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
        try:
            value = json.loads(text)
            error = value.get("error") or value.get("detail") or value.get("message") or text
            text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        return self._shown(text) or "no reason given"

    def _shown(self, text: str) -> str:
        line = " ".join(text.split())[:SHOWN_CHARS]
        return line.replace(self._key, "***") if self._key else line

    # tries

    def patiently(self, request: Callable[[], T], attempts: int | None = None) -> T:
        """`request`, tried again while the server is busy, failing, slow or gone. Raises RunFailed when it stays so."""
        tries = attempts or self.attempts
        reason = "closed"
        for attempt in range(tries):
            if self._closed.is_set():
                break
            try:
                return request()
            except (httpx.TransportError, httpx.DecodingError, Broken) as error:
                reason = self._shown(str(error)) or type(error).__name__
                asked = getattr(error, "wait_s", None)
            if attempt + 1 < tries:
                self._closed.wait(self._pause(attempt) if asked is None else asked)
        raise RunFailed(
            f"the server {self.url} is lost: {reason} ({tries} tries); what was finished is kept: "
            "start the server and give the same command again"
        )

    def _pause(self, attempt: int) -> float:
        return min(self.backoff_s * 2.0**attempt, LONGEST_WAIT_S) * random.uniform(0.75, 1.25)


def checked_url(url: str) -> str:
    """The address without a trailing slash. Keys and passwords have no place in it: it is written to run.json."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise E2BenchError(f"{url!r} is not an address ({error}); --model takes http(s)://HOST/v1") from None
    if not parts.hostname:
        raise E2BenchError(f"{url!r} has no host; --model takes http(s)://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise E2BenchError(
            f"the address of {parts.hostname} carries a name, a key or options; give http(s)://HOST/v1 and set the key "
            f"in {KEYS[0]} in the environment"
        )
    return url.rstrip("/")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines as they are complete, and what is left at the end."""
    rest: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, at most 30; None when it does not say a number."""
    value = response.headers.get("retry-after", "")
    return min(float(value), LONGEST_WAIT_S) if value.isdecimal() else None
