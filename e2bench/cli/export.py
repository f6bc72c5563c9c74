"""`e2bench export`."""

from __future__ import annotations

from e2bench.errors import E2BenchError
from e2bench.experiments.loading import check_model, load_model, with_preset
from e2bench.experiments.options import Common
from e2bench.rope.windows import PER_INPUT, short_length, short_number
from e2bench.terminal import quoted, say, say_next


def run(common: Common) -> None:
    """Write a checkpoint whose config carries the scale."""
    if common.out is None:
        raise E2BenchError("export writes a checkpoint; say where with --out")
    scale = common.scale
    if scale is not None and (scale.kind == PER_INPUT or len(scale.values) > 1):
        raise E2BenchError(f"--scale {scale} is several scales; a checkpoint has one: give a number or auto")
    check_model(common)

    from e2bench.models.export import check_target, export, stored_dtype

    check_target(common.out)
    model = load_model(common.replaced(attn="sdpa"))
    rule = model.rule(with_preset(common).scale, common.method)
    scaling = None if rule.kind == "own" else rule.scaling(rule.window(common.window))
    export(model, scaling, common.out, dtype=stored_dtype(model.path) if common.dtype == "auto" else None)
    in_force = scaling or model.own_scaling
    g = short_number(in_force.factor) if in_force else 1
    say(f"{common.out}: {model.name} for {short_length(int(g * model.native_window))} tokens (g = {g})")
    made = quoted(common.out)
    say_next(f"e2bench doctor --model {made}", f"e2bench serve-command --model {made}")
