"""The native window L of a loaded model: which number of its config was taken, and which others there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2bench.files import read_json
from e2bench.models.findings import NOTE, OK, find
from e2bench.rope.config import SCALED_LAYERS, rope_config, text_config, window_candidates
from e2bench.rope.methods import RopeScaling

CHECK = "native window"
TRAINED, EXPORTED = "e2_config.json", "e2bench_export.json"  # what `e2bench train` and `export` write beside a model


def tell_window(
    config: Any, tokenizer: Any, native: int, *, given: int | None, own: RopeScaling | None, folder: Path
) -> None:
    """Name L and every other number that could be it, with the flag that takes it.

    own: the checkpoint's scaling; a number that is g·L is its extended window, and bears L out.
    folder: of the model or adapter; L as it was when e2bench tuned or exported it settles the question.
    """
    extended = int(own.factor * native) if own else native
    recorded, candidates = _recorded(folder), window_candidates(config, getattr(tokenizer, "model_max_length", None))
    equal = (where for where, value in {**candidates, **recorded}.items() if value == native)
    taken = "--native-window" if given else next(equal, "the file")
    known = {native} if recorded else {native, extended}
    others = {where: value for where, value in (recorded or candidates).items() if value not in known}
    if given or not others:
        find(CHECK, OK, f"L = {native:,} ({taken})" + (f"; g·L = {extended:,}" if extended > native else ""))
        return
    named = ", ".join(f"{where} is {value:,}" for where, value in others.items())
    flags = " or ".join(f"--native-window {value}" for value in dict.fromkeys(others.values()))
    find(
        CHECK,
        NOTE,
        f"L = {native:,} ({taken}), but {named}",
        "g = window / L, so another L is another g",
        f"if L is another one, give it: {flags}",
    )


def _recorded(folder: Path) -> dict[str, int]:
    """L in tokens by the file in which e2bench wrote it down; {} where it did not."""
    found = {
        name: read_json(folder / name).get("native_window") for name in (TRAINED, EXPORTED) if (folder / name).is_file()
    }
    return {f"native_window in {name}": value for name, value in found.items() if isinstance(value, int)}


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
