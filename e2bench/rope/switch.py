"""Inverse frequencies of a scaling, and switching them in place on a loaded model.

Symbols: L native window, g factor, d rotary dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from e2bench.compat import rope_frequencies
from e2bench.errors import ModelError
from e2bench.rope.config import SCALED_LAYERS
from e2bench.rope.methods import BY_LENGTH, RopeScaling

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLLOWING = ("dynamic", "longrope")  # rope types of transformers that follow the input's length


def inverse_frequencies(
    rotary: Any, scaling: RopeScaling, *, native: int, length: int | None = None, layer_type: str | None = None
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies (d/2,) float32 and the factor on cos and sin, from transformers' own RoPE code.

    native: L in tokens.    length: tokens of the input, for methods whose frequencies follow it.
    layer_type: of models with one RoPE per layer type, else None. The module's config is left as it was.
    Raises ValueError for a checkpoint's own scaling, whose frequencies are restored, not computed.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if scaling.own or scaling.row.own:
        raise ValueError("the checkpoint's own frequencies are not computed but restored")
    row, config = scaling.row, copy.deepcopy(rotary.config)
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    scaling = scaling.for_input(native, length or native)
    plain = scaling.is_plain
    if plain and parameters.get("rope_type") == "proportional":  # a plain rotation of a part of each head
        return _float32(rope_frequencies(ROPE_INIT_FUNCTIONS["proportional"], config, layer_type=layer_type))
    new = scaling.replacing(parameters, native)
    parameters.clear()
    parameters.update(new)
    seq_len = None
    if row.seq_len is not None and not plain:
        seq_len = row.seq_len(scaling.factor, native, length or native)
        config.max_position_embeddings = native  # what transformers takes for L
        if hasattr(config, "original_max_position_embeddings"):  # of Phi-3's class 4,096, put before the parameters'
            config.original_max_position_embeddings = native
    made = parameters["rope_type"]
    compute = rotary.compute_default_rope_parameters if made == "default" else ROPE_INIT_FUNCTIONS[made]
    return _float32(rope_frequencies(compute, config, seq_len=seq_len, layer_type=layer_type))


def own_frequencies(
    rotary: Any, rope_type: str, length: int | None, layer_type: str | None
) -> tuple[torch.Tensor, float] | None:
    """What transformers' own update gives a rotary module for an input of `length` tokens; None: as it was built.

    transformers follows the positions seen so far (`dynamic_rope_update`); in chunks, or in steps over a cache, keys
    rotated by different frequencies would then meet. Here the whole input has the frequencies of its last token.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = rotary.config
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    if rope_type == "dynamic":
        native = int(rotary.original_max_seq_len)
    elif rope_type == "longrope":
        native = int(parameters["original_max_position_embeddings"])
    else:
        return None
    if length is None or length <= native:
        return None
    compute = ROPE_INIT_FUNCTIONS[rope_type]
    return _float32(rope_frequencies(compute, config, seq_len=length, layer_type=layer_type))


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
        self.refuses = ""  # why no scale can be set
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
        if scaling.method == "checkpoint" or scaling.own:
            return self._own(scaling, length)
        if self.refuses and scaling.factor > 1 and scaling.method != "none":
            raise ModelError(self.refuses)
        if self.refuses:  # g = 1: as it was built
            return self.restore()
        if scaling == self.scaling and scaling.method not in BY_LENGTH:
            return None
        if scaling.factors is not None:
            scaling.factors.check(self._slots[0].inv_freq.numel(), self.native)
        computed = [
            inverse_frequencies(slot.module, scaling, native=self.native, length=length, layer_type=slot.layer_type)
            for slot in self._slots
        ]
        for slot, (inv_freq, _) in zip(self._slots, computed, strict=True):
            if inv_freq.shape != slot.inv_freq.shape:
                raise ModelError(
                    f"{type(slot.module).__name__} has {slot.inv_freq.numel()} frequencies, and transformers' own "
                    f"function gives {inv_freq.numel()}: no scale can be set here; leave --scale out, or give --scale 1"
                )
        for slot, (inv_freq, attention_scaling) in zip(self._slots, computed, strict=True):
            slot.write(inv_freq, attention_scaling, "default")
        self.scaling, self._length = scaling, length
        return None

    def _own(self, scaling: RopeScaling, length: int | None) -> None:
        """The checkpoint's own frequencies; of a type that follows the input's length those for `length`."""
        self.restore()
        for slot in self._slots if length is not None else ():
            inv_freq, attention_scaling = own_frequencies(slot.module, slot.rope_type, length, slot.layer_type) or (
                slot.inv_freq,
                slot.attention_scaling,
            )
            slot.write(inv_freq, attention_scaling, "default")
        self.scaling, self._length = (None, None) if scaling.method == "checkpoint" else (scaling, length)

    @property
    def follows_length(self) -> bool:
        """Whether the checkpoint's own frequencies depend on each input's length."""
        return any(slot.rope_type in FOLLOWING for slot in self._slots)

    def restore(self) -> None:
        """Put the checkpoint's own frequencies back."""
        for slot in self._slots:
            slot.write(slot.inv_freq, slot.attention_scaling, slot.rope_type)
        self.scaling = None

    @contextmanager
    def using(self, scaling: RopeScaling | None, length: int | None = None) -> Iterator[None]:
        """`scaling` in force inside (None: the checkpoint's own); what was in force before, on exit."""
        before, before_length = self.scaling, self._length
        try:
            self.set(scaling or RopeScaling("checkpoint"), length)
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


def divide_frequencies(model: nn.Module, factors: Sequence[float]) -> None:
    """Divide the inverse frequencies of every rotary module by one factor a dimension (d/2 of them), in place."""
    import torch

    for module in rotary_modules(model):
        for slot in _slots(module):
            divisors = torch.tensor(factors, dtype=torch.float32, device=slot.inv_freq.device)
            if divisors.shape != slot.inv_freq.shape:
                raise ModelError(f"{len(factors)} frequency factors for {slot.inv_freq.numel()} rotary frequencies")
            slot.write(slot.inv_freq.float() / divisors, slot.attention_scaling, "default")
