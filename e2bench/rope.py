"""Rotary position scaling: which inverse frequencies a window needs, and switching them in place on a loaded model.

Symbols: L native window, L' extended window, g = L'/L scale (`factor`), d rotary dimension.
E²-LLM (arXiv 2401.06951, eq. 4) and Position Interpolation (arXiv 2306.15595) rotate position m at m / g, which is the
same as dividing the inverse frequencies by g.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from e2bench.compat import rope_frequencies
from e2bench.errors import E2BenchError, ModelError, UnknownName

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

METHODS = ("none", "linear", "ntk", "dynamic", "yarn")
OWN_METHODS = ("yarn", "llama3", "longrope")  # scalings inside a checkpoint that a plain factor cannot replace
BY_LENGTH = ("dynamic", "longrope")  # frequencies that follow the length of each input
SCALED_LAYERS = "full_attention"  # of models with one RoPE per layer type, sliding layers never see far positions


@dataclass(frozen=True)
class RopeScaling:
    """A scaling method and its factor g.

    method: `none` (as pretrained), `linear` (PI and E²), `ntk` (NTK-aware base, fixed), `dynamic` (NTK base from the
        length of each input), `yarn` (arXiv 2309.00071); or what a checkpoint's config says: `longrope` (arXiv
        2402.13753, short or long factors by the length of each input), else `checkpoint`.
    factor: g >= 1.
    """

    method: str = "linear"
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, "longrope", "checkpoint"):
            raise UnknownName("RoPE method", self.method, list(METHODS))
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise E2BenchError(f"scale {self.factor:g} is not possible: it must be a finite number of at least 1")


def rope_config(config: PretrainedConfig) -> dict[str, Any]:
    """The `rope_parameters` of the layers that are scaled; `{}` where a config has none."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    per_layer = any(isinstance(value, dict) for value in parameters.values())
    return parameters.get(SCALED_LAYERS) or {} if per_layer else parameters


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The language model's part of a (perhaps multimodal) config."""
    return config.get_text_config(decoder=True)


def native_window(config: PretrainedConfig) -> int:
    """L in tokens: the window of pretraining, before any scaling that the config carries.

    A config that was extended by yarn, llama3 or longrope names L as `original_max_position_embeddings`; one extended
    linearly keeps L in `max_position_embeddings` (Vicuna's and our own convention, which vLLM also assumes).
    Raises ModelError where neither is said.
    """
    text = text_config(config)
    original = None
    if checkpoint_scaling(config):  # without one the field is a class's default (Phi-3's 4,096), whatever L is
        original = _original_window(config)
    window = original or getattr(text, "max_position_embeddings", None)
    if not window:
        raise ModelError(
            f"the config of this {config.model_type!r} model does not say its window; give it with --native-window"
        )
    return int(window)


def checkpoint_scaling(config: PretrainedConfig) -> RopeScaling | None:
    """The scaling that a checkpoint's config carries, or None; its factor is window / L.

    llama3's and longrope's own `factor` is not that ratio: Llama-3.2's 32 goes with 131,072 = 16 · 8,192.
    """
    parameters = rope_config(config)
    rope_type = parameters.get("rope_type", "default")
    factor = float(parameters.get("factor") or 1.0)
    if rope_type in ("default", "proportional") or (rope_type == "linear" and factor == 1):
        return None
    if rope_type in ("llama3", "longrope") and (original := _original_window(config)):
        factor = float(getattr(text_config(config), "max_position_embeddings", None) or original) / original
    method = rope_type if rope_type in ("linear", *BY_LENGTH) else "checkpoint"
    return RopeScaling(method, max(factor, 1.0))


def _original_window(config: PretrainedConfig) -> int | None:
    name = "original_max_position_embeddings"
    return rope_config(config).get(name) or getattr(text_config(config), name, None)


