"""A vLLM or SGLang server of our own: started, waited for, known as ours, stopped with all that it started."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import httpx

from e2bench.errors import E2BenchError, RunFailed, printable
from e2bench.files import disk_errors
from e2bench.models import guard
from e2bench.models.endpoint import Broken, Endpoint, Refused
from e2bench.models.secrets import KEYS, Secret
from e2bench.models.serving import Command, Engine
from e2bench.terminal import say

HOST = "127.0.0.1"
GRACE_S, QUICK_S = 10.0, 2.0  # for an engine to end by itself; before that is said
POLL_S, SAID_S, ANSWER_S = 0.25, 30.0, 2.0
LAST_LINES, LINE_CHARS, TAIL_BYTES = 15, 300, 64 << 10
ASKED_S = 120.0  # for a version
PRINT_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def new_key() -> Secret:
    """A random key, so that no other server is taken for ours, and nobody else uses ours."""
    return Secret(secrets.token_hex(16))


class Server:
    """One server process. It is stopped by `stop`, with this object, and with this process however that ends.

    key: what clients must send.    log: the server's output is added to it.
    gpus: for CUDA_VISIBLE_DEVICES; None: all of them.
    """

    def __init__(self, engine: Engine, command: Command, key: Secret, log: Path, gpus: str | None = None) -> None:
        self.engine, self.key, self.log = engine, key, log
        self.port = free_port()
        self.command = command.with_words("--host", HOST, "--port", str(self.port))
        with disk_errors(log), log.open("ab") as output:
            output.write(f"\n$ {shlex.join(self.command.shown())}\n".encode())
            output.flush()
            self._from = output.tell()
            self._process = self._started(output, gpus)
        self._end = weakref.finalize(self, _end, self._process)

    def _started(self, output: IO[bytes], gpus: str | None) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in KEYS}
        environment |= {"VLLM_NO_USAGE_STATS": "1", **self.command.environment}
        words = list(self.command.words)
        if self.engine.key.startswith("--"):
            words += [self.engine.key, self.key.value]
        else:
            environment[self.engine.key] = self.key.value
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        return subprocess.Popen(
            [sys.executable, "-I", str(guard.__file__), str(os.getpid()), str(GRACE_S), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours
        )

    @property
    def url(self) -> str:
        """Of its OpenAI-compatible endpoint."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def is_running(self) -> bool:
        """Whether the process is there, ready or not."""
        return self._process.poll() is None

    def has_ended(self) -> bool:
        """Whether the process is gone, or goes now: its connections break before its end is seen."""
        try:
            self._process.wait(QUICK_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, *, wait: bool = True) -> None:
        """End it and all that it started; without `wait` ask for that only."""
        self._process.terminate()
        if not wait:
            return
        try:
            self._process.wait(QUICK_S)
        except subprocess.TimeoutExpired:
            say(f"waiting for {self.engine.label} to end, {GRACE_S:.0f} s at most")
        self._end()

    def is_ready(self) -> bool:
        """Whether it answers. Raises RunFailed where it ended, or another server answers in its place."""
        if not self.is_running:
            raise self.lost("ended while it was loading")
        try:
            with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
                if client.get(f"http://{HOST}:{self.port}/health").status_code != 200:
                    return False
            is_ours = self._takes(self.key) and not self._takes(new_key())
        except (httpx.HTTPError, Broken):
            return False
        except E2BenchError:  # a web page, say
            is_ours = False
        if not is_ours:
            raise RunFailed(
                f"another server than the one started here answers at port {self.port}, or {self.engine.label} asks "
                "for no key, or for another than it was given; give the same command again"
            )
        return True

    def _takes(self, key: Secret) -> bool:
        """Whether the server has an answer for a client with this key."""
        try:
            Endpoint(self.url, key=key, timeout_s=5 * ANSWER_S).get("/models")
        except Refused as refused:
            if refused.status not in (401, 403):
                raise
            return False
        return True

    def lost(self, what: str) -> RunFailed:
        """Show the end of the log, and give the error that says what happened."""
        lines = self.last_lines()
        for line in lines:
            say(f"  | {line}")
        shown = f" (it said last: {lines[-1][:160]})" if lines else ""
        return RunFailed(
            f"{self.engine.label} {what}{shown}; its whole log: {self.log}. What was finished is kept: mend it and "
            "give the same command again"
        )

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        """The end of what this server wrote to its log, without its key."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._from, os.path.getsize(self.log) - TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return []
        lines = [printable(self.key.hidden(line)).rstrip()[:LINE_CHARS] for line in text.splitlines()]
        return [line for line in lines if line.strip()][-count:]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:  # the guard itself hangs, on a disk that is gone say
        process.kill()
        process.wait()


def wait_until_ready(servers: Sequence[Server], limit_s: float) -> None:
    """Wait for all of them, and say now and then what is waited for.

    Raises RunFailed where one ends or the time runs out. The servers are left to the caller.
    """
    began = said = time.monotonic()
    waiting = list(servers)
    while waiting:
        waiting = [server for server in waiting if not server.is_ready()]
        now = time.monotonic()
        if waiting and now - began > limit_s:
            raise waiting[0].lost(f"was not ready after {limit_s:,.0f} s (--engine-wait)")
        if waiting and now - said > SAID_S:
            said = now
            last = "".join(f": {line[:120]}" for line in waiting[0].last_lines(1))
            say(f"{waiting[0].engine.label} is loading, {now - began:.0f} s so far{last}")
        if waiting:
            time.sleep(POLL_S)
    say(f"{servers[0].engine.label} is ready after {time.monotonic() - began:.0f} s")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def find_program(engine: Engine, given: str | None) -> str:
    """The executable's path: the one that was named, else this environment's, else the one on PATH.

    Raises E2BenchError where there is none.
    """
    beside = Path(sys.executable).with_name(engine.program)
    names = [given] if given is not None else [str(beside), engine.program]
    found = next((path for name in names if (path := shutil.which(os.path.expanduser(name)))), None)
    if found is not None:
        return found
    other = f"--engine-command takes the {engine.program} of another environment"
    if given is not None:
        raise E2BenchError(f"no executable {given}; {other}")
    raise E2BenchError(f"no {engine.program} here; install {engine.label} (pip install {engine.package}), or {other}")


def version_of(engine: Engine, program: str) -> str:
    """The engine's version, asked of the environment that `program` belongs to: from its metadata, which is quick.

    Raises E2BenchError, with what it said last, for an executable that does not tell.
    """
    python = program if engine.program == "python" else _interpreter(program)
    tries = [[python, "-c", PRINT_VERSION, engine.package]] if python else []
    if engine.program != "python":
        tries.append([program, "--version"])  # imports all of it
    said = ""
    for command in tries:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ASKED_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0 and done.stdout.strip():
            return printable(done.stdout.split()[-1])[:60]
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
    raise E2BenchError(f"{program} does not tell the version of {engine.label}: {said[:200]}; is it installed there?")


def _interpreter(program: str) -> str | None:
    """The Python of a script that pip wrote; None for another kind of program."""
    try:
        with open(program, "rb") as script:
            first = script.readline(1024)
    except OSError:  # may be run, not read
        return None
    path = first[2:].strip().decode("utf-8", "replace")
    return path if first.startswith(b"#!") and "python" in Path(path).name else None


def gpu_shares(servers: int, each: int) -> list[str | None]:
    """For CUDA_VISIBLE_DEVICES of every server; None: what is visible here. Without a GPU none is shared out.

    each: GPUs of one server. Raises E2BenchError where there are fewer than they need together.
    """
    if servers == 1:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        import torch

        visible = [str(index) for index in range(torch.cuda.device_count())]
    else:
        visible = [name for name in given.split(",") if name.strip()]
    if not visible:
        return [None] * servers
    if servers * each > len(visible):
        raise E2BenchError(
            f"--engine-servers {servers} need {servers * each} GPUs, {each} each, and {len(visible)} are here; give "
            "fewer servers, or smaller --tensor-parallel and --pipeline-parallel"
        )
    return [",".join(visible[at * each : (at + 1) * each]) for at in range(servers)]
