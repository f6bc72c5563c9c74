"""What a checkpoint's config says of its RoPE: parameters, native window, a scaling of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from e2bench.errors import ModelError
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.own import fixed_angles

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_POSITIONS = "max_position_embeddings"
WINDOW_FIELDS = (MAX_POSITIONS, "original_max_position_embeddings", "model_max_length", "seq_length")
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


def window_candidates(config: PretrainedConfig, longest: Any = None) -> dict[str, int]:
    """Numbers that could be L, by where they stand; with them L of a scaling that may be in one of them already.

    longest: the tokenizer's model_max_length.
    """
    text, parameters = text_config(config), rope_config(config)
    found = {name: getattr(text, name, None) or parameters.get(name) for name in WINDOW_FIELDS}
    found["the tokenizer's model_max_length"] = longest
    numbers = {name: int(value) for name, value in found.items() if isinstance(value, int | float) and 1 < value < 1e9}
    factor, most = float(parameters.get("factor") or 1.0), numbers.get(MAX_POSITIONS)
    is_extended = "original_max_position_embeddings" not in numbers and most and factor * most not in numbers.values()
    if factor > 1 and most and is_extended:
        numbers[f"{MAX_POSITIONS} / factor {factor:g}"] = int(most / factor)
    return numbers


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
