"""What the benchmarks share: the machine and versions in words, paired timing, results/benchmarks/NAME.json."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "benchmarks"
LONGBENCH = ROOT.parent / "shared" / "data" / "longbench"


def machine() -> dict[str, Any]:
    """Processor, GPU, threads, versions, and how busy the machine was when this was asked."""
    import torch

    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("e2bench", "torch", "transformers")},
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, where Linux tells it; else its architecture."""
    names = (line for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(names, f":{platform.machine()}").split(":", 1)[1].strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, the GPU's queue included."""
    import torch

    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round. The order turns from round to round: a slow phase of the machine hits all."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(calls[name]))
    return times


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and range of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def write(name: str, result: dict[str, Any], out: Path | None = None) -> None:
    """Print a result and store it with the machine's description."""
    path = (out or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(f"written: {path}")
