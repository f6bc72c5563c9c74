"""Time and memory of one long input as functions of its length N: scoring (`token_nll`) and generation.

    python benchmarks/length.py [--lengths 8k..200k] [--model M --dtype bfloat16] [--kinds score,generate]

Without --model a random Llama of two layers is used, small enough for 200k tokens on a CPU. Each length runs in a
process of its own; what its peak resident size (on a GPU: its allocated memory) grows by is compared with what
`Model.needed_bytes` tells before a run, limit 1.3:

    T · kv_bytes_per_token                       the key-value cache
    C · (6 hidden + 3 intermediate) · 4 bytes    one chunk of C = min(T, 4096) tokens inside a layer
    2 · 512 · V · 4 bytes                        one block of scored logits and its softmax

Anything of N × N would show at once: at 200k tokens a mask alone is 40 GB. The exponents of time and memory are least
squares in log-log. Written: length.csv, length.png, length.json, or with --model length-MODEL.csv and so on.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, write

NEW_TOKENS = 4
KINDS = ("score", "generate")


def tiny_model(window: int) -> Any:
    """A random two-layer Llama (hidden 32, two heads of 16, one key-value head); its tokenizer has a word a token."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from e2bench.models.local import Model

    words = {f"w{i}": i for i in range(256)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=window, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model(LlamaForCausalLM(config), tokenizer, name="random")


def peak_bytes() -> int:
    """This process's peak resident size (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def measure(kind: str, tokens: int, model_path: str | None, dtype: str) -> dict[str, Any]:
    """Seconds and growth of the peak for one input of `tokens`."""
    from e2bench.models.loading import ModelSpec
    from e2bench.models.local import Model
    from e2bench.models.protocols import Prompt
    from e2bench.rope.methods import RopeScaling
    from e2bench.rope.windows import scale_for_window

    model = Model.load(ModelSpec(model=model_path, dtype=dtype)) if model_path else tiny_model(4096)
    scaling = RopeScaling("linear", scale_for_window(tokens, model.native_window))
    ids = torch.randint(10, 256, (1, tokens), generator=torch.Generator().manual_seed(0))

    def run(count: int) -> None:
        if kind == "generate":
            prompt = Prompt(ids[0, : count - NEW_TOKENS].tolist(), NEW_TOKENS, NEW_TOKENS)
            list(model.generate([prompt], scaling))
            return
        with model.under(scaling, count):
            model.token_nll(ids[:, :count])

    run(256)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
        before = peak_bytes()
    began = time.perf_counter()
    run(tokens)
    spent = time.perf_counter() - began
    after = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else peak_bytes()
    grown, needed = after - before, model.needed_bytes(tokens)
    return {
        "kind": kind,
        "tokens": tokens,
        "seconds": round(spent, 3),
        "grown_mib": round(grown / 2**20, 1),
        "cache_mib": round(tokens * model.kv_bytes_per_token / 2**20, 1),
        "needed_mib": round(needed / 2**20, 1),
        "ratio": round(grown / needed, 2),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def exponent(rows: list[dict[str, Any]], field: str) -> float:
    """Slope of log(field) over log(tokens)."""
    points = [(math.log(row["tokens"]), math.log(max(row[field], 1e-3))) for row in rows]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / sum((x - mean_x) ** 2 for x, _ in points)


def draw(rows: list[dict[str, Any]], exponents: dict[str, dict[str, float]], path: Path) -> None:
    """Time and memory over N, log-log, with the exponents in the legend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, field, unit in zip(panels, ("seconds", "grown_mib"), ("time (s)", "memory growth (MiB)"), strict=True):
        for kind in exponents:
            own = [row for row in rows if row["kind"] == kind]
            label = f"{kind}: N^{exponents[kind][field]:.2f}"
            panel.loglog([r["tokens"] for r in own], [max(r[field], 1e-3) for r in own], "o-", label=label)
        if field == "grown_mib":
            own = [row for row in rows if row["kind"] == rows[0]["kind"]]
            panel.loglog([r["tokens"] for r in own], [r["needed_mib"] for r in own], "k:", label="cache + chunk")
        plain = FormatStrFormatter("%g")
        panel.yaxis.set_major_formatter(plain)
        if field == "grown_mib":  # less than a decade or two: powers of ten alone would leave the axis bare
            panel.yaxis.set_minor_formatter(plain)
        panel.set_xlabel("N (tokens)")
        panel.set_ylabel(unit)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure every length in a fresh process; write the table, the figure and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="8k..200k")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given.model, given.dtype)))
        return
    from e2bench.rope.windows import parse_lengths

    rows = []
    kinds = given.kinds.split(",")
    for tokens in parse_lengths(given.lengths):
        for kind in kinds:
            command = [sys.executable, __file__, "--dtype", given.dtype, "--one", kind, str(tokens)]
            command += ["--model", given.model] if given.model else []
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append(json.loads(output.strip().splitlines()[-1]))
            print(
                "{kind} {tokens}: {seconds} s, grew {grown_mib} MiB, {ratio} of the formula".format(**rows[-1]),
                flush=True,
            )
    long = [row for row in rows if row["tokens"] >= 16 * 1024] or rows
    exponents = {
        kind: {name: exponent([r for r in long if r["kind"] == kind], name) for name in ("seconds", "grown_mib")}
        for kind in kinds
    }
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"length-{Path(given.model).stem}" if given.model else "length"
    with (given.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, exponents, given.out / f"{name}.png")
    write(name, {"model": Path(given.model or "random").stem, "exponents": exponents, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
