"""Everything that a GPU decides, in one command of at most nine minutes: scoring, decoding, generation, training, bits.

    python benchmarks/gpu.py [--minutes 9] [--parts scoring,decode] [--shapes 7b,1b,smollm2] [--out DIR]
    python benchmarks/gpu.py --exact [--cpu]  # tiny shapes in float32; fails if the ways compared give other numbers

Needs e2bench, torch and transformers; the weights are random, in the shapes of Llama-2-7B, Llama-3.2-1B and
SmolLM2-135M. The ceilings are measured first: matrix products a second, bytes copied a second. What is compared is
timed in turn in one process; medians and ratios are of the rounds. Each part has a share of the time and leaves out
what does not fit it; a part that fails leaves the others. Written after every part: results/benchmarks/gpu.json, which
keeps the other parts of the same card and versions, so that they can be measured in several calls.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, alternate, machine, ratio, seconds, write
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from e2bench.extras import is_installed
from e2bench.models.attention import SDPA
from e2bench.models.compiled import compile_pass
from e2bench.models.invariant import InvariantModel
from e2bench.models.local import Model
from e2bench.models.memory import release_memory
from e2bench.models.names import FLASH
from e2bench.models.protocols import Prompt
from e2bench.models.queued import WORTH, steps_for
from e2bench.models.steps import Row
from e2bench.train.e2 import E2Settings, draw
from e2bench.train.rotary import E2Positions

# hidden, intermediate, layers, query heads, key-value heads, vocabulary
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "smollm2": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 160, 3, 4, 2, 512),
}
SCORED = 256  # targets of a window: the stride
ROOM = 64  # tokens of a cache behind its rows


@dataclass(frozen=True)
class Sizes:
    """What is measured: lengths in tokens; (prompts, tokens, new tokens); rows."""

    lengths: tuple[int, ...] = (4096, 16384, 65536, 204800, 32768, 131072)
    window: int = 4096
    rows: tuple[int, ...] = (1, 16, 4, 64, 8, 2, 32)
    context: int = 3500
    generations: tuple[tuple[int, int, int], ...] = ((16, 3500, 64), (8, 15500, 128), (4, 31500, 128))
    plain_prompts: int = 2  # of a generation, read by transformers' loop: all take the same time
    train: tuple[int, int] = (2, 4096)
    rounds: int = 3


TINY = Sizes((300, 4200), 128, (1, 4), 60, ((3, 40, 24), (5, 90, 30)), 5, (2, 64), 1)


@dataclass
class Bench:
    """One run: its device, sizes, ceilings and the time at which the part in hand has to end."""

    device: str
    sizes: Sizes
    exact: bool  # float32: what is compared must be equal
    ends: float = 0.0
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU."""
        return torch.float32 if self.exact else torch.bfloat16

    def in_time(self) -> bool:
        """Whether the part may begin something more."""
        return time.monotonic() < self.ends

    def peak_gib(self, call: Callable[[], Any]) -> float | None:
        """The most that tensors took inside a call, weights included; None on a CPU."""
        if self.device == "cpu":
            call()
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def same(self, what: str, found: torch.Tensor, want: torch.Tensor, limit: float = 1e-6) -> dict[str, float]:
        """Largest and mean difference; where numbers must be equal, AssertionError if the means are not."""
        off = float((found.double() - want.double()).abs().max())
        means = float(found.double().mean()), float(want.double().mean())
        relative = abs(means[0] - means[1]) / max(abs(means[1]), 1e-12)
        if self.exact and not (relative <= limit and off <= 1e-4):
            raise AssertionError(f"{what}: differs by {off:.2g}, means by {relative:.2g}")
        return {"largest_difference": off, "difference_of_means": relative}


def shaped(bench: Bench, name: str) -> Model:
    """A random model; its tokenizer has a word a token."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096, eos_token_id=None,
        bos_token_id=None, dtype=bench.dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(bench.device):
        hf = LlamaForCausalLM._from_config(config, dtype=bench.dtype)
    words = {f"w{i}": i for i in range(256)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    return Model(hf.to(bench.device), tokenizer, name=name)


def ids_of(bench: Bench, rows: int, tokens: int) -> torch.Tensor:
    """(rows, tokens) random ids."""
    return torch.randint(10, 256, (rows, tokens), generator=torch.Generator().manual_seed(tokens)).to(bench.device)


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Seconds by name."""
    return {name: round(statistics.median(values), 5) for name, values in times.items()}


