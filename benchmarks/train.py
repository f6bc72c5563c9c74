"""Cost of E² positions: seconds of a training step with them against one without, interleaved in one process.

Prints the ratio of paired steps with a bootstrap 95 % interval, and the peak memory of a step by train window R at two
scales. Writes `results/benchmarks/train.json`. The target: a ratio of at most 1.02, and memory that depends on R alone.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from e2bench.train.e2 import E2Settings, draw
from e2bench.train.rotary import E2Positions

NATIVE, PAIRS, WARM_UP = 512, 40, 4
OUT = Path(__file__).parents[1] / "results" / "benchmarks" / "train.json"


class Steps:
    """Plain and E² training steps of one model."""

    def __init__(self, train_window: int, g_max: int = 20) -> None:
        torch.manual_seed(0)
        shape = {"hidden_size": 256, "intermediate_size": 672, "num_hidden_layers": 4, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=2048, max_position_embeddings=NATIVE, **shape)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = LlamaForCausalLM(config).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.settings = E2Settings(native_window=NATIVE, train_window=train_window, g_max=g_max, per_sample=True)
        self.positions = E2Positions(self.model)
        self.input_ids = torch.randint(config.vocab_size, (4, train_window), device=self.device)

    def seconds(self, number: int, e2: bool) -> float:
        """One forward pass, backward pass and update; with `e2` the draws of step `number` are part of it."""
        self._wait()
        started = time.perf_counter()
        if e2:
            self.positions.set([draw(self.settings, number, sample) for sample in range(len(self.input_ids))])
        else:
            self.positions.clear()
        self.model(input_ids=self.input_ids, labels=self.input_ids, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - started

    def peak_bytes(self) -> int:
        """Peak of tensors allocated in a step: CUDA's own counter, or the profiler's running sum on the CPU."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.seconds(0, e2=True)
            return torch.cuda.max_memory_allocated()
        with torch.profiler.profile(profile_memory=True) as profile:
            self.seconds(0, e2=True)
        changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return int(np.cumsum(changes).max())

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def paired_ratio() -> dict[str, float]:
    """Median ratio of E² to plain steps and its interval; which of a pair goes first alternates."""
    steps = Steps(NATIVE)
    pairs = []
    for number in range(PAIRS + WARM_UP):
        first = number % 2 == 0
        times = {e2: steps.seconds(number, e2) for e2 in (first, not first)}
        pairs.append((times[True], times[False]))
    e2, plain = np.array(pairs[WARM_UP:]).T
    rng = np.random.default_rng(0)
    samples = rng.integers(0, PAIRS, (10_000, PAIRS))
    low, high = np.quantile(np.median((e2 / plain)[samples], axis=1), [0.025, 0.975])
    return {
        "ratio": float(np.median(e2 / plain)),
        "low": float(low),
        "high": float(high),
        "plain_seconds": statistics.median(plain.tolist()),
        "pairs": PAIRS,
    }


def memory() -> list[dict[str, int]]:
    """Peak bytes of an E² step for two train windows and two largest scales."""
    grid = [(window, g_max) for window in (256, 512) for g_max in (2, 40)]
    return [{"train_window": w, "g_max": g, "peak_bytes": Steps(w, g).peak_bytes()} for w, g in grid]


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    result = {"device": "cuda" if torch.cuda.is_available() else "cpu", "step": paired_ratio(), "memory": memory()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    step = result["step"]
    print(f"E² step / plain step: {step['ratio']:.4f}, 95 % interval {step['low']:.4f} to {step['high']:.4f}")
    for row in result["memory"]:
        print(f"R = {row['train_window']}, g_max = {row['g_max']}: {row['peak_bytes'] / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
