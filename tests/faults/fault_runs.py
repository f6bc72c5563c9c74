"""Runs of the command line in processes of their own, started in milliseconds, so that hundreds of them can be killed.

A server process imports everything once; each run is forked from it (multiprocessing's `forkserver`) and calls the
real `e2bench.cli.main`, with its output in a pipe and whatever limits of the operating system the test sets.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slowed import slow_down

PRELOAD = (
    "e2bench.cli",
    "e2bench.models.local",
    "e2bench.models.loading",
    "e2bench.experiments.longbench",
    "e2bench.experiments.perplexity",
    "e2bench.train.finetune",
    "transformers.models.llama.modeling_llama",
)
LONGEST_S = 120.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOAD))

Limits = dict[int, int]  # resource.RLIMIT_…: bytes


def _run(arguments: Sequence[str], said: Any, limits: Limits, more_memory: int | None, slowed: bool) -> None:
    """What the forked process does. Nothing of the test's own process runs in it afterwards."""
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the old objects know another kind of file
    sys.stderr = os.fdopen(2, "w", closefd=False)
    if more_memory is not None:
        limits = {**limits, resource.RLIMIT_DATA: data_bytes(os.getpid()) + more_memory}
    for kind, size in limits.items():
        resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))
    if slowed:
        slow_down(arguments[0])
        give_memory_back()
    sys.argv = ["e2bench", *arguments]
    code: Any = 1
    try:
        from e2bench.cli import main

        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def give_memory_back() -> None:
    """Let glibc take each large tensor from the system and give it back at once, so that a limit set later is met."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 17)


@dataclass
class Started:
    """A run that was started, and the pipe with all it says (a file would come under the limits set)."""

    process: Any
    pipe: Any

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def running(self) -> bool:
        return bool(self.process.is_alive())

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.join(LONGEST_S)
        assert not self.running, f"still running after {LONGEST_S:.0f} s"
        said = b""
        while piece := os.read(self.pipe.fileno(), 1 << 16):
            said += piece
        return Ended(int(self.process.exitcode), said.decode("utf-8", "replace"))

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL at that moment; False when the run had ended by itself."""
        self.process.join(seconds)
        if not self.running:
            return False
        self.process.kill()
        self.process.join(LONGEST_S)
        return int(self.process.exitcode) < 0


@dataclass(frozen=True)
class Ended:
    """Exit status, and what was said on stdout and stderr."""

    code: int
    said: str

    def lines(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("e2bench: ")]


def start(
    arguments: Sequence[object],
    *,
    limits: Limits | None = None,
    more_memory: int | None = None,
    slowed: bool = False,
) -> Started:
    """Start `e2bench ARGUMENTS`. more_memory: bytes it may take beyond what the imports took (RLIMIT_DATA).

    slowed: with a pause after each line, for what is to happen to the run after one of them.
    """
    pipe, said = _context.Pipe(duplex=False)
    values = ([str(argument) for argument in arguments], said, limits or {}, more_memory, slowed)
    process = _context.Process(target=_run, args=values)
    process.start()
    said.close()
    return Started(process, pipe)


def finish(arguments: Sequence[object]) -> Ended:
    """Run to the end, which must be a good one."""
    ended = start(arguments).end()
    assert ended.code == 0, ended.said
    return ended


def failed_clearly(ended: Ended, *codes: int) -> str:
    """The one line of a run that failed as it should: no traceback, an exit status that says whose fault it was."""
    assert ended.code in codes, ended
    assert "Traceback" not in ended.said, ended.said
    assert len(ended.lines()) == 1, ended.said
    return ended.lines()[0]


