"""HTTP to an OpenAI-compatible server: retries with back-off, event streams, one clear line for each wrong answer.

Works with vLLM, SGLang, llama.cpp's server and `transformers serve`. A server that is busy (429), failing (5xx), slow
or gone is asked again; one that answers with something else is a mistake to be told at once.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from e2bench.errors import DataError, E2BenchError, ModelError, RunFailed
from e2bench.files import parse_json
from e2bench.models.secrets import KEYS, Secret, check_way, is_loopback, place_of

T = TypeVar("T")
LONGEST_WAIT_S = 30.0
SHOWN_CHARS, MOST_SHOWN = 200, 100_000
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


class NoAnswer(ModelError):
    """An answer that is none, through no fault of the command: the run stops there, and its folder resumes."""

    exit_code = 1


class Endpoint:
    """One server at `url` (ending in /v1). Thread-safe; `close` ends every request in flight.

    timeout_s: longest silence inside an answer.    deadline_s: longest time of one whole request, however busily the
    server sends; None: twice `timeout_s`.    attempts: tries of one request.    backoff_s: first pause, doubled
    at every further try and spread at random by up to a half, at most 30 s; a Retry-After of the server goes before.
    insecure: send a key over plain http to other machines too.    key: None: the one in the environment.
    others: addresses of further servers of the same model; each request goes to the one with the fewest in flight.
    """

    def __init__(
        self,
        url: str,
        *,
        others: Sequence[str] = (),
        key: Secret | None = None,
        timeout_s: float = 600.0,
        deadline_s: float | None = None,
        attempts: int = 7,
        backoff_s: float = 0.5,
        insecure: bool = False,
    ) -> None:
        self.url = checked_url(url)
        self.attempts, self.backoff_s = attempts, backoff_s
        self.deadline_s = deadline_s or 2 * timeout_s
        self.key = Secret.from_environment() if key is None else key
        self._in_flight = dict.fromkeys((self.url, *map(checked_url, others)), 0)
        self._lock = threading.Lock()
        check_way(self.url, self.key, insecure=insecure)
        self._closed, self._late = threading.Event(), False
        self._client = _client(self.url, self.key, timeout_s)
        weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """End what is in flight; no further request is made."""
        self._closed.set()
        self._client.close()

    # one request

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object. Raises Refused for 4xx, Broken or an httpx error for what a second try may mend."""
        with self._in_time() as deadline, self._client.stream("GET", self.url + path) as response:
            text = self._whole(response, deadline)
            self._check(response, text)
            return self._object(text, response)

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The JSON objects of an answer: those of an event stream as they come, or the only one of a plain answer."""
        with (
            self._in_time() as deadline,
            self._least_busy() as url,
            self._client.stream("POST", url + path, json=dict(body)) as response,
        ):
            if "text/event-stream" not in response.headers.get("content-type", ""):
                text = self._whole(response, deadline)
                self._check(response, text)
                yield self._object(text, response)
                return
            self._check(response, "")
            for line in _lines(self._pieces(response, deadline)):
                data = line[5:].decode("utf-8", "replace").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield self._object(data, response)

    @contextmanager
    def _least_busy(self) -> Iterator[str]:
        """The address of the server that this request goes to."""
        with self._lock:
            url = min(self._in_flight, key=lambda one: self._in_flight[one])
            self._in_flight[url] += 1
        try:
            yield url
        finally:
            with self._lock:
                self._in_flight[url] -= 1

    @contextmanager
    def _in_time(self) -> Iterator[float]:
        """A request inside, with the time when it must be over; a byte now and then keeps no request alive.

        Where the time runs out before the first piece of the answer is read, every connection is closed: that wakes
        the waiting one, and the run is over anyway.
        """
        timer = threading.Timer(self.deadline_s, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield time.monotonic() + self.deadline_s
        except (httpx.TransportError, httpx.StreamError, RuntimeError, OSError):
            if self._late:
                raise self._overdue() from None
            raise
        finally:
            timer.cancel()

    def _end_late(self) -> None:
        self._late = True
        self.close()

    def _overdue(self) -> RunFailed:
        return RunFailed(
            f"{self.url} did not complete an answer in {self.deadline_s:,.0f} s, however often it sent something; what "
            "was finished is kept: mend the server and give the same command again"
        )

    def _whole(self, response: httpx.Response, deadline: float) -> str:
        return b"".join(self._pieces(response, deadline)).decode("utf-8", "replace")

    def _pieces(self, response: httpx.Response, deadline: float) -> Iterator[bytes]:
        """An answer's bytes, unpacked, as they come; no server can fill the memory, by size or by compression."""
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if time.monotonic() > deadline:
                raise self._overdue()
            if size > MOST_BYTES:
                raise ModelError(f"{self.url} sends an answer of more than {MOST_BYTES >> 20} MiB; is it a model's?")
            yield piece

    def _check(self, response: httpx.Response, text: str) -> None:
        status = response.status_code
        if status == 429 or status >= 500:
            raise Broken(f"status {status}: {self._reason(text)}", _retry_after(response))
        if response.is_redirect:
            target = self._shown(place_of(response.headers.get("location", "")))
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
            value = parse_json(text, "an answer")
        except DataError:
            raise Broken(f"an answer that is not whole JSON: {self._shown(text)[-60:]!r}") from None
        if not isinstance(value, dict):
            raise ModelError(f"{self.url} answers with a JSON {type(value).__name__}, needed is an object")
        if value.get("error") and "choices" not in value:
            raise Broken(self._reason(text))
        return value

    def _reason(self, text: str) -> str:
        """What a server says about an error: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
        try:
            value = parse_json(text, "an answer")
            error = value.get("error") or value.get("detail") or value.get("message") or text
            text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        except (DataError, AttributeError):
            pass
        return self._shown(text) or "no reason given"

    def _shown(self, text: str) -> str:
        """What a server said, as a message may show it: the key is taken out before anything is cut."""
        return " ".join(self.key.hidden(text[:MOST_SHOWN]).split())[:SHOWN_CHARS]

    def shown(self, value: Any) -> str:
        """A name, a reason or anything else that a server sent, without the key and cut short."""
        return self._shown(str(value))

    # tries

    def patiently(self, request: Callable[[], T], attempts: int | None = None) -> T:
        """`request`, tried again while the server is busy, failing, slow or gone. Raises RunFailed when it stays so."""
        tries = attempts or self.attempts
        reason = "closed"
        for attempt in range(tries):
            if self._closed.is_set():
                if self._late:
                    raise self._overdue()
                break
            try:
                return request()
            except (httpx.TransportError, httpx.DecodingError, Broken) as error:
                reason = _without_address(self._shown(str(error))) or type(error).__name__
                asked = getattr(error, "wait_s", None)
            if attempt + 1 < tries:
                self._closed.wait(self._pause(attempt) if asked is None else asked)
        raise RunFailed(
            f"the server {self.url} is lost: {reason} ({tries} tries); what was finished is kept: "
            "start the server and give the same command again"
        )

    def _pause(self, attempt: int) -> float:
        return min(self.backoff_s * 2.0**attempt, LONGEST_WAIT_S) * random.uniform(0.75, 1.25)


def _client(url: str, key: Secret, timeout_s: float) -> httpx.Client:
    """The HTTP client. Raises E2BenchError where the environment names a proxy or certificates that cannot be used."""
    try:
        return httpx.Client(
            headers=key.headers,
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx.Limits(max_connections=None),
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy to one's own machine
        )
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise E2BenchError(
            f"no connection can be made as the environment says ({key.hidden(' '.join(str(error).split()))[:200]}); "
            "check HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


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


def _without_address(reason: str) -> str:
    """httpx repeats a part of an address that it cannot read, which the server chose."""
    return "it redirects to an address that is none" if "location header" in reason else reason


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, at most 30; None when it does not say a number."""
    value = response.headers.get("retry-after", "")
    return min(float(value), LONGEST_WAIT_S) if value.isdecimal() else None