def ceilings(bench: Bench, _: str) -> Iterator[dict[str, Any]]:
    """Matrix products and copies, the best of five."""
    size = 8192 if bench.device == "cuda" else 512
    a, b = (torch.randn(size, size, device=bench.device).to(bench.dtype) for _ in "ab")
    source = torch.empty(size * size * 8, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    products = min(seconds(lambda: a @ b) for _ in range(6))
    copies = min(seconds(lambda: target.copy_(source)) for _ in range(6))
    bench.ceilings = {"tflops": 2 * size**3 / products / 1e12, "gb_per_s": 2 * source.numel() / copies / 1e9}
    yield {**bench.ceilings, "matrix": size}


def scoring(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """One window of each length."""
    model = shaped(bench, shape)
    for tokens in bench.sizes.lengths:
        yield score(bench, model, tokens) if bench.in_time() else {"tokens": tokens, "left_out": "time"}
        release_memory()


def score(bench: Bench, model: Model, tokens: int) -> dict[str, Any]:
    """Ours, the same in chunks over a cache, and the bare body, which no way of scoring can beat."""
    ids, first = ids_of(bench, 1, tokens), tokens - SCORED

    @torch.inference_mode()
    def bare() -> None:
        model.hf.set_attn_implementation("sdpa")
        model.hf.base_model(input_ids=ids, use_cache=False)
        model.hf.set_attn_implementation(SDPA)

    calls: dict[str, Callable[[], Any]] = {"ours": lambda: model.token_nll(ids, first=first), "bare": bare}
    if tokens > model.chunk_tokens and model.needed_bytes(tokens) < 0.9 * model.free_bytes():
        calls["cached"] = lambda: model.token_nll(ids, first=first, cached=True)
    peaks = {name: bench.peak_gib(call) for name, call in calls.items()}  # warms up too
    times = alternate(calls, bench.sizes.rounds if tokens <= 65536 else 1)
    told = round(model.scoring_bytes(tokens) / 2**30, 2)
    row = {"tokens": tokens, "seconds": medians(times), "peak_gib": peaks, "told_gib": told}
    row["ours / bare"] = ratio(times["ours"], times["bare"])
    if "cached" in calls:
        row["cached / ours"] = ratio(times["cached"], times["ours"])
        row |= bench.same(f"scoring {tokens}", calls["ours"](), calls["cached"]())
    return row


def batches(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """Windows of one length together, plain and compiled, against one at a time."""
    model, window = shaped(bench, shape), bench.sizes.window
    most = max(8, model.scoring_rows(window)) if bench.device == "cuda" else 4
    ids, first = ids_of(bench, most, window), window - min(SCORED, window // 2)

    def together(rows: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.cat([model.token_nll(part, first=first) for part in ids.split(rows)])

    want = together(1)()
    for rows in sorted({1, min(8, most), most}):
        same = bench.same(f"{rows} windows together", together(rows)(), want)
        times = alternate({"alone": together(1), "together": together(rows)}, bench.sizes.rounds)
        speed = most * window / statistics.median(times["together"])
        gain = ratio(times["alone"], times["together"])
        yield {"rows": rows, "tokens_per_s": round(speed), "alone / together": gain, **same}
    if bench.device == "cuda" and bench.in_time():
        compile_pass(model)
        together(most)()
        compiled = statistics.median(alternate({"compiled": together(most)}, bench.sizes.rounds)["compiled"])
        same = bench.same("compiled", together(most)(), want)
        yield {"rows": most, "scoring": model.scoring, "tokens_per_s": round(most * window / compiled), **same}


def decode(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """Steps of rows of unequal length over a cache of random states."""
    model, context = shaped(bench, shape), bench.sizes.context
    for rows in bench.sizes.rows:
        fits = rows * (context + ROOM) * model.kv_bytes_per_token < 0.9 * model.free_bytes()
        if bench.in_time() and fits:
            yield {"rows": rows, "context": context, **step_time(bench, model, rows, context)}
        else:
            yield {"rows": rows, "context": context, "left_out": "time" if fits else "memory"}
        release_memory()


@torch.inference_mode()
def step_time(bench: Bench, model: Model, rows: int, context: int) -> dict[str, float]:
    """The median of 20 steps, against weights and cache read once at the speed of a copy."""
    cache = model.new_cache(context + ROOM, rows=rows)
    model.prefill_together([[10, 11]] * rows, cache)  # allocates it
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    lengths = [context - 7 * index % (context // 2) for index in range(rows)]
    members = [Row(index, Prompt([10] * length, ROOM), index, [12]) for index, length in enumerate(lengths)]
    steps = steps_for(model, cache)
    steps.begin(members, rows)
    times = [seconds(lambda: steps.next(members)) for _ in range(28)][8:]
    read = sum(p.numel() * p.element_size() for p in model.hf.parameters()) + sum(lengths) * model.kv_bytes_per_token
    step, floor = 1e3 * statistics.median(times), read / bench.ceilings["gb_per_s"] / 1e6
    return {"ms": step, "floor_ms": floor, "step / floor": step / floor}


def generation(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """Prompts of equal length together against transformers' own loop."""
    model = shaped(bench, shape)
    for count, tokens, new in bench.sizes.generations:
        about = {"prompts": count, "tokens": tokens, "new": new}
        yield about | (generate(bench, model, count, tokens, new) if bench.in_time() else {"left_out": "time"})
        release_memory()


def generate(bench: Bench, model: Model, count: int, tokens: int, new: int) -> dict[str, Any]:
    """One batch of unequal prompts; transformers' loop reads some of them, the longest and the shortest too."""
    texts = ids_of(bench, count, tokens).tolist()
    prompts = [Prompt(text[at * tokens // 100 :], new, new) for at, text in enumerate(texts)]
    rows = min(count, model.decode_rows(tokens + new))
    read = sorted({at * (count - 1) // (bench.sizes.plain_prompts - 1) for at in range(bench.sizes.plain_prompts)})
    found: dict[int, list[int]] = {}
    answers: list[list[int]] = []

    def ours() -> None:
        for at in range(0, count, rows):
            found.update((at + i, g.ids) for i, g in model.generate(prompts[at : at + rows]))

    def plain() -> None:
        model.hf.set_attn_implementation("sdpa")
        how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        for prompt in (prompts[at] for at in read):
            ids = torch.tensor([prompt.ids], device=bench.device)
            whole = model.hf.generate(ids, attention_mask=torch.ones_like(ids), **how)
            answers.append(whole[0, len(prompt.ids) :].tolist())
        model.hf.set_attn_implementation(SDPA)

    reading = min(seconds(lambda: model.prefill(prompts[0].ids, model.new_cache(tokens))) for _ in range(2))
    peak = bench.peak_gib(ours)  # warms up too
    engine, loop = seconds(ours), seconds(plain) * count / len(read)
    equal = statistics.mean(found[at] == ids for at, ids in zip(read, answers, strict=True))
    if bench.exact and equal < 1:
        raise AssertionError(f"generation {count} × {tokens}: other tokens than transformers' loop")
    return {
        "rows": rows,
        "seconds": engine,
        "plain / ours": loop / engine,
        "plain_prompts": len(read),
        "prefill_tokens_per_s": round(tokens / reading),
        "prefill / peak": operations(model, tokens) / reading / bench.ceilings["tflops"] / 1e12,
        "peak_gib": peak,
        "equal_to_plain": equal,
    }


def flash(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """A prompt read with SDPA's kernels and with those of every flash-attn that is installed."""
    plain = shaped(bench, shape)
    named = [name for name, package in FLASH.items() if bench.device == "cuda" and is_installed(package)]
    if not named or bench.exact:
        yield {"left_out": "16 bits only" if bench.exact and named else "flash-attn is not installed"}
        return
    others = {name: Model(plain.hf, plain.tokenizer, name=shape, attention=name) for name in named}
    for _, tokens, _ in bench.sizes.generations:
        ids = ids_of(bench, 1, tokens)[0].tolist()
        calls = {name: partial(read_by, model, ids) for name, model in {"sdpa": plain, **others}.items()}
        want = calls["sdpa"]()
        same = {name: bench.same(name, calls[name](), want) for name in named}
        times = alternate(calls, bench.sizes.rounds)
        yield {"tokens": tokens, "seconds": medians(times), "grouped": {name: others[name].grouped for name in named},
               "sdpa / flash": {name: ratio(times["sdpa"], times[name]) for name in named}, "same": same}  # fmt: skip
        release_memory()


def read_by(model: Model, ids: list[int]) -> torch.Tensor:
    """Prefill with the attention of one of several models over the same weights; the last hidden state."""
    model.hf.set_attn_implementation(model.ours if model.grouped else model.attention)
    return model.prefill(ids, model.new_cache(len(ids)))


def invariant(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """`--batch-invariant`: the bits of every prompt's keys, values and tokens, alone and in batches; and what it costs.

    Fails where they differ, in bfloat16 too. A batch has steps enough for a graph to be captured.
    """
    model, count, new = shaped(bench, shape), 9, 3 * WORTH
    fixed = InvariantModel(model.hf, model.tokenizer, name=shape)
    texts = ids_of(bench, count, bench.sizes.context).tolist()
    prompts = [Prompt(text[at * len(text) // 20 :], new, new) for at, text in enumerate(texts)]
    order = range(count)

    def found(by: Model, batches: Sequence[Sequence[int]]) -> dict[int, str]:
        bits = (zip(batch, bits_of(by, [prompts[at] for at in batch]), strict=True) for batch in batches)
        return dict(pair for pairs in bits for pair in pairs)

    alone = [[at] for at in order]
    without = found(model, alone), found(model, [order])
    want = found(fixed, alone)
    for way in ([order], [order[::-1]], [order[:3], order[3:]], [order[::2], order[1::2]]):
        if off := [at for at, bits in found(fixed, way).items() if bits != want[at]]:
            raise AssertionError(f"--batch-invariant: {way}: other bits in prompts {off}")
    times = medians(alternate({"with": lambda: list(fixed.generate(prompts)),
                               "without": lambda: list(model.generate(prompts))}, bench.sizes.rounds))  # fmt: skip
    yield {
        "rows": fixed.rows,
        "prompts": count,
        "same_bits": True,
        "differ_without": sum(without[0][at] != without[1][at] for at in order),
        "with / without": times["with"] / times["without"],
    }


def bits_of(model: Model, prompts: Sequence[Prompt]) -> list[str]:
    """Of each prompt a hash of all that its answer left in the cache, and of the answer."""
    caches, new_cache = [], model.new_cache

    def kept(tokens: int, rows: int = 1) -> Any:
        cache = new_cache(tokens, rows)
        if tokens > 1:  # one of a token shows how to allocate
            caches.append(cache)
        return cache

    model.new_cache = kept  # type: ignore[method-assign]
    try:
        answers = dict(model.generate(prompts))
    finally:
        del model.new_cache
    rows = [(cache, row) for cache in caches for row in range(cache.rows)]
    hashes = []
    for (cache, row), at in zip(rows, range(len(prompts)), strict=True):
        digest = hashlib.sha256(json.dumps(answers[at].ids).encode())
        for layer in cache.layers:
            for states in (layer.keys, layer.values):
                part = states[row, :, : len(prompts[at].ids) + len(answers[at].ids) - 1].contiguous()
                digest.update(part.view(torch.uint8).cpu().numpy())
        hashes.append(digest.hexdigest())
    return hashes


def operations(model: Model, tokens: int) -> float:
    """Of reading one input, the head left out: two for each weight and token, and causal attention's."""
    body = sum(p.numel() for p in model.hf.base_model.layers.parameters())
    return 2 * body * tokens + 2 * tokens**2 * model.layers * model.config.num_attention_heads * model.config.head_dim


def training(bench: Bench, shape: str) -> Iterator[dict[str, Any]]:
    """A step with E² positions against a plain one."""
    hf = shaped(bench, shape).hf.train()
    rows, tokens = bench.sizes.train
    ids = ids_of(bench, rows, tokens)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-5)
    settings = E2Settings(native_window=tokens, train_window=tokens, g_max=20, per_sample=True)
    positions = E2Positions(hf)
    hf.set_attn_implementation("sdpa")

    def step(e2: bool) -> float:
        positions.set([draw(settings, 0, sample) for sample in range(rows)]) if e2 else positions.clear()
        loss = hf(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    peak = bench.peak_gib(lambda: (step(True), step(False)))
    times = alternate({"e2": lambda: step(True), "plain": lambda: step(False)}, bench.sizes.rounds)
    over = ratio(times["e2"], times["plain"])
    speed = rows * tokens / statistics.median(times["e2"])
    yield {"rows": rows, "tokens": tokens, "tokens_per_s": round(speed), "e2 / plain": over, "peak_gib": peak}


# (part, shape, its share of the time); the first ones matter most.
PLAN: tuple[tuple[Callable[[Bench, str], Iterator[dict[str, Any]]], str, float], ...] = (
    (ceilings, "", 0.01), (scoring, "7b", 0.34), (batches, "smollm2", 0.12), (decode, "7b", 0.06),
    (generation, "7b", 0.18), (decode, "smollm2", 0.03), (scoring, "1b", 0.08), (training, "1b", 0.04),
    (training, "smollm2", 0.03), (batches, "1b", 0.04), (decode, "1b", 0.03),
    (invariant, "1b", 0.04), (flash, "7b", 0.02),
)  # fmt: skip


def earlier(result: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The parts that a call before this one measured alike: same card, versions and dtype."""
    path = (out or RESULTS) / "gpu.json"
    if not path.is_file():
        return {}
    before, now = json.loads(path.read_text()), machine()
    same = all(before["machine"][name] == now[name] for name in ("gpu", "processor", "versions"))
    return dict(before["parts"]) if same and before["dtype"] == result["dtype"] else {}


@contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """TimeoutError inside after so many seconds (0: never), for what cannot look at the clock itself (a compiler)."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {limit_s:.0f} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Run every part, writing after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--parts")
    parser.add_argument("--shapes")
    parser.add_argument("--exact", action="store_true", help="tiny shapes in float32; differences fail")
    parser.add_argument("--cpu", action="store_true", help="the same without a GPU")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --cpu tries the script on tiny shapes")
    exact = given.exact or given.cpu
    bench = Bench("cpu" if given.cpu else "cuda", TINY if exact else Sizes(), exact)
    plan = [(part, "tiny" if exact else shape, share) for part, shape, share in PLAN]
    chosen = given.parts.split(",") if given.parts else None
    result: dict[str, Any] = {"dtype": str(bench.dtype).removeprefix("torch."), "weights": "random"}
    result["parts"] = earlier(result, given.out)
    done: set[str] = set()
    for part, shape, share in dict.fromkeys(plan):
        name = f"{part.__name__} {shape}".strip()
        unwanted = (chosen and part.__name__ not in chosen) or (given.shapes and shape not in given.shapes.split(","))
        if name in done or (unwanted and part is not ceilings):
            continue
        done.add(name)
        budget, rows = 60 * given.minutes * share, []
        began = time.monotonic()
        bench.ends = began + 0.8 * budget if not bench.exact else float("inf")
        result["parts"][name] = {"rows": rows}
        try:
            with at_most(1.5 * budget if not bench.exact else 0):
                for row in part(bench, shape):
                    rows.append(row)
                    print(f"{name}: {row}", flush=True)
        except AssertionError:
            raise
        except Exception as error:  # one part that fails leaves the others
            result["parts"][name]["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{name}: {result['parts'][name]['failed']}", flush=True)
        result["parts"][name]["seconds"] = round(time.monotonic() - began, 1)
        release_memory()
        write("gpu", result, given.out)


if __name__ == "__main__":
    main()
