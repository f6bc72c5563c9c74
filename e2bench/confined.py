"""A function of ours in a process of its own, with limits on time and memory: for programs that a stranger wrote.

A chat template is a program, a regular expression may search for years. Neither can be bounded inside this process. The
child is started once and answers one call after another, each a line of JSON; one that goes beyond a limit is ended,
and the next call starts another.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import Any

from e2bench.errors import E2BenchError

START_S = 120.0  # imports, on a busy machine
MOST_REPLY = 256 << 20


class Beyond(E2BenchError):
    """What ran in the child failed there, or went beyond a limit; the message says which."""


class Confined:
    """`function` (MODULE:NAME) in a child process. A call takes keyword arguments that JSON holds and returns such.

    seconds: of one call.    memory: bytes that the child may take beside what it needs to start (Linux; elsewhere time
    is the only limit). The child gets no key from the environment, and can write no file.
    """

    def __init__(self, function: str, *, seconds: float, memory: int) -> None:
        self.function, self.seconds, self.memory = function, seconds, memory
        self._child: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()

    def __call__(self, **arguments: Any) -> Any:
        """The function's result. Raises Beyond."""
        request = json.dumps(arguments, default=str).encode() + b"\n"
        with self._lock:
            child = self._started()
            try:
                reply = _exchange(child, request, self.seconds)
            except TimeoutError:
                self.close()
                raise Beyond(f"it took more than {self.seconds:g} s") from None
            except (OSError, EOFError):
                self.close()
                raise Beyond("it ended the process that it ran in") from None
        answer = json.loads(reply)
        if "error" in answer:
            raise Beyond(answer["error"])
        return answer["result"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            program = "import sys; sys.path[:] = {!r}; from e2bench.confined import serve; serve({!r}, {!r})"
            self._child = subprocess.Popen(
                [sys.executable, "-c", program.format(sys.path, self.function, self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN"))},
                start_new_session=True,  # Ctrl-C is the parent's
            )
            self._owner = os.getpid()
            atexit.register(self.close)
            try:
                _exchange(self._child, b"", START_S)
            except (OSError, EOFError) as error:
                self.close()
                raise Beyond(f"no process of its own can be started ({type(error).__name__})") from None
        return self._child

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _exchange(child: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    """Write a request and read a line. Raises TimeoutError, EOFError where the child is gone, or OSError."""
    assert child.stdin is not None and child.stdout is not None
    left, reply, deadline = memoryview(request), bytearray(), time.monotonic() + seconds
    os.set_blocking(child.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)
        if left:
            waiting.register(child.stdin, selectors.EVENT_WRITE)
        while not reply.endswith(b"\n"):
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready or len(reply) > MOST_REPLY:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    left = left[os.write(child.stdin.fileno(), left[:65536]) :]
                    if not left:
                        waiting.unregister(child.stdin)
                elif piece := os.read(child.stdout.fileno(), 1 << 20):
                    reply += piece
                else:
                    raise EOFError
    return bytes(reply)


# in the child


def serve(function: str, memory: int) -> None:
    """Answer calls on stdin until it ends. What the function prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    _limit(memory)
    _reply(replies, {"result": None})
    for line in sys.stdin.buffer:
        try:
            answer = {"result": call(**json.loads(line))}
        except MemoryError:
            answer = {"error": f"it needs more than {memory >> 20} MiB"}
        except Exception as error:  # a program may fail in any way
            answer = {"error": (" ".join(str(error)[:2000].split()) or type(error).__name__)[:300]}
        _reply(replies, answer)


def _reply(replies: Any, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")
    replies.flush()


def _limit(memory: int) -> None:
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    for kind, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
