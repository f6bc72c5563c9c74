"""`e2bench passkey`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2bench.commands.grid import grid_of, run_grid
from e2bench.errors import E2BenchError
from e2bench.options import Common
from e2bench.provenance import GENERATED, DataSource
from e2bench.scales import parse_lengths
from e2bench.session import check_model, check_scale, given, load_model, rule_for


def run(common: Common, *, lengths: str, depths: int, trials: int, early_stop: bool, model: Any = None) -> Path | None:
    """Hide a key at every depth of every length and ask for it. Returns the run's folder, on rank 0.

    model: a loaded one, or what answers like one; None: the one that `common` names.
    """
    own = {name: value for name, value in locals().items() if name not in ("common", "model")}
    sizes = parse_lengths(lengths)
    check_scale(common)
    if model is None:
        check_model(common)
    if trials < 1:
        raise E2BenchError(f"--trials {trials} is not possible; it must be at least 1")

    from e2bench.model import require_memory
    from e2bench.passkey import depths_of, make_cells, measure

    places = depths_of(depths)
    model = load_model(common, served=True) if model is None else model
    require_memory(model, sizes[-1])
    rule = rule_for(common, model)
    grid = grid_of(sizes, rule)
    cells = list(make_cells(model, grid, depths=places, trials=trials, seed=common.seed))
    return run_grid(
        "passkey",
        common,
        model,
        rule,
        grid,
        lambda folder, processes: measure(model, cells, folder, processes, early_stop=early_stop),
        settings=given(common, **own),
        resolved={
            "depths": places,
            "trials": trials,
            "seed": common.seed,
            "early_stop": early_stop,
            "chat_template": "none",
        },
        data={},
        source=DataSource(GENERATED),
        chooses={"depths": False, "trials": False},
    )
