"""A RoPE scaling written into a config, as transformers and servers read it."""

from __future__ import annotations

from typing import Any

from e2bench.errors import E2BenchError
from e2bench.rope.config import SCALED_LAYERS, rope_config, text_config
from e2bench.rope.methods import ROWS, RopeScaling


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
    """
    text = text_config(config)
    new = scaled_parameters(rope_config(config), scaling, native)
    all_parameters = text.rope_parameters
    per_layer = any(isinstance(value, dict) for value in all_parameters.values())
    text.rope_parameters = {**all_parameters, SCALED_LAYERS: new} if per_layer else new
    text.max_position_embeddings = native
