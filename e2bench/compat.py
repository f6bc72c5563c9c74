"""Names that transformers changed within the declared range, chosen by signature, never by version.

transformers 5.24 renamed `past_key_values` to `cache` and "gradient checkpointing" to "activation checkpointing"; the
old names go in 5.40 and 6. Code that a checkpoint brings may still use them. Everything that depends on such a
name is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any


def cache_arguments(body: Any, cache: Any) -> dict[str, Any]:
    """The arguments that hand a key-value cache (None: use none) to the forward pass of `body`."""
    return {_cache_name(type(body).forward): cache, "use_cache": cache is not None}


@lru_cache(maxsize=16)  # asked at every decoding step
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def rope_frequencies(compute: Callable[..., Any], config: Any, **options: Any) -> Any:
    """`compute(config, …)`, one of transformers' RoPE functions, with those `options` that it takes and are not None.

    Only some functions take `layer_type` (frequencies per layer) or `seq_len` (frequencies by length).
    """
    parameters = inspect.signature(compute).parameters.values()
    takes = {p.name for p in parameters}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return compute(config, **{k: v for k, v in options.items() if v is not None and (any_name or k in takes)})


def enable_activation_checkpointing(model: Any) -> None:
    """Recompute a layer's activations in the backward pass instead of keeping them.

    transformers also lets the embeddings ask for a gradient, which checkpoints of the older, reentrant kind need; these
    are not, and with adapters the embeddings are frozen.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()
    model.disable_input_require_grads()


def unpacked_gguf() -> dict[str, Any]:
    """The arguments of `from_pretrained` that unpack a GGUF file's blocks once, at loading.

    Left packed, they would be unpacked again in every forward pass. Before GgufConfig (5.17) nothing else was done.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


@contextmanager
def fixed_clock(today: datetime) -> Iterator[None]:
    """Chat templates inside that ask for the date (`strftime_now`) get `today`.

    transformers reads the clock in its own module and takes no date from the caller.
    """
    from transformers.utils import chat_template_utils as module

    class Clock:
        """Stands where the module has `datetime`."""

        @staticmethod
        def now() -> datetime:
            """The fixed date."""
            return today

    before = getattr(module, "datetime", None)
    if before is None:
        raise RuntimeError("transformers reads the clock of chat templates elsewhere now: the date cannot be fixed")
    setattr(module, "datetime", Clock)  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "datetime", before)  # noqa: B010
