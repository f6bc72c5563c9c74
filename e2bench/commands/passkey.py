"""`e2bench passkey`."""

from __future__ import annotations

from e2bench.commands.ppl import grid_of
from e2bench.commands.score import show
from e2bench.errors import E2BenchError
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.scales import parse_lengths, short_number
from e2bench.session import check_scale, default_out, finish_run, given, load_model, open_run, rule_for


def run(common: Common, *, lengths: str, depths: int, trials: int, early_stop: bool) -> None:
    """Hide a key at every depth of every length and ask for it."""
    own = {name: value for name, value in locals().items() if name != "common"}
    sizes = parse_lengths(lengths)
    check_scale(common)
    if trials < 1:
        raise E2BenchError(f"--trials {trials} is not possible; it must be at least 1")

    from e2bench.model import require_memory
    from e2bench.passkey import depths_of, make_cells, measure

    places = depths_of(depths)
    model = load_model(common, served=True)
    require_memory(model, sizes[-1])
    rule = rule_for(common, model)
    grid = grid_of(sizes, rule)
    cells = list(make_cells(model, grid, depths=places, trials=trials, seed=common.seed))
    scales = [short_number(scaling.factor) for _, scaling in grid]
    resolved = {
        "grid": [[length, scaling.method, short_number(scaling.factor)] for length, scaling in grid],
        "depths": places,
        "trials": trials,
        "seed": common.seed,
        "early_stop": early_stop,
        "chat_template": "none",
    }
    processes = Processes.from_environment()
    model.rope.set(grid[0][1], grid[0][0])
    out = common.out or default_out("passkey", model, rule)
    with open_run(
        "passkey",
        common,
        model,
        processes,
        settings=given(common, **own),
        resolved=resolved,
        rope={"method": rule.method, "factor": scales[0] if len(set(scales)) == 1 else scales},
        data={},
        out=out,
    ) as folder:
        model.rope.restore()
        measure(model, cells, folder, processes, early_stop=early_stop)
        scores = finish_run(out, processes)
    if scores is not None:
        show(out, scores)
