"""What perplexity, passkey and attention share: a grid of lengths and scales, and scores by its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import Line, Sample
from e2bench.rope.windows import ScaleRule, short_length, short_number
from e2bench.runs.lines import stored_rows
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.experiments.options import Common
    from e2bench.rope.methods import RopeScaling

Grid = Sequence[tuple[int, "RopeScaling"]]
Rows = list[dict[str, Any]]


def grid_of(windows: Sequence[int], rule: ScaleRule) -> list[tuple[int, RopeScaling]]:
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


def grid_facts(grid: Grid, rule: ScaleRule, common: Common, experiment: str) -> dict[str, Any]:
    """The arguments of `Plan` that follow from a grid: its RoPE, and what stands in force at the start."""
    if common.window is not None:
        say(f"--window {short_length(common.window)} has no effect on {experiment}: --lengths gives its windows")
    scales = [short_number(scaling.factor) for _, scaling in grid]
    return {
        "rope": {"method": rule.method, "factor": scales[0] if len(set(scales)) == 1 else scales},
        "scaling": grid[0][1],
        "length": grid[0][0],
        "scalings": tuple(grid),
    }


def named(grid: Grid) -> list[list[Any]]:
    """The grid as run.json has it: [length, method, g] of every cell."""
    return [[length, scaling.method, short_number(scaling.factor)] for length, scaling in grid]


def cell_part(length: int, scaling: RopeScaling) -> str:
    """The row of a forecast that a cell belongs to."""
    return f"{short_length(length)}, {scaling.method} g {short_number(scaling.factor)}"


def _span(factor: float, rule: ScaleRule) -> str:
    return f"{short_length(int(factor * rule.native))} tokens"


def _names(windows: list[int]) -> str:
    return ", ".join(short_length(window) for window in windows)


# stored lines


def finished_lines(folder: Path, name: str) -> Rows:
    """The lines of NAME.jsonl. Raises DataError where there is none."""
    rows = stored_rows(folder, name)
    if not rows:
        raise DataError(f"{folder} holds no finished line in {name}.jsonl; run the experiment first")
    return rows


def grouped(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], Rows]]:
    """Rows by their values of `keys`, in growing order."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(dict(row))
    return sorted(groups.items(), key=lambda pair: pair[0])


def cell_samples(
    lines: Sequence[Line], keys: Sequence[str], size: str, made: Callable[[Line], Mapping[str, Any]], *, strict: bool
) -> Iterator[tuple[Line, Sample]]:
    """Lines as samples of one task a length. The scale is left out of the names: it is what two runs differ in.

    keys: fields that name a line beside its length, the field `size`.    made: the rest of `Sample`.
    strict: raise DataError where a run has two lines of one name, which then have no pair.
    """
    seen: set[tuple[Any, str]] = set()
    for line in lines:
        name = " ".join(f"{key}={line[key]}" for key in keys)
        if strict and (line[size], name) in seen:
            raise DataError(
                f"a run measured {name} at {size} {line[size]:,} at several scales: "
                "no pair; compare runs with one scale a length"
            )
        seen.add((line[size], name))
        yield line, Sample(f"{line[size]:,}", name, **made(line))


def cell_label(line: Line) -> str:
    """How the page calls a line of a grid of lengths, depths and trials."""
    return f"{line['length']} tokens, depth {line.get('depth'):.2g}, trial {line.get('trial')}"
