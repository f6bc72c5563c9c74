"""What tells one model and one tokenizer from another: every weight, every rule of the tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from e2bench.files import sha256_of

LAST_CALL = ("truncation", "padding")  # what a call leaves behind in a tokenizer
TRANSFORMERS = "transformers_version"  # in a config: the library's own version, not the checkpoint's
PIECE_BYTES = 64 << 20  # of a tensor copied from a GPU at once


def weights_hash(hf: Any) -> str:
    """32 hex digits over name, dtype, shape and every byte of the weights and stored buffers, as they are loaded.

    Of what is in memory, not of files: a file may be replaced while it is read, an adapter is merged, and a folder
    that was moved or cut into other shards holds the same model. SHA-256, one thread a tensor.
    """
    state = {name: tensor for name, tensor in hf.state_dict().items() if hasattr(tensor, "numel")}
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        digests = dict(zip(state, pool.map(_tensor_hash, state.values()), strict=True))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def _tensor_hash(tensor: Any) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    for piece in _pieces(tensor):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensor: Any) -> Iterator[Any]:
    import torch

    flat = tensor.detach().reshape(-1)
    step = PIECE_BYTES // flat.element_size()
    for begin in range(0, flat.numel(), step):
        yield flat[begin : begin + step].cpu().view(torch.uint8).numpy()


def config_of(config: Any) -> dict[str, Any]:
    """A config but for where it lies and which transformers reads it: the same for a model that was moved."""
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", TRANSFORMERS)}


def checkpoint_hash(path: str, commit: str | None) -> str | None:
    """What tells the weights of a checkpoint that is not loaded here; None where nothing does.

    Of a hub id its commit; of a folder 32 hex digits over the names and every byte of its weight files (SHA-256), so
    that one cut into other shards is another one.
    """
    folder = Path(path)
    if not folder.is_dir():
        return commit
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip((file.name for file in files), pool.map(sha256_of, files), strict=True))
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32] if digests else None


def tokenizer_hash(tokenizer: Any) -> str:
    """32 hex digits: 16 over the vocabulary, 16 over the rest of what makes ids and prompts of a text.

    The rest: merges, normaliser, pre-tokenizer and post-processor, special ids, the chat template. The first 16 alone
    are what runs of e2bench before whole hashes recorded.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_added_vocab())
    if isinstance(rules, dict):
        rules = {name: rule for name, rule in rules.items() if name not in LAST_CALL}
    rest = {
        "class": type(tokenizer).__name__,
        "rules": rules,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": getattr(tokenizer, "chat_template", None),
    }
    return _short(vocabulary) + _short(json.dumps(rest, sort_keys=True, default=str))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
