"""What a model is tried with before it is used: whether each way to run it gives the logits of its own forward pass.

Ways, the fastest first: our attention over our cache; transformers' attention, prompts alone. Each is tried with what
a run meets: one pass, a chunk after a past, steps over a cache, an input longer than the sliding window, a cache that
was cut back. Windows are narrowed for the trial, so that it takes a hundred tokens; `e2bench doctor` also
tries the true lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from e2bench.errors import ModelError
from e2bench.models.body import Body
from e2bench.models.findings import NOTE, OK, WRONG, find
from e2bench.models.memory import is_exhausted
from e2bench.models.queued import decoding_kernel
from e2bench.rope.methods import RopeScaling

TOKENS, CHUNK, WINDOW = 96, 40, 24  # of the trial: input, chunk, narrowed sliding window
# What a cache, or a call that some code does not take, may raise.
REFUSALS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
SENSITIVE = 1e-5  # relative change of logits below which a scale changes nothing


@torch.inference_mode()
def choose_ways(model: Body) -> None:
    """Settle how the model is run: `grouped`, `chunked`, `croppable`, `one_pass`. Raises ModelError if none is right.

    Some architectures compute attention themselves (Falcon), hide a sliding window in the mask, or keep states that no
    chunk can continue: under a way that they do not know they answer wrongly without a word.
    """
    ids = probe_ids(model, TOKENS)
    with narrowed(model, WINDOW):
        want = model.hf(input_ids=ids, use_cache=False).logits[0]
        if model.ours:
            model.grouped = True
            model.hf.set_attn_implementation(model.ours)
            if all(reproduces(model, want, trial(model, ids)) for trial in (one_pass, chunks, steps)):
                model.croppable = reproduces(model, want, cut_back(model, ids))
                with model.pieces.of(CHUNK):
                    model.one_pass = True
                    model.one_pass = reproduces(model, want, one_pass(model, ids))
                return _tell(model)
            model.grouped = False
            model.hf.set_attn_implementation(model.attention)
        for trial in (one_pass, steps):
            if not reproduces(model, want, trial(model, ids)):
                raise ModelError(
                    f"{type(model.hf).__name__} gives other logits in steps over a key-value cache, or changes them "
                    "after its output embeddings: not supported"
                )
        model.chunked = reproduces(model, want, chunks(model, ids))
        model.croppable = model.chunked and reproduces(model, want, cut_back(model, ids))
    _tell(model)


def _tell(model: Body) -> None:
    name = type(model.hf).__name__
    find("scoring", OK, model.scoring)
    if model.grouped and model.croppable:
        find("attention", OK, f"{name}: ours, in batches; one pass, chunks, steps and a cut-back cache agree")
        return
    ways = ["prompts alone" if not model.grouped else "ours, in batches"]
    ways += [] if model.chunked else ["long inputs in one pass"]
    ways += [] if model.croppable else ["no shared beginnings"]
    find("attention", NOTE, f"{name} is run the slower, right way: {', '.join(ways)}")


def probe_ids(model: Body, tokens: int) -> Tensor:
    """(1, tokens) ids that look like text: spread over the vocabulary, repeated in places."""
    most = min(model.vocab_size, 30_000)
    return ((torch.arange(tokens) * 7919) % (most - 1) % 997 + 1).clamp(max=most - 1)[None].to(model.device)


@contextmanager
def narrowed(model: Body, window: int) -> Iterator[None]:
    """Sliding windows of `window` tokens inside, in the config and in every module that has one."""
    places: list[tuple[Any, str, Any]] = []
    for owner in (model.config, model.hf.config, *model.hf.modules()):
        for name in ("sliding_window", "attention_chunk_size"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > window:
                places.append((owner, name, value))
    try:
        for owner, name, _ in places:
            setattr(owner, name, window)
        yield
    finally:
        for owner, name, value in places:
            setattr(owner, name, value)


def rounding(model: Body) -> float:
    """Relative difference of logits that rounding may make between two right ways to run a model.

    In 16 bits each layer adds some 1 % of its own, at random (measured on layers of a 7B's shape): the sum grows as the
    square root of their number.
    """
    return 1e-3 if model.dtype.itemsize >= 4 else max(5e-2, 1.5e-2 * model.layers**0.5)


def reproduces(model: Body, want: Tensor, trial: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> bool:
    """Whether what a trial gives is `want` at its positions. want: (T, V) logits; a trial gives (logits, positions)."""
    tolerance = rounding(model)
    try:
        for found, at in trial():
            to = want[at.to(want.device)].to(found)
            if not bool((found - to).norm() <= tolerance * to.norm()):
                return False
    except REFUSALS as error:
        if is_exhausted(error):
            raise
        return False
    return True


Trial = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def one_pass(model: Body, ids: Tensor) -> Trial:
    """The whole input at once, head applied by us."""

    def trial() -> Iterator[tuple[Tensor, Tensor]]:
        yield model.head(model.hidden(ids))[0], torch.arange(ids.shape[1])

    return trial


def chunks(model: Body, ids: Tensor) -> Trial:
    """In chunks over a cache."""

    def trial() -> Iterator[tuple[Tensor, Tensor]]:
        cache = model.new_cache(ids.shape[1])
        for begin in range(0, ids.shape[1], CHUNK):
            part = ids[:, begin : begin + CHUNK]
            yield model.head(model.hidden(part, cache, begin))[0], torch.arange(begin, begin + part.shape[1])

    return trial


def steps(model: Body, ids: Tensor) -> Trial:
    """One step after two prompts of different lengths, together where that is done."""

    def trial() -> Iterator[tuple[Tensor, Tensor]]:
        tokens, device = ids[0].tolist(), model.device
        ends = [len(tokens) - 1, len(tokens) // 2]
        kernel = decoding_kernel() if model.grouped and device.type == "cuda" else None
        for group in [ends] if model.grouped else [[end] for end in ends]:
            cache = model.new_cache(len(tokens), rows=len(group))
            if model.grouped:  # as a GPU reads them; elsewhere it is the same as one by one
                model.prefill_together([tokens[:end] for end in group], cache)
            else:
                model.prefill(tokens[: group[0]], cache)
            at = torch.tensor(group)
            yield model.step(cache, ids[0][at], at.to(device) + 1, kernel=kernel), at

    return trial


def cut_back(model: Body, ids: Tensor) -> Trial:
    """The rest of an input behind a cache that was cut back to its first part."""

    def trial() -> Iterator[tuple[Tensor, Tensor]]:
        length, kept = ids.shape[1], ids.shape[1] // 3
        cache = model.new_cache(length)
        model.hidden(ids.flip(1).index_copy(1, torch.arange(kept, device=ids.device), ids[:, :kept]), cache, 0)
        cache.crop(-(length - kept))
        yield model.head(model.hidden(ids[:, kept:], cache, kept))[0], torch.arange(kept, length)

    return trial


@torch.inference_mode()
def check_scale_matters(model: Body) -> None:
    """Have scales refused for a model whose logits another g does not change: its rotary module is not used (ALiBi)."""
    ids = probe_ids(model, TOKENS)
    try:
        with model.rope.using(RopeScaling("none"), TOKENS):
            plain = model.head(model.hidden(ids))
        with model.rope.using(RopeScaling("linear", 4), TOKENS):
            scaled = model.head(model.hidden(ids))
    except ModelError as error:
        model.rope.refuses = str(error)
        find("scale", NOTE, str(error))
        return
    change = float((scaled - plain).norm() / plain.norm())
    if change < SENSITIVE:
        model.rope.refuses = (
            f"{type(model.hf).__name__} has a rotary module, but another g changes no logit: it does not use the "
            "module's frequencies, so a scale would change nothing; leave --scale out, or give --scale 1"
        )
        find("scale", NOTE, "another g changes no logit", "every scale would give the same numbers", "it is refused")
        return
    find("scale", OK, f"g = 4 changes the logits (by {change:.0%})")


@torch.inference_mode()
def check_true_lengths(model: Body) -> None:
    """Find whether an input longer than one chunk, and than the sliding window, is as one pass of transformers' own.

    For `doctor`: it takes as long as reading such an input twice. Where that does not fit, it is said.
    """
    window = getattr(model.config, "sliding_window", None)
    tokens = max(model.chunk_tokens + 64, (window or 0) + 64 if isinstance(window, int) else 0)
    if tokens > 16_384 or model.needed_bytes(tokens) > model.free_bytes():
        find("true lengths", NOTE, f"{tokens:,} tokens were not tried: too long for this machine")
        return
    ids = probe_ids(model, tokens)
    ours = model.token_nll(ids, first=tokens - 32)[0].cpu()
    in_chunks = model.token_nll(ids, first=tokens - 32, cached=True)[0].cpu()
    with model.plain_attention():
        states = model.hidden(ids)
    want = model.nll(states[:, -33:-1], ids[:, -32:])[0].cpu()
    difference = max(float((losses - want).abs().max()) for losses in (ours, in_chunks))
    limit = 1e-2 if model.dtype.itemsize >= 4 else 0.3
    if difference > limit:
        said = f"{tokens:,} tokens differ from transformers' own pass by {difference:.2g} nats"
        effect, advice = "losses of long inputs would be wrong", "--attn eager, or a model class that is known to work"
        find("true lengths", WRONG, said, effect, advice)
        return
    said = f"{tokens:,} tokens, whole and in chunks, are as in transformers' own pass (to {difference:.1g} nats)"
    find("true lengths", OK, said)