def scale_for_window(window: int, native: int) -> int:
    """The smallest integer g >= 1 with g·L >= window, both in tokens (`--scale auto`; LongLoRA's rule)."""
    return max(1, -(-window // native))


def inverse_frequencies(
    rotary: Any, scaling: RopeScaling, *, native: int, length: int | None = None, layer_type: str | None = None
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies (d/2,) float32 and the factor on cos and sin, from transformers' own RoPE code.

    native: L in tokens.    length: tokens of the input, needed by `dynamic` and `longrope`.
    `ntk` is transformers' dynamic NTK frozen at g·L with factor 1, so base' = base · g^(d/(d-2)).
    layer_type: of models with one RoPE per layer type, else None. The module's config is left as it was.
    Raises ValueError for the method `checkpoint`, whose frequencies are restored, not computed.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = copy.deepcopy(rotary.config)
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    kept = {k: v for k, v in parameters.items() if k in ("rope_theta", "partial_rotary_factor")}
    method, factor = scaling.method, float(scaling.factor)
    if method == "longrope":
        longrope = ROPE_INIT_FUNCTIONS[method]
        return _float32(rope_frequencies(longrope, config, seq_len=length or native, layer_type=layer_type))
    if method == "checkpoint":
        raise ValueError("the checkpoint's own frequencies are not computed but restored")
    plain = method == "none" or (factor == 1 and method in ("linear", "ntk", "yarn"))
    if plain and "rope_type" in parameters and parameters["rope_type"] == "proportional":
        return _float32(rope_frequencies(ROPE_INIT_FUNCTIONS["proportional"], config, layer_type=layer_type))
    seq_len: int | None = None
    if plain:
        new: dict[str, Any] = {"rope_type": "default"}
    elif method == "linear":
        new = {"rope_type": "linear", "factor": factor}
    elif method == "yarn":
        new = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": native}
    else:
        seq_len = math.ceil(factor * native) if method == "ntk" else max(length or native, native)
        new = {"rope_type": "dynamic", "factor": 1.0 if method == "ntk" else factor}
        config.max_position_embeddings = native
    parameters.clear()
    parameters.update(kept, **new)
    compute = rotary.compute_default_rope_parameters if plain else ROPE_INIT_FUNCTIONS[new["rope_type"]]
    return _float32(rope_frequencies(compute, config, seq_len=seq_len, layer_type=layer_type))


def _float32(computed: tuple[torch.Tensor, float]) -> tuple[torch.Tensor, float]:
    inv_freq, attention_scaling = computed
    return inv_freq.float(), float(attention_scaling)


@dataclass
class _Slot:
    """One set of frequencies inside a rotary module: the whole module, or one layer type of it."""

    module: Any  # its attributes are not nn.Module's own
    layer_type: str | None
    inv_freq: torch.Tensor
    attention_scaling: float
    rope_type: str

    @property
    def _prefix(self) -> str:
        return f"{self.layer_type}_" if self.layer_type else ""

    def write(self, inv_freq: torch.Tensor, attention_scaling: float, rope_type: str) -> None:
        # Assigning the buffer, not copying into it: a model that was cast to bfloat16 holds a rounded one.
        buffer = inv_freq.clone().to(getattr(self.module, f"{self._prefix}inv_freq").device)
        setattr(self.module, f"{self._prefix}inv_freq", buffer)
        setattr(self.module, f"{self._prefix}attention_scaling", attention_scaling)
        if self.layer_type:
            self.module.rope_type = {**self.module.rope_type, self.layer_type: rope_type}
        else:
            self.module.rope_type = rope_type


class RopeSwitch:
    """Sets the rotary frequencies of a loaded model in place; `restore` puts the checkpoint's own back, to the bit.

    Raises ModelError for a model without rotary positions.
    """

    def __init__(self, model: nn.Module, native: int) -> None:
        self.native = native
        self.scaling: RopeScaling | None = None
        self._length: int | None = None
        slots = [slot for module in rotary_modules(model) for slot in _slots(module)]
        if not slots:
            kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise ModelError(f"{kind!r} has no rotary positions (RoPE): a scale means nothing to it; use a RoPE model")
        for slot in slots:
            if slot.inv_freq.dtype.itemsize < 4:  # rounded by .to(bfloat16) or .half(): up to 3.4 rad at 65,535
                slot.inv_freq = self._rebuilt(slot)
                slot.write(slot.inv_freq, slot.attention_scaling, slot.rope_type)
        self._slots = [slot for slot in slots if slot.layer_type == SCALED_LAYERS] or slots
        self.restore()

    def _rebuilt(self, slot: _Slot) -> torch.Tensor:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        module, rope_type = slot.module, slot.rope_type
        compute = module.compute_default_rope_parameters if rope_type == "default" else ROPE_INIT_FUNCTIONS[rope_type]
        return _float32(rope_frequencies(compute, module.config, layer_type=slot.layer_type))[0]

    def set(self, scaling: RopeScaling, length: int | None = None) -> None:
        """Put `scaling` in force. length: tokens of the coming input (for BY_LENGTH)."""
        if scaling.method == "checkpoint":
            return self.restore()
        if scaling == self.scaling and scaling.method not in BY_LENGTH:
            return None
        for slot in self._slots:
            inv_freq, attention_scaling = inverse_frequencies(
                slot.module, scaling, native=self.native, length=length, layer_type=slot.layer_type
            )
            slot.write(inv_freq, attention_scaling, "default")
        self.scaling, self._length = scaling, length
        return None

    def restore(self) -> None:
        """Put the checkpoint's own frequencies back."""
        for slot in self._slots:
            slot.write(slot.inv_freq, slot.attention_scaling, slot.rope_type)
        self.scaling = None

    @contextmanager
    def using(self, scaling: RopeScaling, length: int | None = None) -> Iterator[None]:
        """`set` on entry; what was in force before, on exit."""
        before, before_length = self.scaling, self._length
        self.set(scaling, length)
        try:
            yield
        finally:
            self.restore() if before is None else self.set(before, before_length)

    def in_force(self) -> list[float]:
        """The d/2 inverse frequencies, radians a token, now in the first scaled rotary module."""
        slot = self._slots[0]
        inv_freq: torch.Tensor = getattr(slot.module, f"{slot._prefix}inv_freq")
        return cast("list[float]", inv_freq.double().tolist())


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a transformers model that turn position_ids into cos and sin."""
    return [m for m in model.modules() if hasattr(m, "rope_type") and hasattr(m, "config")]


def _slots(module: Any) -> Iterator[_Slot]:
    if isinstance(module.rope_type, dict):
        for layer_type in module.rope_type:
            yield _Slot(
                module,
                layer_type,
                getattr(module, f"{layer_type}_inv_freq").detach().clone(),
                float(getattr(module, f"{layer_type}_attention_scaling")),
                module.rope_type[layer_type],
            )
    elif hasattr(module, "inv_freq"):
        rope_type = str(module.rope_type)
        yield _Slot(module, None, module.inv_freq.detach().clone(), float(module.attention_scaling), rope_type)
