"""A loaded language model: read, tried and named; under a RoPE scaling it gives answers, losses and attention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, RunFailed
from e2bench.files import read_json
from e2bench.models import memory
from e2bench.models.body import Body
from e2bench.models.compiled import compile_pass
from e2bench.models.decoding import Decoder, longest
from e2bench.models.findings import Finding, collected
from e2bench.models.identity import config_of, weights_hash
from e2bench.models.loading import ModelSpec, load_weights
from e2bench.models.options import option_scores
from e2bench.models.probe import check_scale_matters, choose_ways
from e2bench.models.protocols import Generation, Prompt, Rows
from e2bench.models.recording import recording
from e2bench.models.twin import check_scaling
from e2bench.models.windows_check import TRAINED, tell_layers, tell_window
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.terminal import say

TOLD_PARAMETERS = 5e9  # above it, hashing takes long enough to be said


class Model(Body):
    """A causal language model with rotary positions, in eval mode, with its tokenizer.

    Raises ModelError for a model without rotary positions, one that cannot be run in steps, one with a head that is not
    what its output embeddings say, or with a vocabulary smaller than its tokenizer's.
    """

    def __init__(
        self, hf: Any, tokenizer: Any, *, name: str, path: str = "", attention: str = "sdpa", native: int | None = None
    ) -> None:
        super().__init__(hf, tokenizer, name=name, path=path, attention=attention, native=native)
        self.findings: list[Finding] = []
        self._tried: set[RopeScaling] = set()
        choose_ways(self)
        check_scale_matters(self)

    @classmethod
    def load(cls, spec: ModelSpec) -> Model:
        """Read weights and tokenizer as `spec` says. Raises ModelError with one line for whatever is wrong."""
        with collected() as findings:
            loaded = load_weights(spec)
            native = spec.native_window or loaded.native
            names = {"name": spec.name, "path": spec.path, "attention": spec.attention}
            try:
                model = cls(loaded.hf, loaded.tokenizer, **names, native=native)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_exhausted(error):
                    raise
                raise RunFailed(f"out of memory when {spec.name} was tried on a hundred tokens; free some") from None
            if spec.compile:
                compile_pass(model)
            if loaded.own_factor is not None:  # a scaling that only the file has
                model.own_scaling = RopeScaling("checkpoint", loaded.own_factor)
            said: dict[str, Any] = {"given": spec.native_window, "own": model.own_scaling, "folder": Path(spec.path)}
            tell_window(loaded.hf.config, loaded.tokenizer, model.native_window, **said)
            tell_layers(loaded.hf.config)
            _ = model.eos_ids  # refuses what is none
        model.findings = findings
        return model

    # what it is

    @cached_property
    def weights(self) -> str:
        """32 hex digits over every weight (`weights_hash`)."""
        if sum(p.numel() for p in self.hf.parameters()) > TOLD_PARAMETERS:
            say(f"hashing the weights of {self.name}, so that a run is never continued with others")
        return weights_hash(self.hf)

    def fingerprint(self) -> str:
        """SHA-256 over the config and each tensor's name, shape and up to 64 of its values: names a model in tables.

        A model that was moved, or is read by another transformers, stays the same model.
        """
        digest = hashlib.sha256(json.dumps(config_of(self.hf.config), sort_keys=True, default=str).encode())
        for name, tensor in self.hf.named_parameters():
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json; of a checkpoint made by `e2bench train` with its e2_config.json."""
        trained = Path(self.path) / TRAINED
        e2 = {"e2": read_json(trained)} if trained.is_file() else {}
        return {
            "name": self.name,
            "path": self.path,
            "fingerprint": self.fingerprint(),
            "weights": self.weights,
            "architecture": type(self.hf).__name__,
            "parameters": sum(p.numel() for p in self.hf.parameters()),
            "native_window": self.native_window,
            "vocab_size": self.vocab_size,
            "eos": sorted(self.eos_ids),
            "scoring": self.scoring,
            **e2,
        }

    # the scaling in force

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

    def check_scaling(self, scaling: RopeScaling | None) -> None:
        """Raise ModelError for a scaling that set in place is not what transformers builds; each is tried once."""
        if scaling is not None and scaling not in self._tried:
            with collected() as findings:
                check_scaling(self, scaling)
            self._tried.add(scaling)
            self.findings += findings

    @contextmanager
    def under(self, scaling: RopeScaling | None, length: int) -> Iterator[None]:
        """`scaling` in force inside (None: the checkpoint's own), for inputs of `length` tokens."""
        self.check_scaling(scaling)
        with self.rope.using(scaling, length):
            yield

    # losses, answers, attention

    def option_scores(self, options: Sequence[Sequence[int]], first: int = 1) -> list[tuple[float, int]]:
        """(summed log-probability in nats, number of scored tokens) of each option's ids from `first` on."""
        return option_scores(self, options, first)

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations of a batch, one `scaling` for all: (index of the prompt, result), as each one ends.

        See `Decoder.generate`.
        """
        if self._by_length(scaling) and len(prompts) > 1:
            yield from self._one_by_one(prompts, scaling)
            return
        with self.under(scaling, longest(prompts)):
            yield from Decoder(self).generate(prompts)

    def generate_sharing(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """The same over one cache, for prompts that begin alike: see `Decoder.generate_sharing`."""
        if self._by_length(scaling) or not self.shares:  # nothing can be kept of the prompt before
            yield from self._one_by_one(prompts, scaling)
            return
        with self.under(scaling, longest(prompts)):
            yield from Decoder(self).generate_sharing(prompts)

    def _by_length(self, scaling: RopeScaling | None) -> bool:
        """Whether inputs of other lengths have other frequencies: of `scaling`, or of the checkpoint's own."""
        in_force = scaling or self.own_scaling
        return in_force is not None and in_force.method in BY_LENGTH

    def _one_by_one(self, prompts: Sequence[Prompt], scaling: RopeScaling | None) -> Iterator[tuple[int, Generation]]:
        for index, prompt in enumerate(prompts):
            for _, generation in self.generate([prompt], scaling):
                yield index, generation

    @contextmanager
    def recording(self, rows: Rows) -> Iterator[None]:
        """Forward passes inside give `rows` the last query's weights of every attention layer."""
        with recording(self, rows):
            yield
