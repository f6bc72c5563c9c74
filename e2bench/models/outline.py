"""A model without its weights: config and tokenizer, for planning a run. Weighs nothing and loads in a second."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from e2bench.models.configured import Configured
from e2bench.models.findings import Finding, collected
from e2bench.models.loading import ModelSpec, device_of, dtype_of, load_config
from e2bench.rope.config import checkpoint_scaling, native_window, text_config
from e2bench.rope.methods import RopeScaling

UNLIMITED = 1 << 62


class Outline(Configured):
    """Stands where an experiment's `plan` takes a model: counts tokens and bytes, generates nothing.

    `weight_bytes` is what the weights will take in the dtype of the run; None where their number cannot be told.
    Raises ModelError as loading would, as far as config and tokenizer show it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        with collected() as findings:
            loaded = load_config(spec)
        self.findings: list[Finding] = findings
        self.name, self.path, self.attention = spec.name, spec.path, spec.attention
        self.tokenizer = loaded.tokenizer
        self.config = text_config(loaded.hf)
        self.native_window = spec.native_window or loaded.native or native_window(loaded.hf)
        self.own_scaling = checkpoint_scaling(loaded.hf)
        if loaded.own_factor is not None:
            self.own_scaling = RopeScaling("checkpoint", loaded.own_factor)
        self.vocab_size = int(self.config.vocab_size)
        self._device = torch.device(device_of(spec.device))
        dtype = dtype_of(spec.dtype, str(self._device))
        stored = getattr(loaded.hf, "dtype", None) or getattr(self.config, "dtype", None)
        self._dtype = dtype if isinstance(dtype, torch.dtype) else stored or torch.float32
        self.parameters = _parameters(loaded.hf, spec.trust_remote_code)
        self.weight_bytes = self.parameters and self.parameters * self._dtype.itemsize

    @property
    def device(self) -> torch.device:
        """Where the weights will be loaded."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, once they are loaded."""
        return self._dtype

    def free_bytes(self) -> int:
        """Without end: a plan says what is needed, and may be made on another machine than the run."""
        return UNLIMITED

    def decode_rows(self, tokens: int) -> int:
        """One: how many fit is seen when the model is loaded."""
        return 1

    def check_scaling(self, scaling: RopeScaling | None) -> None:
        """Nothing is rotated."""


def _parameters(config: Any, trust_remote_code: bool) -> int | None:
    """How many weights a model of this config has: it is built of shapes alone. None where that fails."""
    from transformers import AutoModelForCausalLM

    with suppress(Exception), torch.device("meta"):  # classes that compute while they are built raise many kinds
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return sum(int(parameter.numel()) for parameter in model.parameters())
    return None
