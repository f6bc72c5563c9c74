"""A loaded language model: weights under a RoPE scaling, greedy generation, token losses.

Shapes: B rows, T tokens, V vocabulary. Logits exist only where they are used; nothing of T × T or T × V is ever held.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from e2bench.compat import cache_arguments
from e2bench.errors import E2BenchError, ModelError
from e2bench.kvcache import ATTENTION, KVCache, ragged
from e2bench.loading import ModelSpec, load_weights
from e2bench.records import read_json
from e2bench.rope import BY_LENGTH, RopeScaling, RopeSwitch, checkpoint_scaling, native_window, text_config

CHUNK_TOKENS = 4096  # of a prefill; bounds activations, not results
SCORED_ROWS = 512  # logits rows held at once: 512 × 50k × 4 bytes = 100 MB
CPU_DECODE_ROWS = 8
TRANSFORMERS = "transformers_version"  # in a config: the library's own version, not the checkpoint's


@dataclass(frozen=True)
class Prompt:
    """What to generate from. `settled` tells from the text so far that no further token can change the score.

    text: what `ids` were encoded from, for servers that take only text; empty where the ids alone are known.
    """

    ids: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    settled: Callable[[str], bool] | None = None
    text: str = ""


@dataclass
class Generation:
    """ids: the new tokens, a final EOS among them, which `text` leaves out. finish: eos, length or scored."""

    ids: list[int]
    text: str
    finish: str
    seconds: float


@dataclass
class _Row:
    """One sequence being decoded: where its result goes, its prompt, tokens in the cache, new ids, the next id."""

    index: int
    prompt: Prompt
    length: int
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    seconds: float = 0.0


class Model:
    """A causal language model with rotary positions, in eval mode, with its tokenizer.

    Raises ModelError for a model without rotary positions, one that cannot be run in steps, one with a head that is not
    what its output embeddings say, or with a vocabulary smaller than its tokenizer's.
    """

    def __init__(
        self, hf: Any, tokenizer: Any, *, name: str, path: str = "", attention: str = "sdpa", native: int | None = None
    ) -> None:
        self.hf, self.tokenizer, self.name, self.path, self.attention = hf.eval(), tokenizer, name, path, attention
        self.config = text_config(hf.config)
        self.native_window = native or native_window(hf.config)
        self.own_scaling = checkpoint_scaling(hf.config)
        self.rope = RopeSwitch(hf, self.native_window)
        self.vocab_size = int(hf.get_output_embeddings().weight.shape[0])
        if len(tokenizer) > self.vocab_size and max(tokenizer.get_vocab().values()) >= self.vocab_size:
            raise ModelError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {self.vocab_size}; "
                "they do not belong together: give the right one with --tokenizer"
            )
        self.grouped = False
        self._choose_attention()

    @classmethod
    def load(cls, spec: ModelSpec) -> Model:
        """Read weights and tokenizer as `spec` says. Raises ModelError with one line for whatever is wrong."""
        hf, tokenizer, attention = load_weights(spec)
        return cls(hf, tokenizer, name=spec.name, path=spec.path, attention=attention, native=spec.native_window)

    # what it is

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return cast(torch.device, self.hf.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast(torch.dtype, self.hf.get_input_embeddings().weight.dtype)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of context holds."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.layers * int(heads) * int(dim) * self.dtype.itemsize

    @property
    def activation_bytes_per_token(self) -> int:
        """Upper estimate of what one token of a chunk needs inside a layer, and one scored row's logits."""
        config = self.config
        widths = 6 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        return int(widths) * max(self.dtype.itemsize, 4)

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """Estimate above the weights: cache of `rows` × `tokens`, one chunk's activations, one block of logits."""
        chunk = min(tokens, CHUNK_TOKENS)
        logits = 2 * min(chunk, SCORED_ROWS) * self.vocab_size * 4
        return rows * tokens * self.kv_bytes_per_token + chunk * self.activation_bytes_per_token + logits

    def free_bytes(self) -> int:
        """Memory still free on the devices that the weights lie on, together."""
        return sum(free_bytes(device) for device in {p.device for p in self.hf.parameters()})

    def decode_rows(self, tokens: int) -> int:
        """How many sequences of `tokens` to decode together: what fits in a third of the free memory, at most 64."""
        fit = self.free_bytes() // 3 // max(1, tokens * self.kv_bytes_per_token)
        most = CPU_DECODE_ROWS if self.device.type == "cpu" else 64
        return int(max(1, min(most, fit))) if self.grouped else 1

    def fingerprint(self) -> str:
        """SHA-256 over the config and each tensor's name, shape and up to 64 of its values.

        A model that was moved, or is read by another transformers, stays the same model.
        """
        config = {k: v for k, v in self.hf.config.to_dict().items() if k not in ("_name_or_path", TRANSFORMERS)}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in self.hf.named_parameters():
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json; of a checkpoint made by `e2bench train` with its e2_config.json."""
        trained = Path(self.path) / "e2_config.json"
        e2 = {"e2": read_json(trained)} if trained.is_file() else {}
        return {
            "name": self.name,
            "path": self.path,
            "fingerprint": self.fingerprint(),
            "architecture": type(self.hf).__name__,
            "parameters": sum(p.numel() for p in self.hf.parameters()),
            "native_window": self.native_window,
            "vocab_size": self.vocab_size,
            **e2,
        }

    # text

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with what the tokenizer adds (BOS) or without."""
        return cast("list[int]", self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids without special tokens, not stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a generation: the generation config's, which may be several, and the tokenizer's."""
        eos = self.hf.generation_config.eos_token_id
        several = [] if eos is None else list(eos) if isinstance(eos, Iterable) else [eos]
        return frozenset(int(i) for i in [*several, self.tokenizer.eos_token_id] if i is not None)

    # forward passes

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
        output = body(input_ids=input_ids, position_ids=positions, **cache_arguments(body, cache))
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
    def _choose_attention(self) -> None:
        """Use our attention where the model's code really calls it, else transformers' SDPA, one row at a time.

        Some architectures compute attention themselves (Falcon): under a name they do not know they leave the causal
        mask out, without a word. So each way is tried on a few tokens against the model's own forward pass.
        """
        ids = torch.arange(min(8, self.vocab_size), device=self.device)[None]
        want = self.hf(input_ids=ids, use_cache=False).logits
        if self.attention == "sdpa":
            self.grouped = True
            self.hf.set_attn_implementation(ATTENTION)
            if self._reproduces(want, ids):
                return
            self.grouped = False
            self.hf.set_attn_implementation(self.attention)
        if not self._reproduces(want, ids):
            raise ModelError(
                f"{type(self.hf).__name__} gives other logits in steps over a key-value cache, or changes them after "
                "its output embeddings: not supported"
            )

    def _reproduces(self, want: Tensor, ids: Tensor) -> bool:
        """Whether one pass, and steps over a cache, give the logits `want` (1, T, V)."""
        try:
            pairs = [(self.head(self.hidden(ids)), want), *self._steps(want[0], ids[0].tolist())]
        except (AttributeError, NotImplementedError, TypeError, ValueError):  # a cache or a call the code does not take
            return False
        tolerance = 1e-3 if self.dtype.itemsize >= 4 else 5e-2
        return all(bool((found - to.to(found)).norm() <= tolerance * to.to(found).norm()) for found, to in pairs)

    def _steps(self, want: Tensor, ids: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits, logits wanted) of one step after two prompts of different lengths, together where that is done."""
        prompts = [Prompt(ids[:end], 1) for end in (len(ids) - 1, len(ids) // 2)]
        for members in [prompts] if self.grouped else [[prompt] for prompt in prompts]:
            cache = self.new_cache(len(ids), rows=len(members))
            rows = [_Row(index, prompt, len(prompt.ids)) for index, prompt in enumerate(members)]
            for row in rows:
                self.prefill(row.prompt.ids, self._row(cache, row.index))
            at = [row.length for row in rows]
            yield self._step(cache, rows, [ids[end] for end in at]), want[at]

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], cache: Any, start: int = 0) -> Tensor:
        """Feed ids[start:] behind the `start` tokens in the one-row cache; the last hidden state (1, hidden)."""
        tensor = torch.tensor([list(ids)], device=self.device)
        for begin in range(start, len(ids), CHUNK_TOKENS):
            last = self.hidden(tensor[:, begin : begin + CHUNK_TOKENS], cache, begin)
        return last[:, -1]

    @contextmanager
    def scaled(self, method: str = "linear", factor: float = 1.0, *, length: int | None = None) -> Iterator[None]:
        """A RoPE scaling in force inside: `linear` (PI, E²), `ntk`, `yarn`, `none`, or `dynamic`, with factor g.

        length: tokens of the inputs, which `dynamic` needs, since its frequencies follow it.
        Raises E2BenchError for a factor below 1 or a missing length, UnknownName for another method.
        """
        scaling = RopeScaling(method, factor)
        if scaling.method in BY_LENGTH and length is None:
            raise E2BenchError(f"{method} follows the length of each input: give length=")
        with self.under(scaling, length or self.native_window):
            yield

    @contextmanager
    def under(self, scaling: RopeScaling | None, length: int) -> Iterator[None]:
        """`scaling` in force inside (None: the checkpoint's own), for inputs of `length` tokens."""
        with self.rope.using(scaling or RopeScaling("checkpoint"), length):
            yield

    # losses

    @torch.inference_mode()
    def token_nll(self, input_ids: Tensor, first: int = 1) -> Tensor:
        """Negative log-likelihood, in nats, of the tokens `first` … T - 1 given everything before them.

        input_ids: (B, T) int64 rows of equal length. Returns (B, T - first) float32 (float64 for a float64 model).
        Windows longer than CHUNK_TOKENS go through a cache in chunks, so that memory is the cache and one chunk.
        """
        rows, tokens = input_ids.shape
        if not 1 <= first < tokens:
            raise ValueError(f"first scored token {first} is outside 1 … {tokens - 1}")
        input_ids = input_ids.to(self.device)
        cache = None if tokens <= CHUNK_TOKENS else self.new_cache(tokens, rows)
        # One array, not a list: small ones that stay, between large ones that go, would keep the heap from shrinking.
        losses = self._losses(rows, tokens - first)
        for begin in range(0, tokens, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, tokens)
            hidden = self.hidden(input_ids[:, begin:end], cache, begin)
            start, stop = max(first - 1, begin), min(end, tokens - 1)  # positions whose next token is scored
            if start < stop:
                states, targets = hidden[:, start - begin : stop - begin], input_ids[:, start + 1 : stop + 1]
                self.nll(states, targets, losses[:, start + 1 - first : stop + 1 - first])
        return losses

    def nll(self, states: Tensor, targets: Tensor, out: Tensor | None = None) -> Tensor:
        """Negative log-likelihoods (B, T), in nats, of targets (B, T) under hidden states (B, T, hidden).

        The logits of SCORED_ROWS positions exist at a time. out: where to write them.
        """
        out = self._losses(*targets.shape) if out is None else out
        for at in range(0, targets.shape[1], SCORED_ROWS):
            part = slice(at, at + SCORED_ROWS)
            logits = self.head(states[:, part]).flatten(0, 1)  # on the last GPU, where layers are spread over several
            wanted = targets[:, part].flatten().to(logits.device)
            out[:, part] = F.cross_entropy(logits, wanted, reduction="none").view(out[:, part].shape)
        return out

    def _losses(self, rows: int, tokens: int) -> Tensor:
        return torch.empty(rows, tokens, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)

    # generation

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations of a batch, one `scaling` for all: (index of the prompt, result), as each one ends.

        Each prompt is prefilled alone and unpadded; the rows are decoded together. A row stops at its budget, at an EOS
        or stop token (not before `min_new_tokens`), or once it is `settled`. The tokens are those of transformers'
        greedy `generate` one prompt at a time, up to ties in rounding.
        """
        if scaling is not None and scaling.method in BY_LENGTH and len(prompts) > 1:
            raise ValueError(f"{scaling.method} depends on each input's length: one prompt a batch")
        longest = max(len(p.ids) + p.max_new_tokens for p in prompts)
        with self.under(scaling, longest):
            if self.grouped:
                yield from self._decode(prompts, longest)
                return
            for index, prompt in enumerate(prompts):
                for _, generation in self._decode([prompt], longest):
                    yield index, generation

    def _decode(self, prompts: Sequence[Prompt], capacity: int) -> Iterator[tuple[int, Generation]]:
        cache = self.new_cache(capacity, rows=len(prompts))
        rows: list[_Row] = []
        following: list[int] = []
        for index, prompt in enumerate(prompts):
            row, token = self._begin(index, prompt, self._row(cache, index))
            rows.append(row)
            following.append(token)
        yield from self._finish(cache, rows, following)

    @torch.inference_mode()
    def generate_sharing(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """`generate`, one prompt after another over one cache: what a prompt shares with the one before it is kept.

        Order the prompts so that neighbours have long common beginnings. Results equal `generate` up to rounding.
        """
        longest = max(len(p.ids) + p.max_new_tokens for p in prompts)
        with self.under(scaling, longest):
            cache = self.new_cache(longest)
            before: Sequence[int] = []
            for index, prompt in enumerate(prompts):
                shared = common_prefix(before, prompt.ids)
                self._keep(cache, shared)
                row, token = self._begin(index, prompt, cache, shared)
                yield from self._finish(cache, [row], [token])
                before = prompt.ids

    @staticmethod
    def _keep(cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens of a one-row cache."""
        if (beyond := cache.get_seq_length() - length) > 0:
            cache.crop(-beyond)

    def _begin(self, index: int, prompt: Prompt, cache: Any, start: int = 0) -> tuple[_Row, int]:
        """Prefill one prompt into its one-row cache: its row, and its first new token."""
        began = time.perf_counter()
        row = _Row(index, prompt, len(prompt.ids))
        token = self._choose(self.head(self.prefill(prompt.ids, cache, start)), [row])[0]
        row.seconds = time.perf_counter() - began
        return row, token

    def _finish(self, cache: Any, rows: list[_Row], following: list[int]) -> Iterator[tuple[int, Generation]]:
        """Decode rows together until each has ended."""
        while rows:
            began = time.perf_counter()
            for at in reversed(range(len(rows))):
                row = rows[at]
                if self._append(row, following[at]):
                    self._drop(cache, rows, following, at)
                    yield row.index, Generation(row.ids, self._text(row), row.finish, row.seconds)
            if rows:
                following = self._choose(self._step(cache, rows, following), rows)
            for row in rows:  # a step's time is shared by its rows
                row.seconds += (time.perf_counter() - began) / len(rows)

    def _row(self, cache: Any, index: int) -> Any:
        """The one-row cache that prefill `index` fills; the first one shows what the whole batch must allocate."""
        if not self.grouped or cache.rows == 1:
            return cache
        if not cache.layers[0].is_initialized:
            probe = self.new_cache(1)
            self.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.device), probe)
            cache.allocate(probe)
        return cache.row(index)

    def _choose(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        for at, row in enumerate(rows):
            if len(row.ids) < row.prompt.min_new_tokens:
                logits[at, list(self.eos_ids | row.prompt.stop_ids)] = -torch.inf
        best = logits.max(-1)
        if not best.values.isfinite().all():  # argmax would answer with token 0, without a word
            raise ModelError(
                f"{self.name} in {str(self.dtype).removeprefix('torch.')} gives logits that are not finite; "
                "use --dtype bfloat16 or float32, or a smaller --scale"
            )
        return best.indices.tolist()

    def _append(self, row: _Row, token: int) -> bool:
        """Take one new token; true when the row is finished."""
        row.ids.append(token)
        if token in self.eos_ids or token in row.prompt.stop_ids:
            row.finish = "eos"
        elif row.prompt.settled and row.prompt.settled(self.decode(row.ids)):
            row.finish = "scored"
        elif len(row.ids) >= row.prompt.max_new_tokens:
            row.finish = "length"
        return bool(row.finish)

    def _text(self, row: _Row) -> str:
        return self.decode(row.ids[:-1] if row.ids[-1] in self.eos_ids else row.ids)

    def _drop(self, cache: Any, rows: list[_Row], following: list[int], at: int) -> None:
        """Take a finished row out of the batch: the last row moves into its place."""
        last = len(rows) - 1
        if at != last:
            cache.move_row(last, at, rows[last].length)
            rows[at], following[at] = rows[last], following[last]
        rows.pop()
        following.pop()

    def _step(self, cache: Any, rows: list[_Row], tokens: list[int]) -> Tensor:
        """One forward pass of one token a row; logits (len(rows), V)."""
        for row in rows:
            row.length += 1
        ids = torch.tensor(tokens, device=self.device)[:, None]
        lengths = torch.tensor([row.length for row in rows], device=self.device)
        if not self.grouped:
            return self.head(self.hidden(ids, cache, rows[0].length - 1)[:, -1])
        with ragged(lengths):
            body = self.hf.base_model
            output = body(input_ids=ids, position_ids=lengths[:, None] - 1, **cache_arguments(body, cache))
        return self.head(output.last_hidden_state[:, -1])


def common_prefix(before: Sequence[int], ids: Sequence[int]) -> int:
    """How many leading ids two prompts share; at least the last of `ids` is left to be fed."""
    most = min(len(before), len(ids) - 1)
    return next((at for at in range(most) if before[at] != ids[at]), most)


def free_bytes(device: torch.device) -> int:
    """Memory still free on a device; on the CPU what the kernel calls available, within a cgroup's limit."""
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


def require_memory(model: Model, tokens: int, rows: int = 1) -> None:
    """Raise E2BenchError, saying how much is needed, when `rows` inputs of `tokens` cannot fit."""
    needed = model.needed_bytes(tokens, rows)
    free = model.free_bytes() if needed else 0
    if needed > free:
        raise E2BenchError(
            f"{tokens:,} tokens need about {needed / 2**30:.1f} GiB beside the weights (key-value cache "
            f"{rows * tokens * model.kv_bytes_per_token / 2**30:.1f} GiB), {free / 2**30:.1f} GiB are free; "
            "use shorter lengths, --batch-size 1 or --dtype bfloat16"
        )
