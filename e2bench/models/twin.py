"""A scaling set in place, against a model that transformers builds from the config with that scaling.

Some models use their RoPE parameters outside the rotary module too: DeepSeek's softmax scale holds YaRN's mscale,
Ministral 3 scales queries by position. Changing the frequencies alone would then give a model that nobody can build.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from e2bench.errors import ModelError
from e2bench.models.body import Body
from e2bench.models.findings import NOTE, OK, find
from e2bench.models.scaled_config import KNOWN, set_scaling
from e2bench.rope.config import rope_config
from e2bench.rope.methods import RopeScaling
from e2bench.rope.switch import rotary_modules

CHECK = "scaling in force"


def check_scaling(model: Body, scaling: RopeScaling) -> None:
    """Raise ModelError where `scaling`, set in place, is not what transformers builds from the exported config.

    A second copy of the weights is not needed: the rotary modules are built anew, and the numbers that other modules
    take from the config (the softmax scale) are compared with those of a model without memory.
    """
    if scaling.own or scaling.row.own:
        return
    strange = sorted(set(rope_config(model.hf.config)) - KNOWN)
    if strange:
        raise ModelError(
            f"{model.name}: its RoPE parameters hold {strange[0]!r}, which more than the rotary module may use; "
            f"{scaling.method} cannot replace them: leave --scale and --method out to keep the checkpoint's own"
        )
    fixed = scaling if scaling.row.in_config else RopeScaling("none")
    twin = _built(model, fixed)
    if twin is None:
        fixed = RopeScaling("none")
        twin = _built(model, fixed)
        found = f"a config of {model.name} takes no {scaling.method}: it is set in place, and cannot be exported"
        find(CHECK, NOTE, found, "the frequencies are transformers' own function's")
    if twin is None:
        return
    for name, here, there in _differing(model.hf, twin):
        raise ModelError(
            f"{model.name}: its own scaling also sets {name} ({here:g}, and {there:g} with {scaling.method}); write a "
            "checkpoint with e2bench export and measure that, or leave --scale and --method out"
        )
    what = f"{scaling.method} {scaling.factor:g}"
    if fixed is scaling:
        _check_rotary(model, twin, scaling)
        find(CHECK, OK, f"{what} is what transformers builds from a config with it")
    elif not scaling.row.in_config:
        find(CHECK, OK, f"{what} is set in place by transformers' own function (export takes no such method)")


def _built(model: Body, scaling: RopeScaling) -> Any:
    """A model without memory from the config with a scaling; None where the config's class refuses it."""
    config = copy.deepcopy(model.hf.config)
    try:
        set_scaling(config, scaling, model.native_window)
        config.validate() if hasattr(config, "validate") else None
        with torch.device("meta"):
            return type(model.hf)(config)
    except Exception:  # each class refuses in its own way
        return None


def _differing(hf: Any, twin: Any) -> Iterator[tuple[str, float, float]]:
    """Numbers of modules, rotary ones left out, in which two models differ: name, the first's, the second's."""
    rotary = {id(module) for module in rotary_modules(hf)}
    others = dict(twin.named_modules())
    for name, module in hf.named_modules():
        if id(module) in rotary or name not in others:
            continue
        for key, value in vars(module).items():
            there = getattr(others[name], key, None)
            if isinstance(value, float) and isinstance(there, float) and value != there:
                yield f"{name}.{key}", value, there


def _check_rotary(model: Body, twin: Any, scaling: RopeScaling) -> None:
    """The frequencies in force against those of rotary modules that transformers builds from the config."""
    with model.rope.using(scaling, model.native_window):
        for module, other in zip(rotary_modules(model.hf), rotary_modules(twin), strict=True):
            built = type(other)(config=other.config)
            for name, buffer in built.named_buffers():
                if not name.endswith("inv_freq") or "original" in name:
                    continue
                factor = name.replace("inv_freq", "attention_scaling")
                here = getattr(module, name).float().cpu()
                same = torch.allclose(here, buffer.float().cpu(), rtol=1e-5, atol=0)
                if not same or abs(getattr(module, factor) - getattr(built, factor)) > 1e-6:
                    raise ModelError(
                        f"{model.name}: {scaling.method} {scaling.factor:g} set in place is not what transformers "
                        "builds from such a config; write a checkpoint with e2bench export and measure that"
                    )
