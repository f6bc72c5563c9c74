"""What a GGUF file says of its RoPE and its tokenizer, which transformers' own reader passes over."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from e2bench.errors import ModelError
from e2bench.models.findings import NOTE, OK, find
from e2bench.models.gguf_header import GgufHeader

# Regexes of llama.cpp's pre-tokenizers (llama-vocab.cpp), by what `tokenizer.ggml.pre` may say.
_GPT2 = None  # byte level BPE's own
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: dict[str, tuple[bool, str | None]] = {  # name: digits one by one first, regex
    **dict.fromkeys(("", "default", "gpt-2", "gpt2", "phi-2"), (False, _GPT2)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (True, _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3"), (False, _LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), (False, _QWEN2)),
}


@dataclass(frozen=True)
class GgufRope:
    """RoPE of a GGUF file.

    parameters: `rope_parameters` for transformers, theta left out; {} where the file has no scaling.
    factors: divisors of the d/2 inverse frequencies (`rope_freqs.weight`, Llama 3.1 and later); () for none.
    native: L in tokens where the scaling tells it.    context: the file's `context_length`.
    """

    parameters: dict[str, Any]
    factors: tuple[float, ...]
    native: int | None
    context: int | None


@contextmanager
def one_reading() -> Iterator[None]:
    """Inside, the gguf package reads a file once and builds a table of names once.

    transformers reads the whole file for the config, for the tokenizer and for the weights, and asks for the table
    at every module: 3 and 397 times for SmolLM2, half of its loading time.
    """
    try:
        import gguf
    except ImportError:  # transformers says so itself
        yield
        return
    with (
        patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


class GgufFile:
    """The header and the small tensors of a GGUF file. Raises ModelError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path, self._header = path, GgufHeader(path)
        self.architecture = str(self._value("general.architecture") or "")

    def _value(self, name: str) -> Any:
        return self._header.keys.get(name)

    def _own(self, name: str) -> Any:
        return self._value(f"{self.architecture}.{name}")

    def rope(self) -> GgufRope:
        """The RoPE that llama.cpp would use. Raises ModelError for a scaling that is not understood."""
        context, factors = self._own("context_length"), self._factors()
        kind = str(self._own("rope.scaling.type") or "none")
        factor = float(self._own("rope.scaling.factor") or self._own("rope.scale_linear") or 1.0)
        if kind == "none" and self._own("rope.scale_linear"):
            kind = "linear"
        original = self._own("rope.scaling.original_context_length")
        if factors:
            if kind not in ("none", "linear") or factor != 1:
                raise ModelError(f"{self.path} has rope_freqs.weight and rope scaling {kind!r} at once: not understood")
            native = native_of(factors, float(self._own("rope.freq_base") or 10_000.0))
            return GgufRope({}, factors, native, context)
        if kind in ("none", "linear") and factor == 1:
            return GgufRope({}, (), None, context)
        if kind == "linear":
            return GgufRope({"rope_type": "linear", "factor": factor}, (), original, context)
        if kind == "yarn":
            native = int(original or (context or 0) / factor)
            extra = {
                theirs: float(value)
                for ours, theirs in (
                    ("rope.scaling.attn_factor", "attention_factor"),
                    ("rope.scaling.yarn_beta_fast", "beta_fast"),
                    ("rope.scaling.yarn_beta_slow", "beta_slow"),
                )
                if (value := self._own(ours)) is not None
            }
            parameters = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": native, **extra}
            return GgufRope(parameters, (), native, context)
        raise ModelError(f"{self.path}: RoPE scaling {kind!r} of a GGUF file is not read; give the original checkpoint")

    def _factors(self) -> tuple[float, ...]:
        if long := [
            name for name in self._header.tensors if name.startswith(("rope_factors_long", "rope_factors_short"))
        ]:
            raise ModelError(f"{self.path}: {long[0]} (LongRoPE in GGUF) is not read; give the original checkpoint")
        return self._header.floats("rope_freqs.weight")

    def fit_tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer with the pre-tokenizer that the file names. Raises ModelError for an unknown one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._value("tokenizer.ggml.model") != "gpt2" or backend is None:
            return tokenizer
        name = str(self._value("tokenizer.ggml.pre") or "")
        if name not in _SPLITS:
            raise ModelError(
                f"{self.path}: its pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known here, and words and "
                "numbers would be split otherwise; give the original tokenizer with --tokenizer"
            )
        from tokenizers import Regex, pre_tokenizers

        one_by_one, regex = _SPLITS[name]
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if one_by_one else []
        if regex is not None:
            steps.append(pre_tokenizers.Split(Regex(regex), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        find("tokenizer", OK, f"splits as {name or 'gpt-2'!r} (tokenizer.ggml.pre)")
        return tokenizer


def native_of(factors: tuple[float, ...], theta: float) -> int | None:
    """L in tokens from Llama 3's frequency factors, or None where they are of another rule.

    Between wavelengths L / 4 and L the factor f_i blends 1 and f = max f_i: 1 / f_i = (1 - s) / f + s with
    s = (L / wavelength - 1) / 3 (transformers, `_compute_llama3_parameters`, low and high factors 1 and 4), so that
    each of these dimensions tells L.
    """
    most = max(factors)
    found: list[float] = []
    for index, factor in enumerate(factors):
        if 1.001 < factor < most * 0.999:
            wavelength = 2 * math.pi * float(theta) ** (index / len(factors))
            blend = (1 / factor - 1 / most) / (1 - 1 / most)
            found.append(wavelength * (1 + 3 * blend))
    if not found or max(found) > 1.01 * min(found):
        return None
    return round(sum(found) / len(found))


def tell(rope: GgufRope, path: Path) -> None:
    """Say what of the file's RoPE was taken."""
    if rope.factors:
        found = f"rope_freqs.weight of {path.name} (divisors 1 to {max(rope.factors):g})"
        find("RoPE in the file", NOTE, found, "", f"used as it is; L = {rope.native or 'unknown'}")
    elif rope.parameters:
        find("RoPE in the file", NOTE, f"{path.name} says {rope.parameters}", "", "used as it is")
    else:
        find("RoPE in the file", OK, f"{path.name} has no scaling")
