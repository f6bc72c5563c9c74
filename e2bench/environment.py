"""Numbers that launchers leave in the environment."""

from __future__ import annotations

import os

from e2bench.errors import E2BenchError

# What torchrun, accelerate and srun set, and torch, accelerate and we read.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "NODE_RANK")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")


def number(name: str, default: int = 0) -> int:
    """A variable's whole number, not negative; `default` where it is not set. Raises E2BenchError for anything else."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise E2BenchError(
            f"{name} is {text[:40]!r} in the environment, which is no whole number; unset it, or start with torchrun, "
            "accelerate launch or srun, which set it"
        )
    return int(text[:18])


def check_launcher() -> None:
    """Raise E2BenchError for a variable that libraries would trip over."""
    for name in (*LAUNCHER, *SLURM):
        number(name)
