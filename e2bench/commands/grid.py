"""What perplexity, passkey and attention share: a grid of lengths and scales, and a run over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import E2BenchError
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.provenance import DataSource
from e2bench.records import RunFolder
from e2bench.rope import RopeScaling
from e2bench.scales import ScaleRule, short_length, short_number
from e2bench.session import default_out, finish_run, open_run, say

if TYPE_CHECKING:
    from e2bench.model import Model

Grid = Sequence[tuple[int, RopeScaling]]


def run_grid(
    experiment: str,
    common: Common,
    model: Model,
    rule: ScaleRule,
    grid: Grid,
    measure: Callable[[RunFolder, Processes], None],
    *,
    settings: Mapping[str, Any],
    resolved: Mapping[str, Any],
    data: Mapping[str, str],
    source: DataSource,
    chooses: Mapping[str, bool],
    advice: Mapping[str, str] | None = None,
    extrapolate: bool = False,
) -> Path | None:
    """Open the run's folder, measure into it and score it. Returns the folder, on rank 0."""
    if common.window is not None:
        say(f"--window {common.window} has no effect on {experiment}: --lengths gives its windows")
    scales = [short_number(scaling.factor) for _, scaling in grid]
    names = [[length, scaling.method, short_number(scaling.factor)] for length, scaling in grid]
    processes = Processes.from_environment()
    model.rope.set(grid[0][1], grid[0][0])  # what run.json shows as in force
    out = common.out or default_out("extrapolate" if extrapolate else experiment, model, rule)
    with open_run(
        experiment,
        common,
        model,
        processes,
        settings=settings,
        resolved={"grid": names, **resolved},
        rope={"method": rule.method, "factor": scales[0] if len(set(scales)) == 1 else scales},
        data=data,
        source=source,
        chooses={"grid": True, **chooses},
        advice=advice,
        out=out,
        **({"extrapolate": True} if extrapolate else {}),
    ) as folder:
        model.rope.restore()
        measure(folder, processes)
        scores = finish_run(out, processes)
    return None if scores is None else out


def grid_of(windows: list[int], rule: ScaleRule) -> list[tuple[int, RopeScaling]]:
    """(window, scaling) of every cell. Of several scales each reads the lengths up to its g·L (Table 3's layout)."""
    if rule.kind != "fixed" or len(rule.values) == 1:
        grid = [(window, rule.scaling(window)) for window in windows]
        beyond = [window for window, scaling in grid if scaling.factor * rule.native < window]
        if beyond and rule.method != "none":
            say(f"scale {grid[0][1].factor:g} covers {_span(grid[0][1].factor, rule)}: beyond it are {_names(beyond)}")
        return grid
    grid, left_out = [], []
    for value in rule.values:
        for window in windows:
            if value * rule.native >= window:
                grid.append((window, rule.scaling(window, value)))
            else:
                left_out.append(f"{short_length(window)} at g = {value:g}")
    if left_out:
        say(f"left out, beyond g·L: {', '.join(left_out)}")
    if not grid:
        raise E2BenchError(f"no length is within g·L of any scale; the largest covers {_span(max(rule.values), rule)}")
    return grid


def _span(factor: float, rule: ScaleRule) -> str:
    return f"{short_length(int(factor * rule.native))} tokens"


def _names(windows: list[int]) -> str:
    return ", ".join(short_length(window) for window in windows)
