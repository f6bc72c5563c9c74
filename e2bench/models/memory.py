"""Memory: how much inputs need above the weights, how much is free."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import E2BenchError

if TYPE_CHECKING:
    import torch

    from e2bench.models.protocols import Generator


def kv_bytes_per_token(config: Any, itemsize: int) -> int:
    """Bytes of keys and values that one token of context holds, each value of `itemsize` bytes."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(dim) * itemsize


def activation_bytes_per_token(config: Any, itemsize: int) -> int:
    """Upper estimate of what one token of a chunk needs inside a layer, and one scored row's logits."""
    widths = 6 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return int(widths) * max(itemsize, 4)


def pass_bytes_per_token(config: Any, itemsize: int) -> int:
    """Upper estimate of what one token of a pass without a cache holds at once, the MLP's pieces left out.

    The embeddings, the layer's input and its normed form; beside them either the queries, three copies of them while
    they are rotated, keys and values, and the rotation's cosines and sines, or a norm's two float32 copies.
    """
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2 * dim * (2 * heads + (getattr(config, "num_key_value_heads", None) or heads) + 1) * itemsize
    norm = 2 * config.hidden_size * max(itemsize, 4)
    return int(3 * config.hidden_size * itemsize + max(attention, norm))


def cached_bytes(config: Any, itemsize: int, tokens: int, rows: int, chunk: int) -> int:
    """Upper estimate above the weights, logits left out: a cache of `rows` × `tokens`, and a chunk inside a layer."""
    cache = rows * tokens * kv_bytes_per_token(config, itemsize)
    return cache + min(tokens, chunk) * activation_bytes_per_token(config, itemsize)


def pass_bytes(config: Any, itemsize: int, tokens: int, rows: int, piece: int) -> int:
    """Upper estimate above the weights, logits left out: a pass without a cache, the MLP `piece` tokens at a time."""
    tokens *= rows
    states = tokens * pass_bytes_per_token(config, itemsize)
    return states + min(tokens, piece) * activation_bytes_per_token(config, itemsize)


def logits_bytes(vocab_size: int, scored: int) -> int:
    """Logits of `scored` positions in float32 and what their loss makes of them."""
    return 2 * scored * vocab_size * 4


def free_bytes(device: torch.device) -> int:
    """Memory still free on a device; on the CPU what the kernel calls available, within a cgroup's limit."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    available = 8 << 30
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    return min(available, cgroup_free(Path("/sys/fs/cgroup")))


def cgroup_free(folder: Path) -> int:
    """Bytes below a cgroup's limit, file cache counted as free since the kernel gives it up; 2**63 without a limit."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup, or "max"
        return 1 << 63
    return limit - used + int(counts.get("inactive_file", 0))


def require_memory(model: Generator, tokens: int, needed: int | None = None) -> None:
    """Raise E2BenchError, saying how much is needed, when an input of `tokens` cannot fit.

    needed: bytes beside the weights; None: what reading it into a cache takes.
    """
    needed = model.needed_bytes(tokens) if needed is None else needed
    free = model.free_bytes() if needed else 0
    if needed > free:
        raise E2BenchError(
            f"{tokens:,} tokens need about {needed / 2**30:.1f} GiB beside the weights, "
            f"{free / 2**30:.1f} GiB are free; "
            "use shorter lengths, --batch-size 1 or --dtype bfloat16"
        )


def release_memory() -> None:
    """Give what failed passes held back to the device. Call it outside the handler, which holds their tensors."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_exhausted(error: BaseException) -> bool:
    """CUDA's own error, and what the CPU allocator raises as a plain RuntimeError."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "not enough memory" in text
        or "CUDA out of memory" in text
    )
