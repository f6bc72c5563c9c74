"""What was found while a model was loaded and tried: told aloud, recorded in run.json, listed by `e2bench doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """One check's outcome.

    level: `ok`; `note`: something to know, the numbers are right as they are; `wrong`: a number would be wrong.
    found: what was seen.    effect: what it does, or would do, to a number.    advice: what to give.
    """

    check: str
    level: str
    found: str
    effect: str = ""
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """For run.json and `--json`."""
        return asdict(self)

    @property
    def line(self) -> str:
        """One sentence for a terminal."""
        return "; ".join(filter(None, (f"{self.check}: {self.found}", self.effect, self.advice)))


_collecting: ContextVar[list[Finding] | None] = ContextVar("findings", default=None)


@contextmanager
def collected() -> Iterator[list[Finding]]:
    """Findings made inside, in order."""
    found: list[Finding] = []
    outer, token = _collecting.get(), _collecting.set(found)
    try:
        yield found
    except BaseException:  # what was found so far belongs to whoever asked for more
        if outer is not None:
            outer += found
        raise
    finally:
        _collecting.reset(token)


def find(check: str, level: str, found: str, effect: str = "", advice: str = "") -> None:
    """Add a finding to those being collected; without a collector it is dropped."""
    if (several := _collecting.get()) is not None:
        several.append(Finding(check, level, found, effect, advice))
