"""`e2bench export`."""

from __future__ import annotations

from dataclasses import replace

from e2bench.errors import E2BenchError
from e2bench.options import Common
from e2bench.scales import PER_INPUT, parse_length, short_length, short_number
from e2bench.session import check_scale, load_model, rule_for, say


def run(common: Common) -> None:
    """Write a checkpoint whose config carries the scale."""
    if common.out is None:
        raise E2BenchError("export writes a checkpoint; say where with --out")
    if common.scale == PER_INPUT or "," in (common.scale or ""):
        raise E2BenchError(f"--scale {common.scale} is several scales; a checkpoint has one: give a number or auto")
    check_scale(common)

    from e2bench.export import check_target, export, stored_dtype

    check_target(common.out)
    model = load_model(replace(common, attn="sdpa"))
    rule = rule_for(common, model)
    window = rule.window(parse_length(common.window) if common.window else None)
    scaling = None if rule.kind == "own" else rule.scaling(window)
    export(model, scaling, common.out, dtype=stored_dtype(model.path) if common.dtype == "auto" else None)
    in_force = scaling or model.own_scaling
    g = short_number(in_force.factor) if in_force else 1
    say(f"{common.out}: {model.name} for {short_length(int(g * model.native_window))} tokens (g = {g})")
