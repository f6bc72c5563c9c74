"""Runs a server, and ends it with all that it started once the process that asked for it is gone, however it went.

A program of its own without any import of ours: `python -I guard.py PARENT_PID GRACE_S COMMAND …`. A finally clause in
the parent would not run where it is killed, nor at a second Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

POLL_S = 0.1
_asked: list[int] = []


def guard(parent: int, grace_s: float, command: list[str]) -> int:
    """The server's exit status. It is ended on SIGTERM or SIGHUP, and when `parent` is this process's parent no more.

    The server gets SIGTERM and `grace_s` to end; then its whole process group is killed.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: _asked.append(received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, start_new_session=True)
    while child.poll() is None and not _asked and os.getppid() == parent:
        time.sleep(POLL_S)
    if child.poll() is None:
        _send(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    _send(child.pid, signal.SIGKILL)
    return child.wait()


def _send(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    code = guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    sys.exit(code if code >= 0 else 128 - code)
