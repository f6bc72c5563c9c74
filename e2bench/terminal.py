"""Lines for people on stderr."""

from __future__ import annotations

import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from typing import IO, TextIO

from e2bench.errors import printable

_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said inside: work that is looked over first, and tells what there is to tell when it is done."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


@contextmanager
def failing_quietly() -> Iterator[None]:
    """Hold back what libraries write to stderr inside, and drop it where the call fails: its error says it in a line.

    A library in Rust prints a paragraph when it breaks down, past Python. Not beside other threads: file descriptor 2
    is the process's, and theirs would be held back, too.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    with _memory() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
        held.seek(0)
        while piece := held.read(1 << 16):
            os.write(2, piece)


@contextmanager
def without_bars() -> Iterator[None]:
    """Leave out the bars that a library draws inside and that no setting turns off, where stderr is no terminal."""
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else _NoBars(sys.stderr)):
        yield


class _NoBars(io.TextIOBase):
    """Passes on what is written, but for pieces that go back to the start of their line, and the line's end then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._after_bar = False

    def write(self, text: str) -> int:
        is_bar = "\r" in text
        if not is_bar and not (self._after_bar and text == "\n"):
            self._stream.write(text)
        self._after_bar = is_bar
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _memory() -> IO[bytes]:
    """A file that nobody else can see, in memory where Linux gives one."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


def say(message: str) -> None:
    """Print a line on stderr, from rank 0 only; above a progress bar, which takes stderr's place while it is shown."""
    if not _hushed.get() and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        print(printable(message), file=sys.stderr, flush=True)


def quoted(path: object) -> str:
    """A path or name as a shell takes it, quoted where it has spaces."""
    return shlex.quote(str(path))


def say_next(*commands: str) -> None:
    """Name what people do next, at the end of a command, on stderr: what is on stdout is the command's result.

    Paths in `commands` are for a shell: see `quoted`.
    """
    say(f"next: {', or '.join(commands)}")
