"""The exceptions a user sees. Each message is one line: what was got, what was needed, what to do."""

from __future__ import annotations

SHOWN_CHARS = 1000
FEW = 8  # names that fit into a message whole


def printable(text: str) -> str:
    """The text as a terminal may show it: what would move the cursor or reorder letters is shown as `\\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: object) -> str:
    """A message as a user sees it: one line, printable, cut where a file's contents made it long."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…"


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust broke down; its PanicException is no `Exception`, and cannot be imported."""
    return type(error).__name__ == "PanicException"


class E2BenchError(Exception):
    """A mistake in what e2bench was given. The command line prints its message and exits with `exit_code`."""

    exit_code = 2


class UnknownName(E2BenchError):
    """A task, preset, setting or layer that does not exist; suggests the nearest that does."""

    def __init__(self, kind: str, name: str, known: list[str], hint: str = "") -> None:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1)
        if near:
            hint = f"did you mean {near[0]!r}?" + (f" (known: {', '.join(known)})" if 1 < len(known) <= FEW else "")
        elif not hint:
            hint = f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class ModelError(E2BenchError):
    """A model that cannot be loaded or does not have what is needed."""


class DataError(E2BenchError):
    """An input file or folder that is missing, malformed or too short."""


class RunFolderError(E2BenchError):
    """A run's folder that holds other settings, is in use, or holds a malformed line."""


class RunFailed(E2BenchError):
    """A run that ended incomplete through no fault of its input: full disk, lost server, memory. Resumable."""

    exit_code = 1
