"""GiB and hours on one H100 for a 7B and a 13B model, 4k to 200k: the table in docs/performance.md.

    python benchmarks/cost.py

GiB: weights in bfloat16 and what e2bench tells before a run (`models/memory.py`). Hours: work × seconds measured on an
H100 80 GB with random weights in Llama-2-7B's shape (torch 2.11). The seconds of 13B are those of 7B times the ratio of
floating-point operations: computed, not measured.
"""

from __future__ import annotations

from types import SimpleNamespace

from e2bench.models import memory
from e2bench.models.configured import CHUNK_TOKENS, PIECE_TOKENS, SCORED_ROWS
from e2bench.rope.windows import short_length

CARD_GIB, BYTES = 79, 2
SHAPES = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40)}  # hidden, intermediate, layers, heads (MHA)
# Tokens of a window: seconds in one pass without a cache (bare body), and in chunks of 4,096 over a cache, which is how
# a prompt is read that leaves no room for one pass.
SECONDS = {
    4096: (0.123, 0.122),
    16384: (0.589, 0.697),
    32768: (1.384, 1.812),
    65536: (3.748, 5.356),
    131072: (11.881, 17.545),
    204800: (26.267, None),
}
WINDOWS = 10 * 64  # ppl --docs 10 --max-windows 64
PROMPTS = 11 * 5  # passkey's depths and trials
SAMPLES = 4750  # of LongBench


def config_of(shape: str) -> SimpleNamespace:
    """What the memory formulas read of a config."""
    hidden, intermediate, layers, heads = SHAPES[shape]
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return SimpleNamespace(**sizes, num_attention_heads=heads, num_key_value_heads=heads, head_dim=128)


def parameters(shape: str) -> int:
    """Of the body."""
    hidden, intermediate, layers, _ = SHAPES[shape]
    return layers * (4 * hidden * hidden + 3 * hidden * intermediate)


def flop(shape: str, tokens: int) -> float:
    """Of one causal pass."""
    hidden, _, layers, _ = SHAPES[shape]
    return 2.0 * parameters(shape) * tokens + 2.0 * layers * hidden * tokens * tokens


def gib(shape: str, tokens: int, cached: bool) -> float:
    """Weights, and scoring or reading one input of `tokens`."""
    config, vocab = config_of(shape), 32000
    weights = BYTES * (parameters(shape) + 2 * vocab * config.hidden_size)
    logits = memory.logits_bytes(vocab, SCORED_ROWS)
    if cached:
        states = memory.cached_bytes(config, BYTES, tokens, 1, CHUNK_TOKENS)
    else:
        states = memory.pass_bytes(config, BYTES, tokens, 1, PIECE_TOKENS["cuda"])
    return (weights + states + logits) / 2**30


def row(shape: str, tokens: int) -> str:
    """One line of the table."""
    scale = flop(shape, tokens) / flop("7B", tokens)
    whole, chunked = SECONDS[tokens]
    reading, scoring = gib(shape, tokens, True), gib(shape, tokens, False)
    fits = chunked is not None and reading < CARD_GIB
    cache = tokens * memory.kv_bytes_per_token(config_of(shape), BYTES) / 2**30
    read = whole if scoring + cache < CARD_GIB else chunked
    hours = [f"{WINDOWS * whole * scale / 3600:.2f}" if scoring < CARD_GIB else "does not fit"]
    hours += [f"{work * read * scale / 3600:.2f}" if fits and read else "does not fit" for work in (PROMPTS, SAMPLES)]
    cells = [shape, short_length(tokens), f"{scoring:.0f}", hours[0], f"{reading:.0f}", *hours[1:]]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table as Markdown."""
    head = "| model | window | scoring, GiB | perplexity, h | reading, GiB | passkey, h | LongBench, h |"
    lines = [row(shape, tokens) for shape in SHAPES for tokens in SECONDS]
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |", *lines])


if __name__ == "__main__":
    print(table())