def data_bytes(pid: int) -> int:
    """Bytes that RLIMIT_DATA counts, about; RLIMIT_AS would leave glibc the heaps that it reserved for threads."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[5]) * resource.getpagesize()


def wait_for_lines(count: int, out: Path, running: Callable[[], bool]) -> None:
    """Until a run has written that many; it must be running still."""
    deadline = time.monotonic() + LONGEST_S
    while sum(map(len, whole_lines(out).values())) < count:
        assert running(), f"the run ended before its line {count}"
        assert time.monotonic() < deadline, f"no line {count} after {LONGEST_S:.0f} s"
        time.sleep(0.005)


# ---- what a run leaves


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a run's folder to the byte, but for what two undisturbed runs differ in: times."""
    return {
        path.relative_to(folder).as_posix(): _without_times(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("events.out")
    }


def _without_times(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "run.json":
        run = json.loads(content)
        run["settings"].pop("out")
        own = {"started", "ended", "dirty", "commit", "continued", "work"}  # someone may commit while the tests run
        return json.dumps({**{k: v for k, v in run.items() if k not in own}, "is_over": bool(run["ended"])}).encode()
    if path.name == "e2_config.json":  # hashes of files that name the folder
        return json.dumps({k: v for k, v in json.loads(content).items() if k != "files"}).encode()
    return re.sub(rb'("seconds": )[0-9.e+-]+', rb"\g<1>0", content)


def whole_lines(folder: Path) -> dict[str, list[bytes]]:
    """The finished lines of each file, times included: a line made anew would differ."""
    contents = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    return {name: content[: content.rfind(b"\n") + 1].splitlines() for name, content in contents.items()}


def check_same(got: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """The same files, each the same to the byte; what differs is shown by name."""
    assert got.keys() == expected.keys(), f"files on one side only: {sorted(got.keys() ^ expected.keys())}"
    for name, content in expected.items():
        assert got[name] == content, f"{name} differs"


def check_nothing_torn(folder: Path) -> None:
    """At any moment: files that are written whole are whole, and no line stands twice."""
    for name in ("run.json", "scores.json"):
        if (folder / name).exists():
            assert isinstance(json.loads((folder / name).read_bytes()), dict)
    for name, lines in whole_lines(folder).items():
        rows = [json.loads(line) for line in lines]
        names = [json.dumps({k: r[k] for k in ("_id", "document", "window", "scale") if k in r}) for r in rows]
        assert len(set(names)) == len(names), f"{name}: a line twice"


@dataclass
class Tally:
    """What a series of kills met: how many, in how many folders, and how many found work half done."""

    kills: int = 0
    folders: int = 0
    with_lines_kept: int = 0


def kill_at_random(
    command: Callable[[Path], Sequence[object]],
    whole: Path,
    folder: Path,
    *,
    kills: int,
    seed: int,
    lasts_s: float,
    after_each: Callable[[Path], None] = check_nothing_torn,
    kept: Callable[[Path], int] = lambda out: sum(map(len, whole_lines(out).values())),
    compared: Callable[[Path], dict[str, bytes]] = snapshot,
) -> Tally:
    """Kill runs at moments spread evenly over `lasts_s`, go on in the same folder, compare what they end in.

    A run that ends before its moment ends its folder: it is compared with `whole`, and the next kill gets a new one.
    """
    random_moments, tally, expected = random.Random(seed), Tally(), compared(whole)
    out = folder / "run-0"
    while tally.kills < kills:
        before = kept(out)
        run = start(command(out))
        if run.kill_after(random_moments.uniform(0, lasts_s)):
            tally.kills += 1
            after_each(out)
            assert kept(out) >= before, "finished work was lost"
            tally.with_lines_kept += kept(out) > 0
        else:
            ended = run.end()
            assert ended.code == 0, ended.said
            check_same(compared(out), expected)
            tally.folders += 1
            out = folder / f"run-{tally.folders}"
    finish(command(out))
    check_same(compared(out), expected)
    tally.folders += 1
    return tally


def measured_s(command: Sequence[object]) -> float:
    """Seconds that an undisturbed run takes, the server's own start not among them."""
    start(["--version"]).end()
    began = time.monotonic()
    finish(command)
    return time.monotonic() - began


def counts(name: str = "E2BENCH_KILLS") -> int | None:
    """A count from the environment, for longer hunts than the two tiers make."""
    return int(os.environ[name]) if os.environ.get(name) else None
