"""Several processes on one run: who takes which work, and when all are done.

Started by torchrun, `accelerate launch` or srun; each sets its own environment variables. Work is claimed from one
counter in torch.distributed's key-value store, so ranks of different speed all stay busy; no tensor is exchanged.
Every rank's heart beats in that store. Clocks of different machines are never compared, nor is any file looked at.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from e2bench.environment import number
from e2bench.errors import E2BenchError, RunFailed

T = TypeVar("T")
BEAT_S = 2.0
SILENCE_S = 120.0  # a rank whose heart has not beaten for so long is taken for dead
POLL_S = 0.05
JOIN_S = 300


@dataclass
class Processes:
    """This process's rank among `world`. A single process needs no store.

    store: torch.distributed's, one for all ranks.    hosted: whether it lives in rank 0, and ends with it.
    """

    rank: int = 0
    world: int = 1
    store: Any = None
    hosted: bool = True
    _uses: Counter[str] = field(default_factory=Counter)
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_environment(cls) -> Processes:
        """Join the others if a launcher started several; raises E2BenchError when they cannot be reached.

        The same object however often it is asked for: names of rounds and barriers go on being numbered.
        """
        global _joined
        rank, world = launched()
        if world == 1:
            return cls()
        if _joined is None:
            _joined = cls(rank, world, *_connect(rank, world))
            beat = threading.Thread(target=_joined._beat, daemon=True)
            beat.start()
            atexit.register(_joined._end, beat)
        return _joined

    def claim(self, round_name: str) -> int:
        """The next number nobody else got: 0, 1, 2, …"""
        if self.store is None:
            raise ValueError("a single process has nothing to claim")
        return self._ask(lambda: int(self.store.add(f"claim/{round_name}", 1)) - 1)

    def round(self, title: str) -> str:
        """A name for the coming round of claims: a second run with the same title starts at 0 again."""
        return self._key(f"round/{title}")

    def share(self, name: str, make: Callable[[], str]) -> str:
        """What `make` gives on rank 0, on every rank."""
        if self.store is None:
            return make()
        key = self._key(name)
        if self.rank == 0:
            value = make()
            self._ask(lambda: self.store.set(key, value))
            return value
        self._wait(lambda: bool(self.store.check([key])))
        return self._ask(lambda: bytes(self.store.get(key)).decode())

    def barrier(self, name: str) -> None:
        """Wait until every rank is here. Raises RunFailed when one of them is dead."""
        if self.store is None:
            return
        key = self._key(f"barrier/{name}")
        self._ask(lambda: self.store.add(key, 1))
        self._wait(lambda: int(self.store.add(key, 0)) >= self.world)

    def leave(self) -> None:
        """Let rank 0, where it holds the store, outlive the others."""
        self.barrier("leave")
        if self.rank == 0 and self.hosted and self.store is not None:
            time.sleep(0.5)

    def _key(self, name: str) -> str:
        """Names may come again (one process may make several runs); every rank uses them in the same order."""
        self._uses[name] += 1
        return f"{name}/{self._uses[name]}"

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not self._ask(ready):
            for rank in range(self.world):
                if rank != self.rank and self._silence(rank) > SILENCE_S:
                    raise _dead(rank, self.world)
            time.sleep(POLL_S)

    def _end(self, beat: threading.Thread) -> None:
        """Stop beating before the interpreter ends: a thread inside the store then would abort the process."""
        self._ended.set()
        beat.join(BEAT_S)

    def _beat(self) -> None:
        try:
            while not self._ended.is_set():
                self.store.add(f"heart/{self.rank}", 1)
                self._ended.wait(BEAT_S)
        except Exception:  # the store is gone; the main thread will say so
            return

    def _silence(self, rank: int) -> float:
        """Seconds, by this machine's clock, since the beats of `rank` were last seen to grow."""
        beats, now = self._ask(lambda: int(self.store.add(f"heart/{rank}", 0))), time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != beats:
            self._seen[rank] = (beats, now)
        return now - self._seen[rank][1]

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except RuntimeError:  # torch's DistNetworkError and DistStoreError: whoever held the store is gone
            raise _dead(0, self.world) from None


_joined: Processes | None = None


def _dead(rank: int, world: int) -> RunFailed:
    return RunFailed(
        f"process {rank} of {world} is gone; what was finished is kept: start the same command again to finish, "
        "with any number of processes"
    )


def launched() -> tuple[int, int]:
    """(rank, world) from torchrun's and accelerate's variables, or those of an srun step.

    SLURM sets SLURM_PROCID and SLURM_NTASKS also in a batch script, where one process runs; only a step has its own
    number of tasks.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and number(world, 1) > 1:
            if number(rank) >= number(world):
                raise E2BenchError(f"{rank} is {number(rank)} and {world} {number(world)}: no process has that number")
            return number(rank), number(world)
    return 0, 1


def _connect(rank: int, world: int) -> tuple[Any, bool]:
    """(store, hosted by rank 0). torchrun's agent holds a store already; elsewhere rank 0 opens one."""
    import torch.distributed as dist

    _slurm_address()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # its types do not tell of it
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            None if agent else world,
            is_master=rank == 0 and not agent,
            timeout=timedelta(seconds=JOIN_S),
            wait_for_workers=not agent,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise E2BenchError(
            f"process {rank} of {world} cannot reach the others ({reason}); "
            "start with torchrun, accelerate launch or srun"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = dist.PrefixStore(f"e2bench/{attempt}", store)  # type: ignore[attr-defined]
    return shared, not agent


def _slurm_address() -> None:
    """Where rank 0 of an srun step listens: on the step's first node, at a port that the job and the step decide."""
    if "SLURM_PROCID" not in os.environ or "RANK" in os.environ:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job, step = (number(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    os.environ.setdefault("MASTER_PORT", str(20000 + (job * 31 + step) % 20000))
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))


def first_node(nodes: str) -> str:
    """The first host of SLURM's short form: `gpu[007-009,012],cpu1` gives gpu007."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return nodes if found is None else "".join(part or "" for part in found.groups())
