"""A RoPE scaling written into a config, as transformers and servers read it."""

from __future__ import annotations

import copy
import math
from typing import Any

from e2bench.compat import rope_frequencies
from e2bench.errors import E2BenchError, ModelError
from e2bench.rope.config import SCALED_LAYERS, checkpoint_scaling, native_window, rope_config, text_config
from e2bench.rope.factors import MSCALES
from e2bench.rope.methods import BY_LENGTH, ROWS, RopeScaling, unscaled
from e2bench.rope.own import FixedAngles

# What rotary modules alone use. Anything else in `rope_parameters` may be used elsewhere.
KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",  # these two also scale the softmax, which shows in the modules' numbers
    "mscale_all_dim",
    "short_factor",
    "long_factor",
    "short_mscale",  # these two only in engines
    "long_mscale",
    "truncate",
    "mrope_section",
}


def scaled_parameters(parameters: dict[str, Any], scaling: RopeScaling, native: int) -> dict[str, Any]:
    """`rope_parameters` for a scaling: theta and what else describes the rotation kept, the type and factor replaced.

    Raises E2BenchError for a method whose frequencies transformers cannot read from a config the same way.
    """
    if not scaling.is_plain and (scaling.row.own or not scaling.row.in_config):
        takes = [row.name for row in ROWS if row.in_config and not row.own and row.name != "none"]
        raise E2BenchError(
            f"method {scaling.method!r} has no fixed form in a config; export takes {', '.join(takes)} or none"
        )
    return scaling.replacing(parameters, native)


def set_scaling(config: Any, scaling: RopeScaling, native: int) -> None:
    """Write a scaling into a config in place.

    `max_position_embeddings` stays L for a linear factor: vLLM multiplies it by the factor, and so do we
    (`native_window`), so that the window is g·L everywhere. YaRN's is L as well, and named once more in its parameters.
    Of fixed angles (`rope.own`) it is g·L, since nobody multiplies it for longrope.
    """
    text = text_config(config)
    new = scaled_parameters(rope_config(config), scaling, native)
    all_parameters = text.rope_parameters
    per_layer = any(isinstance(value, dict) for value in all_parameters.values())
    text.rope_parameters = {**all_parameters, SCALED_LAYERS: new} if per_layer else new
    text.max_position_embeddings = table_length(new, scaling, native)


def table_length(parameters: dict[str, Any], scaling: RopeScaling, positions: int) -> int:
    """`max_position_embeddings` for which an engine makes a table of g × `positions` tokens under `parameters`."""
    return math.ceil(scaling.factor * positions) if parameters["rope_type"] == "longrope" else positions


def scaled_window(config: Any) -> int:
    """Tokens that a config's own scaling extends L to; L where it has none."""
    own = checkpoint_scaling(config)
    return int((own.factor if own else 1.0) * native_window(config))


def own_as_native(config: Any, native: int | None = None) -> str:
    """Make a config's own scaling its native rotation, in place, so that g divides the angles the model was trained at.

    native: L in tokens; None: the window of that scaling (llama3: `max_position_embeddings`; linear, yarn: factor × L).
    Returns its `rope_type`; "" for a config without a scaling, which is left as it is.
    Raises ModelError for angles that are not the same at every length or in every layer, and for a scaling that other
    modules read too.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    own, parameters, text = checkpoint_scaling(config), rope_config(config), text_config(config)
    if own is None:
        return ""
    kind = str(parameters["rope_type"])
    why = ""
    if own.method in BY_LENGTH:
        why = "it follows each input's length"
    elif parameters is not text.rope_parameters:
        why = "it is of some layers only"
    elif strange := sorted({*parameters} - KNOWN | {*parameters} & {"mscale_all_dim"}):
        why = f"{strange[0]} may be used outside the rotary module"
    if why:
        raise ModelError(
            f"the base's own RoPE scaling ({kind}) has no fixed angles to divide by g: {why}; start from a base "
            "without one, or train it as it is with method: none"
        )
    native = native or scaled_window(config)
    plain = copy.deepcopy(text)
    plain.rope_parameters = {**unscaled(parameters), "rope_type": "linear", "factor": 1.0}
    plain_freq, _ = rope_frequencies(ROPE_INIT_FUNCTIONS["linear"], plain)
    inv_freq, attention = rope_frequencies(ROPE_INIT_FUNCTIONS[kind], copy.deepcopy(text))
    divisors = (plain_freq.double() / inv_freq.double()).clamp(min=1.0)  # a rounding below 1 would be no divisor
    fixed = FixedAngles(tuple(divisors.tolist()), float(attention))
    text.rope_parameters = {**unscaled(parameters), **fixed.parameters(1.0, native)}
    if fixed.attention == 1:  # so engines have it without being told, and transformers would warn of these keys
        for name in MSCALES:
            del text.rope_parameters[name]
    text.max_position_embeddings = native
    if hasattr(text, "original_max_position_embeddings"):  # transformers puts it before the parameters'
        text.original_max_position_embeddings = native
    return kind
