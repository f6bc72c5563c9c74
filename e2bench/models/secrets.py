"""The key of a server: where it comes from, where it may go, and how a text is shown without it."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from urllib.parse import quote, urlsplit

from e2bench.errors import E2BenchError

KEYS = ("E2BENCH_API_KEY", "OPENAI_API_KEY")
PIECE = 8  # characters of a key in a row that are taken for it; shorter keys are placeholders such as EMPTY
HIDDEN = "***"


class Secret:
    """A key that is sent to one server and shown nowhere. Falsy where there is none."""

    def __init__(self, value: str | None) -> None:
        self.value = value or ""
        self._forms = _forms(self.value) if self.value else None

    @classmethod
    def from_environment(cls) -> Secret:
        """The key, from the environment only. Raises E2BenchError for one that no HTTP header can carry."""
        name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
        if name is None:
            return cls(None)
        key = os.environ[name].strip()  # a mounted secret ends in a newline
        if not (key.isascii() and key.isprintable()):
            raise E2BenchError(f"the key in {name} holds characters that no HTTP header can carry; set it again")
        return cls(key)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN if self.value else ''})"

    @property
    def headers(self) -> dict[str, str]:
        """What carries the key to the server."""
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}

    def is_in(self, text: str) -> bool:
        """Whether a text holds the key, plain or escaped, or a piece of it; never for a placeholder."""
        return len(self.value) >= PIECE and self.hidden(text) != text

    def hidden(self, text: str) -> str:
        """The text with the key taken out: plain, escaped, in base 64, and pieces of PIECE characters or more."""
        if self._forms is None:
            return text
        text = self._forms.sub(HIDDEN, text)
        places = {at for at in range(len(self.value) - PIECE + 1) if self.value[at : at + PIECE] in text}
        for at in sorted(places):
            start, end = at, at + PIECE
            while end < len(self.value) and self.value[start : end + 1] in text:
                end += 1
            text = text.replace(self.value[start:end], HIDDEN)
        return text


def _forms(key: str) -> re.Pattern[str]:
    """The key as it is, with characters escaped as URLs, JSON or HTML do it, and in base 64."""

    def char(one: str) -> str:
        code = ord(one)
        escapes = (rf"%{code:02x}", rf"\\+u00{code:02x}", rf"\\+x{code:02x}", rf"&#0*{code};", rf"&#x0*{code:02x};")
        return f"(?:{re.escape(one)}|(?i:{'|'.join(escapes)}))"

    plain = "".join(map(char, key))
    coded = [base64.b64encode(text.encode()).decode().rstrip("=") for text in (key, f"Bearer {key}")]
    return re.compile("|".join([plain, *map(re.escape, coded)]))


def check_way(url: str, key: Secret, *, insecure: bool) -> None:
    """Raise E2BenchError where a key would go over plain http to another machine."""
    parts = urlsplit(url)
    if key and parts.scheme != "https" and not is_loopback(parts.hostname or "") and not insecure:
        raise E2BenchError(
            f"the key in the environment ({' or '.join(KEYS)}) would go to {parts.hostname} over plain http, where "
            "anyone on the way can read it; use https, unset the key, or give --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def place_of(url: str) -> str:
    """Scheme, host and path of an address that somebody else wrote: no name, key or options."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "elsewhere"
    return f"{parts.scheme}://{host}{port}{quote(parts.path, safe='/%')}" if parts.scheme and host else "elsewhere"
