"""The native window L of a loaded model: which number of its config was taken, and which others there are."""

from __future__ import annotations

from typing import Any

from e2bench.models.findings import NOTE, OK, find
from e2bench.rope.config import SCALED_LAYERS, checkpoint_scaling, rope_config, text_config, window_candidates

CHECK = "native window"


def tell_window(config: Any, tokenizer: Any, native: int, given: int | None) -> None:
    """Name L and every other number that could be it, with the flag that takes it.

    A tokenizer that ends at g·L, with the config's own g, bears the config out.
    """
    candidates = window_candidates(config)
    if isinstance(longest := getattr(tokenizer, "model_max_length", None), int) and 1 < longest < 1e9:
        scaling = checkpoint_scaling(config)
        if scaling is not None and longest == scaling.factor * native and not given:
            find(CHECK, OK, f"L = {native:,}; g·L = {longest:,} is the tokenizer's model_max_length too")
            return
        candidates["the tokenizer's model_max_length"] = longest
    others = {where: value for where, value in candidates.items() if value != native}
    taken = "--native-window" if given else next((w for w, v in candidates.items() if v == native), "the file")
    if given or not others:
        find(CHECK, OK, f"L = {native:,} ({taken})")
        return
    named = ", ".join(f"{where} {value:,}" for where, value in others.items())
    find(
        CHECK,
        NOTE,
        f"L = {native:,} ({taken}); the config also says {named}",
        "g = window / L, so another L is another g",
        f"if one of these is the window of pretraining, give it: --native-window {next(iter(others.values()))}",
    )


def tell_layers(config: Any) -> None:
    """Say which layers a scale applies to: the rule that `RopeSwitch` follows."""
    text = text_config(config)
    kinds = list(getattr(text, "layer_types", None) or [])
    parameters = getattr(text, "rope_parameters", None) or {}
    per_layer = any(isinstance(value, dict) for value in parameters.values())
    if not kinds or len(set(kinds)) == 1:
        find("scaled layers", OK, f"all {text.num_hidden_layers}")
        return
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    if per_layer:
        scaled = f"{kinds.count(SCALED_LAYERS)} {SCALED_LAYERS}"
        find("scaled layers", OK, f"{scaled} of {counts}; the others see near tokens only")
        return
    theta = rope_config(config).get("rope_theta")
    find(
        "scaled layers",
        NOTE,
        f"all rotary layers ({counts}) share one set of frequencies (theta {theta})",
        "a scale changes sliding layers too, as it does in transformers",
    )
