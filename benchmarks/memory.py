"""Resident memory that a long window takes above the loaded model, against the formula of `Model.needed_bytes`.

    python benchmarks/memory.py --model M [--lengths 8k..32k] [--dtype bfloat16]

needed = T · kv_bytes_per_token                       the key-value cache
       + C · (6 hidden + 3 intermediate) · 4 bytes    one chunk of C = min(T, 4096) tokens inside a layer
       + 2 · 512 · V · 4 bytes                        one block of scored logits and its softmax
Each length is measured in a process of its own (peak resident size less the one after loading). Limit: 1.3 × needed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

LIMIT = 1.3


def peak_bytes() -> int:
    """This process's peak resident size (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def measure(model_path: str, tokens: int, dtype: str) -> dict[str, float]:
    """Growth of the peak while one window of `tokens` is scored, and what the formula says."""
    import torch

    from e2bench.loading import ModelSpec
    from e2bench.model import Model
    from e2bench.rope import RopeScaling
    from e2bench.scales import scale_for_window

    model = Model.load(ModelSpec(model=model_path, dtype=dtype))
    scaling = RopeScaling("linear", scale_for_window(tokens, model.native_window))
    ids = torch.randint(10, model.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    with model.scaled(scaling, tokens):
        model.token_nll(ids[:, :64])
        Path("/proc/self/clear_refs").write_text("5")  # the peak of loading does not count
        before = peak_bytes()
        model.token_nll(ids)
    return {"tokens": tokens, "grown": peak_bytes() - before, "needed": model.needed_bytes(tokens)}


def main() -> None:
    """Measure each length in a fresh process and print the ratios; exit 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lengths", default="8k..32k")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.model, given.one, given.dtype)))
        return
    from e2bench.scales import parse_lengths, short_length

    worst = 0.0
    print(f"{platform.machine()}, Python {platform.python_version()}, {given.dtype}")
    for tokens in parse_lengths(given.lengths):
        command = [sys.executable, __file__, "--model", given.model, "--dtype", given.dtype, "--one", str(tokens)]
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        row = json.loads(line)
        ratio = row["grown"] / row["needed"]
        worst = max(worst, ratio)
        grown, needed = row["grown"] / 2**20, row["needed"] / 2**20
        print(
            f"{short_length(tokens):>6}: grew {grown:,.0f} MiB, formula {needed:,.0f} MiB, ratio {ratio:.2f}",
            flush=True,
        )
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
