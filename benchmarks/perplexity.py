"""Sliding-window perplexity against the bare forward pass of the same windows, and against the naive loop.

    python benchmarks/perplexity.py --model SMOLLM2.gguf [--windows 4] [--rounds 5] [--window 4k] [--stride 256]

`e2bench` is `perplexity.measure` with protocol press, records and all; `cached` the same with windows in chunks over a
key-value cache; `bare` the model's body alone on each window (no head, no loss, nothing kept), which no way of scoring
can beat; `naive` transformers' own forward pass with logits
of every position and a cross entropy over them. Rounds alternate. Printed and stored: median ratio and range, tokens/s,
and FLOP/s of the body (2 a parameter and token, and causal attention) against a measured matrix-product peak.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import alternate, ratio, seconds, write

from e2bench.experiments.windows import Cell, Protocol, Window, items_of, measuring, together
from e2bench.models.configured import CHUNK_TOKENS
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import parse_length
from e2bench.runs.folder import RunFolder
from e2bench.runs.processes import Processes
from e2bench.runs.runner import run


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a square matrix product, the best of five."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    seconds(lambda: a @ b)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(5))


def body_flop(model: Model, tokens: int) -> float:
    """Of one causal forward pass without the head."""
    head = model.hf.get_output_embeddings().weight.numel()
    parameters = sum(p.numel() for p in model.hf.parameters()) - head
    width = model.config.num_attention_heads * (
        getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    )
    return 2.0 * parameters * tokens + 4.0 * model.layers * width * tokens * tokens / 2


def main() -> None:
    """Alternate the three and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, .gguf or hub id; default: the embedded tiny model")
    parser.add_argument("--window", default="4k")
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--windows", type=int, default=4, help="windows a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model, window = Model.load(ModelSpec(model=given.model, dtype=given.dtype)), parse_length(given.window)
    protocol = Protocol(stride=given.stride)
    length = window + given.stride * (given.windows - 1)
    ids = torch.randint(10, model.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    windows = protocol.windows(length, window)
    scaling = RopeScaling("none")

    @torch.inference_mode()
    def forward(one: Window, body: bool) -> None:
        rows = torch.tensor([ids[one.start : one.end]], device=model.device)
        model.hf.set_attn_implementation("sdpa")
        if body:
            model.hf.base_model(input_ids=rows, use_cache=False)
            return
        logits = model.hf(input_ids=rows, use_cache=False).logits.float()
        first = one.first - one.start
        F.cross_entropy(logits[0, first - 1 : -1], rows[0, first:], reduction="sum").item()

    one_pass = model.one_pass

    def ours(one_pass: bool = one_pass) -> None:
        from e2bench.models.attention import SDPA

        model.hf.set_attn_implementation(SDPA)
        model.one_pass = one_pass
        cell = Cell("0" * 16, ids, window, scaling, tuple(windows))
        with tempfile.TemporaryDirectory() as out:
            manifest = {"experiment": "ppl", "resolved": {}}
            with RunFolder(Path(out), manifest) as folder:
                work = {"batch_size": together([cell]), "processes": Processes(), "title": "ppl"}
                run(items_of([cell]), measuring(model, protocol), folder, **work)

    calls = {
        "e2bench": ours,
        **({"cached": lambda: ours(False)} if one_pass and window > CHUNK_TOKENS else {}),
        "bare": lambda: [forward(one, True) for one in windows],
        "naive": lambda: [forward(one, False) for one in windows],
    }
    alternate({name: calls[name] for name in ("bare",)}, 1)
    times = alternate(calls, given.rounds)
    peak = matmul_peak(model.device, model.dtype)
    tokens = sum(one.end - one.start for one in windows)
    flop = sum(body_flop(model, one.end - one.start) for one in windows)
    best = {name: min(values) for name, values in times.items()}
    over = {"e2bench / bare": ratio(times["e2bench"], times["bare"])}
    if "cached" in times:
        over["cached / e2bench"] = ratio(times["cached"], times["e2bench"])
    over["naive / e2bench"] = ratio(times["naive"], times["e2bench"])
    for name, values in over.items():
        print(f"{name}: {values['median']:.3f} ({values['lowest']:.3f} to {values['highest']:.3f})")
    for name, value in best.items():
        print(f"{name:>8}: {tokens / value:,.0f} tokens/s, {flop / value / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s")
    settings = {"model": model.name, "dtype": given.dtype, "window": window, "stride": given.stride}
    result = {"settings": {**settings, "windows": len(windows), "tokens": tokens}, "ratios": over, "seconds": times}
    write("perplexity", {**result, "flop_a_round": flop, "matmul_peak": peak}, given.out)


if __name__ == "__main__":
    main()
