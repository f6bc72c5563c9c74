"""Several processes on one run: who takes which work, and when all are done.

Started by torchrun, `accelerate launch` or srun; each sets its own environment variables. Work is claimed from one
counter in torch.distributed's key-value store, so ranks of different speed all stay busy; no tensor is exchanged.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from e2bench.errors import E2BenchError, RunFailed

SILENCE_S = 3600  # a rank that finished nothing for so long is taken for dead


@dataclass
class Processes:
    """This process's rank among `world`. A single process needs no store."""

    rank: int = 0
    world: int = 1
    store: Any = None

    @classmethod
    def from_environment(cls) -> Processes:
        """Join the others if a launcher started several; raises E2BenchError when they cannot be reached."""
        rank, world = _launched()
        if world == 1:
            return cls()
        import torch.distributed as dist

        _slurm_address()
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]) + 1,
                world,
                is_master=rank == 0,
                timeout=timedelta(seconds=300),
                wait_for_workers=True,
            )
        except (KeyError, RuntimeError) as error:
            raise E2BenchError(
                f"process {rank} of {world} cannot reach the others ({error}); start with torchrun"
            ) from None
        return cls(rank, world, store)

    def claim(self, round_name: str) -> int:
        """The next number nobody else got: 0, 1, 2, …"""
        if self.store is None:
            raise ValueError("a single process has nothing to claim")
        self.store.set(f"seen/{self.rank}", str(time.time()))
        return int(self.store.add(f"claim/{round_name}", 1)) - 1

    def barrier(self, name: str) -> None:
        """Wait until every rank is here. Raises RunFailed when one has been silent for SILENCE_S."""
        if self.store is None:
            return
        self.store.set(f"seen/{self.rank}", str(time.time()))
        arrived = int(self.store.add(f"barrier/{name}", 1))
        while arrived < self.world:
            time.sleep(0.05)
            arrived = int(self.store.add(f"barrier/{name}", 0))
            silent = [r for r in range(self.world) if self._silence(r) > SILENCE_S]
            if arrived < self.world and silent:
                raise RunFailed(
                    f"process {silent[0]} of {self.world} is silent; start the same command again to finish"
                )

    def _silence(self, rank: int) -> float:
        key = f"seen/{rank}"
        return time.time() - float(self.store.get(key)) if self.store.check([key]) else 0.0

    def leave(self) -> None:
        """Let rank 0, which holds the store, outlive the others."""
        self.barrier("leave")
        if self.rank == 0 and self.store is not None:
            time.sleep(0.5)


def _launched() -> tuple[int, int]:
    """(rank, world) from torchrun's and accelerate's variables, or SLURM's."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and int(os.environ.get(world, 1)) > 1:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def _slurm_address() -> None:
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))
        os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
