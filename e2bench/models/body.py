"""A loaded model's forward passes: what decoding, scoring, recording and the loading probe run.

Shapes: B rows, T tokens, V vocabulary. Logits exist only where they are used; nothing of T × T or T × V is ever held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from e2bench.compat import cache_arguments
from e2bench.errors import ModelError
from e2bench.models import memory
from e2bench.models.attention import implementation
from e2bench.models.configured import CHUNK_TOKENS, SCORED_ROWS, Configured
from e2bench.models.kvcache import Kernel, KVCache, ragged
from e2bench.models.pieces import TokenPieces, tokenwise
from e2bench.models.tokenizers import check_ids, check_vocabulary
from e2bench.rope.config import checkpoint_scaling, native_window, text_config
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.switch import RopeSwitch

# Tokens of windows scored together. A GPU works through a small model's layer faster than Python can launch the next.
FORWARD_TOKENS = {"cpu": 4096, "cuda": 131072}
DECODE_ROWS = {"cpu": 8, "cuda": 64}  # more share the reading of the weights, and wait longer for each other
GPU_SHARE = 0.9  # of the free memory
PACKED_TOKENS = 16384  # of short prompts read together: enough to fill a GPU with a small model's matrix products


class Body(Configured):
    """Weights and tokenizer, and every way through them. The scaling is the one in force in `rope`.

    ours: transformers' name for our attention, None where `--attn` has none.    grouped: whether it and our cache are
    used.    croppable: whether a cache can be cut back.    pieces: the parts of layers that take tokens in pieces.
    graphs: until a decoding step cannot be captured.
    """

    def __init__(
        self, hf: Any, tokenizer: Any, *, name: str, path: str = "", attention: str = "sdpa", native: int | None = None
    ) -> None:
        self.hf, self.tokenizer, self.name, self.path, self.attention = hf.eval(), tokenizer, name, path, attention
        self.config = text_config(hf.config)
        self.native_window = native or native_window(hf.config)
        self.own_scaling = checkpoint_scaling(hf.config)
        self.rope = RopeSwitch(hf, self.native_window)
        if self.own_scaling and self.own_scaling.method in BY_LENGTH and not self.rope.follows_length:
            self.own_scaling = RopeScaling("checkpoint", self.own_scaling.factor)  # its class fixes them (Hunyuan)
        self.vocab_size = int(hf.get_input_embeddings().weight.shape[0])
        check_vocabulary(tokenizer, self.vocab_size, name)
        self.ours = implementation(attention)
        self.grouped, self.chunked, self.croppable, self.one_pass = False, True, True, False
        self.pieces = TokenPieces(tokenwise(hf), self.piece_tokens)
        self.compiled = None
        self.graphs = True  # until a decoding step cannot be captured

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return cast(torch.device, self.hf.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast(torch.dtype, self.hf.get_input_embeddings().weight.dtype)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a prefill that go through the model at once."""
        return CHUNK_TOKENS

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return sum(p.numel() * p.itemsize for p in self.hf.parameters())

    @property
    def scoring(self) -> str:
        """How windows are scored: what the loading probe settled."""
        if self.one_pass:
            return "windows in one pass, no cache" + (", compiled" if self.compiled else "")
        return f"windows over {CHUNK_TOKENS:,} tokens in chunks over a cache" if self.chunked else "windows whole"

    def scoring_rows(self, tokens: int, given: int | None = None) -> int:
        """How many windows of `tokens` to score together: `given`, or FORWARD_TOKENS of them; half of what is free."""
        if not (self.one_pass or tokens <= CHUNK_TOKENS):
            return 1
        most = given or FORWARD_TOKENS.get(self.device.type, CHUNK_TOKENS) // tokens
        if most <= 1:
            return 1
        return int(max(1, min(most, self.free_bytes() // 2 // self.scoring_bytes(tokens))))

    def free_bytes(self) -> int:
        """Memory still free on the devices that the weights lie on, together."""
        return sum(memory.free_bytes(device) for device in {p.device for p in self.hf.parameters()})

    def decode_rows(self, tokens: int) -> int:
        """How many sequences of `tokens` to decode together, at most DECODE_ROWS.

        On a CPU, which others use too, what fits in a third of the free memory; on a GPU in nearly all of it, where
        room is left to read a prompt in one pass.
        """
        if not self.grouped:
            return 1
        kind, row = self.device.type, max(1, tokens * self.kv_bytes_per_token)
        room = self.free_bytes() // 3 if kind == "cpu" else int(GPU_SHARE * self.free_bytes()) - self._reading(tokens)
        return int(max(1, min(DECODE_ROWS.get(kind, 1), room // row)))

    def _reading(self, tokens: int) -> int:
        """Bytes that a prompt of `tokens` takes in one pass, beside its cache."""
        return memory.pass_bytes(self.config, self.dtype.itemsize, tokens, 1, self.piece_tokens)

    def reads_whole(self, tokens: int) -> bool:
        """Whether a prompt is read in one pass: on a GPU, whose causal kernels are the faster ones, where it fits."""
        ours = self.one_pass and self.device.type == "cuda"
        return ours and (tokens <= CHUNK_TOKENS or self._reading(tokens) < GPU_SHARE * self.free_bytes())

    @property
    def packed_tokens(self) -> int:
        """Tokens of short prompts that a prefill takes together, where rows may be padded: on a GPU."""
        return PACKED_TOKENS if self.grouped and self.device.type == "cuda" else 0

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises ModelError for a token that the model has no embedding row for."""
        return check_ids(super().encode(text, special_tokens=special_tokens), self.vocab_size, self.tokenizer)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a generation: the generation config's, which may be several, and the tokenizer's."""
        eos = self.hf.generation_config.eos_token_id
        several = [] if eos is None else list(eos) if isinstance(eos, Iterable) and not isinstance(eos, str) else [eos]
        if strange := [one for one in several if not isinstance(one, int)]:
            raise ModelError(
                f"{self.name}: eos_token_id in its generation_config.json is {str(strange[0])[:40]!r}, which is no "
                "token id; mend the file: without it answers would not end"
            )
        return frozenset(int(i) for i in [*several, self.tokenizer.eos_token_id] if i is not None)

    @property
    def shares(self) -> bool:
        """Whether what a prompt shares with the one before it is kept in the cache."""
        return self.croppable

    def new_cache(self, tokens: int, rows: int = 1) -> Any:
        """An empty cache for `rows` sequences of at most `tokens`."""
        if self.grouped:
            return KVCache(self.layers, rows=rows, capacity=tokens)
        from transformers import DynamicCache

        return DynamicCache(config=self.hf.config)

    def hidden(self, input_ids: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        """Last hidden states (B, T, hidden) of (B, T) ids at positions start … start + T - 1, head not applied."""
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        body = self.hf.base_model
        inputs = {"input_ids": input_ids, "position_ids": positions, **cache_arguments(body, cache)}
        if cache is None and self.compiled:
            return cast(Tensor, self.compiled(**inputs).last_hidden_state)
        with self.pieces if self.one_pass else nullcontext():
            output = body(**inputs)
        return cast(Tensor, output.last_hidden_state)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states as the model's own forward pass makes them, in at least float32."""
        logits: Tensor = self.hf.get_output_embeddings()(hidden)
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], cache: Any, start: int = 0) -> Tensor:
        """Feed ids[start:] behind the `start` tokens in the one-row cache; the last hidden state (1, hidden)."""
        tensor = torch.tensor([check_ids(list(ids), self.vocab_size, self.tokenizer)], device=self.device)
        whole = not self.chunked or (not start and self.reads_whole(len(ids)))
        chunk = len(ids) if whole else CHUNK_TOKENS
        for begin in range(start, len(ids), chunk):
            last = self.hidden(tensor[:, begin : begin + chunk], cache, begin)
        return last[:, -1]

    @torch.inference_mode()
    def prefill_together(self, prompts: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """Feed prompts into a row of the cache each; their last hidden states (B, hidden).

        Shorter ones are padded behind their end. No token sees what follows it, so that the padding changes nothing;
        what it leaves in the cache lies behind the row's length and is written over.
        """
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(check_ids(list(prompt), self.vocab_size, self.tokenizer))
        hidden = self.hidden(ids.to(self.device), cache)
        return hidden[range(len(prompts)), [len(prompt) - 1 for prompt in prompts]]

    def step(
        self, cache: Any, ids: Tensor, lengths: Tensor, rows: Tensor | None = None, kernel: Kernel | None = None
    ) -> Tensor:
        """One forward pass of one token a row; logits (B, V).

        ids: (B,) int64.    lengths: (B,) int64, tokens of each row with this one.    rows: which of the cache (all).
        """
        if not self.grouped:
            return self.head(self.hidden(ids[:, None], cache, int(lengths[0]) - 1)[:, -1])
        with ragged(lengths, rows, kernel):
            return self.head(self.one_token(cache, ids, lengths - 1))

    def one_token(self, cache: Any, ids: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (B, hidden) of one token a row, each at its own position; inside `ragged`."""
        body = self.hf.base_model
        output = body(input_ids=ids[:, None], position_ids=positions[:, None], **cache_arguments(body, cache))
        return cast(Tensor, output.last_hidden_state[:, -1])

    # losses

    @torch.inference_mode()
    def token_nll(self, input_ids: Tensor, first: int = 1, *, cached: bool = False) -> Tensor:
        """Negative log-likelihood, in nats, of the tokens `first` … T - 1 given everything before them.

        input_ids: (B, T) int64 rows of equal length. Returns (B, T - first) float32 (float64 for a float64 model).
        A window goes through the layers in one pass: memory is one layer's states. Where the model was not found to
        give its own logits so (`scoring`), or `cached`, windows longer than CHUNK_TOKENS go in chunks through a cache.
        """
        rows, tokens = input_ids.shape
        if not 1 <= first < tokens:
            raise ValueError(f"first scored token {first} is outside 1 … {tokens - 1}")
        check_ids([int(input_ids.max())], self.vocab_size, self.tokenizer)
        input_ids = input_ids.to(self.device)
        whole = not self.chunked or (self.one_pass and not cached)
        chunk = tokens if whole else CHUNK_TOKENS
        cache = None if tokens <= chunk else self.new_cache(tokens, rows)
        # One array, not a list: small ones that stay, between large ones that go, would keep the heap from shrinking.
        losses = self._losses(rows, tokens - first)
        for begin in range(0, tokens, chunk):
            end = min(begin + chunk, tokens)
            hidden = self.hidden(input_ids[:, begin:end], cache, begin)
            start, stop = max(first - 1, begin), min(end, tokens - 1)  # positions whose next token is scored
            if start < stop:
                states, targets = hidden[:, start - begin : stop - begin], input_ids[:, start + 1 : stop + 1]
                self.nll(states, targets, losses[:, start + 1 - first : stop + 1 - first])
        return losses

    def nll(self, states: Tensor, targets: Tensor, out: Tensor | None = None) -> Tensor:
        """Negative log-likelihoods (B, T), in nats, of targets (B, T) under hidden states (B, T, hidden).

        The logits of SCORED_ROWS positions, of all rows together, exist at a time. out: where to write them.
        """
        out = self._losses(*targets.shape) if out is None else out
        step = max(1, SCORED_ROWS // targets.shape[0])
        for at in range(0, targets.shape[1], step):
            part = slice(at, at + step)
            logits = self.head(states[:, part]).flatten(0, 1)  # on the last GPU, where layers are spread over several
            wanted = targets[:, part].flatten().to(logits.device)
            out[:, part] = F.cross_entropy(logits, wanted, reduction="none").view(out[:, part].shape)
        return out

    def _losses(self, rows: int, tokens: int) -> Tensor:
        return torch.empty(rows, tokens, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)

    # attention

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """transformers' own attention inside, which takes masks: for code that pads its batches, as lm-eval does."""
        if not self.grouped:
            yield
            return
        self.hf.set_attn_implementation(self.attention)
        try:
            yield
        finally:
            self.hf.set_attn_implementation(self.ours)
