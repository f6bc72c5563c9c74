"""Which of many runs a comparison of methods shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from e2bench.reporting import labels
from e2bench.reporting.runs import Run, number


def primary(runs: Sequence[Run]) -> list[Run]:
    """The runs a comparison of methods shows: all on models we did not tune, and of each recipe its best-trained one.

    Ablations (without t, without g), fewer steps, other g_max and further seeds belong to Tables 4, 5 and Figure 4.
    """
    tuned = [run for run in runs if run.e2 is not None]
    complete = {str(run.e2.get("base")) for run in tuned if run.e2 and labels.tuning(run.e2) == "E²-LLM"}
    best: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for run in tuned:
        best[_recipe(run)] = max(best.get(_recipe(run), ()), _rank(run))
    return [
        run
        for run in runs
        if run.e2 is None
        or (_rank(run) == best[_recipe(run)] and not ("w/o" in _recipe(run)[1] and _recipe(run)[0] in complete))
    ]


def _recipe(run: Run) -> tuple[str, ...]:
    e2 = run.e2 or {}
    fixed = str(e2.get("scale")) if e2.get("method") != "e2" else ""
    return str(e2.get("base")), labels.tuning(e2), fixed


def budget(e2: dict[str, Any]) -> float:
    """Tokens of the whole training, to two digits: rows of other lengths make other steps of the same tokens."""
    step, steps, tokens = (e2.get(key) for key in ("step", "steps", "tokens"))
    if not (number(step) and number(steps)):
        return 0.0
    per_step = tokens / step if number(tokens) and step else 1.0
    return float(f"{steps * per_step:.2g}")


def _rank(run: Run) -> tuple[Any, ...]:
    """Longer training first, then the paper's g_max, the lowest seed and the latest step."""
    e2 = {key: value if number(value) else 0 for key, value in (run.e2 or {}).items()}
    return budget(e2), e2.get("g_max") == 20, -e2.get("seed", 0), e2.get("step", 0)
