"""What a checkpoint's config says of its RoPE: parameters, native window, a scaling of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from e2bench.errors import ModelError
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.own import fixed_angles

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCALED_LAYERS = "full_attention"  # of models with one RoPE per layer type, sliding layers never see far positions


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


def window_candidates(config: PretrainedConfig) -> dict[str, int]:
    """Numbers of a config that could be L, by where they stand; with them L of a scaling that is inside already."""
    text, found = text_config(config), {}
    for name in ("max_position_embeddings", "original_max_position_embeddings", "model_max_length", "seq_length"):
        value = getattr(text, name, None) or rope_config(config).get(name)
        if isinstance(value, int | float) and 1 < value < 1e9:
            found[name] = int(value)
    factor = float(rope_config(config).get("factor") or 1.0)
    if factor > 1 and "original_max_position_embeddings" not in found and "max_position_embeddings" in found:
        found[f"max_position_embeddings / factor {factor:g}"] = int(found["max_position_embeddings"] / factor)
    return found


def checkpoint_scaling(config: PretrainedConfig) -> RopeScaling | None:
    """The scaling that a checkpoint's config carries, or None; its factor is window / L.

    llama3's and longrope's own `factor` is not that ratio: Llama-3.2's 32 goes with 131,072 = 16 · 8,192.
    Fixed angles (`rope.own`) over g are a linear scaling, at g = 1 none.
    """
    parameters = rope_config(config)
    if fixed_angles(parameters):
        g = float(parameters["factor"])
        return RopeScaling("linear", g, own=True) if g > 1 else None
    rope_type = parameters.get("rope_type", "default")
    factor = float(parameters.get("factor") or 1.0)
    if rope_type in ("default", "proportional") or (rope_type == "linear" and factor == 1):
        return None
    if rope_type in ("llama3", "longrope") and (original := _original_window(config)):
        factor = float(getattr(text_config(config), "max_position_embeddings", None) or original) / original
    method = rope_type if rope_type in ("linear", *BY_LENGTH) else "checkpoint"
    return RopeScaling(method, max(factor, 1.0), own=True)


def _original_window(config: PretrainedConfig) -> int | None:
    name = "original_max_position_embeddings"
    return rope_config(config).get(name) or getattr(text_config(config), name, None)
