"""Rotate a model at E² positions without touching `position_ids`.

transformers reads a jump in `position_ids` as the border of a packed sequence whenever there is no mask and no
cache (its `Trainer`, gradient checkpointing, `use_cache=False`), and then later tokens cannot see the attention
sinks: no error, only another model. So the positions are changed inside the rotary module, after the mask has been
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from e2bench.errors import ModelError
from e2bench.rope.config import SCALED_LAYERS, rope_config
from e2bench.rope.own import fixed_angles
from e2bench.rope.switch import rotary_modules
from e2bench.train.e2 import Draw


class E2Positions:
    """Forward pre-hooks on every rotary module of a model. Nothing changes until `set`; `clear` ends it.

    The draws stay in force until the next `set`, not only during the forward pass: gradient checkpointing runs
    layers again in the backward pass, and a model whose layers call the rotary module themselves must see the same
    angles then. Raises ModelError for a model without rotary positions.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = rotary_modules(model)
        if not modules:
            raise ModelError(f"{type(model).__name__} has no rotary positions (RoPE), which E² needs; use a RoPE model")
        self._handles = [m.register_forward_pre_hook(self._hook, with_kwargs=True) for m in modules]
        self._draws: torch.Tensor | None = None
        self._frequencies = [
            (module, name, buffer.detach().clone())
            for module in modules
            for name, buffer in module.named_buffers()
            if name.endswith("inv_freq")
        ]
        for module, name, buffer in self._frequencies:
            if buffer.dtype.itemsize < 4:
                raise ModelError(f"{type(module).__name__}.{name} is {buffer.dtype}: load the model in float32")
        for rotary in cast("list[Any]", modules):
            if isinstance(rotary.rope_type, str) and fixed_angles(rope_config(rotary.config)):
                rotary.rope_type = "default"  # the same at every length: transformers would look each time

    def restore_frequencies(self) -> None:
        """Put back inverse frequencies that were cast or rounded since: DeepSpeed casts a whole model to bfloat16.

        At position 65,535 a rounded one is off by up to 3.4 radians. Their device is kept.
        """
        for module, name, kept in self._frequencies:
            now: torch.Tensor = getattr(module, name)
            if now.dtype != kept.dtype or not torch.equal(now.cpu(), kept.cpu()):
                setattr(module, name, kept.to(now.device))

    def set(self, draws: Sequence[Draw]) -> None:
        """Rotate row b of the coming batches by `draws[b]`; equal draws are applied once to all rows."""
        self.put(as_tensor(draws[:1] if len(set(draws)) == 1 else draws))

    def put(self, draws: torch.Tensor) -> None:
        """The same for draws `as_tensor`: (B, 3), or (1, 3) for all rows. On the model's device nothing waits for it.

        Compiled code takes the tensor in as an input: other draws of the same shape compile nothing anew.
        """
        self._draws = draws

    def clear(self) -> None:
        """Rotate at the model's own positions again."""
        self._draws = None

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._draws is None or not _is_scaled(module, args, kwargs):
            return None
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._shifted(kwargs["position_ids"])}
        return (args[0], self._shifted(args[1]), *args[2:]), kwargs

    def _shifted(self, position_ids: torch.Tensor) -> torch.Tensor:
        """(1 or B, R) integer -> (1 or B, R) float32."""
        assert self._draws is not None
        scale, offset, start = self._draws.to(position_ids.device).unsqueeze(-1).unbind(1)
        return (position_ids + offset * (position_ids >= start)).float() / scale


def as_tensor(draws: Sequence[Draw]) -> torch.Tensor:
    """Draws as (B, 3) int64: scale, offset, start. Integers, since launchers cast a batch's floats to bfloat16."""
    return torch.tensor([[d.scale, d.offset, d.start] for d in draws])


def _is_scaled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call makes the angles of layers that a scale applies to (the same as in `e2bench.rope.switch`)."""
    kinds = module.rope_type
    if not isinstance(kinds, dict) or SCALED_LAYERS not in kinds:
        return True
    return kwargs.get("layer_type", args[2] if len(args) > 2 else None) == SCALED_LAYERS
